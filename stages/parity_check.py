"""Compare every exported program with the trained policy: the same values, the same decisions, the same episodes."""

from __future__ import annotations

from policy_export.parity.check import parity_check
from policy_export.stage.command import run

if __name__ == "__main__":
    run(parity_check, __doc__)
