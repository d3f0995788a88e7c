"""Time the verified programs by MLPerf LoadGen's rules."""

from __future__ import annotations

from policy_export.benchmark.bench import bench
from policy_export.stage.command import run

if __name__ == "__main__":
    run(bench, __doc__)
