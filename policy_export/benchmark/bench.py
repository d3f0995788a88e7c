"""Time the verified programs by MLPerf LoadGen's rules.

Every program runs in a process of its own; many short rounds go through all of them, so that a noisy minute affects all
of them. Inputs are sampled from recorded observations, outputs are checked while they are timed, and no program is
called faster than another within the noise. A result is VALID, or INVALID with the reason.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from policy_export.backends import runtimes
from policy_export.benchmark import programs, report
from policy_export.benchmark.command import Command
from policy_export.benchmark.rollouts import TORCHRL, measure_rollout, rollout_names
from policy_export.benchmark.roofline import count_work, measure_peak
from policy_export.benchmark.workload import Plan, prepared, sessions
from policy_export.config import params
from policy_export.device.manifest import read_manifest
from policy_export.stage.files import write_json
from policy_export.stage.metrics import write_metrics
from policy_export.stage.processes import processes


def measure(policy: str, settings: params.Bench, tolerance: float) -> report.Findings:
    """Measure all programs and all rollouts once per round, after a first round that only warms them up."""
    manifest = read_manifest(Path("models", policy))
    in_batches = programs.measured_in_batches(manifest)
    plan = Plan(programs.names(manifest), settings, tolerance, in_batches=in_batches, reference=runtimes.EAGER)
    what_rolls = rollout_names(manifest)
    speeds: dict[str, list[float]] = {what: [] for what in what_rolls}
    with ExitStack() as stack:
        rolling = {what: stack.enter_context(processes(1, fresh=True)) for what in what_rolls}
        warming = [rolling[what].submit(measure_rollout, policy, what, settings) for what in what_rolls]
        folder = stack.enter_context(prepared(policy, plan))
        for task in warming:
            task.result()
        started = stack.enter_context(sessions(policy, folder, plan))
        command, starts = Command.of(policy, manifest, folder), []
        counting = rolling.get(TORCHRL) or stack.enter_context(processes(1, fresh=True))
        work = counting.submit(count_work, policy).result()
        peak = counting.submit(measure_peak, settings.threads).result()
        for round_ in range(1, settings.rounds + 1):
            started.measure(round_)
            starts += [command.start()] if command else []
            for what, speed in speeds.items():
                speed.append(rolling[what].submit(measure_rollout, policy, what, settings).result())
            print(f"bench {policy}  round {round_}/{settings.rounds}", flush=True)
    return report.Findings(started.measured, starts, speeds, work, peak)


def bench(policy: str) -> None:
    everything = params.load()
    manifest, _ = runtimes.read_model(policy)
    found = measure(policy, everything.bench, everything.parity_check.tolerance)
    content = report.describe(policy, found, everything.bench, manifest.get("control_rate_hz"))
    write_json(Path("results", policy, "bench.json"), content)
    report.write_latencies(Path("results", "latency", f"{policy}.csv"), content)
    write_metrics(policy, "bench", report.describe_metrics(content))
    report.print_tables(policy, content)
