"""Everything of PyTorch that is used here although it is private: each use says why, and fails loudly once it moves.

``docs/upgrading.md`` says what to do then. The native runtime has ``native/src/torch_private.h``.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.export import ExportedProgram

from policy_export.device.errors import UserError
from policy_export.stage.files import in_memory

if TYPE_CHECKING:
    from torch._inductor import ir
    from torch._inductor.graph import GraphLowering

__all__ = ["MovedError", "OpOverload", "OpOverloadPacket"]  # the types of operators have no public names

# Options of Inductor for packages that are the same wherever they are compiled: otherwise names of files are hashes of
# the compiler's call, too, and lines of source are noted with their folder.
UNPLACED = {"aot_inductor.model_name_for_generated_files": "policy", "aot_inductor.enable_line_tables": False}
# Headers that are compiled beforehand are for those who compile more than two programs.
PLAIN = {"aot_inductor.precompile_headers": False}
MODEL_HEADER = "#include <torch/csrc/inductor/aoti_runtime/model.h>\n"
# How files inside of AOTInductor's packages end: no function of PyTorch's tells where they are.
METADATA, CODE, WEIGHTS = ".wrapper_metadata.json", ".wrapper.cpp", "_weights.blob"
CALLED_BY_NAME = ".wrapper.json"
INTERFACE = "codegen/aoti_runtime/interface.cpp"


class MovedError(UserError):
    """Something private in PyTorch is no longer what this project expects."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"PyTorch {torch.__version__}: {what} is not what this project relies on: {why}; see docs/upgrading.md"
        )


def require(condition: object, what: str, why: str) -> None:
    """Fail if something private is not as expected.

    Raises:
        MovedError: ``condition`` does not hold.
    """
    if not condition:
        raise MovedError(what, why)


def part(owner: Any, name: str) -> Any:
    """Return a private attribute of an object, a class or a module.

    Raises:
        MovedError: it has none of that name.
    """
    found = getattr(owner, name, None)
    label = getattr(owner, "__name__", type(owner).__name__)
    require(found is not None or hasattr(owner, name), f"{label}.{name}", "it is not there")
    return found


def operator(name: str) -> OpOverloadPacket:
    """Return an operator of PyTorch whose name begins with an underscore, although a module's public call ends in it.

    Raises:
        MovedError: there is none of that name.
    """
    found: OpOverloadPacket = part(torch.ops.aten, name)
    return found


