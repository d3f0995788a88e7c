"""``params.yaml`` as a whole: the stages' sections, and every policy's profile.

It is checked as a whole, so that a mistake in the last stage's section is reported before the first stage starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policy_export.config.profile import PATH, Profiles, check, read
from policy_export.config.section import Count, Index, NotNegative, Positive, Probability, Section

Seed = Annotated[int, Field(ge=0, lt=1_000_000_000)]  # of emulators, which take 31 bits


class Record(Section):
    seed: Seed
    greedy_episodes: Count
    epsilon_episodes: Index
    epsilon: Probability


class CompileAoti(Section):
    threads: Count
    freezing: bool
    max_autotune: bool
    gemm_backends: Annotated[list[Literal["ATEN", "CPP"]], Field(min_length=1)]
    convolutions_as_products: bool


class Golden(Section):
    decisions: Count
    tolerance: Positive


class CompileNative(Section):
    targets: Annotated[list[Literal["native", "x86-64-v4", "x86-64-v3", "aarch64"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _targets_are_different(self) -> Self:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets is {self.targets}, which names one twice")
        return self


class ExportOnnx(Section):
    opset: Annotated[int, Field(ge=18, le=24)]


class OnnxSession(Section):
    threads: Count
    spinning: bool
    memory_pattern: bool
    arena: bool
    optimization: Literal["none", "basic", "extended", "layout", "all"]


class Manifest(Section):
    onnx_session: OnnxSession


class ParityCheck(Section):
    processes: Count
    min_observations: Count
    tolerance: Positive
    seed: Seed
    episodes: Count
    soak_calls: Count
    random_inputs: Count
    random_calls: Annotated[int, Field(gt=0, multiple_of=2)]
    random_error_rate: Annotated[float, Field(gt=0, lt=1)]


class Bench(Section):
    cold_starts: Count
    rounds: Count
    warmup_queries: Count
    queries: Count
    multi_stream_queries: Count
    contended_queries: Count
    samples: Count
    batches: Annotated[list[Count], Field(min_length=1)]
    stride: Count
    offline_seconds: Positive
    rollout_steps: Count
    threads: Count
    noise: Positive
    least_difference: NotNegative


class Params(Section):
    matrix: Annotated[list[str], Field(min_length=1)]
    programs: Annotated[list[str], Field(min_length=1)]
    policies: Profiles
    record: Record
    golden: Golden
    compile_aoti: CompileAoti
    compile_native: CompileNative
    export_onnx: ExportOnnx
    manifest: Manifest
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


def load(path: Path = PATH) -> Params:
    """Read and check ``params.yaml``.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing, ill-typed or out of range. All mistakes are
            named, with the value found and what is allowed.
    """
    return check(Params, read(path), path=path)
