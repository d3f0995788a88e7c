"""``studies/params.yaml`` as typed, checked objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from policy_export.config.params import Seed
from policy_export.config.profile import check, read
from policy_export.config.section import Count, Positive, Section

PATH = Path("studies/params.yaml")
RESULTS = Path("studies/results")
BASELINES = Path("studies/baselines")


class Compare(Section):
    baseline_queries: Count
    naive_tolerance_factor: Positive


class Quantise(Section):
    calibration_episodes: Count
    calibration_samples: Count
    checked_samples: Count
    seed: Seed
    episodes: Annotated[int, Field(ge=2)]
    margin: Positive
    significance: Annotated[float, Field(gt=0, lt=0.5)]
    processes: Count


class FaultSuite(Section):
    seed: Seed
    clean_runs: Count
    processes: Count


class Seeds(Section):
    reported: Annotated[list[Seed], Field(min_length=1)]


class Studies(Section):
    compare: Compare
    quantise: Quantise
    fault_suite: FaultSuite
    seeds: Seeds


def load(path: Path = PATH) -> Studies:
    """Read and check ``studies/params.yaml``.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing, ill-typed or out of range.
    """
    return check(Studies, read(path), path=path)
