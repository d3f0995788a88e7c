"""A program with its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Action, Arrays, Run
from .errors import UserError
from .manifest import action_names, observation_names


class Player:
    """A program with its memory: observations in, decisions out, for one or more episodes at a time.

    Args:
        run: the program, from arrays by input name to arrays by output name.
        manifest: names, dtypes and shapes of its inputs, and which outputs are actions or the next states.
        batch: number of episodes.
    """

    def __init__(self, run: Run, manifest: dict[str, Any], batch: int = 1) -> None:
        self.run, self.manifest, self.batch = run, manifest, batch
        self.states = {state["output"]: state["input"] for state in manifest["states"]}
        self.observations, self.actions = observation_names(manifest), action_names(manifest)
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

    def read(self, shown: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Return the observations that the program reads, by name.

        Args:
            shown: what the environment shows, by name; an array where the program reads only one.

        Raises:
            UserError: one is missing.
        """
        if not isinstance(shown, Mapping):
            if len(self.observations) != 1:
                raise UserError(f"the policy reads {', '.join(self.observations)}: give each by its name")
            return {self.observations[0]: shown}
        if missing := [name for name in self.observations if name not in shown]:
            raise UserError(f"the policy reads {', '.join(missing)}, the environment shows {', '.join(shown)}")
        return {name: shown[name] for name in self.observations}

    def step(self, shown: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Return all outputs for raw observations, such as ``(batch, 210, 160, 3)`` uint8 screens; update states.

        Raises:
            UserError: an observation is missing.
        """
        self.feed |= self.read(shown)
        outputs = self.run(self.feed)
        if self.states:
            self.feed |= {name: outputs[output] for output, name in self.states.items()}
            self.feed["is_init"] = self.going_on
        return outputs

    def act(self, shown: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Action:
        """Return the action for what the only episode shows: an index, an array, or several by name."""
        if not isinstance(shown, Mapping):
            shown = self.read(shown)
        return pick_action(self.step({name: array[None] for name, array in shown.items()}), self.actions)


def pick_action(outputs: Arrays, names: Sequence[str], row: int = 0) -> Action:
    """Return a row's action, as its environment takes it."""
    if len(names) > 1:
        return {name: outputs[name][row] for name in names}
    action = outputs[names[0]][row]
    return action if action.ndim else action.item()
