"""A policy's step as a graph, by ``torch.export``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind
from torchrl.envs.utils import ExplorationType

from policy_export.config.errors import ProfileError
from policy_export.program.assertions import passing_checks
from policy_export.program.failures import (
    INSTALLED,
    STANDARD_LIBRARY,
    fixes_batch,
    source_of,
    watch_sizes,
    without_partial_graph,
    without_places,
)
from policy_export.program.functions import REPLACED
from policy_export.program.step import Step
from policy_export.program.torch_private import OpOverload, computing_by, keep_stacks, part
from policy_export.program.twins import exportable

# Arguments by which operators that may draw random numbers are told not to.
SWITCHES = ("train", "training")
CHANCES = ("p", "dropout", "dropout_p")
NORMALISATION = "batch_norm"
HERE = Path(__file__).parent


def export(step: Step) -> torch.export.ExportedProgram:
    """Return the step as a graph of any batch size.

    Raises:
        ProfileError: a deterministic program would draw random numbers, a row would depend on others of its batch, or a
            module would write into itself.
    """
    refuse_scripted(step.policy)
    step = type(step)(exportable(step.policy), step.input_spec, step.exploration_type, step.actions, step.starts)
    examples = step.example_inputs(batch=2)
    batch = torch.export.Dim("batch", min=1)
    step.forward = passing_checks(step.forward)
    sizes = {name: {0: batch} for name in examples}
    with torch.no_grad(), keep_stacks(_Frames()), computing_by(REPLACED), without_partial_graph():
        try:
            program = torch.export.export(step, (), examples, dynamic_shapes=sizes)
        except Exception as error:
            if not fixes_batch(error):
                raise
            with watch_sizes() as lines, contextlib.suppress(Exception):
                torch.export.export(step, (), examples, dynamic_shapes=sizes)
            raise ProfileError(
                "the policy works for a batch of one size only, and a program takes any; it asks for the size of its "
                f"batch at {', '.join(dict.fromkeys(lines)) or 'a place that is not known'}"
            ) from error
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:  # tensors that are no buffers; freezing in AOTInductor loses those
            spec.kind, spec.persistent = InputKind.BUFFER, False
    for node in [node for graph in graphs(program) for node in graph.nodes if node.meta.get("stack_trace")]:
        node.meta["stack_trace"] = without_places(node.meta["stack_trace"])
    refuse_training(program)
    refuse_writing(program)
    random = random_operators(program)
    if random and step.exploration_type is ExplorationType.DETERMINISTIC:
        raise ProfileError(f"the deterministic program draws random numbers: {', '.join(map(describe, random))}")
    return program


def refuse_scripted(policy: nn.Module) -> None:
    """Refuse modules that are programs already.

    Raises:
        ProfileError: there is one.
    """
    for name, module in policy.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ProfileError(f"the policy's module {name} is TorchScript, which does not export: give its own class")


class _Frames:
    """The set of functions whose frames the exporter keeps in a node's stack: all but PyTorch's."""

    def __contains__(self, frame: Any) -> bool:
        path = frame[0]
        if any(part in path for part in INSTALLED):
            return any(f"{part}torchrl/" in path for part in INSTALLED)
        return not Path(path).is_relative_to(HERE) and not path.startswith(STANDARD_LIBRARY)


def arguments_of(node: torch.fx.Node) -> dict[str, Any]:
    """Return an operator's arguments by name, including defaults."""
    assert isinstance(node.target, OpOverload)
    named = {argument.name: argument.default_value for argument in part(node.target, "_schema").arguments}
    return named | dict(zip(named, node.args, strict=False)) | dict(node.kwargs)


def graphs(program: torch.export.ExportedProgram) -> list[torch.fx.Graph]:
    """Return the graph of a program, and those that it calls."""
    modules = program.graph_module.modules()
    return [module.graph for module in modules if isinstance(module, torch.fx.GraphModule)]


def operators(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """Return the nodes of a program that call PyTorch operators."""
    return [node for node in program.graph.nodes if isinstance(node.target, OpOverload)]


def random_operators(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """Return the nodes of a program that draw from a random generator, the first of each operator and line of source.

    An operator that does not always draw, such as dropout, counts where its arguments say that it does.
    """
    found: dict[str, torch.fx.Node] = {}
    for node in operators(program):
        assert isinstance(node.target, OpOverload)
        arguments = arguments_of(node)
        idle = any(arguments.get(name) is False for name in SWITCHES)
        idle |= any(name in arguments and arguments[name] == 0 for name in CHANCES)
        if torch.Tag.nondeterministic_seeded in node.target.tags and not idle:
            found.setdefault(describe(node), node)
    return list(found.values())


def describe(node: torch.fx.Node) -> str:
    """Return a node's operator, and the line of source that it comes from."""
    where = source_of(node)
    return f"{node.target} at {where}" if where else str(node.target)


def refuse_training(program: torch.export.ExportedProgram) -> None:
    """Refuse a program that does what only training should do.

    Raises:
        ProfileError: it normalises by the rows of its batch, so that one row's decision depends on the others.
    """
    for node in operators(program):
        if NORMALISATION in str(node.target) and arguments_of(node).get("training") is True:
            raise ProfileError(
                f"the policy normalises by its batch even in evaluation mode: {describe(node)}; a program decides for "
                "each row alone: leave `training` to the module's mode"
            )


def refuse_writing(program: torch.export.ExportedProgram) -> None:
    """Refuse a program with side effects.

    Raises:
        ProfileError: a module writes into one of its buffers.
    """
    written = [spec.target for spec in program.graph_signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION]
    if written:
        raise ProfileError(f"the policy's modules write into their buffers: {', '.join(map(str, written))}")
