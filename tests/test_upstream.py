"""Faults of libraries that are worked around, each as small as possible: once one is mended, its workaround can go."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper
from tensordict import TensorDict
from torchrl.data import Categorical, Composite
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, GRUModule, LSTMModule

BATCH = torch.export.Dim("batch", min=1, max=1024)


class AsFunction(torch.nn.Module):
    """A TensorDict module as a function of tensors."""

    def __init__(self, module: torch.nn.Module, output: str) -> None:
        super().__init__()
        self.module, self.output = module, output

    def forward(self, **inputs):
        return self.module(TensorDict(inputs, [next(iter(inputs.values())).shape[0]]))[self.output]


def export(module: torch.nn.Module, output: str, **inputs: torch.Tensor) -> None:
    sizes = {name: {0: BATCH} for name in inputs}
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        torch.export.export(AsFunction(module, output), (), inputs, dynamic_shapes={"inputs": sizes})


def test_epsilon_greedy_fixes_the_batch():
    """Twin: ``EpsilonGreedy`` of ``policy_export/program/epsilon_greedy.py``."""
    module = EGreedyModule(Composite(action=Categorical(3)), eps_init=0.5, eps_end=0.5)
    with pytest.raises(Exception, match=r"(?i)batch|dynamic|constrain|specializ|expand"):
        export(module, "action", action=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(("kind", "states"), [(LSTMModule, 2), (GRUModule, 1)])
def test_recurrent_modules_fix_the_batch(kind, states):
    """Twin: ``RecurrentStep`` of ``policy_export/program/twins.py``."""
    names = [f"state{number}" for number in range(states)]
    module = kind(
        input_size=3,
        hidden_size=4,
        in_keys=["observation", *names],
        out_keys=["features", *(("next", name) for name in names)],
        python_based=True,
    )
    inputs = {name: torch.zeros(2, 1, 4) for name in names} | {"is_init": torch.zeros(2, 1, dtype=torch.bool)}
    with pytest.raises(Exception, match=r"(?i)batch|dynamic|constrain|specializ|guard"):
        export(module, "features", observation=torch.zeros(2, 3), **inputs)


TWO_OPERATORS = """
import numpy, onnxruntime
from onnx import parser
model = parser.parse_model('''<ir_version: 8, opset_import: ["" : 18]>
random (float[64] x) => (float[64] one, float[64] other) {
    one = RandomUniformLike (x)
    other = RandomUniformLike (x)
}''')
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
one, other = session.run(None, {"x": numpy.zeros(64, numpy.float32)})
print(*numpy.round((other - one) % 1, 4))
"""


def test_second_random_operator_depends_on_the_first():
    """Epsilon-greedy programs have one, as ``EpsilonGreedy`` says; a policy with two fails the check where it shows."""
    differences = {
        subprocess.run([sys.executable, "-c", TWO_OPERATORS], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(differences) == 1


def test_openvino_draws_the_same_at_every_call(tmp_path):
    """The reason why ``policy_export/backends/openvino.py`` has no program that explores."""
    draw = helper.make_node("Multinomial", ["logits"], ["action"], sample_size=1)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [64, 6])
    action = helper.make_tensor_value_info("action", TensorProto.INT32, [64, 1])
    model = helper.make_model(
        helper.make_graph([draw], "draw", [logits], [action]), opset_imports=[helper.make_opsetid("", 20)]
    )
    (tmp_path / "draw.onnx").write_bytes(model.SerializeToString())
    program = openvino.Core().compile_model(tmp_path / "draw.onnx", "CPU")
    first, second = (program([np.zeros((64, 6), np.float32)])[0].copy() for _ in range(2))
    assert len(set(first.ravel().tolist())) > 1
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dimensions", [3, 4])
def test_exported_attention_is_not_pytorchs(dimensions):
    """Workaround: ``spell_out_attention`` of ``policy_export/lowering/onnx.py``."""

    class Attends(torch.nn.Module):
        def forward(self, query, bias):
            return torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=bias)

    shape = (2, 3, 4) if dimensions == 3 else (2, 1, 3, 4)
    inputs = {"query": torch.ones(shape), "bias": torch.full((*shape[:-1], shape[-2]), -torch.inf)}
    sizes = {name: {0: BATCH} for name in inputs}
    exported = torch.export.export(Attends(), (), inputs, dynamic_shapes=sizes)
    assert exported.module()(**inputs).abs().max() == 0
    if dimensions == 3:
        with pytest.raises(torch.onnx.OnnxExporterError, match="4D"):
            torch.onnx.export(exported, dynamo=True, verbose=False)
        return
    model = torch.onnx.export(exported, dynamo=True, verbose=False).model_proto
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    assert np.isnan(found).all()


def test_bernoulli_of_onnx_draws_the_opposite():
    """Workaround: ``draw_flags`` of ``policy_export/lowering/onnx.py``."""
    given, drawn = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "pb")
    graph = helper.make_graph([helper.make_node("Bernoulli", ["p"], ["b"])], "draw", [given], [drawn])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (flags,) = session.run(None, {"p": np.full(1000, 0.05, np.float32)})
    assert flags.mean() > 0.8
