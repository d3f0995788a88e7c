"""Operators of a program that the native library cannot have, found before anything is compiled.

PyTorch is imported when a program is looked at, and not before.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.config.errors import ProfileError
from policy_export.lowering.instructions import Target, find_target
from policy_export.program.failures import source_of

if TYPE_CHECKING:
    import torch

NAMESPACES = {"aten", "extern_kernels", "mkldnn", "prims", "quantized"}
SHIM = re.compile(r"^aoti_torch_(?:(?:cpu|cuda)_)?")  # PyTorch's C interface
# What an operator is called where its name says little. The names are without their namespace, overload and "_".
WORDS = {
    "bernoulli": "a random number",
    "bincount": "a histogram (bincount)",
    "complex": "complex numbers",
    "embedding_bag": "an embedding bag",
    "embedding_bag_forward_only": "an embedding bag",
    "fft_c2c": "a Fourier transform",
    "fft_c2r": "a Fourier transform",
    "fft_r2c": "a Fourier transform",
    "inductor_seeds": "a random number",
    "item": "a tensor's number as Python's",
    "linalg_cholesky_ex": "Cholesky's decomposition of a matrix",
    "linalg_det": "the determinant of a matrix",
    "linalg_eigh": "the eigenvalues of a matrix",
    "linalg_inv_ex": "the inverse of a matrix",
    "linalg_qr": "the QR decomposition of a matrix",
    "linalg_solve_ex": "the solution of linear equations",
    "linalg_svd": "the singular values of a matrix",
    "local_scalar_dense": "a tensor's number as Python's",
    "mkldnn_rnn_layer": "a recurrent layer",
    "mode": "the most frequent number (mode)",
    "multinomial": "a random number",
    "nonzero": "the places of what is not zero (nonzero), whose count varies",
    "rand": "a random number",
    "randint": "a random number",
    "randn": "a random number",
    "unique2": "what there is without repetition (unique), whose count varies",
    "view_as_real": "complex numbers",
}
# Of these, the size along their axis tells why they are not written as loops.
LONG = {"sort", "topk", "kthvalue", "median", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"}


def inductor_options() -> dict[str, Any]:
    """Return AOTInductor's options for the code that it makes."""
    return {
        "cpp.threads": 1,
        "freezing": True,
        "max_autotune": True,
        "max_autotune_gemm_backends": "CPP",
        "aot_inductor.precompile_headers": False,  # CMake compiles the code, without them
        "aot_inductor.link_libtorch": False,
        "aot_inductor.package_cpp_only": True,
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.package_constants_on_disk_format": "binary_blob",
    }


def package(program: torch.export.ExportedProgram, target: Target, path: Path) -> None:
    """Let AOTInductor write the code of a program for one row, with a kernel for every operator where possible."""
    from policy_export.lowering.loops import products_as_loops
    from policy_export.program.torch_private import compile_package

    with target.chosen(), products_as_loops():
        compile_package(program, path, inductor_options())


def describe_operator(name: str) -> str:
    """Describe an operator, such as ``aten::sort.stable``, or a function of PyTorch's C interface in words."""
    *before, name = name.removeprefix("torch.ops.").replace("::", ".").split(".", 2)[:2]
    name = name if before and before[0] in NAMESPACES else [*before, name][0]
    name = SHIM.sub("", name).strip("_").removesuffix("_out")
    return WORDS.get(name, f"`{name}`")


def needs_pytorch(operators: Iterable[str], detail: str = "") -> ProfileError:
    return ProfileError(
        f"compile_native: the program uses what only PyTorch's library computes: {', '.join(operators)}{detail}; "
        "write the policy with other operators"
    )


def describe_place(node: torch.fx.Node) -> str:
    """Return where in the user's source a node comes from, as `` at my_policy.py:41``, or else from which module."""
    if (place := source_of(node)) is not None:
        return f" at {place}"
    modules = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f" in the module {modules[-1]}" if modules else ""


def describe_node(name: str, node: torch.fx.Node | None) -> str:
    """Describe an operator in words, with its place."""
    import torch

    told = describe_operator(name)
    if node is None:
        return told
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], torch.fx.Node) else None
    if told.strip("`") in LONG and isinstance(value, torch.Tensor):
        told = f"{told} of {max(value.shape, default=1):,} numbers"
    return told + describe_place(node)


def find_unwritten(batch_one: torch.export.ExportedProgram) -> list[str]:
    """Return the same as :func:`find_unsupported`, for a lowered program for one row."""
    from policy_export.program.torch_private import stopped_before_code

    found: list[str] = []

    def note(name: str, node: torch.fx.Node | None) -> None:
        if "check_errors" not in name:  # of what has been told already
            found.append(describe_node(name, node))

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), stopped_before_code(note):
        warnings.simplefilter("ignore")  # what they warn of is what is found here
        package(batch_one, find_target("native"), Path(folder, "policy.pt2"))
    return list(dict.fromkeys(found))


def find_unsupported(program: torch.export.ExportedProgram, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the operators of a program that only PyTorch's library computes, so that no native library can have them.

    Args:
        inputs: ``name``, ``dtype`` and ``shape`` of each, the first size a batch's.

    Returns:
        Each operator in words with its place, such as ``the inverse of a matrix at my_policy.py:41``; none if all is
        written as kernels.
    """
    from policy_export.lowering.batch_one import lower_batch_one

    return find_unwritten(lower_batch_one(program, inputs))
