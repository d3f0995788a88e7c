"""Every kind of policy that users of TorchRL write, in process: from the factory to programs that decide alike."""

from __future__ import annotations

import pytest
import torch
import zoo
from pipeline_helpers import ROOT
from program_helpers import ROWS, onnx_program, play
from torchrl.envs.utils import ExplorationType

from policy_export.config.profile import Profile, check, read
from policy_export.program.export import export, random_operators
from policy_export.program.policy import make_agent
from policy_export.program.step import make_step

pytestmark = pytest.mark.slow


CHOICES = (
    *("feed_forward", "c51", "one_hot", "one_hot_actor", "two_layer_gru", "lstm_with_dropout", "transformer", "trace"),
    *("observation_norm", "lazy", "dropout", "consistent_dropout", "noisy", "old_norms"),
    *("padded", "causal", "nearest", "orthogonal"),
)
VECTORS = ("td3", "ddpg", "sac", "free_log_std", "gsde", "beta", "composite")
FRAMES = ("dueling", "depthwise")
SCREENS = ("antialiased", "tutorial")
DETERMINISTIC, RANDOM = ExplorationType.DETERMINISTIC, ExplorationType.RANDOM
# What the exploring programs have to remember beside what the others do.
NOISES = {"ddpg": ["_ou_prev_noise", "_ou_steps"], "gsde": ["_eps_gSDE"]}


def profile_of(kind: str) -> Profile:
    """Return a profile of params.yaml with the environment that a kind of policy is for."""
    policies = read(ROOT / "params.yaml")["policies"]
    names = {**dict.fromkeys(CHOICES, "cartpole"), **dict.fromkeys(VECTORS, "pendulum"), **dict.fromkeys(FRAMES, "dqn")}
    content = policies[names.get(kind, "tutorial")]
    factory = {} if kind == "tutorial" else {"policy": {"factory": f"zoo:{kind}"}}
    train = {"algorithm": "none", "seed": 0, "eval_episodes": 1}
    return check(Profile, content | factory | {"train": train})


@pytest.fixture(scope="module", params=[*CHOICES, *VECTORS, *FRAMES, *SCREENS])
def agent(request):
    torch.manual_seed(0)
    made = make_agent(request.param, profile_of(request.param))
    made.policy.eval().requires_grad_(requires_grad=False)
    return request.param, made


def test_programs_decide_as_the_policy(agent):
    """Check this also in the middle of an episode, where the memory's content at its start has no effect."""
    _, made = agent
    step = make_step(made, DETERMINISTIC)
    program = export(step)
    assert not random_operators(program)
    for expected, *found in play(step, [step, program.module(), onnx_program(program, step)]):
        assert made.action_spec.expand(ROWS, *made.action_spec.shape).is_in(expected["action"])
        for outputs in found:
            assert set(outputs) == set(expected)
            for name, tensor in expected.items():
                torch.testing.assert_close(outputs[name], tensor, atol=1e-5, rtol=0)


def test_exploring_programs_have_the_same_values(agent):
    kind, made = agent
    step, deterministic = make_step(made, RANDOM), make_step(made, DETERMINISTIC)
    assert sorted(set(step.states) - set(deterministic.states)) == NOISES.get(kind, [])
    program = export(step)
    for expected, *found in play(step, [step, program.module(), onnx_program(program, step)]):
        for outputs in found:
            assert set(outputs) == set(expected)
            assert made.action_spec.expand(ROWS, *made.action_spec.shape).is_in(outputs["action"])
            for name in set(expected) - {"action", *(f"next_{noise}" for noise in NOISES.get(kind, []))}:
                torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=0)


def test_every_kind_is_tried():
    factories = {
        name for name, made in vars(zoo).items() if getattr(made, "__module__", "") == "zoo" and name.islower()
    }
    assert factories - {"perceptron", "q_actor", "head"} == {*CHOICES, *VECTORS, *FRAMES, *SCREENS} - {"tutorial"}
