"""Write results/report.html, which shows and proves what has been built, and the tables of dvc plots."""

from __future__ import annotations

from policy_export.report.report import report
from policy_export.stage.command import run

if __name__ == "__main__":
    run(report, __doc__, policy=False)
