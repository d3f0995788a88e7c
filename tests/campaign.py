"""Campaigns against a small project: killed, stopped, filled up, damaged and misled at random, again and again.

``make campaign`` runs them all and prints a table; ``python tests/campaign.py --help`` tells how to run some. After
each attempt the project must be as if nothing had happened (survived) or have said in a line what is wrong, with all
that was there before whole (refused). Whatever else happens is lost, and told.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from pipeline_helpers import TINY, change_manifest, change_params, copy_project, run
from ruamel.yaml import YAML
from tabulate import tabulate

from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.errors import UserError
from policy_export.device.manifest import sha256

SMALL = TINY | {
    "matrix": ["dqn"],
    "programs": ["pt2", "onnx", "native"],
    "record.greedy_episodes": 1,
    "record.epsilon_episodes": 1,
    "compile_native.targets": ["native"],
    "parity_check.min_observations": 50,
    "bench.rounds": 1,
    "bench.cold_starts": 1,
    "bench.batches": [1],
    "bench.rollout_steps": 5,
}
STAGES = (
    "train",
    "record",
    "export_pt2",
    "golden",
    "compile_native",
    "export_onnx",
    "manifest",
    "parity_check",
    "bench",
    "report",
)
OF_ALL = ("report",)  # stages that are not one policy's
WRITES = {"train": "models", "record": "data", "golden": "models", "export_pt2": "models", "export_onnx": "models"}
FOLDERS = ("data", "models", "results")
# What a second run need not repeat to the byte: times, and samples that are drawn anew.
ANEW = (
    "bench",
    "latency",
    "parity",
    "verdict.json",
    "failures",
    "divergence",
    "margins",
    "rounds",
    "scenarios",
    "report.html",
)
ENDS_WITHIN = 3.0  # seconds after a signal
LINES = 3  # of an error, with what helps
KILLS = 10  # of one run of the pipeline from nothing
OUTCOMES = ("survived", "refused", "lost")

Outcome = tuple[str, str]  # one of OUTCOMES, and what happened


def environment(project: Path, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(project), **more}


def build(project: Path) -> None:
    """Make a small project in which every stage has run once."""
    copy_project(project)
    change_params(project / "params.yaml", SMALL)
    run("git", "add", "--all", cwd=project)
    run("git", "commit", "--quiet", "--message", "Small", cwd=project)
    run("dvc", "repro", cwd=project)


def contents(project: Path) -> dict[str, str]:
    """Return the hash of every output, by its path."""
    paths = [path for folder in FOLDERS for path in (project / folder).rglob("*") if path.is_file()]
    return {path.relative_to(project).as_posix(): sha256(path) for path in paths}


def repeatable(hashes: dict[str, str]) -> dict[str, str]:
    return {path: hashed for path, hashed in hashes.items() if not any(word in path for word in ANEW)}


def refused_or_lost(done: subprocess.CompletedProcess[str]) -> Outcome:
    """Judge what a program that did not end well has said."""
    told = [line for line in done.stderr.splitlines() if line]
    if done.returncode in {1, 2, 130, 143} and 0 < len(told) <= LINES and "Traceback" not in done.stderr:
        return "refused", told[0]
    return "lost", f"status {done.returncode}, {len(told)} lines: {told[-1:]}"


def command(name: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{name}", *(() if name in OF_ALL else ("dqn",))]


def stage(project: Path, name: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name),
        cwd=project,
        env=environment(project, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def whole(project: Path, before: dict[str, str], done: subprocess.CompletedProcess[str]) -> Outcome:
    """Judge a stage that was disturbed: each file is the one that was there, or gone; then make what is missing."""
    now = contents(project)
    changed = [path for path, hashed in repeatable(now).items() if before.get(path) != hashed]
    outcome = ("survived", "as if nothing had happened") if done.returncode == 0 else refused_or_lost(done)
    return ("lost", f"other content: {changed}") if changed else outcome


def repair(project: Path, kept: Path) -> None:
    """Give a project the outputs back that it had."""
    for folder in FOLDERS:
        shutil.rmtree(project / folder, ignore_errors=True)
        shutil.copytree(kept / folder, project / folder, symlinks=True)


def family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kills(project: Path, kept: Path, rounds: int, chance: random.Random) -> Iterator[Outcome]:
    """Kill ``dvc repro`` and all that it has started at random moments, some times from nothing on; then let it end."""
    wanted = repeatable(contents(kept))
    command: dict[str, Any] = {"args": ["dvc", "repro"], "cwd": project, "env": environment(project)}
    for first in range(0, rounds, KILLS):
        number = min(KILLS, rounds - first)
        for folder in (*FOLDERS, ".dvc/cache", ".checkpoints"):
            shutil.rmtree(project / folder, ignore_errors=True)
        (project / "dvc.lock").unlink(missing_ok=True)
        for _ in range(number):
            started = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                started.wait(chance.uniform(1, 60))
            except subprocess.TimeoutExpired:
                for process in family(psutil.Process(started.pid)):
                    process.kill()
                started.wait()
        done = subprocess.run(**command, capture_output=True, text=True, check=False)
        found = repeatable(contents(project))
        different = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
        lost = f"status {done.returncode}, other files: {different} {done.stderr[-300:]}"
        right = not (done.returncode or different)
        yield from [("survived", "the same files") if right else ("lost", lost)] * number


def wait_until_it_listens(started: subprocess.Popen[str]) -> None:
    """Wait until a program has a handler of its own for SIGTERM, or has ended."""
    while started.poll() is None:
        caught = Path(f"/proc/{started.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)


def running(processes: list[psutil.Process]) -> list[str]:
    """Return command lines of those processes that have not ended; what has ended may wait for its parent to ask."""
    lines = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                lines.append(" ".join(process.cmdline())[-80:])
    return lines


def signals(project: Path, kept: Path, rounds: int, chance: random.Random) -> Iterator[Outcome]:
    """Stop each stage by SIGINT or SIGTERM at a random moment: it ends soon, with all its processes, and a line.

    Not before its first line of Python: until then a signal ends it without a word, and without anything begun.
    """
    for attempt in range(rounds):
        name, number = STAGES[attempt % len(STAGES)], (signal.SIGINT, signal.SIGTERM)[attempt // len(STAGES) % 2]
        before = contents(project)
        started = subprocess.Popen(
            command(name),
            cwd=project,
            env=environment(project),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until_it_listens(started)
        time.sleep(chance.uniform(0, 12))
        processes = family(psutil.Process(started.pid))
        started.send_signal(number)
        sent = time.monotonic()
        _, told = started.communicate()
        while running(processes) and time.monotonic() - sent < ENDS_WITHIN:
            time.sleep(0.02)
        seconds, left = time.monotonic() - sent, running(processes)
        done = subprocess.CompletedProcess(name, started.returncode, "", told)
        if left or seconds > ENDS_WITHIN:
            yield "lost", f"{name}: after {seconds:.1f} s {left} run"
        else:
            outcome, what = whole(project, before, done)
            yield outcome, f"{name}: {what}, in {seconds:.1f} s"
        repair(project, kept)


@contextmanager
def small_disk(folder: Path, size: int, option: str) -> Iterator[None]:
    """Put what a folder holds on a disk of its own, which has little room or cannot be written."""
    held = folder.with_name(f"{folder.name}.held")
    shutil.copytree(folder, held)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        shutil.copytree(held, folder, dirs_exist_ok=True)
        if option:
            subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)
        yield
        shutil.rmtree(held)
        shutil.copytree(folder, held)
    finally:
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)
        held.rename(folder)


def disks(project: Path, kept: Path, rounds: int, chance: random.Random) -> Iterator[Outcome]:
    """Let stages write on a disk that is nearly full, or that cannot be written."""
    for attempt in range(rounds):
        name = list(WRITES)[attempt % len(WRITES)]
        folder = project / WRITES[name] / "dqn"
        room = 4096 * chance.choice([1, 2, 4, 8, 16, 64])
        full = sum(4096 * (1 + path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
        before = contents(project)
        if name == "train":  # else it knows its outputs
            shutil.rmtree(project / ".checkpoints", ignore_errors=True)
        with small_disk(folder, full + room, "ro" if attempt % 3 == 2 else ""):
            done = stage(project, name)
        outcome, what = whole(project, before, done)
        yield outcome, f"{name}: {what}"
        repair(project, kept)


def shipped(folder: Path) -> list[Path]:
    """Return all files but empty ones, and the player's first, whose damage is Python's to tell."""
    first = folder / "player/__main__.py"
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path for path in paths if path.stat().st_size and path != first)


def answers(project: Path) -> tuple[tuple[str, ...], Outcome | None]:
    """Return what a device hears of a model folder: its golden decisions replayed, and an episode."""
    said = []
    for command in (
        ["-m", "policy_export.backends", "models/dqn"],
        ["models/dqn/player", "--selftest"],
        ["models/dqn/player", "--native"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=project,
            env=environment(project, PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            return (), refused_or_lost(done)
        said.append(done.stdout)
    return tuple(said), None


def judge_answers(project: Path, right: tuple[str, ...]) -> Outcome:
    said, refused = answers(project)
    if refused is not None:
        return refused
    return ("survived", "the same answers") if said == right else ("lost", "answers otherwise, without a word")


def bits(project: Path, kept: Path, rounds: int, chance: random.Random) -> Iterator[Outcome]:
    """Change bits of files that ship; in every second attempt the manifest's hashes are those of the damaged file."""
    folder, (right, _) = project / "models/dqn", answers(project)
    for attempt in range(rounds):
        path = chance.choice(shipped(folder))
        content = bytearray(path.read_bytes())
        for _ in range(chance.choice([1, 1, 8])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        name = path.relative_to(folder).as_posix()
        if (
            attempt % 2
            and path.suffix != ".py"
            and name in json.loads((kept / "models/dqn/manifest.json").read_text())["files"]
        ):
            hashed = sha256(path)
            change_manifest(folder, lambda manifest: manifest["files"][name].update(sha256=hashed))  # noqa: B023
        outcome, what = judge_answers(project, right)
        yield outcome, f"{name}: {what}"
        repair(project, kept)


def mutate(content: Any, chance: random.Random) -> str:
    """Change one place of nested mappings and lists, in place, and return where and how."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(content)
    node, key = chance.choice(places)
    old = node[key]
    others: list[Any] = [None, True, -1, 0, 3, 1e30, 0.5, "x", "", [], {}, [old], {"x": old}]
    others += [old + 1, old * 2, -old] if isinstance(old, int | float) and not isinstance(old, bool) else []
    others += [old[::-1], old + old] if isinstance(old, str | list) else []
    if chance.random() < 0.2:
        del node[key]
        return f"without {key!r}"
    node[key] = chance.choice([other for other in others if other != old or type(other) is not type(old)])
    return f"{key!r} is {node[key]!r:.60}"


def manifests(project: Path, kept: Path, rounds: int, chance: random.Random) -> Iterator[Outcome]:
    """Change one place of a manifest, whose digest is then that of the changed one."""
    folder, (right, _) = project / "models/dqn", answers(project)
    for _ in range(rounds):
        told: list[str] = []
        change_manifest(folder, lambda manifest: told.append(mutate(manifest, chance)))  # noqa: B023
        outcome, what = judge_answers(project, right)
        yield outcome, f"{told[0]}: {what}"
        repair(project, kept)


def parameters(project: Path, kept: Path, rounds: int, chance: random.Random) -> Iterator[Outcome]:
    """Change one place of ``params.yaml``, and read it as every stage does."""
    del kept
    yaml, path = YAML(typ="safe", pure=True), project / "params.yaml"
    text = path.read_text()
    content, here = yaml.load(text), Path.cwd()
    os.chdir(project)
    try:
        for _ in range(rounds):
            changed = copy.deepcopy(content)
            what = mutate(changed, chance)
            path.write_text(json.dumps(changed))
            try:
                for policy in params.load().matrix:
                    load_profile(policy)
            except UserError as error:
                lines = str(error).splitlines()  # one for each mistake
                named = all(line.startswith("params.yaml: ") for line in lines)
                yield ("refused", f"{what}: {lines[0]}") if named else ("lost", f"{what}: {lines}")
            except Exception as error:
                yield "lost", f"{what}: {type(error).__name__}: {error}"
            else:
                yield "survived", f"{what}: allowed"
    finally:
        path.write_text(text)
        os.chdir(here)


class Campaign(NamedTuple):
    """How attempts are made, and how many in the whole campaign and in the tests."""

    attempt: Callable[[Path, Path, int, random.Random], Iterator[Outcome]]
    many: int
    few: int


CAMPAIGNS = {
    "kills": Campaign(kills, 50, 1),
    "signals": Campaign(signals, 4 * len(STAGES), 3),
    "disks": Campaign(disks, 30, 3),
    "bits": Campaign(bits, 200, 4),
    "manifests": Campaign(manifests, 120, 4),
    "parameters": Campaign(parameters, 1000, 100),
}


def campaign(project: Path, kept: Path, kind: str, rounds: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run one campaign; return how often each outcome was had, and what was lost."""
    counts, lost = Counter[str](), []
    for outcome, what in CAMPAIGNS[kind].attempt(project, kept, rounds, random.Random(seed)):
        counts[outcome] += 1
        print(f"campaign {kind}  {outcome}  {what}", flush=True)
        if outcome == "lost":
            lost.append(f"{kind}: {what}")
    return counts, lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[], help=f"some of {', '.join(CAMPAIGNS)}; all, if none is given")
    parser.add_argument("--rounds", type=int, help="attempts of each, instead of each campaign's own number")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all that is random (default: the time)")
    parser.add_argument("--project", type=Path, help="folder of a project that --keep has left")
    parser.add_argument("--keep", action="store_true", help="keep the project")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in CAMPAIGNS]:
        parser.error(f"no campaign: {', '.join(unknown)}; there are {', '.join(CAMPAIGNS)}")
    kept = options.project or Path(tempfile.mkdtemp(prefix="campaign-"))
    if options.project is None:
        build(kept)
    rows, lost = [], []
    try:
        for kind in options.kinds or CAMPAIGNS:
            with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
                project = Path(folder, "project")
                shutil.copytree(kept, project, symlinks=True)
                rounds = CAMPAIGNS[kind].many if options.rounds is None else options.rounds
                counts, more = campaign(project, kept, kind, rounds, options.seed)
                rows.append([kind, counts.total(), *(counts[outcome] for outcome in OUTCOMES)])
                lost += more
    finally:
        if not (options.keep or options.project):
            shutil.rmtree(kept)
    print(tabulate(rows, ["campaign", "tried", *OUTCOMES], tablefmt="github"))
    print("\n".join([f"seed {options.seed}", *lost]))
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
