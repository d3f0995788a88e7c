"""Compile a policy into a library, a C header and a command that need no PyTorch at run time.

AOTInductor writes the kernels, with the weights packed for them. The folder ``native`` holds the runtime that calls
them, and CMake builds both. PyTorch is imported by the processes that compile, and not before they start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.config import params
from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN, read_golden
from policy_export.device.manifest import MEANING, TOLD, action_names, observation_names, sha256, value_names
from policy_export.lowering.golden import NATIVE_GOLDEN, write_native_golden
from policy_export.lowering.instructions import Target, find_target
from policy_export.lowering.native_operators import describe_operator, find_unwritten, needs_pytorch, package
from policy_export.program.archive import load_program, read_facts
from policy_export.program.failures import in_one_line
from policy_export.stage.files import replacing
from policy_export.stage.processes import processes

if TYPE_CHECKING:
    import torch

SOURCES = Path(__file__).parents[2] / "native"
UNDEFINED = re.compile(r"undefined (?:reference to|symbol:) [`']?(\w+)")
# How PyTorch compiles generated code that is not linked to its library.
DEFINITIONS = ("-DTORCH_INDUCTOR_CPP_WRAPPER", "-DSTANDALONE_TORCH_HEADER", "-DC10_USING_CUSTOM_GENERATED_MACROS")
# Of a compiler the line, of CMake all lines that are indented below it.
ERROR = re.compile(r"(?:fatal )?error: .*|CMake Error.*(?:\n(?:[ \t].*)?)*")


def generate(program: torch.export.ExportedProgram, target: Target, folder: Path) -> None:
    """Write the model's code and its weights into a folder: ``model.cpp`` and ``weights.bin``.

    Raises:
        UserError: the code would call operators of PyTorch's library by name.
    """
    from policy_export.program.torch_private import WEIGHTS, called_by_name, generated_code, read_ending

    path = folder / "policy.pt2"
    package(program, target, path)
    with zipfile.ZipFile(path) as archive:
        called = called_by_name(archive)
        if called:
            raise needs_pytorch(dict.fromkeys(map(describe_operator, called)))
        (folder / "model.cpp").write_text(generated_code(archive))
        # A policy without weights has no file for them.
        weights = [name for name in archive.namelist() if name.endswith(WEIGHTS)]
        (folder / "weights.bin").write_bytes(read_ending(archive, WEIGHTS) if weights else b"")
    path.unlink()


def write_facts(path: Path, facts: dict[str, Any], weights: Path) -> None:
    """Write the facts about the policy that the runtime needs, as C++."""
    import torch

    outputs = [spec["name"] for spec in facts["outputs"]]
    next_of = {state["input"]: outputs.index(state["output"]) for state in facts["states"]}

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=True)

    def arrays(kind: str, specs: list[dict[str, Any]]) -> str:
        shapes, rows = [], []
        for number, spec in enumerate(specs):
            shape = [1, *spec["shape"][1:]]
            size = torch.Size(shape).numel() * getattr(torch, spec["dtype"]).itemsize
            shapes.append(f"inline constexpr std::int64_t {kind}_shape_{number}[] = {{{', '.join(map(str, shape))}}};")
            rows.append(
                f"    {{{text(spec['name'])}, {text(spec['dtype'])}, {size}, {len(shape)}, {kind}_shape_{number}, "
                f"{next_of.get(spec['name'], -1)}}},"
            )
        listed = ", ".join(f"dtype_{spec['dtype']}" for spec in specs)
        return "\n".join(
            [
                *shapes,
                f"inline constexpr policy_array {kind}_arrays[] = {{",
                *rows,
                "};",
                f"inline constexpr std::int32_t {kind}_dtypes[] = {{{listed}}};",
            ]
        )

    names = [action["name"] for action in facts["actions"]] if isinstance(facts["actions"], list) else []
    listed = ", ".join(map(text, names)) or "nullptr"
    meaning, description = (
        json.dumps({key: facts[key] for key in keys if key in facts})
        for keys in (MEANING, [key for key in TOLD if key not in MEANING])
    )
    digest = ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(sha256(weights)))
    path.write_text(f"""// What the pipeline knows about the policy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "policy.h"
#include "tensors.h"

