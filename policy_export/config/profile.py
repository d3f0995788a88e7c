"""The policies' profiles in ``params.yaml`` as typed, checked objects.

The file is read by the rules of DVC's own parser (YAML 1.2), so that both see the same values. The arguments of
a policy's factory are checked against the factory's own signature, when it is called (:func:`check`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from yaml import YAMLError

from policy_export.config.core_schema import read_yaml
from policy_export.config.errors import ProfileError
from policy_export.config.section import Count, Index, Number, Positive, Probability, Section
from policy_export.config.training import ALGORITHMS, Train
from policy_export.device.errors import UserError
from policy_export.device.manifest import MEANING

PATH = Path("params.yaml")
BESIDE = {"programs", "reference", *MEANING}  # keys that decide nothing of what a policy is

Model = TypeVar("Model", bound=BaseModel)


FactoryName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Made(Section):
    """What a function of the user's makes: the ``factory``, and the arguments that it takes by keyword."""

    model_config = ConfigDict(extra="allow")

    factory: FactoryName

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class GymEnv(Section):
    """Any environment that gymnasium makes; ``kwargs`` are its arguments."""

    id: str
    max_episode_steps: Count
    kwargs: dict[str, Any] | None = None


class FactoryEnv(Made):
    """Any environment of TorchRL's, made by a function; the keys that are not here are its arguments."""

    max_episode_steps: Count | None = None


class Bounds(Section):
    """The smallest and the largest numbers of a vector."""

    low: list[Number]
    high: list[Number]

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if len(self.low) != len(self.high) or any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low is {self.low} and high is {self.high}, which do not bound the same numbers")
        return self


class RecordedEnv(Section):
    """No environment: only what was observed in one that is elsewhere.

    Attributes:
        recording: a safetensors file with what was observed, step by step.
        actions: number of choices, or of each of several; or the bounds of a vector.
    """

    recording: str
    actions: int | list[int] | Bounds

    @field_validator("actions", mode="before")
    @classmethod
    def _actions_are_known(cls, found: Any) -> int | list[int] | Bounds:
        match found:
            case Bounds() | {"low": [*_], "high": [*_]}:
                return Bounds.model_validate(found)
            case bool():
                pass
            case int() if found > 0:
                return found
            case [int(), *_] if all(type(size) is int and size > 0 for size in found):
                return found
        raise ValueError(
            f"{found!r}: must be a number of choices, a list of such numbers, or {{low: [...], high: [...]}}"
        )


class AtariEnv(Section):
    id: str
    frame_skip: Count
    repeat_action_probability: Probability
    max_episode_steps: Count


def _env_kind(env: Any) -> str | None:
    known = env if isinstance(env, dict) else dict(env) if isinstance(env, Section) else {}
    for kind in ("factory", "recording"):
        if kind in known:
            return kind
    if "id" not in known:
        return None
    found = known["id"]
    return "gym" if isinstance(found, str) and not found.startswith("ALE/") else "atari"


Env = Annotated[
    Annotated[AtariEnv, Tag("atari")]
    | Annotated[GymEnv, Tag("gym")]
    | Annotated[FactoryEnv, Tag("factory")]
    | Annotated[RecordedEnv, Tag("recording")],
    Discriminator(_env_kind),
]


def env_key(env: Env) -> str:
    """Return the key that names an environment, and its name, for messages."""
    kind = next(kind for kind in ("id", "factory", "recording") if hasattr(env, kind))
    return f"env.{kind}: {getattr(env, kind)!r}"


class Crop(Section):
    top: Index
    left: Index
    height: Count
    width: Count


class Preprocess(Section):
    crop: Crop
    grey: Annotated[list[Number], Field(min_length=3, max_length=3)]
    resize: Literal["nearest", "area", "bilinear"]
    size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    mean: Number
    std: Positive
    frames: Count

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        crop = [self.crop.height, self.crop.width]
        if self.resize == "nearest" and any(source % target for source, target in zip(crop, self.size, strict=True)):
            raise ValueError(f"size is {self.size}, but resize: nearest needs divisors of the crop's {crop}")
        if not any(self.grey):
            raise ValueError(f"grey is {self.grey}, at least one weight must differ from 0")
        return self


class Checkpoint(Section):
    """Weights that another program has trained.

    Attributes:
        file: a dictionary of tensors, as ``torch.save`` or safetensors writes it.
        entry: where the weights are in the file, if it holds more: the keys that lead to them, with dots between.
        prefix: how the names begin of the weights that are taken, without this beginning; all others are left out.
        keys: what the beginnings of names become; null leaves the weights out that begin so.
    """

    file: str
    entry: str | None = None
    prefix: str | None = None
    keys: dict[str, str | None] | None = None


