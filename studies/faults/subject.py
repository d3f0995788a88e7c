"""A policy with a few short episodes, and the check of one of its programs in this process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs.utils import ExplorationType

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.config.profile import Profile, load_profile
from policy_export.device.arrays import Run
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, read_manifest
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode
from policy_export.environments.recording import play_episode
from policy_export.parity.batch_invariance import ROWS, check_batch_invariance
from policy_export.parity.closed_loop import Trace, compare_episodes, part_at_ties, play_episodes
from policy_export.parity.open_loop import check_open_loop
from policy_export.parity.recorded_inputs import RecordedInputs, pick_recorded_inputs
from policy_export.parity.samples import Samples, check_samples, sample_all
from policy_export.program.archive import save_program
from policy_export.program.export import export
from policy_export.program.policy import Agent
from policy_export.program.step import Step, load_agent

STEPS = 256  # of every episode
EPISODES = 2  # one of them greedy, in open loop; as many in closed loop
EPSILON = 0.1  # in the other


@functools.cache
def find_policies() -> dict[str, str]:
    """Return the first policy of each kind that the pipeline has built.

    ``stacked`` has values of actions and a stack of frames, ``recurrent`` has values and an LSTM, ``actor`` has logits.
    """
    found: dict[str, str] = {}
    for policy in params.load().matrix:
        manifest = read_manifest(Path("models", policy))
        states = {state["input"] for state in manifest["states"]}
        outputs = {spec["name"] for spec in manifest["outputs"]}
        kinds = {
            "stacked": "action_value" in outputs and states == {"frames"},
            "recurrent": "action_value" in outputs and {"hidden0", "hidden1"} <= states,
            "actor": "logits" in outputs,
        }
        found |= {kind: policy for kind, fits in kinds.items() if fits and kind not in found}
    return found


@dataclass(frozen=True)
class Subject:
    """What a policy's program is compared with, in short episodes.

    Attributes:
        policy: its name; its bundle is in ``models`` under the working folder.
        profile: as ``params.yaml`` has it.
        manifest: the bundle's, with episodes of ``STEPS`` steps.
        eager: the policy itself.
        recorded: episodes to show.
        recorded_inputs: decisions of one of them.
        played: what the policy does in closed loop.
        settings: settings of the check; their seed is that of the first episode in closed loop.
    """

    policy: str
    profile: Profile
    manifest: dict[str, Any]
    eager: Run
    recorded: list[Episode]
    recorded_inputs: RecordedInputs
    played: list[Trace]
    settings: params.ParityCheck

    @classmethod
    def load(cls, policy: str, seed: int) -> Subject:
        """Load a bundle that ``dvc repro`` has built, with different episodes for every ``seed``."""
        settings = params.load().parity_check.model_copy(update={"seed": seed})
        manifest = read_manifest(Path("models", policy))
        manifest["environment"]["max_episode_steps"] = STEPS
        eager = runtimes.load_by_name(policy, "eager", threads=1)
        player = Player(eager, manifest)
        recorded = [play_episode(player, seed + EPISODES + index, EPSILON * index) for index in range(EPISODES)]
        recorded_inputs = pick_recorded_inputs(eager, recorded[-1], manifest, ROWS)
        played = play_episodes(Player(eager, manifest, EPISODES), range(seed, seed + EPISODES))
        return cls(policy, load_profile(policy), manifest, eager, recorded, recorded_inputs, played, settings)

    def agent(self, **preprocess: Any) -> Agent:
        """Return the trained policy, to be changed; ``preprocess`` replaces parameters of its preprocessing."""
        profile = self.profile
        if preprocess:
            assert profile.preprocess is not None
            changed = profile.preprocess.model_copy(update=preprocess)
            profile = profile.model_copy(update={"preprocess": changed})
        return load_agent(self.policy, profile)

    def find(self, run: Run) -> str | None:
        """Return what the check finds first in a deterministic program."""
        seeds = range(self.settings.seed, self.settings.seed + EPISODES)
        try:
            program = {"pt2": run}
            shown = check_open_loop(self.eager, program, self.recorded, self.manifest, self.settings)["pt2"]
            if shown.failures:
                return f"open loop, {shown.failures[0]}"
            rows = check_batch_invariance(self.eager, program, self.recorded_inputs, self.manifest, self.settings)[
                "pt2"
            ]
            if rows.failures:
                return f"rows, {rows.failures[0]}"
            traces, tolerance = play_episodes(Player(run, self.manifest, EPISODES), seeds), self.settings.tolerance
            guides = part_at_ties(traces, self.played, tolerance)
            player, again = Player(run, self.manifest, len(guides)), [guide.seed for guide in guides]
            followed = play_episodes(player, again, guides=guides, tolerance=tolerance)
        except UserError as error:
            return str(error)
        loop = compare_episodes(traces, self.played, tolerance, followed)
        return f"closed loop, {loop.failures[0]}" if loop.failures else None

    @functools.cached_property
    def explorer(self) -> Run:
        """Return the policy as it explores."""
        return runtimes.load_by_name(self.policy, "eager_random", threads=1)

    @functools.cached_property
    def explored(self) -> Samples:
        """Return the policy's own samples, which take longer than a program's."""
        return self.sample(self.explorer)

    def sample(self, run: Run) -> Samples:
        inputs = self.recorded_inputs.spread(self.settings.random_inputs).inputs
        return sample_all(run, inputs, self.settings.random_calls, action_kinds(self.manifest))

    def find_random(self, load: Callable[[], Run]) -> str | None:
        """Return what the check finds first in a program that explores; ``load`` starts it anew."""
        programs = {"pt2_random": load()}
        shown = check_open_loop(
            self.eager, programs, self.recorded, self.manifest, self.settings, explorer=self.explorer
        )
        if failures := shown["pt2_random"].failures:
            return f"open loop, {failures[0]}"
        sampled = {"eager_random": self.explored, "pt2_random": self.sample(load())}
        first = [{"pt2_random": self.sample(load())} for _ in range(2)]
        found = check_samples(sampled, first, self.settings)["pt2_random"].failures
        return f"draws, {found[0]}" if found else None


def insert(agent: Agent, before: list[TensorDictModule], after: list[TensorDictModule]) -> Step:
    """Return the policy with modules around it, and around what resets its states, as a deterministic program."""

    class Changed(Step):
        def decide(self, entries: TensorDict) -> TensorDictBase:
            return TensorDictSequential(*after)(super().decide(TensorDictSequential(*before)(entries)))

    return Changed(agent.policy, agent.input_spec, ExplorationType.DETERMINISTIC)


def save(path: Path, subject: Subject, step: Step, program: torch.export.ExportedProgram | None = None) -> Path:
    """Write a step's program as the pipeline does, including its facts."""
    facts = {**subject.manifest, **step.signature.as_dict()}
    save_program(path, export(step) if program is None else program, facts)
    return path
