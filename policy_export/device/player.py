"""A program with its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Action, Arrays, Run


class Player:
    """A program with its memory: observations in, decisions out, for one or more episodes at a time.

    Args:
        run: the program, from arrays by input name to arrays by output name.
        manifest: names, dtypes and shapes of its inputs, and which outputs are the next states.
        batch: number of episodes.
    """

    def __init__(self, run: Run, manifest: dict[str, Any], batch: int = 1) -> None:
        self.run, self.manifest, self.batch = run, manifest, batch
        self.states = {state["output"]: state["input"] for state in manifest["states"]}
        names = [spec["name"] for spec in manifest["inputs"]]
        (self.observation,) = (name for name in names if name not in {*self.states.values(), "is_init"})
        self.reset()

    def reset(self) -> None:
        """Start all episodes: where ``is_init`` is true, the program ignores the state that it is given."""
        self.feed = {
            spec["name"]: np.zeros([self.batch, *spec["shape"][1:]], spec["dtype"]) for spec in self.manifest["inputs"]
        }
        if self.states:
            self.feed["is_init"][...] = True
            self.going_on = np.zeros_like(self.feed["is_init"])

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some of the episodes, in the given order."""
        self.feed = {name: array[list(rows)] for name, array in self.feed.items()}
        if self.states:
            self.going_on = np.zeros_like(self.feed["is_init"])

    def step(self, observations: npt.NDArray[Any]) -> Arrays:
        """Return all outputs for raw observations, such as ``(batch, 210, 160, 3)`` uint8 screens; update states."""
        self.feed[self.observation] = observations
        outputs = self.run(self.feed)
        if self.states:
            self.feed |= {name: outputs[output] for output, name in self.states.items()}
            self.feed["is_init"] = self.going_on
        return outputs

    def act(self, observation: npt.NDArray[Any]) -> Action:
        """Return the action for the observation of the only episode: an index, or a float32 vector."""
        action = self.step(observation[None])["action"][0]
        return action if action.ndim else int(action)
