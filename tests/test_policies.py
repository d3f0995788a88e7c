"""Policies of every kind: what their factories make, and how a mistake is reported."""

from __future__ import annotations

import pytest
import torch
from pipeline_helpers import ROOT
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

from policy_export.config.profile import Profile, check, load_profile, read
from policy_export.device.errors import UserError
from policy_export.program.calls import wrap
from policy_export.program.export import export
from policy_export.program.policy import make_agent, state_keys
from policy_export.program.step import Step
from policy_export.program.twins import exportable

KINDS = list(read(ROOT / "params.yaml")["policies"])


def changed(name: str, **sections) -> Profile:
    """Return a profile of params.yaml with some values changed."""
    content = read(ROOT / "params.yaml")["policies"][name]
    for section, values in sections.items():
        content[section] |= values
    return check(Profile, content)


@pytest.fixture(scope="module", params=[*KINDS, "drqn with a GRU"])
def agent(request):
    torch.manual_seed(0)
    name = request.param.split()[0]
    policy = {"epsilon": 0.5} if "epsilon" in read(ROOT / "params.yaml")["policies"][name]["policy"] else {}
    made = make_agent(name, changed(name, policy=policy | ({"rnn": "gru"} if "GRU" in request.param else {})))
    made.policy.eval().requires_grad_(requires_grad=False)
    return made


def random_inputs(agent, rows):
    """Return inputs in the middle of an episode, by key."""
    inputs = {}
    for key, spec in agent.input_spec.items():
        many = spec.expand(rows, *spec.shape)
        inputs[key] = many.rand() if spec.dtype == torch.uint8 else torch.randn(many.shape)
    if state_keys(agent.policy):
        inputs["is_init"] = torch.zeros(rows, 1, dtype=torch.bool)
    return inputs


def test_policy_decides_for_every_row_alone(agent):
    inputs = random_inputs(agent, 5)
    step = Step(agent.policy, agent.input_spec, ExplorationType.DETERMINISTIC)
    together = step(**inputs)
    assert together["action"].shape == (5, *agent.action_spec.shape)
    assert agent.action_spec.expand(5, *agent.action_spec.shape).is_in(together["action"])
    for row in range(5):
        alone = step(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close({name: tensor[row : row + 1] for name, tensor in together.items()}, alone)


def test_policy_explores_under_random_only(agent):
    inputs = random_inputs(agent, 40)
    for exploration, differs in ((ExplorationType.DETERMINISTIC, False), (ExplorationType.RANDOM, True)):
        step = Step(agent.policy, agent.input_spec, exploration)
        assert bool((step(**inputs)["action"] != step(**inputs)["action"]).any()) is differs


@pytest.mark.parametrize("exploration", [ExplorationType.DETERMINISTIC, ExplorationType.RANDOM])
def test_program_takes_any_number_of_rows(agent, exploration):
    step = Step(agent.policy, agent.input_spec, exploration)
    program = export(step)
    for rows in (1, 3):
        inputs = {name: tensor.numpy() for name, tensor in random_inputs(agent, rows).items()}
        expected, found = wrap(step)(inputs), wrap(program.module())(inputs)
        assert list(found) == list(expected)
        for name in set(expected) - {"action"}:
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected[name]), rtol=0, atol=1e-5)


@pytest.fixture(params=["lstm", "gru"])
def recurrent(request):
    torch.manual_seed(0)
    return make_agent("drqn", changed("drqn", policy={"rnn": request.param, "rnn_size": 16}))


def test_memory_has_the_names_of_the_contract(recurrent):
    states = ["hidden0", "hidden1"][: len(state_keys(recurrent.policy))]
    signature = Step(recurrent.policy, recurrent.input_spec, ExplorationType.DETERMINISTIC).signature
    assert [info.name for info in signature.inputs] == ["observation", *states, "is_init"]
    assert [info.name for info in signature.outputs] == ["action", "action_value", *(f"next_{name}" for name in states)]
    assert all(info.shape == ["batch", 1, 16] for info in signature.inputs if info.name in states)


def test_sequences_are_learned_from_as_they_were_played(recurrent):
    """Compare values of whole sequences with those of single steps, also where an episode ends within a sequence."""
    actor, states = recurrent.actor, state_keys(recurrent.actor)
    envs, steps = 3, 12
    pixels, is_init = torch.randn(envs, steps, 1, 40, 40), torch.zeros(envs, steps, 1, dtype=torch.bool)
    is_init[0, 5] = is_init[1, 0] = is_init[1, 11] = True
    memory = {key: torch.randn(envs, 1, 16) for key in states}
    memory = {key: state.masked_fill(is_init[:, 0, :, None], 0) for key, state in memory.items()}
    rows = []
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        for step in range(steps):
            entries = TensorDict(memory | {"pixels": pixels[:, step], "is_init": is_init[:, step]}, [envs])
            row = entries.clone()
            decision = actor(entries)
            rows.append(row.set("expected", decision["action_value"]))
            ends = is_init[:, min(step + 1, steps - 1), :, None]
            memory = {key: decision["next", key].masked_fill(ends, 0) for key in states}
        sequences = torch.stack(rows, 1)
        with set_recurrent_mode(True):
            found = actor(sequences.select("pixels", "is_init", *states))["action_value"]
    torch.testing.assert_close(found, sequences["expected"], atol=1e-5, rtol=0)


