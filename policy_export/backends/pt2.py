"""``torch.export`` programs, from which all others are made; run by PyTorch, operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from policy_export.backends.base import Backend, Settings
from policy_export.device.arrays import Run
from policy_export.program.archive import read_facts

if TYPE_CHECKING:
    from policy_export.localise.case import Case
    from policy_export.localise.compare import Location


def load(path: Path, settings: Settings) -> Run:
    import torch

    from policy_export.program.calls import opened, wrap

    def run() -> Run:
        return wrap(torch.export.load(path).module())

    return opened(path, settings.threads, run, lambda: read_facts(path), explores=settings.explores)


def inspect(case: Case, path: Path) -> Location:
    from policy_export.localise.case import no_location
    from policy_export.localise.trace import trace_program
    from policy_export.program.archive import load_program

    program, _ = load_program(path, case.policy)
    if location := case.compare(trace_program(program, case.inputs)):
        return location
    if not case.wrong(load(path, Settings(1))(case.inputs)):
        return no_location("nothing differs: every output agrees for these inputs")
    return no_location(
        "every tensor agrees when the graph is run operator by operator: the fault is in how it is called"
    )


BACKEND = Backend(
    name="pt2",
    file="policy.pt2",
    random_file="policy_random.pt2",
    content="torch.export program, {exploration}",
    load=load,
    inspect=inspect,
    run_by=("torch",),
    required=True,
    told=read_facts,
)
