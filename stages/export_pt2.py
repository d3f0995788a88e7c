"""Export a policy with torch.export: one deterministic program and one that explores.

Each program carries what a device must know about it, and its graph is written beside it as text.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchrl.envs.utils import ExplorationType

from play import sha256
from stages.common import params
from stages.common.archive import save_program
from stages.common.env import environment_facts
from stages.common.errors import UserError, run
from stages.common.files import replacing, write_text
from stages.common.program import Step, load_step

EXPORTS = {"policy": ExplorationType.DETERMINISTIC, "policy_random": ExplorationType.RANDOM}


def export(step: Step) -> torch.export.ExportedProgram:
    """The step as a graph of any batch size.

    Raises:
        UserError: a deterministic program would draw random numbers.
    """
    examples = step.example_inputs(batch=2)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(step, (), examples, dynamic_shapes={name: {0: batch} for name in examples})
    random = random_operators(program)
    if random and step.exploration_type is ExplorationType.DETERMINISTIC:
        raise UserError(f"the deterministic program draws random numbers: {', '.join(random)}")
    return program


def random_operators(program: torch.export.ExportedProgram) -> list[str]:
    """The operators of a program that draw from a random generator, each once, in order."""
    operators = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return list(dict.fromkeys(str(op) for op in operators if torch.Tag.nondeterministic_seeded in op.tags))


def export_pt2(policy: str) -> None:
    profile = params.load().profile(policy)
    folder = Path("models", policy)
    facts = {
        "policy": policy,
        "weights_sha256": sha256(folder / "policy.safetensors"),
        **environment_facts(profile.env),
        "parameters": profile.model_dump(),
    }
    for name, exploration in EXPORTS.items():
        step = load_step(policy, profile, exploration)
        program = export(step)
        details = {"exploration_type": exploration.name, **step.signature.as_dict()}
        with replacing(folder / f"{name}.pt2") as temporary:
            save_program(temporary, program, facts | details)
        graph = program.graph_module.print_readable(print_output=False, include_stride=False)
        write_text(folder / f"{name}.pt2.txt", graph)
        print(f"export_pt2 {policy}  {name}.pt2  {exploration.name}, {len(program.graph.nodes)} nodes", flush=True)


if __name__ == "__main__":
    run(export_pt2, __doc__)