class Policy(Made):
    """How a policy is built: its ``factory``, the arguments that it takes by keyword, and its weights.

    A factory that has a parameter ``checkpoint`` is given it, and loads its weights by itself.
    """

    checkpoint: Any = None

    @property
    def arguments(self) -> dict[str, Any]:
        own = {} if self.checkpoint is None else {"checkpoint": self.checkpoint}
        return super().arguments | own


class Transforms(Made):
    """How the transforms between environment and policy are made."""


class Profile(Section):
    """One policy, and what becomes of it.

    Attributes:
        reference: a function of the owner's that decides as the policy does, or what makes one.
        facts: anything that a user of the policy must know, such as joints, units and gains; no stage reads it.
        names: what the numbers of an input or output are called, in order, by its name.
        control_rate_hz: how many decisions a second its device needs.
        license: under which its weights may be used.
    """

    env: Env
    preprocess: Preprocess | None
    transforms: Transforms | None = None
    policy: Policy
    train: Train
    programs: Annotated[list[str], Field(min_length=1)] | None = None
    reference: FactoryName | Made | None = None
    facts: Any = None
    names: dict[str, list[str]] | None = None
    control_rate_hz: Positive | None = None
    license: str | None = None

    @property
    def meaning(self) -> dict[str, Any]:
        """Return what the profile says of its numbers, which no training depends on."""
        return {name: value for name in MEANING if (value := getattr(self, name)) is not None}

    @field_validator("facts")
    @classmethod
    def _facts_are_json(cls, found: Any) -> Any:
        try:
            json.dumps(found, allow_nan=False)
        except ValueError:
            raise ValueError("holds a number that is not finite, which JSON has not") from None
        return found

    @field_validator("names")
    @classmethod
    def _names_differ(cls, found: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
        for entry, names in (found or {}).items():
            if repeated := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{entry}: {min(repeated)!r} stands there twice")
        return found

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.preprocess is not None and not isinstance(self.env, AtariEnv):
            raise ValueError(f"preprocess is for Atari's screens, must be null where env is {self.env!r}")
        if isinstance(self.env, RecordedEnv):
            if self.transforms is not None:
                raise ValueError("transforms need an environment, must be left out where env.recording is given")
            if self.train.algorithm != "none":
                raise ValueError(
                    f"train.algorithm is {self.train.algorithm!r}, must be none where env.recording is given"
                )
        return self


# How the names of files end that factories are given. What has a separator is taken for a file's name as well if a
# policy's factory is given it, and not if an environment's is: these have names such as "ALE/Pong-v5".
SUFFIXES = {".pt", ".pth", ".ckpt", ".safetensors", ".npz", ".npy", ".zip", ".pkl", ".json", ".yaml", ".csv", ".onnx"}
MODULE_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _strings(content: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield all strings in an argument, with their dotted keys."""
    match content:
        case str():
            yield key, content
        case dict():
            for name, value in content.items():
                yield from _strings(value, f"{key}.{name}")
        case list():
            for index, value in enumerate(content):
                yield from _strings(value, f"{key}.{index}")


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than a name can be
        return False


def named_files(profile: Profile) -> set[Path]:
    """Return the files among the arguments of a profile's factories and environment."""
    return _files(_arguments(profile))


def reference_files(profile: Profile) -> set[Path]:
    """Return the files among the arguments of what makes a profile's reference."""
    return _files(_reference_arguments(profile))


def _files(arguments: Iterable[tuple[str, str]]) -> set[Path]:
    named = {Path(value) for _, value in arguments if _is_there(value)}
    return {path for path in named if path.is_file()}


def _reference_arguments(profile: Profile) -> Iterator[tuple[str, str]]:
    if isinstance(profile.reference, Made):
        yield from _strings(profile.reference.arguments, "reference")


def _arguments(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield all strings among the arguments of a profile's factories and environment, with their dotted keys."""
    yield from _strings(profile.policy.arguments, "policy")
    if profile.transforms is not None:
        yield from _strings(profile.transforms.arguments, "transforms")
    match profile.env:
        case FactoryEnv():
            yield from _strings(profile.env.arguments, "env")
        case GymEnv():
            yield from _strings(profile.env.kwargs or {}, "env.kwargs")
        case RecordedEnv():
            yield "env.recording", profile.env.recording


def named_modules(profile: Profile) -> list[str]:
    """Return the modules that a profile names: its factories', and its environment's, as in ``my_module:MyEnv-v0``."""
    made = [made for made in (profile.policy, profile.transforms, profile.env) if isinstance(made, Made)]
    modules = [each.factory.partition(":")[0] for each in made]
    if isinstance(profile.env, AtariEnv | GymEnv) and ":" in profile.env.id:
        modules.append(profile.env.id.partition(":")[0])
    return modules


def check_files(profile: Profile) -> None:
    """Check that the files exist that a profile's factories and environment are given.

    Raises:
        ProfileError: something looks like a file's name, but there is no such file. All of them are named.
    """
    missing = [
        f"{key}: {value!r}: no such file"
        for key, value in itertools.chain(_arguments(profile), _reference_arguments(profile))
        if (Path(value).suffix.lower() in SUFFIXES or ("/" in value and key.startswith("policy.")))
        and "://" not in value
        and not MODULE_PATH.fullmatch(value)
        and not _is_there(value)
    ]
    if missing:
        raise ProfileError("\n".join(missing))


def _check_policy_names(profiles: dict[str, Profile]) -> dict[str, Profile]:
    for name in profiles:
        if not POLICY_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r}: a policy's folders have its name: must begin with a letter or digit, and have only these, "
                f"'_', '-' and '.', {LONGEST_NAME} at most"
            )
    return profiles


LONGEST_NAME = 63  # bytes: golden decisions of a native library have 64 for it, and end it with a zero
POLICY_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}")
Profiles = Annotated[dict[str, Profile], AfterValidator(_check_policy_names)]