def test_exported_cell_is_the_trained_one(recurrent):
    """Compare them, also for rows that begin, whatever is in their memory."""
    inputs = random_inputs(recurrent, 6)
    inputs["is_init"][[1, 4]] = True
    inputs["hidden0"][4] = float("nan")
    trained, exported = (
        Step(policy, recurrent.input_spec, ExplorationType.DETERMINISTIC)
        for policy in (recurrent.policy, exportable(recurrent.policy))
    )
    torch.testing.assert_close(exported(**inputs), trained(**inputs), atol=1e-6, rtol=0)
    assert all(tensor.isfinite().all() for tensor in trained(**inputs).values())


FACTORIES = """
from tensordict.nn import TensorDictModule as Mod
import torch
def takes_anything(observations, actions, **others): return Mod(best, ["observation"], ["action"])
def best(values): return values.argmax(-1)
def untyped(observations, actions, *, size, gain=2.0): return takes_anything(observations, actions)
def typed(observations, actions, *, size: int): return takes_anything(observations, actions)
def other_entry(observations, actions): return Mod(torch.nn.Identity(), ["velocity"], ["action"])
def no_action(observations, actions): return Mod(torch.nn.Identity(), ["observation"], ["choice"])
def memory(observations, actions): return Mod(torch.nn.LSTMCell(4, 2), ["observation", "m"], ["action", ("next", "m")])
def no_module(observations, actions): return 7
def odd(observations, actions, *, device: torch.device): return takes_anything(observations, actions)
number = 7
def fails(observations, actions): raise ValueError("the weights are\\n\\telsewhere,\\n\\tfar away")
def exits(observations, actions): raise SystemExit("no licence")
"""


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("takes_anything", {"a": 1, "b": [2]}, None),
        ("untyped", {"size": "x"}, None),
        ("typed", {"size": 3}, None),
        ("untyped", {}, "policies.mine: policy.size: missing, must be given"),
        ("untyped", {"size": 1, "sise": 2}, "policies.mine: policy.sise: 2: unknown key; known here: size, gain"),
        ("typed", {"size": "x"}, "policies.mine: policy.size: 'x': input should be a valid integer"),
        ("nosuch", {}, "policies.mine: policy.factory: 'factories:nosuch': module 'factories' has no attribute"),
        ("other_entry", {}, "policies.mine: the policy reads ['velocity'], the environment has ['observation']"),
        (
            "no_action",
            {},
            "policies.mine: policy.factory: 'factories:no_action': makes a policy that does not write 'action'",
        ),
        ("no_module", {}, "policies.mine: policy.factory: 'factories:no_module': makes a int, must make a TensorDict"),
        ("memory", {}, "policies.mine: the policy has states ['m'] of unknown shape; the module that keeps them needs"),
        ("number", {}, "policies.mine: policy.factory: '7': TypeError: 7 is not a callable object"),
        ("odd", {"device": "cpu"}, "policies.mine: policy.device: 'cpu': input should be an instance of device"),
        ("fails", {}, "policies.mine: policy.factory: 'factories:fails': ValueError: the weights are elsewhere, far"),
        ("exits", {}, "policies.mine: policy.factory: 'factories:exits': SystemExit: no licence"),
    ],
)
def test_own_factory(tmp_path, monkeypatch, factory, arguments, message):
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    content = read(ROOT / "params.yaml")["policies"]["cartpole"]
    profile = check(Profile, content | {"policy": {"factory": f"factories:{factory}"} | arguments})
    if message is None:
        assert make_agent("mine", profile).actor.in_keys == ["observation"]
        return
    with pytest.raises(UserError) as caught:
        make_agent("mine", profile)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"params.yaml: {message}")


@pytest.mark.parametrize(
    ("name", "policy", "said"),
    [
        ("dqn", {"epsilon": -0.1}, "policies.dqn: policy.epsilon: -0.1: input should be greater than or equal to 0"),
        ("dqn", {"conv": [[16, 9, 8], [32, 11, 1]]}, "policies.dqn: policy.conv: [[16, 9, 8], [32, 11, 1]] leaves"),
        ("cartpole", {"conv": [[16, 8, 8]]}, "policies.cartpole: policy.conv: [[16, 8, 8]]: observations of shape"),
        ("drqn", {"rnn": "rnn"}, "policies.drqn: policy.rnn: 'rnn': input should be 'lstm' or 'gru'"),
        (
            "pendulum",
            {"factory": "policy_export.policies.q_value:make_policy", "epsilon": 0.1},
            "policies.pendulum: policy.",
        ),
    ],
)
def test_arguments_that_do_not_fit(name, policy, said):
    with pytest.raises(UserError) as caught:
        make_agent(name, changed(name, policy=policy))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"params.yaml: {said}")


def test_profiles_are_read_alone(tmp_path):
    """Check that a mistake in another profile, or in a stage's section, does not affect this policy."""
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("Pendulum-v1", "5").replace("opset:", "ospet:"))
    assert load_profile("dqn", path) == load_profile("dqn", ROOT / "params.yaml")
