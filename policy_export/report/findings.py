"""What the stages have found of a policy: their reports, as the page and the tables need them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_export.device.errors import UserError
from policy_export.device.manifest import DIGEST, sha256
from policy_export.device.verdict import VERDICT


@dataclass(frozen=True)
class Findings:
    """The reports of one policy; none where a stage has not run.

    Attributes:
        policy: its name.
        train: how well it plays, and how it was trained.
        curve: returns while it was trained, one row a point.
        parity: of the check.
        bench: of the benchmark.
        manifest: of the model folder.
        stands: whether the check's report is of the very files that are in the model folder.
    """

    policy: str
    train: dict[str, Any] | None
    curve: list[dict[str, float]]
    parity: dict[str, Any] | None
    bench: dict[str, Any] | None
    manifest: dict[str, Any] | None
    stands: bool

    @property
    def passed(self) -> bool:
        """Return whether the check has passed, wherever it was made."""
        return bool(self.parity and self.parity["passed"])

    @property
    def programs(self) -> dict[str, dict[str, Any]]:
        """Return what the check has found, by program, without the policy itself."""
        return self.parity["programs"] if self.parity else {}

    @property
    def deterministic(self) -> dict[str, dict[str, Any]]:
        """Return the same of those programs that do not explore."""
        return {name: entry for name, entry in self.programs.items() if "flip_rate_bound" in entry}

    @property
    def decisions(self) -> int:
        """Return how many decisions each program was compared on."""
        return min(map(self.decisions_of, self.deterministic.values()))

    @property
    def different(self) -> int:
        """Return how many of these were different, of all programs."""
        return sum(entry["different_actions"] for entry in self.deterministic.values())

    @staticmethod
    def decisions_of(entry: dict[str, Any]) -> int:
        """Return how many decisions a program was compared on: recorded ones, and those of episodes that it played."""
        return int(entry["observations"] + entry.get("closed_loop", {"steps": 0})["steps"])

    @staticmethod
    def largest(entry: dict[str, Any]) -> float | None:
        """Return a program's largest difference of a value or an action; those of states may be larger."""
        outputs = entry["max_abs_difference"].items()
        return max((value for name, value in outputs if value is not None and not is_state(name)), default=None)

    def shapes(self, side: str) -> str:
        """Return the names, types and shapes of ``inputs`` or ``outputs``, without the first axis, which is any."""
        specs = (self.manifest or {}).get(side, [])
        return ", ".join(f"{spec['name']} {spec['dtype']}{spec['shape'][1:] or ''}" for spec in specs)

    @property
    def per_million(self) -> float:
        """Return the bound on how often a program decides otherwise, of a million decisions: the worst program's."""
        return float(1e6 * max(entry["flip_rate_bound"]["decisions"] for entry in self.deterministic.values()))


def is_state(output: str) -> bool:
    """Return whether an output is a state, which goes in again without this beginning."""
    return output.startswith("next_")


def read_findings(policy: str) -> Findings:
    """Read all that is known of a policy.

    Raises:
        UserError: a file is damaged.
    """
    results, model = Path("results", policy), Path("models", policy)
    manifest, verdict = read_json(model / "manifest.json"), read_json(model / VERDICT)
    report = results / "parity.json"
    stands = bool(
        manifest
        and verdict
        and verdict.get(DIGEST) == manifest.get(DIGEST)
        and report.exists()
        and verdict.get("report_sha256") == sha256(report)
    )
    return Findings(
        policy,
        read_json(results / "train.json"),
        read_curve(results / "learning_curve.csv"),
        read_json(report),
        read_json(results / "bench.json"),
        manifest,
        stands,
    )


def read_all(policies: Sequence[str]) -> list[Findings]:
    """Read all that is known of some policies, in their order."""
    return [read_findings(policy) for policy in policies]


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a file; none if there is no such file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}; run `dvc repro`") from None
    return content


def read_curve(path: Path) -> list[dict[str, float]]:
    """Return a learning curve's points; none if there is no such file."""
    try:
        with path.open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged: {error}; run `dvc repro`") from None
