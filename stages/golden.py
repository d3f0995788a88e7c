"""Take golden decisions of a policy: recorded observations, with what its programs must decide on any device."""

from __future__ import annotations

from policy_export.config import params
from policy_export.program.golden import record_golden
from policy_export.stage.command import run
from policy_export.stage.processes import processes

LIBRARIES = ("torch",)  # whose versions decide what the file is


def golden(policy: str) -> None:
    with processes(1) as executor:
        decisions = executor.submit(record_golden, policy, params.load().golden).result()
    print(f"golden {policy}  {decisions} decisions", flush=True)


if __name__ == "__main__":
    run(golden, __doc__)
