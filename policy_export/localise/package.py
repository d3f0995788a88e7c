"""What differs between an AOTInductor package and one that is compiled anew: its weights, and the code of its kernels.

Nothing inside a running package can be seen. But a package holds its weights and the C++ code that it was compiled
from, and on one machine the same program always gives the same code.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from policy_export.config import params
from policy_export.localise.compare import Location, describe_weight, find_use, largest_difference
from policy_export.localise.trace import WEIGHT, Trace, Value
from policy_export.lowering.aoti import inductor_options, lower
from policy_export.program.torch_private import compile_package

CONSTANT = re.compile(r"constants_info_\[(\d+)\]\.(name|dtype|data_size|shape|original_fqn) = (.*);")
ALIGNMENT = 64  # bytes, of each constant
BODY = "AOTInductorModel::run_impl("
FUSED = re.compile(r"^\s*(cpp_fused_\w+)\(")
LIBRARY = re.compile(r"\baoti_torch_cpu_\w+(?=\()")  # a call of PyTorch's own kernels
HANDLE = re.compile(r"// \[Provenance debug handles\] (\S+)")
COUNTED = re.compile(r"\b(?:buf|int_array_|var_|tmp_tensor_handle_|_frozen_param)\d+\w*|\b(?:s\d+|arg\d+_\d+)\b")
COMMENT = re.compile(r"\s*//.*|0x[0-9a-f]+")
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?:e[-+]?\d+)?")
LONGEST_LINE = 120  # of code in a note
VIEWS = ("slice", "select", "flatten", "unflatten", "view", "reshape", "transpose", "permute", "gather", "getitem")


@dataclass(frozen=True)
class Kernel:
    """One call of the compiled program: its kernel's name, its code, and the values of the program that it computes."""

    name: str
    code: list[str]
    makes: list[str]


@dataclass(frozen=True)
class Package:
    """The parts of a package: its kernels in the order of their calls, and its constants by name."""

    kernels: list[Kernel]
    constants: dict[str, npt.NDArray[Any]]


