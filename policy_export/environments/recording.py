"""Recording of a player's episodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from policy_export.config import params
from policy_export.config.profile import RecordedEnv
from policy_export.device.arrays import Action, Arrays
from policy_export.device.environments import make_environment
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode, hash_state, random_action, replays
from policy_export.environments.recorded import load_recording

MOST_STEPS = 100_000  # of an episode


def play_episode(player: Player, seed: int, epsilon: float, *, keep: bool = False) -> Episode:
    """Play one full episode; each action is replaced by a random one with probability ``epsilon``.

    Args:
        player: of one episode.
        seed: of the environment, and of the random actions.
        epsilon: chance of a random action.
        keep: whether the episode holds what was seen.

    Raises:
        UserError: the environment fails, or shows what is no number; the policy's action is none that it takes; or the
            episode does not end.
    """
    kinds = action_kinds(player.manifest)
    environment, random = make_environment(player.manifest, seed), np.random.default_rng(seed)
    actions, rewards, state_hashes, seen = list[Action](), list[float](), list[int](), list[Arrays]()
    player.reset()
    while not environment.done:
        shown, when = player.read(environment.observations), f"at step {len(actions)} of the episode with seed {seed}"
        check_numbers(shown, when)
        if keep:
            seen.append({name: array.copy() for name, array in shown.items()})
        action = player.act(shown)
        check_taken(action, kinds, when)
        if random.random() < epsilon:
            action = random_action(player.manifest, random, environment.observations)
        actions.append(action)
        rewards.append(environment.step(action))
        state_hashes.append(hash_state(environment))
        if len(actions) == MOST_STEPS:
            raise UserError(
                f"the episode with seed {seed} has not ended after {MOST_STEPS:,} steps: give max_episode_steps"
            )
    if not actions:
        raise UserError(f"the episode with seed {seed} has ended before its first step")
    return Episode(
        seed,
        epsilon,
        stack_actions(actions),
        np.array(rewards, np.float32),
        np.array(state_hashes, np.uint64),
        {name: np.stack([shown[name] for shown in seen]) for name in seen[0]} if keep else None,
    )


def check_numbers(shown: Arrays, when: str) -> None:
    """Check what an environment shows.

    Raises:
        UserError: there is what is no number.
    """
    for name, array in shown.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise UserError(f"shows {name} with what is no number (nan), {when}")


def check_taken(action: Action, kinds: Mapping[str, Mapping[str, Any]], when: str) -> None:
    """Check that an action is one that the environment takes: not every environment does.

    Raises:
        UserError: a choice is none of those that there are, or a number is not finite.
    """
    for name, kind in kinds.items():
        taken = np.asarray(action[name] if isinstance(action, dict) else action)
        if taken.dtype.kind == "f" and not np.isfinite(taken).all():
            raise UserError(f"the policy's {name} is {taken.tolist()}, {when}: not every number is finite")
        if kind["kind"] in ("index", "indices"):
            most = np.asarray(kind["sizes"]).reshape(-1) - 1
            flat = taken.reshape(-1)
            if ((flat < 0) | (flat > most)).any():
                told = " and ".join(f"0 to {last}" for last in dict.fromkeys(most.tolist()))
                raise UserError(f"the policy's {name} is {taken.tolist()}, {when}: the environment takes {told}")


def record_episodes(player: Player, settings: params.Record, least: int) -> list[Episode]:
    """Play the episodes that a policy is checked with: greedy ones, and ones with some random actions.

    They hold what was seen where replaying the first one does not give the same. Where episodes are short, there are
    more of both kinds, in turns.

    Args:
        player: of one episode.
        settings: how many episodes there are.
        least: number of decisions that are needed.
    """
    plan = [0.0] * settings.greedy_episodes + [settings.epsilon] * settings.epsilon_episodes
    kinds = sorted(set(plan))
    recorded, decisions, keep = list[Episode](), 0, False
    for number in itertools.count():
        if number >= len(plan) and decisions >= least:
            return recorded
        epsilon = plan[number] if number < len(plan) else kinds[number % len(kinds)]
        episode = play_episode(player, settings.seed + number, epsilon, keep=keep)
        if not recorded and not replays(episode, player.manifest):
            keep, episode = True, play_episode(player, settings.seed + number, epsilon, keep=True)
        recorded.append(episode)
        decisions += len(episode)
    raise AssertionError


def stack_actions(actions: list[Action]) -> np.ndarray | Arrays:
    """Return actions as ``(steps, ...)`` arrays; indices as int16."""
    first = actions[0]
    if isinstance(first, dict):
        return {name: np.stack([action[name] for action in actions]) for name in first}  # type: ignore[index]
    return np.array(actions, np.int16) if isinstance(first, int) else np.stack(actions)  # type: ignore[arg-type]


def recorded_episodes(env: RecordedEnv) -> Iterator[Episode]:
    """Yield the episodes of a user's recording; their actions are those of the user's own program, if it has them."""
    observations, actions, stretches = load_recording(env)
    for number, steps in enumerate(stretches):
        kept = {name: array[steps.start : steps.stop] for name, array in observations.items()}
        done = {name: array[steps.start : steps.stop] for name, array in actions.items()}
        zeros = np.zeros(len(steps), np.float32)
        yield Episode(
            number, 0.0, done.get("action", np.empty((len(steps), 0), np.int16)), zeros, zeros.astype(np.uint64), kept
        )
