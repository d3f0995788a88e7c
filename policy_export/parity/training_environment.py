"""Compare the policy as it is exported with the trained actor in its training environment.

The actor decides from what the environment's transforms make of an observation, and the transforms make what the
environment takes of its action. The exported policy is given the observation below all transforms, and its action must
be what arrives there. So statistics or a scale that live in the environment cannot be lost without notice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Composite
from torchrl.envs.transforms import Transform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.config import params
from policy_export.config.profile import Profile
from policy_export.device.arrays import Arrays, Run
from policy_export.device.manifest import action_kinds
from policy_export.device.player import Player
from policy_export.device.torchrl_env import array_specs, episode_ended, flat_name, without_transforms
from policy_export.environments.env import transformed
from policy_export.environments.transforms import alone, freeze, transforms_of
from policy_export.parity.closed_loop import MOST_DECISIONS
from policy_export.parity.comparison import Batch, Comparison, Place
from policy_export.program.driver import Driver
from policy_export.program.policy import Agent, environment_of


class Tap(Transform):
    """The innermost transform: it changes nothing, and holds what the environment shows and takes."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: Arrays = {}
        self.taken: Arrays = {}

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.shown = self._read(next_tensordict, self.parent.observation_spec)
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase) -> TensorDictBase:
        begins = None if tensordict is None else tensordict.get("_reset", None)
        before = self.shown
        self._call(tensordict_reset)
        if begins is not None and before:  # of the others, the environment gives what nobody has asked for
            rows = begins.reshape(-1).cpu().numpy()
            for name, array in self.shown.items():
                array[~rows] = before[name][~rows]
        return tensordict_reset

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.taken = self._read(tensordict, self.parent.full_action_spec)
        return tensordict

    def _read(self, entries: TensorDictBase, specs: Composite) -> Arrays:
        rows = len(self.parent.batch_size)
        return {
            flat_name(key): entries[key].detach().cpu().numpy().reshape(-1, *spec.shape[rows:]).copy()
            for key, spec in array_specs(specs).items()
            if key in entries.keys(include_nested=True)
        }


@torch.no_grad()
def check_training_environment(
    profile: Profile, agent: Agent, program: Run, manifest: dict[str, Any], settings: params.ParityCheck
) -> Comparison:
    """Let the trained actor play in its training environment, and compare the exported policy's decisions with it.

    Args:
        profile: of the policy.
        agent: the trained policy.
        program: the exported policy, deterministic.
        manifest: names, dtypes and shapes of its inputs and outputs, and what its actions are.
        settings: of the check.

    Raises:
        UserError: the environment fails.
    """
    kinds = action_kinds(manifest)
    made, tap = environment_of(profile, agent, settings.episodes, settings.seed), Tap()
    env = transformed(without_transforms(made), [tap, *alone(*transforms_of(made))])
    freeze(transforms_of(env)[1:], agent.statistics)
    comparison = Comparison(compares_actions=True, tolerance=settings.tolerance, states=set(), kinds=kinds)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        driver = Driver(env, agent.actor, ExplorationType.DETERMINISTIC, agent.given)
        rows = env.batch_size.numel()
        player = Player(program, manifest, rows)
        playing, step, limit = np.ones(rows, bool), 0, getattr(profile.env, "max_episode_steps", None)
        while playing.any() and step != limit and comparison.observations < MOST_DECISIONS:
            shown = player.read(tap.shown)
            found = player.step(shown)
            decided = driver.decide(driver.entries, driver.memory)
            outcome, _ = driver.act(decided)
            expected = {name: tap.taken[name].astype(found[name].dtype) for name in kinds}
            expected |= _values(decided, found, set(kinds), rows)
            at = np.flatnonzero(playing)
            places = [Place(settings.seed + int(row), step) for row in at]
            compared = {name: found[name][at] for name in expected}
            comparison.compare(Batch(places, {name: array[at] for name, array in expected.items()}, compared, {}))
            ended = episode_ended(outcome, env.done_keys).reshape(rows).cpu().numpy()
            if player.states:
                player.feed["is_init"] = ended.reshape(player.feed["is_init"].shape).copy()
            playing &= ~ended
            step += 1
    return comparison


def _values(decided: TensorDictBase, found: Arrays, actions: set[str], rows: int) -> Arrays:
    """Return what the actor has chosen by, as far as the exported policy has the same."""
    entries = {
        flat_name(key): decided[key]
        for key in decided.keys(include_nested=True, leaves_only=True)
        if isinstance(decided[key], torch.Tensor)
    }
    return {
        name: entries[name].detach().cpu().numpy().reshape(rows, *array.shape[1:])
        for name, array in found.items()
        if name not in actions and name in entries and entries[name].numel() == array.size
        if not name.startswith("next_")
    }
