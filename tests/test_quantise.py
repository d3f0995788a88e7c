"""Programs of fewer bits: how they are made, and when they are accepted."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pipeline_helpers import ROOT, change_params, write_params
from ruamel.yaml import YAML

from policy_export.backends.manifest import write_manifest
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.programs import Candidate
from policy_export.benchmark.ratios import Ratio
from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.onnx_session import load_onnx
from policy_export.lowering.quantisation import OPERATORS, PRODUCTS, halved, layers, quantised
from policy_export.machine.facts import write_facts
from policy_export.program.policy import make_agent
from policy_export.program.weights import save_weights
from stages.export_onnx import export_onnx
from stages.export_pt2 import export_pt2
from stages.golden import golden
from stages.record import record
from studies import quantise, settings

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
BALANCE = '''
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import Composite
from torchrl.modules import QValueModule


def make_policy(observation_spec, action_spec):
    """Pushes to the side that the pole is about to fall to."""
    first, last = torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)
    gains = torch.tensor([0.1, 0.5, 5.0, 1.0])
    first.weight.data, last.weight.data = torch.stack([-gains, gains]), torch.eye(2)
    first.bias.data, last.bias.data = torch.zeros(2), torch.zeros(2)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    values = TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"])
    return TensorDictSequential(values, QValueModule(spec=Composite(action=action_spec)))
'''
PROFILE = {
    "env": {"id": "CartPole-v1", "max_episode_steps": 300},
    "preprocess": None,
    "policy": {"factory": "balance:make_policy"},
    "train": {"algorithm": "none", "seed": 0, "eval_episodes": 1},
    "programs": ["pt2", "onnx"],
}
STUDY = {
    "quantise.calibration_samples": 64,
    "quantise.checked_samples": 100,
    "quantise.episodes": 6,
}
SMALL = {
    "bench.cold_starts": 1,
    "bench.rounds": 8,
    "bench.queries": 100,
    "bench.samples": 16,
    "record.greedy_episodes": 2,
    "record.epsilon_episodes": 1,
}


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """Give the working folder, with a policy that balances the pole, exported, recorded and with a manifest."""
    folder = tmp_path_factory.mktemp("cartpole")
    write_params(folder, SMALL)
    yaml = YAML()
    content = yaml.load((folder / "params.yaml").read_text())
    content["policies"]["balance"], content["matrix"] = PROFILE, ["balance"]
    yaml.dump(content, folder / "params.yaml")
    (folder / "balance.py").write_text(BALANCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
        (folder / "studies").mkdir()
        shutil.copyfile(ROOT / "studies/params.yaml", folder / "studies/params.yaml")
        change_params(folder / "studies/params.yaml", STUDY)
        write_facts()
        agent = make_agent("balance", load_profile("balance"))
        save_weights(Path("models/balance/policy.safetensors"), "balance", agent.actor)
        for stage in (export_pt2, export_onnx, record, golden, write_manifest):
            stage("balance")
        yield folder


@pytest.fixture(scope="module")
def pong(workspace) -> onnx.ModelProto:
    return onnx.load(workspace / "models/dqn/policy.onnx")


@pytest.fixture(scope="module")
def screens():
    return {
        "observation": RANDOM.integers(256, size=(32, 210, 160, 3)).astype(np.uint8),
        "frames": RANDOM.normal(size=(32, 1, 40, 40)).astype(np.float32),
        "is_init": np.zeros((32, 1), bool),
    }


def run(model: onnx.ModelProto, inputs, folder: Path):
    onnx.save(model, folder / "policy.onnx")
    return load_onnx(folder / "policy.onnx")(inputs)


def test_layers_are_the_network_s_but_for_the_last(pong):
    assert [node.op_type for node in layers(pong, OPERATORS)] == ["Conv", "Conv", "Gemm"]
    assert [node.op_type for node in layers(pong, PRODUCTS)] == ["Gemm"]


@pytest.mark.parametrize("operators", [OPERATORS, PRODUCTS])
def test_quantised_program_has_small_weights_and_the_same_memory(pong, screens, tmp_path, operators):
    model = quantised(pong, screens, operators)
    onnx.checker.check_model(model, full_check=True)
    small = [tensor for tensor in model.graph.initializer if numpy_helper.to_array(tensor).dtype == np.int8]
    sizes = sorted(math.prod(tensor.dims) for tensor in small if len(tensor.dims) > 1)
    preprocessing = {math.prod(tensor.dims) for tensor in pong.graph.initializer if tensor.name.endswith("_weights")}
    expected = [
        math.prod([*next(w.dims for w in pong.graph.initializer if w.name == node.input[1])])
        for node in layers(pong, operators)
    ]
    assert sorted([*expected, *preprocessing]) == sizes
    found, given = run(model, screens, tmp_path), run(pong, screens, tmp_path)
    np.testing.assert_array_equal(found["next_frames"], given["next_frames"])
    difference = np.abs(found["action_value"] - given["action_value"]).max()
    assert 0 < difference < 0.2 * np.abs(given["action_value"]).max()


def test_half_precision_rounds_a_little(pong, screens, tmp_path):
    found, given = run(halved(pong, "fp16"), screens, tmp_path), run(pong, screens, tmp_path)
    np.testing.assert_array_equal(found["next_frames"], given["next_frames"])
    assert 0 < np.abs(found["action_value"] - given["action_value"]).max() < 0.01


def test_what_the_processor_or_the_runtime_lacks(pong, tmp_path):
    made = quantise.make("fp16", lambda: halved(pong, "fp16"), tmp_path / "fp16/policy.onnx", ["avx2"])
    assert made == {"verdict": "not measured", "reason": "this processor has none of avx512_fp16, fphp"}
    made = quantise.make("bf16", lambda: halved(pong, "bf16"), tmp_path / "bf16/policy.onnx", ["avx512_bf16"])
    assert made["verdict"] == "rejected"
    assert "NOT_IMPLEMENTED" in made["reason"]
    made = quantise.make("int8", lambda: None, tmp_path / "int8/policy.onnx", [])
    assert made["reason"].startswith("the program has no layer")


@pytest.mark.parametrize(
    ("ratio", "p99", "reference", "reason"),
    [
        (Ratio(1.2, 1.1, 1.3, 0.03), 90.0, 100.0, None),
        (Ratio(1.2, 1.1, 1.3, 0.03), 100.0, 100.0, "its p99 is not lower: 100.0 us"),
        (
            Ratio(1.2, 1.02, 1.3, 0.03),
            90.0,
            100.0,
            "its p50 is not lower outside the noise: it is between 1.02 and 1.30",
        ),
        (Ratio(0.8, 0.7, 0.9, 0.03), 90.0, 100.0, "its p50 is not lower"),
        (Ratio(1.2, 1.1, 1.3, 0.03), None, 100.0, "too few queries"),
    ],
)
def test_latency_has_a_verdict(ratio, p99, reference, reason):
    found = quantise.check_latency(ratio, p99, reference)
    assert found is None if reason is None else found.startswith(reason)


def test_scores_of_one_distribution_are_the_same():
    one, other = RANDOM.normal(18, 1.4, (2, 100))
    scores = quantise.compare_scores(one, other, 1.0, 0.05)
    assert scores.same
    assert -1 < scores.low < scores.mean - scores.reference_mean < scores.high < 1
    assert quantise.check_scores(scores, 1.0) is None


@pytest.mark.parametrize(("episodes", "shift"), [(100, 1.0), (100, -1.0), (100, 3.0), (4, 0.0)])
def test_other_scores_and_too_few_are_not_shown_to_be_the_same(episodes, shift):
    one, other = RANDOM.normal(18, 1.4, (2, episodes))
    scores = quantise.compare_scores(one - one.mean() + shift, other - other.mean(), 1.0, 0.05)
    assert not scores.same
    assert quantise.check_scores(scores, 1.0).startswith("its score is not shown to be the same within 1: ")


def test_scores_a_margin_apart_are_rarely_called_the_same():
    """Check that this is as rare as the significance level says."""
    pairs = [(RANDOM.normal(19, 1.4, 100), RANDOM.normal(18, 2.0, 100)) for _ in range(1000)]
    assert np.mean([quantise.compare_scores(*pair, 1.0, 0.05).same for pair in pairs]) < 0.08


def test_scores_that_never_vary():
    assert quantise.compare_scores([500.0] * 10, [500.0] * 10, 1.0, 0.05).same
    assert not quantise.compare_scores([500.0] * 10, [499.0] * 10, 1.0, 0.05).same


@pytest.mark.parametrize(("score", "verdict"), [(18.0, "accepted"), (15.0, "rejected")])
def test_only_what_is_faster_plays(workspace, monkeypatch, score, verdict):
    """Check this with made-up times and scores, as the real times depend on the machine."""
    path = str(workspace / "models/dqn/policy.onnx")
    candidates = {name: Candidate(path, 1) for name in ("onnx", "int8", "slow")}
    times = {"onnx": 100_000, "int8": 80_000, "slow": 120_000}
    measured = {name: Measured(times={"single": [np.full(280, time)] * 24}) for name, time in times.items()}
    monkeypatch.setattr(quantise, "measure_candidates", lambda *_: measured)
    played = []

    def play(_policy, players, _settings):
        played.extend(players)
        return {name: RANDOM.normal(score if name == "int8" else 18.0, 1.0, 100) for name in players}

    monkeypatch.setattr(quantise, "play_all", play)
    report, bench = {"int8": {}, "slow": {}}, params.load(ROOT / "params.yaml").bench
    reference = quantise.check_candidates(
        "dqn", candidates, bench, settings.load(ROOT / "studies/params.yaml").quantise, report
    )
    assert (reference["p50_us"], played) == (100.0, ["onnx", "int8"])
    assert (report["int8"]["verdict"], report["slow"]["verdict"]) == (verdict, "rejected")
    assert report["slow"]["reason"].startswith("its p99 is not lower: 120.0 us")
    assert report["int8"]["score"]["reference_mean"] == pytest.approx(18, abs=1)


def test_answers_that_are_no_numbers_are_told(workspace, screens):
    model = onnx.load(workspace / "models/dqn/policy.onnx")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("weight"))
    broken = np.full_like(numpy_helper.to_array(weights), np.nan)
    weights.CopyFrom(numpy_helper.from_array(broken, weights.name))
    onnx.save(model, workspace.parent / "broken.onnx")
    candidates = {"onnx": Candidate(str(workspace / "models/dqn/policy.onnx"), 1)}
    candidates["int8"] = Candidate(str(workspace.parent / "broken.onnx"), 1)
    assert quantise.compare_decisions(candidates, screens)["int8"]["largest_difference"]["action_value"] is None


@pytest.mark.slow
def test_damaged_quantisation_is_rejected_by_its_score(cartpole):
    """Check that the quantised program balances the pole, and that the one with negated weights does not."""
    study = settings.load().quantise
    path = cartpole / "models/balance/policy.onnx"
    written = json.loads((path.parent / "manifest.json").read_text())
    calibration, checked = quantise.pick_recorded("balance", written, study)
    sound = quantised(onnx.load(path), calibration, OPERATORS)
    damaged = onnx.ModelProto()
    damaged.CopyFrom(sound)
    for tensor in damaged.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.size > 1:
            tensor.CopyFrom(numpy_helper.from_array((-array).astype(np.int8), tensor.name))
    candidates = {"onnx": Candidate(str(path), 1)}
    for name, model in {"sound": sound, "damaged": damaged}.items():
        onnx.save(model, cartpole / f"{name}.onnx")
        candidates[name] = Candidate(str(cartpole / f"{name}.onnx"), 1)
    decided = quantise.compare_decisions(candidates, checked)
    assert decided["onnx"]["other_actions"] == 0
    assert decided["damaged"]["other_actions"] > 0.5 > decided["sound"]["other_actions"]
    assert set(decided["sound"]["largest_difference"]) == {"action_value"}
    scores = quantise.play_all("balance", candidates, study)
    assert scores["onnx"] == scores["sound"] == [300.0] * 6
    compared = {name: quantise.compare_scores(scores[name], scores["onnx"], 1.0, 0.05) for name in scores}
    assert quantise.check_scores(compared["sound"], 1.0) is None
    assert "a difference of -" in quantise.check_scores(compared["damaged"], 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("cartpole")
def test_stage_reports_a_verdict_of_every_program():
    quantise.quantise("balance")
    report = json.loads(Path("studies/results/balance/quantised.json").read_text())
    assert set(report["programs"]) == {"int8", "fp16", "bf16"}  # without convolutions, products are all that there is
    entry = report["programs"]["int8"]
    assert entry["verdict"] in {"accepted", "rejected"}
    assert entry["reason"]
    assert entry["p99_us"] >= entry["p50_us"] > 0
    assert entry["other_actions"] < 0.5
    assert entry["file_bytes"] > 0
    accepted = [name for name, one in report["programs"].items() if one["verdict"] == "accepted"]
    assert report["accepted"] == accepted
    assert not Path("models/balance/quantised").exists()  # nothing of it ships
    for name, one in report["programs"].items():
        assert ("score" in one) or one["verdict"] != "accepted", name


def test_report_holds_plain_numbers():
    scores = quantise.compare_scores([1.0, 2.0], [1.0, 3.0], 1.0, 0.05)
    assert json.loads(json.dumps(dataclasses.asdict(scores))) == dataclasses.asdict(scores)
