"""The processes of a stage: what they begin with, and that they end with it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import ROOT, python

from policy_export.device.errors import UserError
from policy_export.stage.processes import processes

STARTER = """
import os, sys, time
from policy_export.stage.processes import processes

def told():
    os.write(1, b"%d\\n" % os.getpid())  # at once, as the other one writes too
    time.sleep(600)

if __name__ == "__main__":
    with processes(2, fresh=sys.argv[1] == "fresh") as executor:
        for _ in range(2):
            executor.submit(told)
"""


def beginning() -> tuple[set[str], int, float, float, float]:
    """Return what is imported, the number of threads, and the first random numbers of Python, NumPy and PyTorch."""
    imported = {"torch", "torchrl.envs", "onnxruntime"} & set(sys.modules)
    threads = len([*Path("/proc/self/task").iterdir()])
    import torch

    return imported, threads, random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


def computed() -> float:
    import torch

    square = torch.ones(512, 512)
    return (square @ square).sum().item()


def exited() -> None:
    os._exit(1)


@pytest.mark.parametrize(
    ("fresh", "imported"), [(False, {"torch", "torchrl.envs"}), (True, set())], ids=["copies", "fresh"]
)
def test_process_begins_as_python_does(fresh, imported):
    """Check that nothing ran before the copy: neither threads that are lost nor random numbers that would be shared."""
    with processes(2, one_task_each=True, fresh=fresh) as executor:
        begun = [task.result() for task in [executor.submit(beginning) for _ in range(3)]]
    assert [had for had, *_ in begun] == [imported] * 3
    if not fresh:
        assert {threads for _, threads, *_ in begun} == {2}  # its own, and the one that watches the starter
    assert all(len(set(first)) == 3 for first in list(zip(*begun, strict=True))[2:])


def place() -> tuple[Path, str | None]:
    return Path.cwd(), os.environ.get("PLACE")


@pytest.mark.parametrize("fresh", [False, True], ids=["copies", "fresh"])
def test_process_begins_in_the_folder_of_its_starter(fresh, tmp_path, monkeypatch):
    """Check that this is the folder of now, and so is the environment."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("PLACE", name)
        with processes(1, fresh=fresh) as executor:
            assert executor.submit(place).result() == (tmp_path / name, name)


def test_copy_computes_in_parallel():
    with processes(1) as executor:
        assert executor.submit(computed).result(timeout=60) == 512**3


def test_process_that_ends_is_told():
    with pytest.raises(UserError, match="ended from outside"), processes(1) as executor:
        executor.submit(exited).result()


@pytest.mark.parametrize("way", ["copies", "fresh"])
def test_processes_end_with_their_starter(tmp_path, way):
    (tmp_path / "starter.py").write_text(STARTER)
    command, environment = [sys.executable, "starter.py", way], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE) as starter:
        started = [int(starter.stdout.readline()) for _ in range(2)]
        assert all(is_running(process) for process in started)
        starter.send_signal(signal.SIGKILL)
    for _ in range(30):
        if not any(is_running(process) for process in started):
            return
        time.sleep(0.1)
    pytest.fail("still running, 3 s after their starter")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "stage", ["machine", "golden", "compile_aoti", "compile_native", "export_onnx", "manifest", "parity_check", "bench"]
)
def test_stage_that_only_starts_others_imports_no_torch(stage):
    program = f"import sys, stages.{stage}; sys.exit('torch' in sys.modules)"
    python("-c", program, cwd=ROOT)
