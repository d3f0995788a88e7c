"""Stages that are stopped: by Ctrl-C, by ``kill``, or by the end of what has started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from pipeline_helpers import ROOT, TINY, python, write_params

pytestmark = pytest.mark.slow

# A stage with processes of every kind, some of which ignore a signal, and half an output.
PROGRAM = """
import os, signal, subprocess, time
from contextlib import suppress
from pathlib import Path
from policy_export.stage.command import run
from policy_export.stage.files import replacing
from policy_export.stage.processes import processes

def wait(place):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(f"begun{place}").touch()
    time.sleep(600)

def stage():
    subprocess.Popen(["sleep", "600"])
    with replacing(Path("output")) as temporary, processes(2) as executor, processes(1, fresh=True) as others:
        temporary.write_text("half")
        tasks = [executor.submit(wait, 0), executor.submit(wait, 1), others.submit(wait, 2)]
        while len(list(Path().glob("begun?"))) < 3:
            time.sleep(0.05)
        print("begun", flush=True)
        while "BUSY" in os.environ:
            with suppress(BaseException):
                time.sleep(600)
        for task in tasks:
            task.result()

if __name__ == "__main__":
    run(stage, "A stage.", policy=False)
"""


# A stage that starts processes again and again, each of which imports PyTorch first.
STARTING = """
import time
from policy_export.stage.command import run
from policy_export.stage.processes import processes

def stage():
    print("begun", flush=True)
    while True:
        with processes(2) as executor, processes(1, fresh=True) as others:
            [task.result() for task in (executor.submit(time.sleep, 0), others.submit(time.sleep, 0))]

if __name__ == "__main__":
    run(stage, "A stage.", policy=False)
"""


def interrupt(process: psutil.Process) -> None:
    process.send_signal(signal.SIGINT)


def terminate(process: psutil.Process) -> None:
    process.send_signal(signal.SIGTERM)


def press_ctrl_c(process: psutil.Process) -> None:
    os.killpg(process.pid, signal.SIGINT)


def end_starter(process: psutil.Process) -> None:
    parent = process.parent()
    assert parent is not None
    parent.kill()


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give a function that starts a program in a group of its own, and waits until a line contains some words."""
    started: list[subprocess.Popen[str]] = []

    def begin(command: list[str], words: str, **variables: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        started.append(process)
        assert process.stdout is not None
        assert any(words in line for line in process.stdout)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("stop", "status", "reason"),
    [
        (interrupt, 130, "SIGINT"),
        (terminate, 143, "SIGTERM"),
        (press_ctrl_c, 130, "SIGINT"),
        (end_starter, -9, "the end of the process that had started it"),
    ],
)
@pytest.mark.parametrize("busy", [False, True])
def test_everything_ends_with_one_line(start, tmp_path, stop, status, reason, busy):  # noqa: PLR0917
    """Check this also where the stage itself goes on whatever is raised: then it cannot clean up."""
    (tmp_path / "stage.py").write_text(PROGRAM)
    command = [sys.executable, "stage.py"]
    if stop is end_starter:
        command = ["sh", "-c", f"{sys.executable} stage.py; true"]
    started = start(command, "begun", **({"BUSY": "1"} if busy else {}))
    stage = psutil.Process(started.pid)
    if stop is end_starter:
        (stage,) = stage.children()
    processes = [stage, *stage.children(recursive=True)]
    assert len(processes) >= 5
    stop(stage)
    begun = time.monotonic()
    while any(map(runs, processes)):
        assert time.monotonic() - begun < 60
        time.sleep(0.05)
    _, told = started.communicate()
    assert started.returncode == status
    assert told == f"error: stopped by {reason}\n"
    left = {path.name for path in tmp_path.iterdir()} - {"stage.py", "begun0", "begun1", "begun2"}
    assert left == set() or (busy and all(name.startswith(".output.") for name in left))


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0])
def test_what_has_just_been_started_ends_too(start, tmp_path, after):
    (tmp_path / "stage.py").write_text(STARTING)
    started = start([sys.executable, "stage.py"], "begun")
    time.sleep(after)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate()  # what lives on holds the other end
    assert started.returncode == 130
    assert told == "error: stopped by SIGINT\n"


def test_signal_at_the_very_end_of_a_stage_changes_nothing(start, tmp_path):
    """Check this while a library ends, which may take as long as PyTorch's, or as this one."""
    (tmp_path / "stage.py").write_text(
        "import atexit, time\n"
        "atexit.register(lambda: (print('ends', flush=True), time.sleep(1)))\n"
        "from policy_export.stage.command import run\n"
        "run(lambda: None, 'A stage.', policy=False)\n"
    )
    started = start([sys.executable, "stage.py"], "ends")
    started.send_signal(signal.SIGTERM)
    _, told = started.communicate()
    assert (started.returncode, told) == (0, "")


@pytest.mark.parametrize("stop", ["SIGINT", "starter"])
def test_stage_is_stopped_while_it_is_imported(tmp_path, stop):
    """Check this with a stage that would take minutes, at the moment in which Python has begun."""
    write_params(tmp_path, TINY | {"policies.dqn.train.total_steps": 10**6})
    told = tmp_path / "told"
    command = f"{sys.executable} -X importtime -m stages.train dqn 2> {told}; true"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(["sh", "-c", command], cwd=tmp_path, env=environment, process_group=0) as starter:
        while not (told.exists() and "policy_export" in told.read_text()):
            time.sleep(0.01)
        (stage,) = psutil.Process(starter.pid).children()
        if stop == "SIGINT":
            stage.send_signal(signal.SIGINT)
        else:
            starter.kill()
        stage.wait(60)
        starter.wait()
    lines = [line for line in told.read_text().splitlines() if not line.startswith("import time:")]
    expected = "error: stopped by the end of the process that had started it"
    assert lines == ([] if stop == "SIGINT" else [expected])


def test_stopped_training_leaves_its_last_rollout(start, tmp_path):
    """Check also that no other process trains the same policy meanwhile."""
    write_params(tmp_path, TINY | {"policies.dqn.train.total_steps": 10**6})
    command = [sys.executable, "-m", "stages.train", "dqn"]
    started = start(command, "return")
    done = python(*command[1:], cwd=tmp_path, status=1)
    assert done.stderr == f"error: train: dqn is being trained already, by the process {started.pid}\n"
    started.terminate()
    _, told = started.communicate()
    assert (started.returncode, told) == (143, "error: stopped by SIGTERM\n")
    (checkpoint,) = (tmp_path / ".checkpoints").rglob("*.pt")
    steps = torch.load(checkpoint, weights_only=True)["steps"]
    assert steps > 0
    start(command, f"resumes at {steps:,} steps")
