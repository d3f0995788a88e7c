"""Errors that end an export are one line: the reason, and the line of the user's source."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs.utils import ExplorationType

from policy_export.device.errors import UserError
from policy_export.lowering.onnx import convert
from policy_export.program.export import export, random_operators
from policy_export.program.failures import blame, explain, in_one_line
from policy_export.program.step import Step
from policy_export.stage.quiet import drop_remarks

DETERMINISTIC, RANDOM = ExplorationType.DETERMINISTIC, ExplorationType.RANDOM

MODULE = """
import warnings
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential

class Network(torch.nn.Module):
    def __init__(self, computed):
        super().__init__()
        self.linear, self.computed = torch.nn.Linear(4, 2), computed

    def forward(self, x):
        return self.computed(self.linear(x)).argmax(-1)

def branch(x):
    if x.sum() > 0:
        x = x + 1
    return x

def fixed(x):
    return torch.stack([x[row] for row in range(x.shape[0])])

def dropout(x):
    return torch.nn.functional.dropout(x)

def batch_norm(x):
    return torch.nn.functional.batch_norm(x, None, None, training=True)

def arrays(x):
    return torch.from_numpy(x.numpy())

def bessel(x):
    return torch.special.bessel_j0(x)

def checks(x):
    if not torch.isfinite(x).all() or x.isnan().any():
        raise ValueError("no numbers")
    if (x > 1e6).any():
        warnings.warn("large")
    assert (x == x).all(), "no numbers"
    assert not x.isnan().any()
    return x

def sizes(x):
    return x @ torch.zeros(7, 2)

def make(computed):
    return TensorDictSequential(TensorDictModule(Network(globals()[computed]), ["observation"], ["action"]))
"""


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Give a policy's step by what it computes, in a module of the user's own in the working folder."""
    (tmp_path / "of_a_user.py").write_text(MODULE.strip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = importlib.reload(importlib.import_module("of_a_user"))
    spec = Composite(observation=Unbounded((4,), dtype=torch.float32))
    return lambda computed, exploration=DETERMINISTIC: Step(module.make(computed).eval(), spec, exploration)


def line_of(code):
    (number,) = (number for number, line in enumerate(MODULE.strip().splitlines(), 1) if code in line)
    return f"of_a_user.py:{number}"


@pytest.mark.parametrize(
    ("computed", "code", "said"),
    [
        ("branch", "if x.sum()", "branches on the value of a tensor"),
        ("fixed", "for row in", "the policy works for a batch of one size only"),
        ("dropout", "functional.dropout", "the deterministic program draws random numbers: aten.dropout.default"),
        ("batch_norm", "training=True", "the policy normalises by its batch even in evaluation mode: aten.batch_norm"),
        ("arrays", ".numpy()", "RuntimeError: .numpy() is not supported"),
        ("sizes", "torch.zeros(7, 2)", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_one_line_with_the_place(network, capfd, computed, code, said):
    """Check that PyTorch prints nothing beside it."""
    path = Path("results/mine/failures/export_pt2.txt")
    drop_remarks()
    with pytest.raises(UserError) as caught, in_one_line("mine", "export_pt2"):
        export(network(computed))
    (line,) = str(caught.value).splitlines()
    assert said in line
    assert line_of(code) in line
    assert path.exists() == (f"the whole trace: {path}" in line)
    assert capfd.readouterr().err == ""


def test_library_is_blamed_where_the_user_s_code_calls_nothing():
    frames = [
        ("/a/policy_export/machine/trial.py", 104),
        ("/venv/site-packages/torchrl/modules/tensordict_module/actors.py", 5),
        ("/venv/site-packages/torch/distributions/von_mises.py", 96),
        ("/venv/site-packages/torch/_ops.py", 7),
    ]
    assert blame(frames) == "torch/distributions/von_mises.py:96"
    assert blame([*frames, ("/a/of_a_user.py", 3)]) == "/a/of_a_user.py:3"
    assert blame(frames[:1]) is None


def test_the_trace_is_kept_until_it_goes_well(network):
    path = Path("results/mine/failures/export_pt2.txt")
    with pytest.raises(UserError, match="the whole trace"), in_one_line("mine", "export_pt2"):
        export(network("branch"))
    assert "GuardOnDataDependentSymNode" in path.read_text()
    with in_one_line("mine", "export_pt2"):
        export(network("checks"))
    assert not path.exists()


def test_checks_are_left_out_of_the_program(network):
    """Check that the program's result is the same: checks that only raise or warn do not change it."""
    step = network("checks")
    program = export(step)
    inputs = {"observation": torch.randn(5, 4)}
    assert torch.equal(program.module()(**inputs)["action"], step(**inputs)["action"])


def test_an_operator_that_onnx_lacks(network):
    step = network("bessel")
    program = export(step)
    facts = {"policy": "mine", "environment": {"id": "mine"}, **step.signature.as_dict()}
    with pytest.raises(Exception, match="bessel") as caught:
        convert(program, facts, 20)
    line = explain(caught.value, program)
    assert line == f"the operator prims.bessel_j0 cannot be converted, at {line_of('bessel_j0')}"


def test_dropout_in_the_exploring_program_is_random(network):
    (node,) = random_operators(export(network("dropout", RANDOM)))
    assert str(node.target) == "aten.dropout.default"


def test_dropout_that_is_switched_off_is_not(network):
    assert Categorical(2).is_in(network("checks")(observation=torch.zeros(1, 4))["action"][0])
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True).eval()
    program = torch.export.export(layer, (torch.zeros(2, 3, 4),))
    assert not random_operators(program)
