"""Make the ONNX program with fewer bits, and say whether it would be worth it: faster, and with the same score.

Nothing of this is shipped: such a program does not decide as the policy does. Latency comes first, as it takes seconds:
a program is rejected unless its p99 is lower and its median faster outside the noise. Only then it plays full
episodes, next to the program that it would replace. Its scores must be shown to be the same: it is not enough that no
difference was found.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from scipy import stats

from policy_export.backends import runtimes
from policy_export.backends.registry import deterministic
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.programs import Candidate
from policy_export.benchmark.ratios import Ratio, compare
from policy_export.benchmark.workload import Plan, measure_candidates
from policy_export.config import params
from policy_export.device.arrays import Arrays
from policy_export.device.environments import play
from policy_export.device.errors import UserError
from policy_export.device.manifest import check_file, read_manifest
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.lowering.quantisation import OPERATORS, PRODUCTS, halved, layers, quantised
from policy_export.parity.comparison import distance
from policy_export.parity.recorded_inputs import pick_recorded_inputs
from policy_export.program.decisions import is_choice
from policy_export.stage.command import run
from policy_export.stage.files import write_json
from policy_export.stage.processes import processes
from studies import settings

REFERENCE = "onnx"
# Instruction sets of which a processor must have one for a program to be worth making.
NEEDED = {"fp16": ("avx512_fp16", "fphp"), "bf16": ("avx512_bf16", "amx_bf16", "bf16")}
CHUNK = 5  # episodes a task
NO_LAYER = "has no layer, apart from the last, that could have fewer bits"
Make = Callable[[], onnx.ModelProto | None]


@dataclass(frozen=True)
class Scores:
    """Scores of a program and of its reference, with the equivalence test between their means (Schuirmann, 1987).

    Both play the same seeds: the test uses the differences, one pair per episode.

    Attributes:
        mean: mean score of the program.
        reference_mean: mean score of the reference.
        low: lower end of the interval of the difference of the means, with a confidence of ``1 - 2 * significance``.
        high: upper end of the same interval.
        p_value: p-value of the two one-sided t-tests: the chance that the means are so close if the true means
            were ``margin`` apart.
        same: whether the p-value is less than the significance.
    """

    mean: float
    reference_mean: float
    low: float
    high: float
    p_value: float
    same: bool


def compare_scores(one: Sequence[float], other: Sequence[float], margin: float, significance: float) -> Scores:
    """Test that two means differ by less than ``margin``, from two or more scores of each, with the same seeds."""
    means, differences = (float(np.mean(one)), float(np.mean(other))), np.subtract(one, other)
    difference = float(differences.mean())
    if not differences.std():  # no test is needed, nor defined
        return Scores(*means, difference, difference, float(abs(difference) >= margin), abs(difference) < margin)
    above = stats.ttest_1samp(differences, -margin, alternative="greater")
    below = stats.ttest_1samp(differences, margin, alternative="less")
    interval = stats.ttest_1samp(differences, 0).confidence_interval(1 - 2 * significance)
    p_value = float(max(above.pvalue, below.pvalue))
    return Scores(*means, float(interval.low), float(interval.high), p_value, p_value < significance)


def check_latency(ratio: Ratio, p99: float | None, reference_p99: float | None) -> str | None:
    """Return why a program is too slow to be worth it; none if it is not.

    Args:
        ratio: how many times as fast it is as its reference.
        p99: microseconds, with LoadGen's confidence; none for too few queries.
        reference_p99: the same for the reference.
    """
    if p99 is None or reference_p99 is None:
        return "too few queries for a p99"
    if p99 >= reference_p99:
        return f"its p99 is not lower: {p99:.1f} us, the program that it would replace has {reference_p99:.1f} us"
    if not ratio.faster:
        interval = f"between {ratio.low:.2f} and {ratio.high:.2f} times as fast"
        return f"its p50 is not lower outside the noise: it is {interval}"
    return None


def check_scores(scores: Scores, margin: float) -> str | None:
    """Return why scores speak against a program; none if they do not."""
    if scores.same:
        return None
    difference = f"{scores.mean:.2f} against {scores.reference_mean:.2f}, a difference of {scores.low:+.2f} to"
    return f"its score is not shown to be the same within {margin:g}: {difference} {scores.high:+.2f}"


def pick_recorded(policy: str, manifest: dict[str, Any], study: settings.Quantise) -> tuple[Arrays, Arrays]:
    """Return recorded inputs to calibrate with, and those of the last episode to check with: rows by input name."""
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    rest = recorded[:-1] or recorded
    chosen = sorted(set(np.linspace(0, len(rest) - 1, study.calibration_episodes).round().astype(int).tolist()))
    program, rows = runtimes.load_by_name(policy, REFERENCE, 1), -(-study.calibration_samples // len(chosen))
    parts = [pick_recorded_inputs(program, rest[index], manifest, rows).inputs for index in chosen]
    calibration = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return calibration, pick_recorded_inputs(program, recorded[-1], manifest, study.checked_samples).inputs


def makers(model: onnx.ModelProto, inputs: Arrays) -> dict[str, Make]:
    """Return what makes each smaller program; if there are convolutions, integers are tried with and without them."""
    found: dict[str, Make] = {"int8": partial(quantised, model, inputs, OPERATORS)}
    if layers(model, ("Conv",)):
        found["int8_products"] = partial(quantised, model, inputs, PRODUCTS)
    return found | {kind: partial(halved, model, kind) for kind in NEEDED}


def make(name: str, maker: Make, path: Path, instruction_sets: Sequence[str]) -> dict[str, str] | None:
    """Write to ``path`` a program that ONNX Runtime can load, or say why there is none."""
    needed = NEEDED.get(name, ())
    if needed and not set(needed).intersection(instruction_sets):
        return {"verdict": "not measured", "reason": f"this processor has none of {', '.join(needed)}"}
    model = maker()
    if model is None:
        return {"verdict": "rejected", "reason": f"the program {NO_LAYER}"}
    path.parent.mkdir()
    onnx.save(model, path)
    try:
        runtimes.load(path, 1)
    except UserError as error:
        return {"verdict": "rejected", "reason": str(error).removeprefix(f"{path}: ")}
    return None


def compare_decisions(candidates: dict[str, Candidate], inputs: Arrays) -> dict[str, dict[str, Any]]:
    """Compare the decisions of programs with those of the first program, which decides as eager does.

    Returns:
        By name: the share of actions that differ, none where they are vectors, and the largest difference of each
        output, none where it is not a finite number.
    """
    outputs = {
        name: runtimes.load(Path(candidate.path), 1, candidate.onnx_session)(inputs)
        for name, candidate in candidates.items()
    }
    expected, found = outputs[REFERENCE], {}
    choice = is_choice(expected["action"])
    for name, given in outputs.items():
        found[name] = {
            "other_actions": float((given["action"] != expected["action"]).mean()) if choice else None,
            "largest_difference": {
                output: difference if math.isfinite(difference := float(distance(given[output], array).max())) else None
                for output, array in expected.items()
                if not (choice and output == "action")
            },
        }
    return found


def play_scores(policy: str, candidate: Candidate, seeds: Sequence[int]) -> list[float]:
    """Return the score of a full episode with each seed."""
    program = runtimes.load(Path(candidate.path), 1, candidate.onnx_session)
    player = Player(program, read_manifest(Path("models", policy)))
    return [sum(reward for reward, _ in play(player, seed)) for seed in seeds]


def play_all(policy: str, candidates: dict[str, Candidate], study: settings.Quantise) -> dict[str, list[float]]:
    """Return the scores of all candidates with the same seeds, played in parallel processes."""
    seeds = range(study.seed, study.seed + study.episodes)
    with processes(study.processes) as executor:
        playing = {
            name: [
                executor.submit(play_scores, policy, candidate, seeds[start : start + CHUNK])
                for start in range(0, len(seeds), CHUNK)
            ]
            for name, candidate in candidates.items()
        }
        return {name: [score for task in tasks for score in task.result()] for name, tasks in playing.items()}


def summarise(measured: Measured, candidate: Candidate) -> dict[str, Any]:
    percentiles = measured.percentiles("single")
    size = Path(candidate.path).stat().st_size
    return {"p50_us": percentiles["p50_us"], "p99_us": percentiles["p99_us"], "file_bytes": size}


def quantise(policy: str) -> None:
    everything, folder = params.load(), Path("models", policy)
    study = settings.load().quantise
    manifest = read_manifest(folder)
    path = check_file(folder, deterministic(manifest)[REFERENCE], manifest)
    instruction_sets = json.loads(Path("results/machine.json").read_text())["instruction_sets"]
    session, threads = manifest["onnx_session"], everything.bench.threads
    report: dict[str, dict[str, Any]] = {}
    candidates = {REFERENCE: Candidate(str(path), threads, session)}
    calibration, checked = pick_recorded(policy, manifest, study)
    with tempfile.TemporaryDirectory() as scratch:
        for name, maker in makers(onnx.load(path), calibration).items():
            smaller = Path(scratch, name, "policy.onnx")
            refused = make(name, maker, smaller, instruction_sets)
            if refused is None:
                candidates[name] = Candidate(str(smaller), threads, session)
            report[name] = refused or {}
        decided = compare_decisions(candidates, checked)
        for name in [name for name, found in decided.items() if None in found["largest_difference"].values()]:
            del candidates[name]
            report[name] = {"verdict": "rejected", "reason": "it answers with what is no number"}
        reference = check_candidates(policy, candidates, everything.bench, study, report)
        for name, entry in report.items():
            entry.update(decided.get(name, {}))
            print(f"quantise {policy}  {name}: {entry['verdict']}: {entry['reason']}", flush=True)
    accepted = [name for name, entry in report.items() if entry["verdict"] == "accepted"]
    content = {"accepted": accepted, "reference": reference, "programs": report}
    write_json(settings.RESULTS / policy / "quantised.json", content)


def check_candidates(
    policy: str,
    candidates: dict[str, Candidate],
    bench: params.Bench,
    study: settings.Quantise,
    report: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Measure the candidates, let those that are fast enough play, and complete the report; return the reference's."""
    if len(candidates) == 1:
        return {}
    measured = measure_candidates(policy, Plan(list(candidates), bench, math.inf, candidates))
    reference = summarise(measured[REFERENCE], candidates[REFERENCE])
    fast = {}
    for name in list(candidates)[1:]:
        entry, ratio = (
            report[name],
            compare(measured[name].medians(), measured[REFERENCE].medians(), bench.least_difference),
        )
        entry |= {"verdict": "rejected", "reason": ""} | summarise(measured[name], candidates[name])
        entry["times_as_fast"] = ratio.as_dict()
        slow = check_latency(ratio, entry["p99_us"], reference["p99_us"])
        if slow is None:
            fast[name] = candidates[name]
        else:
            entry["reason"] = slow
    scores = play_all(policy, {REFERENCE: candidates[REFERENCE]} | fast, study) if fast else {}
    for name in fast:
        compared = compare_scores(scores[name], scores[REFERENCE], study.margin, study.significance)
        report[name]["score"] = asdict(compared)
        worse = check_scores(compared, study.margin)
        report[name] |= {
            "verdict": "rejected" if worse else "accepted",
            "reason": worse or f"faster, and its score is the same within {study.margin:g}",
        }
    return reference


if __name__ == "__main__":
    run(quantise, __doc__)
