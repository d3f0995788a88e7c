"""The profiles of examples/, with files that the trainers' own libraries have written, through the real stages."""

from __future__ import annotations

import json

import pytest
from pipeline_helpers import ROOT, build_policy, make_own_project, python
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
PROGRAMS = ["pt2", "onnx"]
LONGEST = 40  # lines of a factory

# A SAC and a PPO of Stable-Baselines3, hardly trained.
WRITE_SB3 = """
import gymnasium
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [32, 32]}, learning_starts=100, seed=0, device="cpu")
model.learn(300).save("sac.zip")
env.save("vecnormalize.pkl")
PPO("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu").learn(512).save("ppo.zip")
"""
# An agent with CleanRL's names, and the same as a function.
AGENT = """
import torch
from torch import nn

class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))
        self.actor_mean = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.actor_logstd = nn.Parameter(torch.full((1, 1), -0.5))

def make_predict(file: str):
    agent = Agent()
    agent.load_state_dict(torch.load(file, weights_only=True))

    @torch.no_grad()
    def predict(observation):
        return agent.actor_mean(torch.from_numpy(observation)[None])[0].numpy()

    return predict
"""
WRITE_AGENT = """
import torch
from agent import Agent

torch.manual_seed(0)
torch.save(Agent().state_dict(), "agent.pt")
"""
# A recurrent actor of rsl_rl, and what it does in episodes of random observations.
WRITE_RSL_RL = """
import numpy as np
import torch
from rsl_rl.models.rnn_model import RNNModel
from safetensors.numpy import save_file
from tensordict import TensorDict

torch.manual_seed(0)
draws, (robots, steps) = np.random.default_rng(0), (4, 60)
seen = draws.normal(2, 3, (robots, steps, 5)).astype(np.float32)
model = RNNModel(
    TensorDict({"policy": torch.zeros(robots, 5)}, [robots]), {"actor": ["policy"]}, "actor", 2, [32],
    obs_normalization=True, distribution_cfg={"class_name": "GaussianDistribution"},
    rnn_hidden_dim=16, rnn_num_layers=2,
)
model.train()
for step in range(steps):
    model.update_normalization(TensorDict({"policy": torch.from_numpy(seen[:, step])}, [robots]))
model.eval()
with torch.no_grad():
    taken = [model(TensorDict({"policy": torch.from_numpy(seen[:, step])}, [robots])).numpy() for step in range(steps)]
torch.save({"actor_state_dict": model.state_dict(), "critic_state_dict": {}, "iter": 1, "infos": None}, "model.pt")
begins = np.zeros((robots, steps), bool)
begins[:, 0] = True
arrays = {"policy": seen, "is_init": begins, "action": np.stack(taken, 1)}
save_file({name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}, "walk.safetensors")
"""
WRITE_TORCHRL = """
import torch
from examples.torchrl_sac import make_env, make_policy

torch.manual_seed(0)
env = make_env(2)
actor = make_policy(env.observation_spec, env.action_spec)
torch.save({"actor": actor.state_dict(), "qvalue": {"weight": torch.zeros(3)}, "step": 1}, "actor.pt")
"""
# SB3's actor without the statistics: a mistake that nothing else would tell.
BARE = """
import torch
from examples import sb3_sac

def make_policy(observation_spec, action_spec, *, model: str, statistics: str):
    policy = sb3_sac.make_policy(observation_spec, action_spec, model=model, statistics=statistics)
    actor = next(module for module in policy.modules() if isinstance(module, sb3_sac.Actor))
    actor.loc, actor.scale = torch.zeros(3), torch.ones(3)
    return policy
"""
WRITERS = [WRITE_SB3, WRITE_AGENT, WRITE_RSL_RL, WRITE_TORCHRL]


def read_profiles():
    found = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        found |= YAML(typ="safe", pure=True).load(path.read_text())
    found["cleanrl_ppo"]["reference"] = {"factory": "agent:make_predict", "file": "agent.pt"}
    found["torchrl_sac"]["policy"]["checkpoint"]["file"] = "actor.pt"
    bare = found["sb3_sac"]["policy"] | {"factory": "bare:make_policy"}
    return found | {"sb3_bare": found["sb3_sac"] | {"policy": bare}}


PROFILES = read_profiles()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    profiles = {name: profile | {"programs": PROGRAMS} for name, profile in PROFILES.items()}
    make_own_project(folder, {"agent.py": AGENT, "bare.py": BARE}, profiles, {"parity_check": {"episodes": 20}})
    for program in WRITERS:
        python("-c", program, cwd=folder, project=folder)
    python("-m", "stages.machine", cwd=folder, project=folder)
    return folder


def test_every_example_is_short():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert all(len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= LONGEST for name in names)


@pytest.mark.parametrize("policy", [name for name in PROFILES if name != "sb3_bare"])
def test_example_is_proven(project, policy):
    report = build_policy(project, policy, PROGRAMS)
    assert report["passed"]
    assert all(report["programs"][name]["passed"] for name in PROGRAMS)


@pytest.mark.parametrize("policy", ["sb3_sac", "sb3_ppo", "cleanrl_ppo"])
def test_policy_decides_as_its_trainer_does(project, policy):
    reference = build_policy(project, policy, PROGRAMS)["reference"]
    for loop in ("open_loop", "closed_loop"):
        assert reference[loop]["decisions"] > 0
        assert reference[loop]["different_actions"] == 0
        assert reference[loop]["max_abs_difference"].get("action", 0) <= 1e-5
    assert reference["closed_loop"]["episodes"] == 20


def test_program_earns_what_its_trainer_does(project):
    report = build_policy(project, "sb3_sac", PROGRAMS)
    own = report["reference"]["closed_loop"]["mean_score"]
    evaluation = json.loads((project / "results/sb3_sac/train.json").read_text())["evaluation"]
    error = evaluation["std_score"] * (2 / 20) ** 0.5
    assert abs(evaluation["mean_score"] - own) < 4 * error  # other episodes, so within noise


def test_recurrent_actor_does_what_its_owner_did(project):
    report = build_policy(project, "rsl_rl_actor", PROGRAMS)
    assert report["owner"] == {"observations": 240, "different_actions": 0, "ties": [], "passed": True}
    manifest = json.loads((project / "models/rsl_rl_actor/manifest.json").read_text())
    assert [spec["shape"] for spec in manifest["inputs"][1:3]] == [["batch", 2, 16], ["batch", 2, 16]]
    assert manifest["control_rate_hz"] == 50


def test_statistics_that_were_left_out_are_found(project):
    for stage in ("train", "record", "export_pt2", "golden", "export_onnx", "manifest"):
        python("-m", f"stages.{stage}", "sb3_bare", cwd=project, project=project)
    done = python("-m", "stages.parity_check", "sb3_bare", cwd=project, status=1, project=project)
    assert "error: reference, open loop: episode with seed" in done.stderr
    report = json.loads((project / "results/sb3_bare/parity.json").read_text())
    assert not report["passed"]
    assert all(entry["passed"] for entry in report["programs"].values())  # nothing else tells
    assert report["training_environment"]["different_actions"] == 0