class Policies(BaseModel):
    """The part of ``params.yaml`` that a stage reads if it needs only a policy's profile."""

    policies: Profiles


# The members of unions, by what Pydantic calls them in the place of a mistake.
MEMBERS: dict[str, type[BaseModel]] = {
    "atari": AtariEnv,
    "gym": GymEnv,
    "factory": FactoryEnv,
    "recording": RecordedEnv,
    **ALGORITHMS,
}


def _place(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Return the dotted key of a mistake, and the keys that are known at the same place."""
    parts = list(loc)
    if parts[:1] == ["policies"] and len(parts) > 1:
        name, model = parts[1], Profile
        key = ["policies", str(name)]
        parts = parts[2:]
    else:
        key = []
    for position, part in enumerate(parts):
        if position == 1 and parts[0] in ("env", "train") and part in MEMBERS:  # the union's member, no key
            model = MEMBERS[str(part)]
            continue
        key.append(str(part))
        if isinstance(part, str) and part in model.model_fields and position + 1 < len(parts):
            model = next(_models(model.model_fields[part].annotation), model)
    return ".".join(key), [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _explain(error: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    """Describe one mistake as ``key: what was found, what is allowed``."""
    key, known = _place(model, error["loc"])
    key, found, kind = f"{prefix}{key}", error["input"], error["type"]
    if kind == "missing":
        return f"{key}: missing, must be given"
    if kind == "union_tag_not_found" and key.endswith("env"):
        return f"{key}.id: missing, must be given, or else factory or recording"
    if kind == "union_tag_not_found":
        return f"{key}.algorithm: missing, must be given"
    if kind == "union_tag_invalid":
        return f"{key}.algorithm: {found['algorithm']!r}: must be one of {error['ctx']['expected_tags']}"
    if kind == "value_error":
        return f"{key}: {error['msg']}".replace("Value error, ", "").removeprefix(": ")
    if kind == "extra_forbidden":
        message = f"unknown key; known here: {', '.join(known)}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        key, message = key or "the file", "must be a dictionary (keys and values)"
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{key}: {found!r}: {message}"


def check(model: type[Model], content: Any, prefix: str = "", path: Path = PATH) -> Model:
    """Return ``content``, which stands under the keys of ``prefix``, as an object.

    Raises:
        UserError: a key is unknown, missing, ill-typed or out of range. All mistakes are named, with the value found
            and what is allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        mistakes = describe_mistakes(error, model, prefix)
        raise UserError("\n".join(f"{path}: {mistake}" for mistake in mistakes)) from None


def describe_mistakes(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    """Return a line for each mistake in what should be a ``model`` and stands under the keys of ``prefix``."""
    return [_explain(details, model, prefix) for details in error.errors(include_url=False)]


def read(path: Path = PATH) -> Any:
    """Return the content of the file.

    Raises:
        UserError: it cannot be read, or is not YAML.
    """
    try:
        return read_yaml(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: not YAML that can be read: too many levels in each other") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load_profile(policy: str, path: Path = PATH) -> Profile:
    """Return one policy's profile; nothing else in the file is read.

    Raises:
        UserError: there is no policy of that name, or its profile has a mistake.
    """
    content = read(path)
    policies = content.get("policies") if isinstance(content, dict) else None
    if not isinstance(policies, dict) or policy not in policies:
        raise UserError(f"{path}: policies: no {policy!r}, only {', '.join(policies or ())}")
    return check(Policies, {"policies": {policy: policies[policy]}}, path=path).policies[policy]
