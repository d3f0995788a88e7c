"""What ``manifest.json`` of a model folder holds: its JSON Schema is ``manifest.schema.json`` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypeAliasType

from policy_export.config.params import OnnxSession
from policy_export.config.section import Count, Index, Positive, Probability, Section
from policy_export.device.errors import UserError
from policy_export.device.manifest import MANIFEST

Name = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DIGEST_RULE = (
    "SHA-256 of all other keys: of their JSON with sorted keys, without spaces, in ASCII, with numbers as they are here"
)
Whole = Literal["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
Dtype = Whole | Literal["float16", "float32", "float64"]
# In the shape of an action: bounds, which are null where there is none, and numbers of choices.
Limits = TypeAliasType("Limits", "list[Limits] | float | None")
Sizes = TypeAliasType("Sizes", "list[Sizes] | int")


class Entry(Section):
    """An input or output: the first dimension is the batch."""

    name: Name
    dtype: Dtype
    shape: Annotated[list[Literal["batch"] | Index], Field(min_length=1)]


class State(Section):
    """A memory: ``output`` of a step is ``input`` of the next."""

    input: Name
    output: Name
    start: Name


class Signature(Section):
    inputs: list[Entry]
    outputs: list[Entry]
    states: list[State]


class Atari(Section):
    id: Name
    rom: Name
    frame_skip: Count
    repeat_action_probability: Probability
    max_episode_steps: Count


class Gym(Section):
    id: Name
    max_episode_steps: Count
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Factory(Section):
    factory: Name
    arguments: dict[str, Any]
    max_episode_steps: Count | None


class Recording(Section):
    recording: Name


class Choice(Section):
    index: Index
    name: Name
    ale_id: Index | None = None


class Bounds(Section):
    """Of a vector."""

    low: Limits
    high: Limits


class OneIndex(Section):
    kind: Literal["index"]
    sizes: Annotated[list[Count], Field(min_length=1, max_length=1)]


class Indices(Section):
    kind: Literal["indices"]
    sizes: list[Sizes]


class OneHot(Section):
    kind: Literal["one_hot"]
    sizes: list[Count]
    shape: list[Count]


class Bits(Section):
    kind: Literal["bits"]
    shape: list[Count]


class Vector(Bounds):
    kind: Literal["vector"]


class Entries(Section):
    entries: dict[Name, Annotated[OneIndex | Indices | OneHot | Bits | Vector, Field(discriminator="kind")]]


class Program(Section):
    file: Name
    random_file: Name | None


class File(Section):
    content: Name
    bytes: Index
    sha256: Digest
    versions: dict[Name, Name] = Field(default_factory=dict)


class Manifest(BaseModel):
    """Names, dtypes and shapes of a policy's programs, their environment, what their numbers mean, and every file."""

    model_config = ConfigDict(extra="allow", strict=True, title=MANIFEST)

    schema_version: Literal[1]
    policy: Name
    environment: Atari | Gym | Factory | Recording
    actions: list[Choice] | Bounds | Entries
    action_names: list[Name] = ["action"]
    inputs: Annotated[list[Entry], Field(min_length=1)]
    outputs: Annotated[list[Entry], Field(min_length=1)]
    states: list[State]
    random: Signature | None = None
    parameters: dict[str, Any]
    programs: dict[Name, Program]
    onnx_session: OnnxSession
    versions: dict[Name, Name]
    revision: Name | None
    parity_report: Name
    verdict: Name | None = None
    files: dict[Name, File]
    facts: Any = None
    names: dict[Name, list[str]] = {}
    control_rate_hz: Positive | None = None
    license: str | None = None
    digest: Annotated[Digest | None, Field(description=DIGEST_RULE)] = None


def check_manifest(content: Any, path: Path) -> None:
    """Compare a manifest with its schema.

    Raises:
        UserError: there is a line for each mistake.
    """
    try:
        Manifest.model_validate(content)
    except ValidationError as error:
        mistakes = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors(include_url=False)]
        raise UserError("\n".join(f"{path}: damaged: {key}: {what}" for key, what in mistakes)) from None
