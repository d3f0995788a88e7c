"""A policy's memory is found, whether it is declared or written in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import ObservationNorm, TensorDictPrimer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.device.errors import UserError
from policy_export.program.export import export
from policy_export.program.memory import find_memory, initialise, state_spec, state_starts
from policy_export.program.step import Step

DETERMINISTIC, RANDOM = ExplorationType.DETERMINISTIC, ExplorationType.RANDOM
OBSERVATIONS = Composite(observation=Unbounded((4,), dtype=torch.float32))
ACTIONS = Categorical(2)
VECTORS = Bounded(-2.0, 2.0, (2,))
ROWS = 256


def step_of(kind, exploration_type, actions=ACTIONS):
    torch.manual_seed(0)
    policy = getattr(zoo, kind)(OBSERVATIONS, actions)
    spec = OBSERVATIONS.clone().update(state_spec(policy))
    initialise(policy, spec)
    return Step(policy.eval().requires_grad_(requires_grad=False), spec, exploration_type)


@pytest.mark.parametrize(
    ("kind", "exploration_type", "actions", "states", "in_place", "restarts"),
    [
        ("feed_forward", RANDOM, ACTIONS, [], [], False),
        ("observation_norm", DETERMINISTIC, ACTIONS, [], [], False),
        ("two_layer_gru", DETERMINISTIC, ACTIONS, ["recurrent_state"], [], False),
        ("trace", DETERMINISTIC, ACTIONS, ["trace"], ["trace"], False),
        ("consistent_dropout", DETERMINISTIC, ACTIONS, [], [], False),
        ("ddpg", DETERMINISTIC, VECTORS, [], [], False),
        ("ddpg", RANDOM, VECTORS, ["_ou_prev_noise", "_ou_steps"], ["_ou_prev_noise", "_ou_steps"], False),
        ("gsde", DETERMINISTIC, VECTORS, [], [], False),
        ("gsde", RANDOM, VECTORS, ["_eps_gSDE"], ["_eps_gSDE"], True),
    ],
)
def test_memory_is_found(kind, exploration_type, actions, states, in_place, restarts):  # noqa: PLR0917
    memory = step_of(kind, exploration_type, actions).memory
    assert memory.observations == ["observation"]
    assert (list(memory.written), memory.in_place, memory.restarts) == (states, in_place, restarts)


def play(step, flags):
    """Return actions ``(steps, ROWS, k)`` on the same observations, with the step's own memory."""
    observation = torch.ones(ROWS, 4)
    feed = {name: torch.full_like(tensor, 7) for name, tensor in step.example_inputs(ROWS).items()}
    actions = []
    for is_init in flags:
        flag = {"is_init": is_init} if step.states else {}
        outputs = step(**feed | flag | {"observation": observation})
        feed |= {name: outputs[output] for name, output in step.states.items()}
        actions.append(outputs["action"])
    return torch.stack(actions).numpy()


def some_rows(steps, begin):
    """Return flags of episodes that all begin at the first step, and in every second row again at step ``begin``."""
    flags = torch.zeros(steps, ROWS, 1, dtype=torch.bool)
    flags[0] = True
    flags[begin, ::2] = True
    return flags


def test_noise_goes_on_as_its_owner_has_it():
    """Compare the actions with those of TorchRL's own loop, in which entries stay in the TensorDict."""
    step, flags = step_of("ddpg", RANDOM, VECTORS), some_rows(12, 6)
    torch.manual_seed(1)
    found = play(step, flags)
    torch.manual_seed(1)
    entries = TensorDict({"observation": torch.ones(ROWS, 4)}, [ROWS])
    with torch.no_grad(), set_exploration_type(RANDOM):
        expected = [step.policy(entries.set("is_init", is_init))["action"].clone() for is_init in flags]
    np.testing.assert_array_equal(found, torch.stack(expected).numpy())


def test_noise_is_correlated_in_time_and_begins_anew():
    noise = play(step_of("ddpg", RANDOM, VECTORS), some_rows(40, 30))
    noise = (noise - play(step_of("ddpg", DETERMINISTIC, VECTORS), some_rows(1, 0)))[..., 0]
    going_on, restarted = noise[29:31, 1::2], noise[29:31, 0::2]
    assert np.corrcoef(going_on)[0, 1] > 0.9
    assert abs(np.corrcoef(restarted)[0, 1]) < 0.3


def test_noise_of_an_episode_is_drawn_at_its_start():
    actions = play(step_of("gsde", RANDOM, VECTORS), some_rows(6, 3))
    assert len(np.unique(actions[0, :, 0])) == ROWS
    np.testing.assert_array_equal(actions[0], actions[2])
    np.testing.assert_array_equal(actions[3, 1::2], actions[0, 1::2])
    assert not (actions[3, ::2] == actions[0, ::2]).any()
    np.testing.assert_array_equal(actions[3], actions[5])


def test_memory_in_place_is_reset_in_its_row():
    step, flags = step_of("trace", DETERMINISTIC), some_rows(6, 3)
    outputs = []
    feed = {name: torch.full_like(tensor, 7) for name, tensor in step.example_inputs(ROWS).items()}
    for is_init in flags:
        found = step(**feed | {"observation": torch.ones(ROWS, 4), "is_init": is_init})
        feed["trace"] = found["next_trace"]
        outputs.append(found["next_trace"][:, 0])
    sums = torch.stack(outputs)
    torch.testing.assert_close(sums[:, 1], torch.tensor([sum(0.9**n for n in range(m)) for m in range(1, 7)]))
    torch.testing.assert_close(sums[3:, 0], sums[:3, 0])


