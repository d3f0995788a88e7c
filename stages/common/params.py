"""``params.yaml`` as typed, checked objects.

The file is read with the parser that DVC itself uses (YAML 1.2), so both see the same values, and it is checked as a
whole: a mistake in the last stage's section is reported before the first stage starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.errors import UserError

PATH = Path("params.yaml")
SCREEN_SIZE = (210, 160)  # height and width of an Atari screen, in pixels

Count = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=1_000_000_000)]  # of emulators, which take 31 bits
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Discount = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A mapping in ``params.yaml``: every key is required and known, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Env(Section):
    id: str
    frame_skip: Count
    repeat_action_probability: Probability
    max_episode_steps: Count


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
        bottom, right = self.crop.top + self.crop.height, self.crop.left + self.crop.width
        if bottom > SCREEN_SIZE[0] or right > SCREEN_SIZE[1]:
            raise ValueError(
                f"crop reaches row {bottom} and column {right}, but a screen has {SCREEN_SIZE[0]} rows and "
                f"{SCREEN_SIZE[1]} columns"
            )
        crop = [self.crop.height, self.crop.width]
        if self.resize == "nearest" and any(source % target for source, target in zip(crop, self.size, strict=True)):
            raise ValueError(f"size is {self.size}, but resize: nearest needs divisors of the crop's {crop}")
        if not any(self.grey):
            raise ValueError(f"grey is {self.grey}, at least one weight must differ from 0")
        return self


class Policy(Section):
    conv: list[Annotated[list[Count], Field(min_length=3, max_length=3)]]
    hidden: list[Count]
    epsilon: Probability

    def feature_sizes(self, size: list[int]) -> list[tuple[int, int]]:
        """Height and width after each convolution of an image of ``size``."""
        height, width = size
        sizes = []
        for _, kernel, stride in self.conv:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            sizes.append((height, width))
        return sizes


class Train(Section):
    seed: Annotated[int, Field(ge=0, lt=1000)]
    total_steps: Count
    num_envs: Count
    rollout_steps: Count
    epochs: Count
    minibatch_size: Count
    learning_rate: Positive
    max_grad_norm: Positive
    gamma_start: Discount
    gamma: Discount
    lambda_: Probability
    return_ends_at_reward: bool
    epsilon_start: Probability
    epsilon_steps: Count
    eval_episodes: Count


class Profile(Section):
    env: Env
    preprocess: Preprocess
    policy: Policy
    train: Train

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        sizes = self.policy.feature_sizes(self.preprocess.size)
        if any(size < 1 for pair in sizes for size in pair):
            raise ValueError(f"policy.conv leaves images of {sizes} of preprocess.size {self.preprocess.size}")
        if self.policy.epsilon > self.train.epsilon_start:
            raise ValueError(
                f"policy.epsilon is {self.policy.epsilon}, must be at most train.epsilon_start "
                f"({self.train.epsilon_start})"
            )
        return self


class Record(Section):
    seed: Seed
    greedy_episodes: Count
    epsilon_episodes: Index
    epsilon: Probability


class CompileAoti(Section):
    threads: Count
    freezing: bool
    max_autotune: bool


class ExportOnnx(Section):
    opset: Annotated[int, Field(ge=18, le=24)]


class ParityCheck(Section):
    tolerance: Positive
    seed: Seed
    random_situations: Count
    random_calls: Annotated[int, Field(gt=0, multiple_of=2)]
    random_error_rate: Annotated[float, Field(gt=0, lt=1)]


class Bench(Section):
    rounds: Count
    warmup_steps: Count
    steps: Annotated[int, Field(ge=100)]
    rollout_steps: Count
    threads: Count


class Params(Section):
    matrix: Annotated[list[str], Field(min_length=1)]
    policies: dict[str, Profile]
    record: Record
    compile_aoti: CompileAoti
    export_onnx: ExportOnnx
    parity_check: ParityCheck
    bench: Bench

    @model_validator(mode="after")
    def _matrix_names_policies(self) -> Self:
        for name in self.matrix:
            if name not in self.policies:
                raise ValueError(f"matrix names {name!r}, which is not in policies ({', '.join(self.policies)})")
        if len(set(self.matrix)) < len(self.matrix):
            raise ValueError(f"matrix is {self.matrix}, which names a policy twice")
        return self

    def profile(self, name: str) -> Profile:
        """The profile of one policy.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.policies:
            raise UserError(f"params.yaml: policies: no {name!r}, only {', '.join(self.policies)}")
        return self.policies[name]


def _explain(error: ErrorDetails) -> str:
    """One mistake as ``key: what was found, what is allowed``."""
    key = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "missing":
            return f"{key}: missing, must be given"
        case "extra_forbidden":
            return f"{key}: unknown key (value {error['input']!r})"
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            return f"{key}: {message}" if key else message
        case "model_type":
            return f"{key or 'the file'}: {error['input']!r}: must be a dictionary (keys and values)"
        case _:
            return f"{key}: {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _allowed(loc: tuple[int | str, ...]) -> str:
    """The keys known where an unknown one was found."""
    model: Any = Params
    for part in loc[:-1]:
        if isinstance(model, type) and issubclass(model, Section):
            model = model.model_fields[str(part)].annotation
            if getattr(model, "__origin__", None) is dict:
                model = model.__args__
        else:  # a name in `policies`
            model = model[1]
    return ", ".join(model.model_fields)


def load(path: Path = PATH) -> Params:
    """Read and check ``params.yaml``.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing, ill-typed or out of range. All mistakes are
            named, with the value found and what is allowed.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        mistakes = []
        for details in error.errors(include_url=False):
            text = _explain(details)
            if details["type"] == "extra_forbidden":
                text += f"; known here: {_allowed(details['loc'])}"
            mistakes.append(text)
        raise UserError("\n".join(f"{path}: {mistake}" for mistake in mistakes)) from None
