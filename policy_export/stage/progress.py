"""How far a stage is: a progress bar in a terminal; elsewhere, as in a log, a line every few seconds."""

from __future__ import annotations

import math
import sys
from typing import TextIO

from tqdm import tqdm

SECONDS = 5.0  # between two lines
STEPS_LINE = "{desc}  {n_fmt}/{total_fmt} steps  {rate_noinv_fmt}{postfix}  ETA {remaining}"
# Episodes are played side by side and end at about the same time, so that neither a speed nor an ETA says much.
EPISODES_LINE = "{desc}  {n_fmt}/{total_fmt} episodes  after {elapsed}"


class Progress:
    """Shows how much of a known number of steps or episodes is done.

    Args:
        what: what is being done, at the start of every line.
        total: the number at which it is done.
        unit: ``steps`` or ``episodes``.
        done: the number at the start.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.total, terminal = total, sys.stdout.isatty()
        steps = unit == "steps"
        self.bar = tqdm(
            desc=what,
            initial=done,
            total=total,
            unit=f" {unit}",
            unit_scale=steps,
            file=sys.stdout if terminal else _Lines(sys.stdout),
            mininterval=0.1 if terminal else SECONDS,
            maxinterval=math.inf,
            miniters=0,
            dynamic_ncols=terminal,
            bar_format=None if terminal else STEPS_LINE if steps else EPISODES_LINE,
        )

    def show(self, done: int, remark: str = "") -> None:
        """Show the number that is done, and a remark behind it; nothing follows once it is the total.

        To be called often: it shows no more than a line every few seconds.
        """
        if remark:
            self.bar.set_postfix_str(remark, refresh=False)
        self.bar.update(min(done, self.total) - self.bar.n)
        if done >= self.total:
            self.bar.close()


class _Lines:
    """A stream that writes each state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def or_dash(number: float | None, form: str) -> str:
    """Return a number as a format says; a dash where it is not known yet."""
    return "-" if number is None else format(number, form)
