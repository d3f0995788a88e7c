"""Modules that replace TorchRL's in a program do the same as those."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import ObservationNorm
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule

from policy_export.device.errors import UserError
from policy_export.policies.q_value import choose
from policy_export.program.export import export, random_operators
from policy_export.program.step import Step
from policy_export.program.twins import EpsilonGreedy, exportable

ROWS, ACTIONS = 60_000, 4
GREEDY = {"index": torch.full((ROWS,), 2), "one-hot": torch.tensor([[0, 0, 1, 0]]).expand(ROWS, -1)}
SPECS = {"index": Categorical(ACTIONS), "one-hot": OneHot(ACTIONS)}


def explore(module, action, mask=None, exploration_type=ExplorationType.RANDOM):
    entries = TensorDict({"action": action.clone()}, [ROWS])
    if mask is not None:
        entries["mask"] = mask
    torch.manual_seed(0)
    with set_exploration_type(exploration_type):
        found = module(entries)["action"]
    assert (found.dtype, found.shape) == (action.dtype, action.shape)
    return found


def frequencies(actions):
    """Return how often each action occurs."""
    index = actions if actions.ndim == 1 else actions.argmax(-1)
    assert actions.ndim == 1 or bool((actions.sum(-1) == 1).all())
    return torch.bincount(index, minlength=ACTIONS) / ROWS


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("encoding", SPECS)
def test_epsilon_means_what_torchrl_means(encoding, epsilon):
    module = EGreedyModule(SPECS[encoding], eps_init=epsilon, eps_end=epsilon)
    expected = torch.full((ACTIONS,), epsilon / ACTIONS)
    expected[2] += 1 - epsilon
    for each in (module, EpsilonGreedy(module)):
        found = frequencies(explore(each, GREEDY[encoding]))
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)  # five standard deviations


@pytest.mark.parametrize("encoding", SPECS)
def test_what_is_masked_is_never_drawn(encoding):
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]]).repeat(ROWS // 2, 1)
    module = EGreedyModule(SPECS[encoding], eps_init=1.0, eps_end=1.0, action_mask_key="mask")
    actions = explore(EpsilonGreedy(module), GREEDY[encoding], mask)
    for row, expected in enumerate([[0.5, 0, 0.5, 0], [0.25] * 4]):
        found = frequencies(actions[row::2]) * 2
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.015)


def test_vectors_are_drawn_between_their_bounds():
    spec = Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0]))
    module = EGreedyModule(spec, eps_init=1.0, eps_end=1.0)
    library, ours = (explore(each, torch.zeros(ROWS, 2)) for each in (module, EpsilonGreedy(module)))
    for component in range(2):
        assert stats.ks_2samp(library[:, component], ours[:, component]).pvalue > 1e-4
    assert abs(torch.corrcoef(ours.T)[0, 1]) < 0.02


@pytest.mark.parametrize("exploration_type", [ExplorationType.DETERMINISTIC, ExplorationType.MODE])
def test_no_exploration_unless_random(exploration_type):
    twin = EpsilonGreedy(EGreedyModule(SPECS["index"], eps_init=1.0, eps_end=1.0))
    assert frequencies(explore(twin, GREEDY["index"], exploration_type=exploration_type))[2] == 1


def test_other_specs_are_refused():
    with pytest.raises(UserError, match=r"^EGreedyModule: draws actions of a UnboundedDiscrete\[int64\] spec"):
        EpsilonGreedy(EGreedyModule(Unbounded((2,), dtype=torch.int64)))


def test_one_operator_draws():
    """Check that there is only one, as ONNX Runtime's second random operator would depend on the first."""
    policy = TensorDictSequential(
        TensorDictModule(nn.Linear(4, ACTIONS), ["observation"], ["action_value"]), *choose(ACTIONS, 0.5)
    )
    step = Step(policy.eval(), Composite(observation=Unbounded((4,), dtype=torch.float32)), ExplorationType.RANDOM)
    assert len(random_operators(export(step))) == 1


def test_epsilon_of_the_example_policies_is_no_weight():
    assert all(not module.state_dict() for module in choose(ACTIONS, 0.5))


class Cautious(EGreedyModule):
    """A user's own way to explore."""

    def forward(self, tensordict):
        return tensordict.set("action", torch.zeros_like(tensordict["action"]))


def test_a_subclass_that_computes_something_else_stays():
    policy = TensorDictSequential(
        TensorDictModule(nn.Linear(4, ACTIONS), ["observation"], ["action_value"]), *choose(ACTIONS, 0.1)
    )
    assert isinstance(exportable(policy)[-1], EpsilonGreedy)
    policy[-1].__class__ = Cautious
    assert type(exportable(policy)[-1]) is Cautious


def test_everything_is_in_evaluation_mode_and_the_policy_stays_as_it_is():
    norm = ObservationNorm(0.5, 2.0, in_keys=["observation"], standard_normal=True)
    policy = TensorDictSequential(norm, TensorDictModule(nn.Dropout(0.5), ["observation"], ["action"])).train()
    ours = exportable(policy)
    assert not any(module.training for module in ours.modules())
    assert all(module.training for module in policy.modules())
    assert ours[0].standard_normal is True
    assert isinstance(policy[0].standard_normal, torch.Tensor)
    entries = TensorDict({"observation": torch.randn(5, 4)}, [5])
    assert torch.equal(ours(entries.clone())["action"], policy.eval()(entries.clone())["action"])
