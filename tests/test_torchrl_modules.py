"""The treatment of each class of ``torchrl.modules`` in a policy, which the documentation must also describe."""

from __future__ import annotations

import re

import pytest
import torch
from pipeline_helpers import ROOT
from program_helpers import ROWS, onnx_program, play
from scipy.stats import beta, chi2, gamma, kstest, t
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Beta, Chi2, Dirichlet, Gamma, StudentT
from torch.export import ExportedProgram
from torchrl import modules
from torchrl.data import Binary, Bounded, Composite, MultiCategorical, MultiOneHot, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule
from torchrl_modules import ACTIONS, BOTH, CASES, MEMORY, NO_PART, REFUSED, SIZE, SPECS, TWIN

from policy_export.device.errors import UserError
from policy_export.program.export import export, random_operators
from policy_export.program.failures import explain
from policy_export.program.functions import REPLACED
from policy_export.program.memory import initialise, state_spec
from policy_export.program.policy import Index
from policy_export.program.step import Step
from policy_export.program.torch_private import computing_by
from policy_export.program.twins import DISTRIBUTIONS, TWINS, EpsilonGreedy, erfinv

# What TorchRL tells of ordinal distributions, and PyTorch of a switch that tensordict asks for; in training as well.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:deterministic_sample wasn't found"),
    pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules"),
]

DETERMINISTIC, RANDOM = ExplorationType.DETERMINISTIC, ExplorationType.RANDOM


def step_of(case, exploration_type):
    """Return the policy of a case, always the same one, as a function of named tensors."""
    torch.manual_seed(0)
    policy = TensorDictSequential(case.make())
    spec = Composite({key: SPECS[key] for key in case.reads})
    spec.update(state_spec(policy))
    initialise(policy, spec)
    policy.eval().requires_grad_(requires_grad=False)
    if case.one_hot:
        policy = TensorDictSequential(policy, Index("action"))
    return Step(policy, spec, exploration_type)


def seeded(run):
    """Return a function that draws the same random numbers at each call."""

    def call(**inputs):
        torch.manual_seed(1)
        return run(**inputs)

    return call


def by_twin(policy):
    """Return whether any module of a policy has a twin."""
    distributions = {getattr(module, "distribution_class", None) for module in policy.modules()}
    return bool(distributions & set(DISTRIBUTIONS)) or any(
        isinstance(module, tuple(TWINS)) for module in policy.modules()
    )


def assert_alike(found, expected, names):
    for name in names:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", [case for case in CASES if case.how != REFUSED], ids=lambda case: case.id)
def test_a_policy_exports(case):
    step, exploring = step_of(case, DETERMINISTIC), step_of(case, RANDOM)
    assert by_twin(step.policy) is (case.how in (TWIN, BOTH))
    assert bool(exploring.states) is (case.how in (MEMORY, BOTH))

    program = export(step)
    for expected, *found in play(step, [step, program.module(), onnx_program(program, step)]):
        for outputs in found:
            assert_alike(outputs, expected, step.outputs)

    explores = export(exploring)
    if explores.graph_module.code != program.graph_module.code:
        check_exploring(case, exploring, explores)


@pytest.mark.parametrize("case", [case for case in CASES if case.how == BOTH], ids=lambda case: case.id)
def test_rows_begin_on_their_own(case):
    """Check this with any memory where an episode begins, and with beginnings at any step."""
    step = step_of(case, DETERMINISTIC)
    program = export(step).module()
    generator = torch.Generator().manual_seed(0)
    flags = [torch.ones(ROWS, 1, dtype=torch.bool)]
    flags += [torch.rand(ROWS, 1, generator=generator) < 0.3 for _ in range(8)]
    feeds = [{name: torch.full_like(tensor, 7) for name, tensor in step.example_inputs(ROWS).items()} for _ in range(2)]
    for is_init in flags:
        observation, outputs = torch.randn(ROWS, SIZE, generator=generator), []
        for run, feed in zip((step, program), feeds, strict=True):
            feed |= {"observation": observation, "is_init": is_init}
            outputs.append(run(**feed))
            feed |= {name: outputs[-1][written] for name, written in step.states.items()}
        assert_alike(outputs[1], outputs[0], step.outputs)