def read_package(path: Path) -> Package:
    """Read the code and the weights of a package."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        codes = {kind: _read(archive, f".{kind}.cpp") for kind in ("wrapper", "kernel")}
        information = json.loads(_read(archive, "kernel_information.json") or "{}")
        library = archive.extract(next(name for name in names if name.endswith(".so")), folder)
        constants = _read_constants(codes["wrapper"], ctypes.CDLL(library))
    return Package(_split(codes["wrapper"], codes["kernel"], information), constants)


def _read_constants(wrapper: str, library: ctypes.CDLL) -> dict[str, npt.NDArray[Any]]:
    """Read the numbers that are stored one after the other in the package's library, by the policy's names for them.

    PyTorch's own reader loses constants that share a name, which can happen where the policy has no name for them.
    """
    facts: dict[str, dict[str, str]] = {}
    for index, key, value in CONSTANT.findall(wrapper):
        facts.setdefault(index, {})[key] = value.strip('"')
    constants, start = {}, 0
    for fact in facts.values():
        dtype = np.dtype(fact["dtype"].removeprefix("cached_torch_dtype_"))
        shape = [int(size) for size in re.findall(r"\d+", fact["shape"])]
        size = int(fact["data_size"])
        data = (ctypes.c_char * (start + size)).in_dll(library, "_binary_constants_bin_start").raw[start:]
        name = fact["original_fqn"] if fact["original_fqn"] not in constants else fact["name"]
        if size == dtype.itemsize * math.prod(shape):  # not where a library has packed it its own way
            constants[name] = np.frombuffer(data, dtype).reshape(shape)
        start += -(-size // ALIGNMENT) * ALIGNMENT
    return constants


def _read(archive: zipfile.ZipFile, ending: str) -> str:
    return "\n".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(ending))


def _split(wrapper: str, kernels: str, information: dict[str, Any]) -> list[Kernel]:
    """Split the program's code into calls: each with its arguments and, for a fused kernel, the kernel's own code."""
    bodies = {
        name: [line.strip() for line in body.splitlines()]
        for name, body in re.findall(r'^extern "C"\s+void\s+(\w+)(\(.*?^\})', kernels, re.MULTILINE | re.DOTALL)
    }
    body = wrapper[wrapper.rindex(BODY) :]
    body = body[body.index("inputs.clear();") : body.index("\n}", body.index("inputs.clear();"))]
    found, lines, makes = [], [], []
    for line in body.splitlines()[1:]:
        if handle := HANDLE.search(line):
            makes = information.get(handle[1], {}).get("pre_grad_nodes", [])
        elif "Topologically Sorted Source Nodes" in line:
            makes = makes or re.findall(r"\w+", line.partition("[")[2].partition("]")[0])
        if "AOTI_RUNTIME_CHECK_INPUTS" in line or "_check_aoti_runtime_check_inputs_env" in line:
            continue
        if text := COMMENT.sub("", line).strip():
            lines.append(text)
        if call := FUSED.match(line) or LIBRARY.search(line):
            name = call[1] if call.re is FUSED else call[0]
            lines[-1] = lines[-1].replace(name, "kernel" if call.re is FUSED else name)
            found.append(Kernel(name, bodies.get(name, []) + lines, makes))
            lines, makes = [], []
    return _renumber([*found, Kernel("outputs", lines, [])])


def _renumber(kernels: list[Kernel]) -> list[Kernel]:
    """Rename counted names by their first use, so that counters moved by other parts of the program do not matter."""
    names: dict[str, str] = {}

    def rename(match: re.Match[str]) -> str:
        kind = re.sub(r"\d.*", "", match[0])
        return "_frozen_param" if kind == "_frozen_param" else names.setdefault(match[0], f"{kind}#{len(names)}")

    return [Kernel(k.name, [COUNTED.sub(rename, line) for line in k.code], k.makes) for k in kernels]


def compile_reference(program: torch.export.ExportedProgram, settings: params.CompileAoti) -> Package:
    """Compile a package of the program as the pipeline does, with a note of what each kernel computes."""
    options = inductor_options(settings) | {"trace.provenance_tracking_level": 1}
    lowered = lower(program, settings)
    origins = {node.name: _origin(node) for node in lowered.graph.nodes if lowered is not program}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.aoti.pt2")
        compile_package(lowered, path, options)
        package = read_package(path)
    kernels = [
        dataclasses.replace(kernel, makes=[origins.get(name, name) for name in kernel.makes])
        for kernel in package.kernels
    ]
    return dataclasses.replace(package, kernels=kernels)


def _origin(node: torch.fx.Node) -> str:
    """Return the name of the program's node from which a node of the lowered program was made."""
    sources = node.meta.get("from_node", [])
    return sources[0].name if sources else node.name


def locate_in_package(
    path: Path, program: torch.export.ExportedProgram, reference: Trace, wrong_output: str, settings: params.CompileAoti
) -> Location:
    """Return the first difference between a package and one that is compiled from the policy's own program.

    A weight is reported by name. In the code, only the first kernel that differs is certain; of the values that this
    kernel computes, the reported one is that to which the difference of the code points.

    Args:
        program: the policy, exported anew.
        reference: its values.
        wrong_output: the first output of the package that is wrong.
        settings: those of the pipeline's compiler.
    """
    found, expected = read_package(path), compile_reference(program, settings)
    order = {name: place for place, name in enumerate(reference.values)}
    wrong = [
        dataclasses.replace(weight, source=user.source if (user := find_use(weight.tensor, reference)) else "")
        for weight in _wrong_weights(found.constants, expected.constants, reference)
    ]
    wrong.sort(key=lambda weight: order.get(weight.tensor, len(order)))  # last what has no name there
    place = _first_difference(found.kernels, expected.kernels)
    if place is None:
        note = "weights and code are the policy's: the fault is in what AOTInductor or the C++ compiler makes of them"
        return wrong[0] if wrong else Location("", "", "", None, note)
    suspect, note = _suspect(found.kernels[place], expected.kernels, place, reference, wrong_output)
    if wrong and order.get(wrong[0].tensor, len(order)) < order[suspect.name]:
        return wrong[0]
    if settings.max_autotune:
        note += "; with compile_aoti.max_autotune, the same program may have other code"
    return Location(suspect.name, suspect.operator, suspect.source, None, note)


