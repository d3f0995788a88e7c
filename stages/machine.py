"""Check params.yaml, try the policies that have changed, and record what DVC cannot see by itself; always runs."""

from __future__ import annotations

from policy_export.machine.facts import write_facts
from policy_export.stage.command import run

if __name__ == "__main__":
    run(write_facts, __doc__, policy=False)