def check_exploring(case, step: Step, program: ExportedProgram):
    """Compare an exploring program with its policy: outputs that are not random, or all with equal random numbers."""
    runs = [seeded(step), seeded(program.module()), onnx_program(program, step)]
    drawn = {"action", *step.states.values()} if random_operators(program) else set()
    for expected, eager, onnx in play(step, runs):
        assert_alike(eager, expected, step.outputs if case.how not in (TWIN, BOTH) else set(step.outputs) - drawn)
        assert_alike(onnx, expected, set(step.outputs) - drawn)
        for outputs in (eager, onnx):
            action = outputs["action"]
            assert (action.shape, action.dtype) == (expected["action"].shape, expected["action"].dtype)
            assert action.isfinite().all()
            assert action.dtype.is_floating_point or ((action >= 0) & (action < ACTIONS)).all()


@pytest.mark.parametrize("case", [case for case in CASES if case.how == REFUSED], ids=lambda case: case.id)
def test_a_policy_is_refused(case):
    """Check that one of its programs refuses it, in one line."""
    with pytest.raises(UserError, match=re.escape(case.says)) as caught:
        make_programs(case)
    assert "\n" not in str(caught.value)


def make_programs(case):
    for exploration_type in (DETERMINISTIC, RANDOM):
        step = step_of(case, exploration_type)
        program = export(step)
        try:
            onnx_program(program, step)
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(explain(error, program)) from error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_policy_has_what_its_entry_tells(case):
    policy = TensorDictSequential(case.make())
    parts = [type(module) for module in policy.modules()]
    parts += [
        module.distribution_class for module in policy.modules() if isinstance(module, ProbabilisticTensorDictModule)
    ]
    parts += [type(hook) for module in policy.modules() for hook in vars(module)["_forward_hooks"].values()]
    found = {kind.__name__ for part in parts for kind in part.__mro__}
    assert {name.rpartition(".")[2] for name in case.names if " " not in name} <= found


def test_every_name_of_torchrl_has_an_entry():
    """Check this so that a new version of TorchRL fails until somebody has looked at its new classes."""
    tried = {name for case in CASES for name in case.names}
    assert not tried & set(NO_PART)
    assert set(modules.__all__) - tried - set(NO_PART) == set()
    assert set(NO_PART) <= set(modules.__all__)


def test_the_documentation_tells_the_same():
    text = (ROOT / "docs/policies.md").read_text()
    section = text.split("## Modules of TorchRL")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    told = {name: (how, why) for names, how, why in rows for name in re.findall(r"`([^`]+)`", names)}
    assert {name: how for name, (how, _) in told.items()} == {
        **{name.split(" ")[0].strip("`"): case.how for case in CASES for name in case.names},
        **dict.fromkeys(NO_PART, "no part"),
    }
    assert {name: told[name][1] for name in NO_PART} == NO_PART


SPECS_TO_DRAW = {
    "several choices": MultiCategorical([2, 3]),
    "several one-hot choices": MultiOneHot([2, 3]),
    "bits": Binary(3, dtype=torch.int8),
    "whole numbers": Bounded(-1, 2, (2,), dtype=torch.int32),
    "numbers": Bounded(-1.0, 3.0, (2,)),
    "numbers without bounds": Unbounded((2,)),
}


@pytest.mark.parametrize("spec", SPECS_TO_DRAW.values(), ids=SPECS_TO_DRAW)
def test_epsilon_greedy_draws_as_the_library_does(spec):
    rows = 20000
    module = EGreedyModule(spec, eps_init=1.0, eps_end=1.0)
    means = []
    for made in (module, EpsilonGreedy(module)):
        torch.manual_seed(0)
        entries = TensorDict({"action": torch.zeros(rows, *spec.shape, dtype=spec.dtype)}, [rows])
        with set_exploration_type(RANDOM):
            action = made(entries)["action"]
        assert action.dtype == spec.dtype
        assert spec.expand(rows, *spec.shape).is_in(action)
        means.append(torch.stack([action.double().mean(0), action.double().std(0)]))
    torch.testing.assert_close(means[1], means[0], atol=0.04, rtol=0)


