"""Instruction sets that a policy is compiled for: what the compilers are told about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stages.common.errors import UserError

# What processors of the levels of x86-64 have beside those of the level below, by the kernel's names (psABI).
V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@dataclass(frozen=True)
class Target:
    """Attributes:
    name: of the instruction set, which the library tells.
    level: of x86-64; 1 on other architectures.
    vectors: PyTorch's class for the vector instructions.
    options: of the compiler, for the generated code.
    cmake: more of CMake's variables.
    """

    name: str
    level: int
    vectors: str
    options: tuple[str, ...]
    cmake: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Let PyTorch generate code for this target, whatever processor this is."""
        from torch._inductor import cpu_vec_isa

        before = cpu_vec_isa.valid_vec_isa_list
        vectors = getattr(cpu_vec_isa, self.vectors)()
        cpu_vec_isa.valid_vec_isa_list = lambda: [vectors]
        try:
            yield
        finally:
            cpu_vec_isa.valid_vec_isa_list = before


DEFINES = ("-DTORCH_INDUCTOR_CPP_WRAPPER", "-DSTANDALONE_TORCH_HEADER", "-DC10_USING_CUSTOM_GENERATED_MACROS")
TARGETS = {
    "x86-64-v4": Target(
        "x86-64-v4",
        4,
        "VecAVX512",
        (*DEFINES, "-DCPU_CAPABILITY_AVX512", "-march=x86-64-v4", "-mprefer-vector-width=512"),
    ),
    "x86-64-v3": Target("x86-64-v3", 3, "VecAVX2", (*DEFINES, "-DCPU_CAPABILITY_AVX2", "-march=x86-64-v3")),
}


def find_target(name: str) -> Target:
    return TARGETS[name]