def _first_difference(found: list[Kernel], expected: list[Kernel]) -> int | None:
    pairs = enumerate(zip(found, expected, strict=False))
    different = (place for place, (kernel, other) in pairs if kernel.code != other.code)
    return next(different, None if len(found) == len(expected) else min(len(found), len(expected)) - 1)


def _wrong_weights(
    found: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]], reference: Trace
) -> list[Location]:
    """Return constants of a package that are not the policy's own.

    A constant that the compiler has frozen has no name: it is recognised by a weight's numbers, in any order.
    """
    weights = [value for value in reference.values.values() if value.operator == WEIGHT]
    wrong = []
    for name, array in found.items():
        if any(largest_difference(array, other) == 0 for other in expected.values()):
            continue
        partner = expected.get(name)
        if partner is None or partner.shape != array.shape:
            left = [other for key, other in expected.items() if largest_difference(found.get(key, array), other) > 0]
            partner = next((other for other in left if other.shape == array.shape), None)
        known = (w.name for w in weights if w.name == name or (partner is not None and _same_numbers(w.array, partner)))
        difference = None if partner is None else largest_difference(array, partner)
        wrong.append(Location(next(known, name), WEIGHT, "", difference, describe_weight(array, partner)))
    return wrong


def _same_numbers(weight: npt.NDArray[Any], constant: npt.NDArray[Any]) -> bool:
    """Return whether both have the same numbers, apart from their order and the zeros that fill a kernel's blocks."""
    ones, others = (np.sort(array[array != 0], axis=None) for array in (weight, constant))
    return np.array_equal(ones, others)


def _suspect(
    found: Kernel, kernels: list[Kernel], place: int, reference: Trace, wrong_output: str
) -> tuple[Value, str]:
    """Return the value that a kernel with different code most likely gets wrong, and a note that says why."""
    expected = kernels[place]
    before = {name for kernel in kernels[:place] for name in kernel.makes}
    computed = [value for value in reference.values.values() if value.inputs]
    group = [value for value in computed if value.name in expected.makes and value.name not in before]
    group = group or [value for value in computed if value.name in expected.makes]
    group = group or [reference.values[reference.outputs[wrong_output]]]
    changed = [line for line in expected.code if line not in found.code]
    added = [line for line in found.code if line not in expected.code]
    told = [f"its code has `{_shorten(added[0])}`"] if added else []
    told += (
        [f"expected `{_shorten(changed[0])}`" if added else f"its code lacks `{_shorten(changed[0])}`"]
        if changed
        else []
    )
    fused = f", for {group[0].name} to {group[-1].name}," if len(group) > 1 else ""
    note = f"the kernel {expected.name}{fused} is not the policy's: {', '.join(told) or 'its order differs'}"
    return _choose(group, found.name, expected.name, changed, added), note


def _shorten(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def _choose(group: list[Value], found: str, expected: str, changed: list[str], added: list[str]) -> Value:
    """Return the value whose operator a kernel's name lacks, or whose number has changed, or the first possible one."""
    names = {value.name: value.operator.removeprefix("aten.").partition(".")[0] for value in group}
    ones, others = set(found.split("_")), set(expected.split("_"))
    if all(part.isdigit() for part in ones - others):  # nothing is there in its place
        for value in group:
            if (parts := set(names[value.name].split("_"))) <= others and not parts & ones:
                return value
    numbers = set(NUMBER.findall(" ".join(changed))) - set(NUMBER.findall(" ".join(added)))
    for value in group:
        if numbers & set(NUMBER.findall(value.definition)):
            return value
    if changed and "in_ptr" in changed[0]:  # it reads from another place
        return next((value for value in group if names[value.name] in VIEWS), group[0])
    return group[0]