class Hidden(nn.Module):
    """A module that stores what it saw in itself, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.count, self.last, self.frames, self.known = way, 0, None, [], {}
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, observation):
        if self.way == "buffer":
            self.mean.mul_(0.9).add_(observation.mean(0))
            return (observation + self.mean)[:, 0]
        if self.way == "attribute":
            self.last = observation if self.last is None else 0.5 * self.last + observation
            return self.last[:, 0]
        if self.way == "list":
            self.frames = [*self.frames[-1:], observation]
            return sum(self.frames)[:, 0]
        if self.way == "number":
            self.count += 1
            return observation[:, 0] * (self.count < 1000)
        if self.way == "dictionary":
            self.known["last"] = observation + self.known.get("last", 0)
            return self.known["last"][:, 0]
        return observation[:, 0] * float(np.random.default_rng().random())


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("buffer", "write into themselves (module.0.module.mean)"),
        ("attribute", "write into themselves (module.0.module.last)"),
        ("list", "write into themselves (module.0.module.frames)"),
        ("number", "write into themselves (module.0.module.count)"),
        ("dictionary", "write into themselves (module.0.module.known)"),
        ("numpy", "decides otherwise when it is called again"),
    ],
)
def test_hidden_memory_is_refused(way, said):
    policy = TensorDictSequential(TensorDictModule(Hidden(way), ["observation"], ["action"]))
    with pytest.raises(UserError) as caught:
        find_memory(policy, OBSERVATIONS, DETERMINISTIC)
    (line,) = str(caught.value).splitlines()
    assert said in line


class Filter(TensorDictModuleBase):
    """Averages what it sees, and leaves it to its caller to begin anew."""

    def __init__(self, **start):
        super().__init__()
        self.in_keys, self.out_keys, self.start = ["observation", "mean"], ["action", ("next", "mean")], start

    def make_tensordict_primer(self):
        return TensorDictPrimer({"mean": Unbounded((4,))}, **self.start)

    def forward(self, entries):
        entries["next", "mean"] = (entries["mean"] + entries["observation"]) / 2
        entries["action"] = entries["next", "mean"][:, :2].clone()
        return entries


@pytest.mark.parametrize(("start", "first"), [({}, 0.0), ({"default_value": 3.0}, 3.0)])
def test_state_that_the_policy_does_not_reset_starts_as_its_primer_says(start, first):
    policy = TensorDictSequential(Filter(**start))
    spec = OBSERVATIONS.clone().update(state_spec(policy))
    step = Step(policy, spec, DETERMINISTIC, starts=state_starts(policy))
    inputs = {"observation": torch.ones(2, 4), "mean": torch.full((2, 4), 7.0)}
    inputs["is_init"] = torch.tensor([[True], [False]])
    expected = torch.tensor([[(first + 1) / 2], [4.0]]).expand(2, 4)
    torch.testing.assert_close(step(**inputs)["next_mean"], expected)
    torch.testing.assert_close(export(step).module()(**inputs)["next_mean"], expected)


class Flag(TensorDictModuleBase):
    """Remembers a flag that few observations let it use."""

    def __init__(self):
        super().__init__()
        self.in_keys, self.out_keys = ["observation", "careful"], ["action", ("next", "careful")]

    def make_tensordict_primer(self):
        return TensorDictPrimer({"careful": Unbounded((1,), dtype=torch.bool)})

    def forward(self, entries):
        high = entries["observation"][:, :1] > 10
        entries["action"] = torch.where(entries["careful"] & high, 1.0, entries["observation"][:, :1])
        entries["next", "careful"] = high
        return entries


def test_state_is_reset_also_where_a_trial_does_not_show_it():
    policy = TensorDictSequential(Flag())
    spec = OBSERVATIONS.clone().update(state_spec(policy))
    step = Step(policy, spec, DETERMINISTIC, starts=state_starts(policy))
    inputs = {"observation": torch.full((2, 4), 20.0), "careful": torch.ones(2, 1, dtype=torch.bool)}
    inputs["is_init"] = torch.tensor([[True], [False]])
    assert step(**inputs)["action"].tolist() == [[20.0], [1.0]]


@pytest.mark.parametrize("start", [{"random": True}, {"default_value": lambda: torch.ones(4)}])
def test_state_that_starts_with_no_constant_is_refused(start):
    policy = TensorDictSequential(Filter(**start))
    spec = OBSERVATIONS.clone().update(state_spec(policy))
    with pytest.raises(UserError, match="the state 'mean' starts with random numbers, or with what a function returns"):
        Step(policy, spec, DETERMINISTIC, starts=state_starts(policy))


def test_observation_that_the_policy_changes_in_place_stays_the_callers():
    policy = TensorDictSequential(TensorDictModule(lambda seen: seen.mul_(2)[:, 0], ["observation"], ["action"]))
    step = Step(policy, OBSERVATIONS, DETERMINISTIC)
    seen = torch.ones(2, 4)
    for program in (step, export(step).module()):
        assert program(observation=seen)["action"].tolist() == [2, 2]
    assert seen.tolist() == torch.ones(2, 4).tolist()


def test_nothing_of_a_trial_is_left():
    """Check that the policy and PyTorch's random numbers do not change."""
    policy = TensorDictSequential(ObservationNorm(0.5, 2.0, in_keys=["observation"]), *zoo.head(4, ACTIONS))
    policy[1].in_keys = ["observation"]
    policy = policy.train()
    before, state = {name: tensor.clone() for name, tensor in policy.state_dict().items()}, torch.get_rng_state()
    find_memory(policy, OBSERVATIONS, RANDOM)
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_lazy_layers_are_initialised_in_evaluation_mode():
    network = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 1))
    policy = TensorDictSequential(TensorDictModule(network, ["observation"], ["action"]))
    initialise(policy, OBSERVATIONS)
    assert policy.training
    assert network[1].running_mean.abs().max() == 0
    assert network[0].weight.shape == (8, 4)
