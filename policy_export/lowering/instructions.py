"""Instruction sets: those that this processor has, and the compilers' options for those that programs are built for."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from policy_export.device.errors import UserError
from policy_export.stage.processor import processor

# What processors of the upper levels of x86-64 have, by the kernel's names (psABI).
V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# What AOTInductor calls instruction sets in its packages, and the flags that their code needs.
NEEDED = {
    "AVX2": V3,
    "AVX512": V4,
    "AVX512_VNNI": V4 | {"avx512_vnni"},
    "AMX_TILE": V4 | {"amx_tile"},
    "ASIMD": frozenset({"asimd"}),  # NEON, and SVE too
}


def flags() -> frozenset[str]:
    """Return the instruction sets that this processor has, by the kernel's names."""
    return frozenset(processor().get("flags", processor().get("Features", "")).split())


def missing_instructions(machine: str, instructions: str, have: frozenset[str] | None = None) -> str | None:
    """Return why code does not run on a processor of this machine's architecture, or none if it does.

    Args:
        machine: the architecture that it was compiled for, such as ``x86_64``.
        instructions: AOTInductor's names for the instruction sets, such as ``AVX512 AVX512_VNNI``.
        have: the processor's flags; this one's where there are none.
    """
    if machine != platform.machine():
        return f"it was compiled for {machine}, this machine is {platform.machine()}"
    needed: set[str] = set()
    for name in instructions.split():
        if name == "INVALID_VEC_ISA":  # code for any processor of the architecture
            continue
        if name not in NEEDED:
            return f"it needs the instruction set {name}, which is not known here"
        needed |= NEEDED[name]
    if lacking := sorted(needed - (flags() if have is None else have)):
        return f"it was compiled for {instructions}, and the processor lacks {', '.join(lacking)}"
    return None


@dataclass(frozen=True)
class Target:
    """An instruction set that native libraries are built for.

    Attributes:
        name: as the library reports it.
        level: of x86-64; 1 on other architectures.
        vectors: PyTorch's class for the vector instructions.
        options: of the compiler, for the generated code.
        tools: more of CMake's variables.
    """

    name: str
    level: int
    vectors: str
    options: tuple[str, ...]
    tools: dict[str, str] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """Return the target's architecture."""
        return "aarch64" if self.name == "aarch64" else "x86_64"

    @property
    def foreign(self) -> bool:
        """Return whether its architecture differs from this machine's."""
        return self.machine != platform.machine()

    @property
    def runs_here(self) -> bool:
        """Return whether this processor has all that it needs."""
        return not self.foreign and flags() >= {3: V3, 4: V4}.get(self.level, frozenset())

    def obstacle(self, machine: str) -> str | None:
        """Return why it cannot be built on a machine of this architecture, or none if it can."""
        if self.machine == machine:
            return None
        if not self.tools:
            return f"{self.name} cannot be built on {machine}; remove it"
        for compiler in (self.tools["CMAKE_CXX_COMPILER"], self.tools["CMAKE_C_COMPILER"]):
            if shutil.which(compiler) is None:
                return f"{self.name} needs {compiler}: install it (Debian: apt install g++-aarch64-linux-gnu)"
        return None

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Let PyTorch generate code for this instruction set, whatever this processor has."""
        from policy_export.program.torch_private import compiling_for

        with compiling_for(self.vectors):
            yield


AARCH64 = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
    "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
}
TARGETS = {
    target.name: target
    for target in (
        Target(
            "x86-64-v4",
            4,
            "VecAVX512",
            ("-DCPU_CAPABILITY_AVX512", "-march=x86-64-v4", "-mprefer-vector-width=512"),
        ),
        Target("x86-64-v3", 3, "VecAVX2", ("-DCPU_CAPABILITY_AVX2", "-march=x86-64-v3")),
        Target("aarch64", 1, "VecNEON", ("-DCPU_CAPABILITY_NEON", "-march=armv8-a"), AARCH64),
    )
}


def find_target(name: str) -> Target:
    """Return the target of a name in params.yaml; ``native`` is the best that this machine runs.

    Raises:
        UserError: there is none for this machine, or it cannot be built here.
    """
    if name != "native":
        if obstacle := TARGETS[name].obstacle(platform.machine()):
            raise UserError(f"compile_native.targets: {obstacle}")
        return TARGETS[name]
    best = {"x86_64": "x86-64-v4" if flags() >= V4 else "x86-64-v3" if flags() >= V3 else "", "aarch64": "aarch64"}
    found = best.get(platform.machine(), "")
    if not found:
        raise UserError(
            f"compile_native.targets: native: this machine, {platform.machine()}, has neither x86-64-v3 nor NEON"
        )
    return TARGETS[found]
