"""Separate processes for what must not share one: measurements, random numbers, and Python's global lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np

from policy_export.device.errors import UserError
from policy_export.stage.quiet import drop_remarks

PRELOADED = "policy_export.stage.preloaded"

Reports = SimpleQueue[int]  # numbers that processes tell their starter while they work on a task

_reports: Reports | None = None  # in a process that was given one


def _end_with_starter() -> None:
    starter = multiprocessing.parent_process()
    assert starter is not None
    wait([starter.sentinel])
    os._exit(1)


def make_reports() -> Reports:
    return multiprocessing.get_context("forkserver").SimpleQueue()


def report(number: int) -> None:
    """Tell the starter of this process a number, through the reports that it gave to :func:`processes`."""
    assert _reports is not None
    _reports.put(number)


def _begin(folder: str, environment: dict[str, str], reports: Reports | None) -> None:
    global _reports  # noqa: PLW0603 - a queue reaches a process only when it starts
    _reports = reports
    # Copies have the folder and the environment of the first start.
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # which the stage keeps to itself
    threading.Thread(target=_end_with_starter, daemon=True).start()
    drop_remarks()
    # Copies of one process would draw the same. Python's own numbers differ already.
    np.random.seed()  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


@contextmanager
def processes(
    count: int, *, one_task_each: bool = False, fresh: bool = False, reports: Reports | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Yield an executor of up to ``count`` processes, with none of this one's memory.

    Importing PyTorch and TorchRL takes longer than most tasks. So these processes are copies of one that has imported
    them, and done nothing else.

    Args:
        count: number of processes at the same time.
        one_task_each: every task gets a process that has just started.
        fresh: they start as ``python`` does instead, with the random seeds that a program has when it starts.
        reports: where tasks put what they tell with :func:`report`.

    Raises:
        UserError: a process was ended from outside.
    """
    tasks = 1 if one_task_each else None
    context = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        context.set_forkserver_preload([PRELOADED])
    here = (str(Path.cwd()), dict(os.environ), reports)
    executor = ProcessPoolExecutor(count, context, initializer=_begin, initargs=here, max_tasks_per_child=tasks)
    try:
        yield executor
    except BrokenProcessPool:
        raise UserError("one of the stage's processes was ended from outside; is memory short?") from None
    finally:
        executor.shutdown(cancel_futures=True)
