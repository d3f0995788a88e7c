"""Train a policy with the algorithm that its profile names, and measure how well it plays."""

from __future__ import annotations

from policy_export.algorithms.training import train
from policy_export.stage.command import run

if __name__ == "__main__":
    run(train, __doc__)
