"""A stage that is stopped, or whose starter has ended, ends at once, with every process that it has started."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import psutil

from policy_export import STARTER

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAKING = signal.SIGUSR1  # ends a system call that the main thread waits in
POLL_SECONDS = 0.25  # between looks at whether the starter is there
TRACKER = "multiprocessing.resource_tracker"  # removes what the stage's processes have shared
LAST_SECONDS = 0.5  # to end what the stage has started just before its end
GRACE_SECONDS = 2.0  # after the signal, for the stage to leave nothing half-written


class Stopped(BaseException):
    """The stage is to end."""


@dataclass
class Stop:
    """Whether a stage is to end, by which signal, and why; and whether it does."""

    number: int | None = None
    reason: str = ""
    ending: bool = False

    @property
    def status(self) -> int:
        """Return the exit status, as a shell has it for a process that a signal ends."""
        return 128 + (self.number or 0)

    def tell(self) -> None:
        """Print why the stage ends, once."""
        if not self.ending:
            self.ending = True
            print(f"error: stopped by {self.reason}", file=sys.stderr, flush=True)

    def end(self) -> NoReturn:
        """Print why the stage ends, and end its process, without what libraries do at the end, which may take long.

        What it has started meanwhile would live for seconds without it, and tell of files that are gone.
        """
        self.tell()
        end_started(time.monotonic() + LAST_SECONDS)
        os._exit(self.status)


@atexit.register
def _ignore_signals() -> None:
    """Ignore signals from here on: all is written, and the process is about to end by itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_started(until: float) -> None:
    """End all processes that this one has started, and those that they have, but for Python's own, which ends last.

    One may have started another meanwhile, so they are ended again until there are none, or it is the time ``until``,
    of ``time.monotonic()``.
    """
    while started := [each for each in psutil.Process().children(recursive=True) if _runs(each)]:
        for process in started:
            with suppress(psutil.Error):  # it has ended
                process.kill()
        if time.monotonic() >= until:
            return
        psutil.wait_procs(started, timeout=0.1)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and TRACKER not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _watch(stop: Stop, woken: int, main: int, done: threading.Event) -> None:
    """Wait for a signal, whose number is read from ``woken``, or for the end of the starter; then stop the stage."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    while stop.number is None:
        told = select.select([woken], [], [], POLL_SECONDS)[0]
        if done.is_set():
            return
        if numbers := [number for number in (os.read(woken, 64) if told else b"") if number in SIGNALS]:
            stop.number, stop.reason = numbers[0], signal.Signals(numbers[0]).name
        elif os.getppid() != STARTER:
            stop.number, stop.reason = signal.SIGTERM, "the end of the process that had started it"
    until = time.monotonic() + GRACE_SECONDS
    threading.excepthook = lambda _: None  # threads that start processes fail from here on, which follows from it
    if not done.is_set():
        signal.pthread_kill(main, WAKING)
    end_started(until)
    if not done.wait(until - time.monotonic()):
        stop.end()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a stage be stopped, by SIGINT, by SIGTERM, or by the end of the process that has started it.

    Inside, :class:`Stopped` is raised in the main thread, and all that the stage has started is killed, so that nothing
    waits for it. If the stage has not ended after ``GRACE_SECONDS``, its process does. What the stage starts does not
    get its signals: in a terminal, Ctrl-C reaches all processes, and each would tell of it.
    """
    # Python's own process removes what is left, which is right, and would tell of it.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    stop, done = Stop(), threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def handle(number: int, _: FrameType | None) -> None:
        if number == WAKING and not stop.ending:  # the others wake the thread, which sends this one once
            raise Stopped

    handlers = {number: signal.signal(number, handle) for number in (*SIGNALS, WAKING)}
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(stop, reading, threading.get_ident(), done), daemon=True)
    watching.start()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    except BaseException:
        if stop.number is not None:  # whatever was raised follows from it
            stop.tell()
            atexit._run_exitfuncs()  # noqa: SLF001  such as the end of temporary folders, while the thread waits
            stop.end()
        raise
    finally:
        if stop.number is None:
            done.set()
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(writing)  # which ends the thread
