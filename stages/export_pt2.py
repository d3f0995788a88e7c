"""Export a policy with torch.export: one deterministic program and one that explores.

Each program carries what a device must know about it, and its graph is written beside it as text.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.export.graph_signature import InputKind
from torchrl.envs.utils import ExplorationType
from torchrl.modules import GRUModule, LSTMModule

from play import sha256
from stages.common.archive import EXPORTS, save_program
from stages.common.env import environment_facts
from stages.common.errors import UserError, run
from stages.common.files import replacing, write_text
from stages.common.policy import find_env
from stages.common.profile import load_profile
from stages.common.program import Step, load_step


class RecurrentStep(TensorDictModuleBase):
    """One step of TorchRL's recurrent module, for a batch of one dimension, with the library's own cell.

    The library's ``forward`` asks for the number of elements of its batch, which fixes the batch size of an exported
    program.
    """

    def __init__(self, module: LSTMModule | GRUModule) -> None:
        super().__init__()
        module.make_python_based()
        self.rnn = module.lstm if isinstance(module, LSTMModule) else module.gru
        self.in_keys, self.out_keys = module.in_keys, module.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        value, *states, is_init = (tensordict[key] for key in self.in_keys)
        states = [torch.where(is_init.unsqueeze(-1), 0, state).transpose(0, 1) for state in states]
        outputs, states = self.rnn(value.unsqueeze(1), states[0] if len(states) == 1 else tuple(states))
        states = [state.transpose(0, 1) for state in (states if isinstance(states, tuple) else (states,))]
        return tensordict.update(dict(zip(self.out_keys, [outputs.squeeze(1), *states], strict=True)))


def exportable(policy: TensorDictModuleBase) -> TensorDictModuleBase:
    """The same policy with recurrent modules that export."""
    policy = copy.deepcopy(policy)
    for parent in list(policy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LSTMModule | GRUModule):
                parent.add_module(name, RecurrentStep(child))
    return policy


def export(step: Step) -> torch.export.ExportedProgram:
    """The step as a graph of any batch size.

    Raises:
        UserError: a deterministic program would draw random numbers.
    """
    step = Step(exportable(step.policy), step.input_spec, step.exploration_type)
    examples = step.example_inputs(batch=2)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(step, (), examples, dynamic_shapes={name: {0: batch} for name in examples})
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:  # tensors that are no buffers; freezing in AOTInductor loses those
            spec.kind, spec.persistent = InputKind.BUFFER, False
    random = random_operators(program)
    if random and step.exploration_type is ExplorationType.DETERMINISTIC:
        raise UserError(f"the deterministic program draws random numbers: {', '.join(random)}")
    return program


def random_operators(program: torch.export.ExportedProgram) -> list[str]:
    """The operators of a program that draw from a random generator, each once, in order."""
    operators = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return list(dict.fromkeys(str(op) for op in operators if torch.Tag.nondeterministic_seeded in op.tags))


def export_pt2(policy: str) -> None:
    profile = load_profile(policy)
    folder = Path("models", policy)
    facts = {
        "policy": policy,
        "weights_sha256": sha256(folder / "policy.safetensors"),
        **environment_facts(find_env(profile)),
        "parameters": profile.model_dump(),
    }
    for name, exploration in EXPORTS.items():
        step = load_step(policy, profile, ExplorationType[exploration])
        program = export(step)
        details = {"exploration_type": exploration, **step.signature.as_dict()}
        with replacing(folder / f"{name}.pt2") as temporary:
            save_program(temporary, program, facts | details)
        graph = program.graph_module.print_readable(print_output=False, include_stride=False)
        write_text(folder / f"{name}.pt2.txt", graph)
        print(f"export_pt2 {policy}  {name}.pt2  {exploration}, {len(program.graph.nodes)} nodes", flush=True)


if __name__ == "__main__":
    run(export_pt2, __doc__)
