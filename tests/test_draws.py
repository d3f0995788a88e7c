"""The probabilities by which programs draw, and the tests of draws whose probabilities are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent
from torchrl import data
from torchrl.data import Composite, Unbounded
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule, MaskedCategorical, OneHotCategorical, SafeProbabilisticModule

from policy_export.parity.draws import (
    Rate,
    compare_at_every_distance,
    compare_with_probabilities,
    rates,
)
from policy_export.parity.samples import in_sequence, sample
from policy_export.program.calls import wrap
from policy_export.program.decisions import probabilities
from policy_export.program.export import export
from policy_export.program.step import Step

INPUTS, CALLS, ROWS, ACTIONS, EPSILON, LEVEL = 8, 160, 32, 6, 0.01, 1e-9
GREEDY = np.array([0, 5, 2, 2, 1, 4, 3, 3])


def greedy_probabilities(epsilon: float = EPSILON) -> np.ndarray:
    return epsilon / ACTIONS + (1 - epsilon) * np.eye(ACTIONS)[GREEDY]


def draw(random: np.random.Generator, chances: np.ndarray, calls: int = CALLS) -> np.ndarray:
    """Return ``(inputs, calls, rows)`` independent draws."""
    return np.stack([random.choice(len(each), size=(calls, ROWS), p=each) for each in chances])


def sequence(drawn: np.ndarray) -> np.ndarray:
    """Return draws in the order of the calls, as a view."""
    return np.swapaxes(drawn, 0, 1).reshape(-1)


def spread(chances: np.ndarray) -> np.ndarray:
    """Return the probabilities of each draw in such an order."""
    return np.tile(np.repeat(chances, ROWS, 0), (CALLS, 1))


@pytest.mark.parametrize("epsilon", [EPSILON, 0.5, 1.0])
def test_faultless_draws_pass_and_p_is_no_smaller_than_it_says(epsilon):
    chances, least = greedy_probabilities(epsilon), []
    for seed in range(40):
        random = np.random.default_rng(seed)
        first, second = draw(random, chances), draw(random, chances)
        found = [
            *compare_with_probabilities(chances, first),
            compare_at_every_distance("of one process", spread(chances), sequence(first)),
            compare_at_every_distance("of two processes", spread(chances), sequence(first), sequence(second)),
        ]
        least.append(min(finding.p for finding in found) * len(found))
    assert min(least) > 1e-3
    assert np.mean(np.array(least) < 0.1) <= 0.25  # 0.1 expected at most


def lacking(random: np.random.Generator) -> np.ndarray:
    """Never draw the last action unless it is the likeliest."""
    drawn = draw(random, greedy_probabilities())
    return np.where((drawn == ACTIONS - 1) & (GREEDY[:, None, None] != ACTIONS - 1), GREEDY[:, None, None], drawn)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda random: draw(random, greedy_probabilities(0.015)), "any action but the likeliest: "),
        (lambda random: draw(random, greedy_probabilities(0.0)), "any action but the likeliest: 0 of "),
        (lacking, "action 5 where it is not the likeliest: 0 of "),
        (lambda random: np.where(draw(random, greedy_probabilities()) == 3, 6, 3), "what is no choice: "),
    ],
    ids=["epsilon of 0.015", "no exploration", "the last action is never drawn", "an action that there is not"],
)
def test_other_probabilities_are_found(make, what):
    found = list(compare_with_probabilities(greedy_probabilities(), make(np.random.default_rng(1))))
    assert any(what in f"{finding.what}: {finding.found}" for finding in found if finding.p < LEVEL)


@pytest.mark.parametrize("distance", [1, ROWS, 5 * INPUTS * ROWS, 37 * INPUTS * ROWS, 79 * INPUTS * ROWS])
@pytest.mark.parametrize("epsilon", [EPSILON, 1.0])
def test_numbers_that_come_again_are_found_at_any_distance(distance, epsilon):
    """Let a generator of numbers begin anew; rows of other inputs make other actions of them."""
    chances = greedy_probabilities(epsilon)
    numbers = np.random.default_rng(2).random(CALLS * INPUTS * ROWS)
    numbers = np.resize(numbers[:distance], len(numbers)) if distance > ROWS else np.repeat(numbers, distance + 1)
    places = numbers[: CALLS * INPUTS * ROWS, None]
    drawn = (places >= spread(chances).cumsum(-1)).sum(-1).clip(max=ACTIONS - 1)
    assert compare_at_every_distance("of one process", spread(chances), drawn).p < LEVEL


def test_samples_are_held_in_the_order_in_which_they_were_drawn():
    """Let a program number its draws, and repeat some: those distances must be found."""
    numbers, seen = itertools.count(), []

    def run(inputs):
        seen.append(inputs["recorded input"])
        return {"action": np.array([next(numbers) for _ in inputs["recorded input"]])}

    drawn = sample(run, {"recorded input": np.arange(INPUTS)}, 6)
    assert drawn.shape == (INPUTS, 6, ROWS)
    assert in_sequence(drawn).tolist() == list(range(INPUTS * 6 * ROWS))
    shown = np.concatenate(seen)
    assert all((shown[drawn[index]] == index).all() for index in range(INPUTS))
    assert [len(set(rows.tolist())) for rows in seen[:3]] == [INPUTS] * 3


@pytest.mark.parametrize("calls", [0, 7, 120])
def test_processes_that_are_apart_by_some_calls_are_found(calls):
    random, chances = np.random.default_rng(3), greedy_probabilities()
    both = draw(random, chances, CALLS + calls)
    first, second = (sequence(part) for part in (both[:, :CALLS], both[:, calls:]))
    finding = compare_at_every_distance("of two processes", spread(chances), first, second)
    assert finding.p < LEVEL
    assert f"{-calls * INPUTS * ROWS} apart" in finding.found or calls == 0


@pytest.mark.parametrize("chance", [0.0083, 0.0017, 0.3])
def test_power_is_what_it_says(chance):
    """Draw with the probabilities at which a difference should be found 99 times of 100."""
    draws = CALLS * INPUTS * ROWS
    for other in Rate("it", chance, draws, 0).detectable(LEVEL):
        counts = stats.binom.rvs(draws, other, size=2000, random_state=4)
        found = np.mean([Rate("it", chance, draws, count).p < LEVEL for count in counts.tolist()])
        assert 0.98 < found < 1.0
    assert Rate("it", 1e-5, 100, 0).detectable(LEVEL)[0] == 0.0  # so few draws cannot show that it is rarer


def test_rates_are_of_what_is_not_the_likeliest():
    chances = greedy_probabilities()
    drawn = np.broadcast_to(GREEDY[:, None, None], (INPUTS, CALLS, ROWS))
    found = {rate.what: rate for rate in rates(chances, drawn)}
    assert len(found) == 1 + ACTIONS
    assert found["any action but the likeliest"].count == 0
    assert found["any action but the likeliest"].probability == pytest.approx(EPSILON * 5 / 6)


SPECS = {
    "index": (data.Categorical(4), (2,), None),
    "one-hot": (data.OneHot(4), (4,), None),
    "masked": (data.Categorical(4), (), [True, False, True, True]),
    "masked one-hot": (data.OneHot(4), (4,), [True, False, True, False]),
    "several": (data.MultiCategorical([2, 3]), (2,), None),
    "several one-hot": (data.MultiOneHot([2, 3]), (5,), None),
    "bits": (data.Binary(3, dtype=torch.int8), (3,), None),
}
KINDS = {
    "index": {"kind": "index", "sizes": [4]},
    "one-hot": {"kind": "one_hot", "sizes": [4]},
    "masked": {"kind": "index", "sizes": [4]},
    "masked one-hot": {"kind": "one_hot", "sizes": [4]},
    "several": {"kind": "indices", "sizes": [2, 3]},
    "several one-hot": {"kind": "one_hot", "sizes": [2, 3]},
    "bits": {"kind": "bits", "sizes": [2, 2, 2]},
}


class Chooses(nn.Module):
    """Chooses by the first number of what it sees."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        place = (seen[:, 0] > 0).to(torch.int64) * 2
        match self.name:
            case "several":
                return torch.stack([place // 2, place], -1)
            case "several one-hot":
                return torch.cat([nn.functional.one_hot(place // 2, 2), nn.functional.one_hot(place, 3)], -1)
            case "bits":
                return torch.stack([place > 0, place > 5, place < 5], -1).to(torch.int8)
            case _:
                return nn.functional.one_hot(place, 4) if "one-hot" in self.name else place


def components_of(name: str, outputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return what was drawn for each choice, as indices."""
    action = outputs["action"]
    match name:
        case "several" | "bits":
            return list(action.astype(np.int64).T)
        case "several one-hot":
            return [part.argmax(-1) for part in np.split(action, [2], -1)]
        case _:
            return [action.argmax(-1) if "one-hot" in name else action]


@pytest.mark.parametrize("name", list(SPECS))
def test_probabilities_of_epsilon_greedy_are_those_of_torchrl_and_of_the_program(name):
    """Compare them with TorchRL's own draws, with draws of the program, and the program's with eager's."""
    spec, _, mask = SPECS[name]
    keys = {} if mask is None else {"action_mask_key": "mask"}
    explore = EGreedyModule(spec, eps_init=0.4, eps_end=0.4, annealing_num_steps=1, **keys)
    policy = TensorDictSequential(TensorDictModule(Chooses(name), in_keys=["seen"], out_keys=["action"]), explore)
    inputs = Composite(seen=Unbounded(2))
    feed = {"seen": np.repeat(np.array([[-1, 0], [1, 0]], np.float32), 20000, 0)}
    if mask is not None:
        inputs["mask"] = data.Binary(4, dtype=torch.bool)
        policy = TensorDictSequential(TensorDictModule(lambda m: m, in_keys=["mask"], out_keys=["mask"]), policy)
        feed["mask"] = np.broadcast_to(np.array(mask), (40000, 4)).copy()
    step = Step(policy, inputs, ExplorationType.RANDOM)
    torch.manual_seed(5)
    both = [wrap(step)(feed), wrap(export(step).module())(feed)]
    assert np.allclose(both[0]["action_probs"], both[1]["action_probs"], rtol=0, atol=1e-7)
    for outputs in both:
        said = probabilities(outputs, "action", KINDS[name])
        taken = components_of(name, outputs)
        assert len(said) == len(taken)
        for chances, drawn in zip(said, taken, strict=True):
            each, counted = chances[[0, -1]].astype(np.float64), drawn.reshape(2, -1, ROWS)
            assert np.allclose(each.sum(-1), 1)
            assert all(finding.p > LEVEL for finding in compare_with_probabilities(each, counted))
    assert "action_probs" not in Step(policy, inputs, ExplorationType.DETERMINISTIC).outputs


DISTRIBUTIONS = {
    "index": (Categorical, lambda logits: {"logits": logits}, [4]),
    "one-hot": (OneHotCategorical, lambda logits: {"logits": logits}, [4]),
    "masked": (MaskedCategorical, lambda logits: {"logits": logits, "mask": logits > 0.6}, [4]),
    "bits": (lambda logits: Independent(Bernoulli(logits=logits), 1), lambda logits: {"logits": logits}, [2] * 4),
}


@pytest.mark.parametrize("name", list(DISTRIBUTIONS))
@pytest.mark.parametrize("explores", [False, True])
@pytest.mark.parametrize("module", [ProbabilisticTensorDictModule, SafeProbabilisticModule])
def test_probabilities_of_distributions(name, explores, module):
    """Let epsilon-greedy exploration change some of what was drawn, or not."""
    kind, arguments, sizes = DISTRIBUTIONS[name]
    keys = list(arguments(torch.zeros(1, 4)))
    numbers = torch.tensor([0.5, 1.0, 1.5, 2.0])
    given = TensorDictModule(
        lambda seen: tuple(arguments(seen[:, :1] * 0 + numbers).values()), in_keys=["seen"], out_keys=keys
    )
    drawn = module(in_keys=keys, out_keys=["action"], distribution_class=kind, return_log_prob=True)
    modules = [given, drawn]
    if explores:
        spec = {"index": data.Categorical(4), "masked": data.Categorical(4), "one-hot": data.OneHot(4)}.get(
            name, data.Binary(4, dtype=torch.float32)
        )
        modules.append(EGreedyModule(spec, eps_init=0.3, eps_end=0.3, annealing_num_steps=1))
    step = Step(TensorDictSequential(*modules), Composite(seen=Unbounded(2)), ExplorationType.RANDOM)
    torch.manual_seed(6)
    feed = {"seen": np.zeros((32000, 2), np.float32)}
    both = [wrap(step)(feed), wrap(export(step).module())(feed)]
    assert np.allclose(both[0]["action_probs"], both[1]["action_probs"], rtol=0, atol=1e-6)
    form = {"one-hot": "one_hot", "bits": "bits"}.get(name, "index")
    for outputs in both:
        said = probabilities(outputs, "action", {"kind": form, "sizes": sizes})
        taken = outputs["action"].argmax(-1) if form == "one_hot" else outputs["action"]
        columns = list(taken.T) if form == "bits" else [taken]
        for chances, column in zip(said, columns, strict=True):
            counted = column.astype(np.int64).reshape(1, -1, ROWS)
            found = compare_with_probabilities(chances[:1].astype(np.float64), counted)
            assert all(finding.p > LEVEL for finding in found)


@pytest.mark.parametrize("where", ["behind", "around"])
def test_actions_that_are_changed_afterwards_have_no_probabilities(where):
    explore = EGreedyModule(data.Categorical(4), eps_init=0.4, eps_end=0.4, annealing_num_steps=1)
    chooses = TensorDictModule(Chooses("index"), in_keys=["seen"], out_keys=["action"])
    other = TensorDictModule(lambda action: 3 - action, in_keys=["action"], out_keys=["action"])
    if where == "around":

        class Around(type(other)):
            def forward(self, entries: TensorDict) -> TensorDict:
                return super().forward(self.inner(entries))

        other = Around(lambda action: 3 - action, in_keys=["action"], out_keys=["action"])
        other.inner = TensorDictSequential(chooses, explore)
        other.in_keys = ["seen"]
        policy = TensorDictSequential(other)
    else:
        policy = TensorDictSequential(chooses, explore, other)
    step = Step(policy, Composite(seen=Unbounded(2)), ExplorationType.RANDOM)
    assert list(step.outputs) == ["action"]


def test_a_policys_own_entry_of_that_name_stays_its_own():
    explore = EGreedyModule(data.Categorical(4), eps_init=0.4, eps_end=0.4, annealing_num_steps=1)
    chooses = TensorDictModule(Chooses("index"), in_keys=["seen"], out_keys=["action"])
    own = TensorDictModule(lambda seen: seen, in_keys=["seen"], out_keys=["action_probs"])
    step = Step(TensorDictSequential(own, chooses, explore), Composite(seen=Unbounded(2)), ExplorationType.RANDOM)
    outputs = wrap(step)({"seen": np.zeros((1, 2), np.float32)})
    assert outputs["action_probs"].shape == (1, 4)
