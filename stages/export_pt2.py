"""Export a policy with torch.export: one deterministic program and one that explores.

Each program carries what a device must know about it, and its graph is written next to it as text.
"""

from __future__ import annotations

from pathlib import Path

from torchrl.envs.utils import ExplorationType

from policy_export.config.profile import load_profile
from policy_export.program.archive import EXPORTS, save_program
from policy_export.program.export import export
from policy_export.program.facts import describe_policy, describe_step
from policy_export.program.failures import in_one_line
from policy_export.program.made import write_record
from policy_export.program.meaning import check_names
from policy_export.program.step import load_step
from policy_export.stage.command import run
from policy_export.stage.files import replacing, write_text

LIBRARIES = ("torch", "tensordict", "torchrl")  # whose versions decide what the files are


def export_pt2(policy: str) -> None:
    profile = load_profile(policy)
    folder = Path("models", policy)
    facts = describe_policy(policy, profile)
    for name, exploration in EXPORTS.items():
        with in_one_line(policy, "export_pt2"):
            step = load_step(policy, profile, ExplorationType[exploration])
            check_names(profile, step.signature)
            program, details = export(step), describe_step(step)
        with replacing(folder / f"{name}.pt2") as temporary:
            save_program(temporary, program, facts | details)
        graph = program.graph_module.print_readable(print_output=False, include_stride=False)
        write_text(folder / f"{name}.pt2.txt", graph)
        nodes = len(program.graph.nodes)
        print(f"export_pt2 {policy}  {name}.pt2  {exploration}, evaluation mode, {nodes} nodes", flush=True)
    write_record(policy, "pt2", [folder / f"{name}.pt2" for name in EXPORTS], LIBRARIES)


if __name__ == "__main__":
    run(export_pt2, __doc__)