@contextmanager
def computing_by(replacements: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let functions of PyTorch be others, by their names in ``torch``; its modules call some that are not public.

    Raises:
        MovedError: PyTorch has no such function.
    """
    with ExitStack() as stack:
        for path, function in replacements.items():
            *modules, name = path.split(".")
            owner = functools.reduce(part, modules, torch)
            part(owner, name)
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def compile_package(program: ExportedProgram, path: Path, options: Mapping[str, Any]) -> None:
    """Compile a program with AOTInductor, and write the package to ``path``.

    PyTorch documents the call under this private name only. It names the folder of its generated files after the code
    that it compiles: two processes that compile like programs, such as a policy that does not explore and its exploring
    program, write the same files, and one packs what the other has just emptied. So each call has a folder of its own.

    Args:
        program: exported.
        path: of the package; its name ends in ``.pt2``.
        options: of Inductor's configuration, by their dotted names.

    Raises:
        MovedError: PyTorch has another compiler.
    """
    import torch._inductor
    from torch._inductor import config, cpp_builder, package

    options = {**UNPLACED, **PLAIN, **options}
    flags_of, pack = part(cpp_builder, "_get_optimization_cflags"), part(package, "package_aoti")

    def place_less_flags(*arguments: Any, **named: Any) -> tuple[list[str], list[str]]:
        flags, linking = flags_of(*arguments, **named)
        places = {folder: "generated", Path(torch.__file__).parent: "torch"}
        return [*flags, *(f"ffile-prefix-map={place}={name}" for place, name in places.items())], linking

    def pack_without_places(archive: io.BytesIO, files: list[str]) -> io.BytesIO:
        for code in [Path(file) for file in files if str(file).endswith(".cpp")]:  # how it was compiled stands there
            lines = code.read_text().splitlines(keepends=True)
            code.write_text("".join(line for line in lines if not (line.startswith("//") and folder in line)))
        packed: io.BytesIO = pack(archive, files)
        return packed

    part(config.aot_inductor, "output_path")
    generated = "aot_inductor.output_path"
    with (
        tempfile.TemporaryDirectory() as folder,
        config.patch({generated: folder}),
        mock.patch.object(cpp_builder, flags_of.__name__, place_less_flags),
        mock.patch.object(package, pack.__name__, pack_without_places),
        torch.no_grad(),
        in_memory(path) as content,
    ):
        part(part(torch, "_inductor"), "aoti_compile_and_package")(
            program, package_path=content, inductor_configs=options
        )


def load_package(path: Path) -> Any:
    """Load an AOTInductor package for one thread at a time, on the CPU.

    ``torch._inductor.aoti_load_package`` first compiles a program, to find out what the processor is, and also loads
    what the processor cannot run.

    Raises:
        MovedError: PyTorch has another loader.
    """
    try:
        from torch.export.pt2_archive._package import AOTICompiledModel
    except ImportError as error:
        raise MovedError("torch.export.pt2_archive._package", str(error)) from error
    loader = part(part(part(torch, "_C"), "_aoti"), "AOTIModelPackageLoader")
    model, run_single_threaded, runners, device = "model", False, 1, -1
    package = AOTICompiledModel(loader(str(path), model, run_single_threaded, runners, device))
    for name in ("boxed_run", "get_call_spec"):
        part(package.loader, name)
    return package


def package_signature(loader: Any) -> tuple[list[str], list[str]]:
    """Return the names of a package's inputs and outputs.

    ``AOTICompiledModel``'s own call parses them again every time, which takes longer than a small policy's decision.

    Raises:
        MovedError: the package's signature has another form.
    """
    from torch.utils import _pytree as pytree

    takes, gives = (pytree.treespec_loads(spec) for spec in loader.get_call_spec())
    arguments, results = takes.child(1).context, gives.context
    require(
        all(isinstance(names, list) for names in (arguments, results)),
        "the call spec of an AOTInductor package",
        f"no names in {arguments!r} and {results!r}",
    )
    return arguments, results


@contextmanager
def compiling_for(vectors: str) -> Iterator[None]:
    """Let PyTorch generate code for an instruction set, whatever this processor has.

    PyTorch has no option for this: the list of instruction sets that it finds on the processor is replaced.

    Args:
        vectors: PyTorch's class for it, such as ``VecAVX2``.

    Raises:
        MovedError: PyTorch has no such class, or looks for instruction sets elsewhere.
    """
    from torch._inductor import cpu_vec_isa

    chosen = part(cpu_vec_isa, vectors)()
    with mock.patch.object(cpu_vec_isa, "valid_vec_isa_list", return_value=[chosen]):
        found = cpu_vec_isa.pick_vec_isa()
        require(type(found) is type(chosen), "cpu_vec_isa.valid_vec_isa_list", f"{found!r} is picked, not {vectors}")
        yield


def keep_stacks(frames: Container[tuple[str, str]]) -> AbstractContextManager[object]:
    """Let the exporter keep the whole stack of a node, and not only the frames of methods called ``forward``.

    Its list of further functions is private to PyTorch and has no other use there.

    Args:
        frames: which ``(file, function)`` are kept.

    Raises:
        MovedError: PyTorch keeps no such list.
    """
    part(torch.fx.proxy, "_STACK_TRACE_ANCHORS")
    return mock.patch.object(torch.fx.proxy, "_STACK_TRACE_ANCHORS", frames)


def without_modes() -> AbstractContextManager[object]:
    """Compute with real tensors while a program is traced, for the constants of its replacement."""
    from torch.utils import _python_dispatch

    entered: AbstractContextManager[object] = part(_python_dispatch, "_disable_current_modes")()
    return entered


def lstm_by_steps(*arguments: Any) -> tuple[torch.Tensor, list[Any]]:
    """Compute ``torch.ops.aten.lstm`` as PyTorch's own decomposition does, which is registered for no operator.

    Args:
        arguments: sequence, states, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first.
    """
    from torch._decomp import decompositions

    helper, gather = part(decompositions, "_rnn_helper"), part(decompositions, "gather_params")
    sequence, states, weights, has_biases, *others = arguments
    projected = states[0].shape[2] != states[1].shape[2]
    layer = part(decompositions, "one_layer_lstm")
    found: tuple[torch.Tensor, list[Any]] = helper(
        sequence, list(zip(*states, strict=True)), gather(weights, has_biases, projected), has_biases, *others, layer
    )
    return found


def compiler_lowerings() -> tuple[dict[Any, Callable[..., Any]], dict[Any, Callable[..., Any]], type[Exception]]:
    """Return AOTInductor's way of writing each operator, the users' replacements for these, and an error.

    The error says that there is no kernel for a product. There is no public way to register a lowering.
    """
    from torch._inductor import lowering, select_algorithm

    return (
        part(lowering, "lowerings"),
        part(lowering, "user_lowerings"),
        part(select_algorithm, "NoValidChoicesError"),
    )


class _LoweredError(BaseException):
    """The compiler has reached the point where it would write code."""


@contextmanager
def stopped_before_code(note: Callable[[str, torch.fx.Node | None], None]) -> Iterator[None]:
    """Let AOTInductor stop once it has chosen how each operator is computed.

    Otherwise only the code that it writes shows where it calls PyTorch's library, minutes later for a large policy.

    Args:
        note: is called with each operator that it would leave to PyTorch's library, and its node.

    Raises:
        MovedError: the compiler has other steps.
    """
    from torch._inductor import ir
    from torch._inductor.graph import GraphLowering

    write, register = part(GraphLowering, "codegen_with_cpp_wrapper"), part(GraphLowering, "register_operation")

    def leave() -> NoReturn:
        raise _LoweredError

    def stop(graph: GraphLowering) -> Any:
        return write(graph) if graph.is_const_graph else leave()

    def listen(graph: GraphLowering, operation: ir.Operation) -> str:
        if isinstance(operation, ir.ExternKernel) and not isinstance(operation, ir.MultiOutput | ir.AssertScalar):
            overload = getattr(operation, "op_overload", None)
            name = str(overload) if overload is not None else operation.get_kernel_name() or type(operation).__name__
            note(name, graph.current_node)
        registered: str = register(graph, operation)
        return registered

    with (
        mock.patch.object(GraphLowering, "codegen_with_cpp_wrapper", stop),
        mock.patch.object(GraphLowering, "register_operation", listen),
    ):
        try:
            yield
        except _LoweredError:
            return
    raise MovedError("GraphLowering.codegen_with_cpp_wrapper", "the compiler did not call it")


def read_ending(archive: zipfile.ZipFile, ending: str) -> bytes:
    """Return the one file of a package whose name has this ending.

    Raises:
        MovedError: there is none, or there are several.
    """
    found = [name for name in archive.namelist() if name.endswith(ending)]
    require(len(found) == 1, f"*{ending} in an AOTInductor package", f"found {found} among {archive.namelist()}")
    return archive.read(found[0])


def package_metadata(path: Path) -> Mapping[str, str]:
    """Return what a package says about the machine that it was compiled on, without loading it.

    Raises:
        MovedError: it says nothing, or not its architecture and instruction set.
    """
    with zipfile.ZipFile(path) as archive:
        metadata: dict[str, str] = json.loads(read_ending(archive, METADATA))
    for key in ("AOTI_MACHINE", "AOTI_CPU_ISA"):
        require(key in metadata, f"{METADATA} in an AOTInductor package", f"it lacks {key}")
    return metadata


def generated_code(archive: zipfile.ZipFile) -> str:
    """Return a model's generated code without its interface for many models and threads.

    The interface takes a fifth of the compiler's time, and nothing in the native library calls it.

    Raises:
        MovedError: there is no such code, or it does not contain the interface as PyTorch's folder has it.
    """
    code = read_ending(archive, CODE).decode()
    interface = Path(torch.__file__).with_name("_inductor") / INTERFACE
    require(interface.is_file(), f"torch/_inductor/{INTERFACE}", "there is no such file")
    text = interface.read_text()
    require(text in code, f"torch/_inductor/{INTERFACE}", "generated code does not contain it")
    return code.replace(text, MODEL_HEADER)


def called_by_name(archive: zipfile.ZipFile) -> list[str]:
    """Return the operators that generated code calls by name, through PyTorch's library."""
    found = [name for name in archive.namelist() if name.endswith(CALLED_BY_NAME)]
    return [node["node"]["target"] for name in found for node in json.loads(archive.read(name))["nodes"]]