@pytest.mark.parametrize("spec", [MultiCategorical([2, 3]), MultiOneHot([2, 3])], ids=["indices", "one-hot"])
def test_epsilon_greedy_draws_what_the_mask_leaves(spec):
    mask = torch.tensor([[True, False, False, True, True], [False, True, True, False, False]]).repeat(500, 1)
    twin = EpsilonGreedy(EGreedyModule(spec, eps_init=1.0, eps_end=1.0, action_mask_key="mask"))
    action = torch.zeros(len(mask), *spec.shape, dtype=spec.dtype)
    with set_exploration_type(RANDOM):
        drawn = twin(TensorDict({"action": action, "mask": mask}, [len(mask)]))["action"]
    one_hot = drawn if isinstance(spec, MultiOneHot) else spec.to_one_hot(drawn)
    assert not (one_hot.bool() & ~mask).any()
    assert (one_hot[::2].bool().any(0) == mask[0]).all()


def test_epsilon_greedy_of_all_whole_numbers_is_refused():
    with pytest.raises(UserError, match=r"draws actions of a Unbounded\w*\[int64\] spec"):
        EpsilonGreedy(EGreedyModule(Unbounded((2,), dtype=torch.int64), eps_init=1.0, eps_end=1.0))


def test_the_inverse_of_erf():
    values = torch.linspace(-1 + 2e-6, 1 - 2e-6, 10001, dtype=torch.float64)
    torch.testing.assert_close(erfinv(values), torch.erfinv(values), atol=1e-12, rtol=0)


def test_truncated_normals_draw_and_score_as_the_librarys():
    twin, rows = DISTRIBUTIONS[modules.TruncatedNormal], 20000
    loc, scale = torch.tensor([[-0.5, 3.0]]).expand(rows, -1), torch.tensor([[0.3, 2.0]]).expand(rows, -1)
    bounds = {"low": torch.tensor([-1.0, -2.0]), "high": torch.tensor([1.0, 2.0])}
    drawn = []
    for kind in (modules.TruncatedNormal, twin):
        torch.manual_seed(0)
        drawn.append(kind(loc, scale, **bounds).rsample())
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-3, rtol=0)
    values = torch.cat([drawn[0][1:], torch.tensor([[1.5, 0.0]])])
    scores = [kind(loc, scale, **bounds).log_prob(values) for kind in (modules.TruncatedNormal, twin)]
    torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=0)
    assert scores[1][-1] == -torch.inf


class Draws(nn.Module):
    """Draws from a distribution of what it is given."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, numbers):
        return {"drawn": self.kind(numbers).sample()}


@pytest.mark.parametrize("number", [0.4, 0.7, 1.0, 1.3, 40.0])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (lambda numbers: Gamma(numbers, 2.0), lambda number: gamma(number, scale=0.5)),
        (lambda numbers: Beta(numbers, 1.5 * torch.ones_like(numbers)), lambda number: beta(number, 1.5)),
        (lambda numbers: Dirichlet(numbers.expand(-1, 3)), lambda number: beta(number, 2 * number)),
        (Chi2, chi2),
        (StudentT, t),
    ],
    ids=["Gamma", "Beta", "Dirichlet", "Chi2", "StudentT"],
)
def test_gamma_distributed_numbers_are_drawn_by_a_program(kind, expected, number):
    batch = {"numbers": {0: torch.export.Dim("batch", min=1)}}
    with computing_by(REPLACED):
        program = torch.export.export(Draws(kind), (torch.ones(2, 1),), dynamic_shapes=batch)
    torch.manual_seed(0)
    drawn = program.module()(torch.full((50_000, 1), number))["drawn"][:, 0]
    assert kstest(drawn, expected(number).cdf).pvalue > 1e-4
