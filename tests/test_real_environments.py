"""Environments of other libraries, each with a policy for it, through the real stages."""

from __future__ import annotations

import pytest
from pipeline_helpers import build_policy, make_own_project, python

pytestmark = pytest.mark.slow

TRAIN = {"algorithm": "none", "device": "cpu", "seed": 0, "eval_episodes": 2}
PROGRAMS = ["pt2", "onnx"]
FILES = {
    # MuJoCo's joints, in doubles, with the statistics of a rollout.
    "cheetah.py": """
import torch
from torch import nn
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torchrl.envs import ClipTransform, Compose, DoubleToFloat, GymEnv, RewardSum, TransformedEnv, VecNormV2
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal

def make_env(steps: int):
    seen = [DoubleToFloat(), VecNormV2(in_keys=["observation"])]
    seen += [ClipTransform(in_keys=["observation"], low=-5.0, high=5.0), RewardSum()]
    env = TransformedEnv(GymEnv("HalfCheetah-v5"), Compose(*seen))
    env.rollout(steps)
    return env

def make_policy(observation_spec, action_spec):
    network = nn.Sequential(MLP(in_features=17, out_features=12, num_cells=[32]), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(network, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": action_spec.space.low, "high": action_spec.space.high},
    )
""",
    # PettingZoo's agents: three that share a network, and one with another.
    "chase.py": """
from mpe2 import simple_tag_v3
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import PettingZooWrapper
from torchrl.modules import MultiAgentMLP

def make_env():
    return PettingZooWrapper(simple_tag_v3.parallel_env(max_cycles=25), use_mask=False, categorical_actions=True)

def make_policy(observation_spec, action_spec):
    modules = []
    for group, agents, size in (("adversary", 3, 16), ("agent", 1, 14)):
        network = MultiAgentMLP(size, 5, agents, centralized=False, share_params=True, depth=1, num_cells=16)
        modules.append(TensorDictModule(network, [(group, "observation")], [(group, "logits")]))
        modules.append(TensorDictModule(lambda logits: logits.argmax(-1), [(group, "logits")], [(group, "action")]))
    return TensorDictSequential(*modules)
""",
    # gymnasium's toy text: one number is observed, the place.
    "lake.py": """
from torch import nn
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import Composite
from torchrl.modules import EGreedyModule, QValueModule

def make_policy(observation_spec, action_spec):
    values = nn.Embedding(observation_spec["observation"].n, action_spec.n)
    spec = Composite(action=action_spec)
    return TensorDictSequential(
        TensorDictModule(values, ["observation"], ["action_value"]),
        QValueModule(spec=spec),
        EGreedyModule(spec, eps_init=0.1, eps_end=0.1),
    )
""",
}
PROFILES = {
    "cheetah": {
        "env": {"factory": "cheetah:make_env", "steps": 100, "max_episode_steps": 100},
        "preprocess": None,
        "policy": {"factory": "cheetah:make_policy"},
    },
    "chase": {"env": {"factory": "chase:make_env"}, "preprocess": None, "policy": {"factory": "chase:make_policy"}},
    "lake": {
        "env": {"id": "FrozenLake-v1", "max_episode_steps": 60, "kwargs": {"map_name": "8x8"}},
        "preprocess": None,
        "policy": {"factory": "lake:make_policy"},
    },
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    profiles = {name: profile | {"train": TRAIN, "programs": PROGRAMS} for name, profile in PROFILES.items()}
    make_own_project(folder, FILES, profiles)
    python("-m", "stages.machine", cwd=folder, project=folder)
    return folder


@pytest.mark.parametrize("policy", PROFILES)
def test_policy_is_proven(project, policy):
    report = build_policy(project, policy, PROGRAMS)
    assert report["passed"]
    assert report["programs"]["onnx"]["observations"] >= 200
    assert report["training_environment"]["decisions"] >= 3
    assert report["training_environment"]["different_actions"] == 0
