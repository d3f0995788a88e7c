"""Separate processes for what must not share one: measurements, random numbers, and Python's global lock."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from policy_export.device.errors import UserError
from policy_export.stage.quiet import drop_remarks

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_starter() -> None:
    """Make this process end as soon as the one that has started it ends, in whatever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin() -> None:
    end_with_starter()
    drop_remarks()


@contextmanager
def processes(count: int, *, one_task_each: bool = False) -> Iterator[ProcessPoolExecutor]:
    """Yield an executor of up to ``count`` processes that start as ``python`` does, with none of this one's memory.

    Args:
        count: number of processes at the same time.
        one_task_each: every task gets a process that has just started.

    Raises:
        UserError: a process was ended from outside.
    """
    tasks = 1 if one_task_each else None
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, context, initializer=_begin, max_tasks_per_child=tasks)
    try:
        yield executor
    except BrokenProcessPool:
        raise UserError("one of the stage's processes was ended from outside; is memory short?") from None
    finally:
        executor.shutdown(cancel_futures=True)
