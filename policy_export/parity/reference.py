"""Compare the exported policy with a function of its owner's, such as ``predict`` of the trainer that it comes from.

A network that was written anew, for weights that another program has trained, is proven in this way against the
original. In open loop the function is asked about what was recorded; in closed loop it plays by itself, and the policy
is asked about what it meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.arrays import Action, Run
from policy_export.device.environments import is_playable, make_environment
from policy_export.device.manifest import action_kinds, read_manifest
from policy_export.device.player import Player, pick_action
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode, observe
from policy_export.parity.closed_loop import MOST_DECISIONS
from policy_export.parity.comparison import Batch, Comparison, Place
from policy_export.parity.open_loop import watch
from policy_export.program.owner import Owner, load_reference


@dataclass
class Referenced:
    """What the policy and its owner's function did.

    Attributes:
        function: its name.
        open_loop: the function's actions for what was recorded, held against the policy's.
        closed_loop: the same for what the function met in episodes of its own; none without an environment.
        scores: of these episodes.
    """

    function: str
    open_loop: Comparison
    closed_loop: Comparison | None
    scores: list[float]


def compare_recorded(
    owner: Owner, eager: Run, recorded: list[Episode], manifest: dict[str, Any], tolerance: float
) -> Comparison:
    """Ask the function about recorded episodes, one after the other, and compare its actions with the policy's."""
    result = Comparison(compares_actions=True, tolerance=tolerance, states=set(), kinds=action_kinds(manifest))
    player = Player(eager, manifest, len(recorded))
    taken = [
        [owner.decide(player.read(shown), begins=step == 0) for step, shown in enumerate(observe(episode, manifest))]
        for episode in recorded
    ]
    playing = list(range(len(recorded)))
    for step, (still, shown) in enumerate(watch(recorded, manifest)):
        if still != playing:
            player.keep([playing.index(episode) for episode in still])
            playing = still
        expected = player.step(shown)
        found = {name: np.stack([taken[episode][step][name] for episode in playing]) for name in owner.actions}
        places = [Place(recorded[episode].seed, step) for episode in playing]
        result.compare(Batch(places, expected, expected | found, {}))
    return result


def compare_played(
    owner: Owner, eager: Run, manifest: dict[str, Any], settings: params.ParityCheck
) -> tuple[Comparison, list[float]]:
    """Let the function play, and compare its actions with the policy's; return the scores of its episodes, too."""
    result = Comparison(compares_actions=True, tolerance=settings.tolerance, states=set(), kinds=action_kinds(manifest))
    scores, player = list[float](), Player(eager, manifest)
    for seed in range(settings.seed, settings.seed + settings.episodes):
        environment, score, step = make_environment(manifest, seed), 0.0, 0
        player.reset()
        while not environment.done and result.observations < MOST_DECISIONS:
            shown = player.read(environment.observations)
            found = owner.decide(shown, begins=step == 0)
            expected = player.step({name: array[None] for name, array in shown.items()})
            rows = {name: array[None] for name, array in found.items()}
            result.compare(Batch([Place(seed, step)], expected, expected | rows, {}))
            action: Action = pick_action(rows, owner.actions)
            score, step = score + environment.step(action), step + 1
        if environment.done:
            scores.append(score)
    return result, scores


def check_reference_by_name(policy: str, settings: params.ParityCheck) -> Referenced:
    """Compare a policy, by its name, with its profile's reference."""
    profile, manifest = load_profile(policy), read_manifest(Path("models", policy))
    assert profile.reference is not None
    name, predict = load_reference(profile.reference)
    owner = Owner(name, predict, {spec["name"]: spec for spec in manifest["outputs"]}, list(action_kinds(manifest)))
    eager = runtimes.load_by_name(policy, runtimes.EAGER, threads=1)
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    open_loop = compare_recorded(owner, eager, recorded, manifest, settings.tolerance)
    if not is_playable(manifest):
        return Referenced(name, open_loop, None, [])
    return Referenced(name, open_loop, *compare_played(owner, eager, manifest, settings))