namespace facts {{

inline constexpr char name[] = {text(facts["policy"])};
inline constexpr char meaning[] = {text(meaning)};
inline constexpr char description[] = {text(description)};
{arrays("input", facts["inputs"])}
{arrays("output", facts["outputs"])}
inline constexpr std::size_t inputs = {len(facts["inputs"])}, observations = {len(observation_names(facts))};
inline constexpr std::size_t outputs = {len(outputs)}, actions = {len(action_names(facts))};
inline constexpr std::size_t decided = actions + {len(value_names(facts))};  // outputs that are no next states
inline constexpr const char *index_names[] = {{{listed}}};
inline constexpr std::size_t indices = {len(names)};
inline constexpr unsigned char weights_sha256[] = {{{digest}}};

}}  // namespace facts
""")


def call(*command: str | Path) -> None:
    """Run a tool of the build.

    Raises:
        UserError: it is not there, or fails; an operator that needs PyTorch's library is named.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is missing: compile_native builds with CMake; install it (pip install cmake)")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    output = done.stdout + done.stderr
    if missing := list(dict.fromkeys(UNDEFINED.findall(output))):
        raise needs_pytorch(map(describe_operator, missing), f" (undefined: {', '.join(missing)})")
    reason = ERROR.search(output)
    told = " ".join(reason[0].split()) if reason else output.strip()[-300:]
    raise UserError(f"compile_native: {command[0]} fails: {told}")


def build(generated: Path, target: Target, folder: Path, *options: str) -> None:
    """Build library and command from what was generated."""
    import torch

    include = Path(torch.__file__).parent / "include"
    settings = {
        "POLICY_GENERATED": generated,
        "POLICY_INCLUDE": f"{include};{include / 'torch/csrc/api/include'}",
        "POLICY_INSTRUCTIONS": target.name,
        "POLICY_LEVEL": target.level,
        "POLICY_MODEL_OPTIONS": ";".join(DEFINITIONS + target.options),
        **(target.tools if target.foreign else {}),
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    call("cmake", "-S", SOURCES, "-B", folder, *definitions, *options)
    call("cmake", "--build", folder, "--parallel", str(len(os.sched_getaffinity(0))))


def install(source: Path, path: Path, mode: int = 0o644) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(source.read_bytes())
    path.chmod(mode)


def compile_target(policy: str, name: str, folder: Path) -> str:
    """Compile a policy for one instruction set into a folder; returns the message for the user.

    Raises:
        UserError: the policy has operators that only PyTorch's library computes, or a tool of the build fails.
    """
    from policy_export.lowering.batch_one import lower_batch_one

    target = find_target(name)
    program, facts = load_program(Path("models", policy, "policy.pt2"), policy)
    with tempfile.TemporaryDirectory() as temporary, in_one_line(policy, "compile_native", program):
        generated, built = Path(temporary, "generated"), Path(temporary, "build")
        generated.mkdir()
        batch_one = lower_batch_one(program, facts["inputs"])
        if unsupported := find_unwritten(batch_one):
            raise needs_pytorch(unsupported)
        generate(batch_one, target, generated)
        write_facts(generated / "facts.h", facts, generated / "weights.bin")
        build(generated, target, built)
        install(built / "libpolicy.so", folder / "libpolicy.so")
        install(built / "policy", folder / "policy", 0o755)
        weights = (generated / "weights.bin").stat().st_size
    size = (folder / "libpolicy.so").stat().st_size
    return f"{target.name}, {size:,} bytes, {weights:,} of them weights"


def prove(command: Path, golden: Path) -> None:
    """Let a compiled command replay golden decisions.

    Raises:
        UserError: it does not decide as it should.
    """
    done = subprocess.run([command, "selftest", golden], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = done.stderr.strip().removeprefix("error: ") or f"it ends with status {done.returncode}"
        raise UserError(f"compile_native: {command} does not decide as {golden} has it: {told}")


def copy_golden(policy: str) -> int:
    """Write the policy's golden decisions for the library; returns how many."""
    folder = Path("models", policy)
    facts = read_facts(folder / "policy.pt2", policy)
    golden = read_golden(folder / GOLDEN, facts)
    write_native_golden(folder / NATIVE_GOLDEN, golden, facts)
    return len(golden)


def compile_libraries(policy: str, settings: params.CompileNative) -> None:
    """Compile a policy for every requested instruction set, and test each library that runs here."""
    targets = [find_target(name) for name in settings.targets]
    folder = Path("models", policy, "native")
    folders = {name: folder / name if number else folder for number, name in enumerate(settings.targets)}
    decisions = copy_golden(policy)
    with processes(len(folders)) as executor:
        compiling = [executor.submit(compile_target, policy, name, at) for name, at in folders.items()]
        for at, done in zip(folders.values(), compiling, strict=True):
            print(f"compile_native {policy}  {at.relative_to(folder.parent)}  {done.result()}", flush=True)
    install(SOURCES / "include/policy.h", folder / "policy.h")
    proven = [at for target, at in zip(targets, folders.values(), strict=True) if target.runs_here]
    for at in proven:
        prove(at / "policy", folder.parent / NATIVE_GOLDEN)
    print(
        f"compile_native {policy}  {NATIVE_GOLDEN}  {decisions} decisions, the same in {len(proven)} of {len(targets)}",
        flush=True,
    )
