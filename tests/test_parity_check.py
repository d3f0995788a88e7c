"""The check itself: programs that agree pass, and every way of being wrong is found and named."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from pipeline_helpers import (
    ROOT,
    SHORT_CHECK,
    TINY,
    accept_files,
    change_manifest,
    change_params,
    choose_programs,
    write_params,
)
from torchrl.envs.utils import ExplorationType

from policy_export.backends import runtimes
from policy_export.backends.manifest import write_manifest
from policy_export.backends.registry import RANDOM
from policy_export.config.profile import Profile, load_profile
from policy_export.device.arrays import Arrays, Run
from policy_export.device.environments import make_environment
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, read_manifest, sha256
from policy_export.device.onnx_session import load_onnx
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode, observe
from policy_export.parity import check as stage
from policy_export.parity import closed_loop as closed_loop_module
from policy_export.parity.batch_invariance import BATCHES, LARGE, ODD_ROWS, check_batch_invariance, check_ties
from policy_export.parity.closed_loop import ClosedLoop, Trace, compare_episodes, part_at_ties, play_episodes
from policy_export.parity.comparison import MAX_FAILURES, Batch, Comparison, Place
from policy_export.parity.facts import check_facts
from policy_export.parity.open_loop import EXPLORING_STRIDE, check_open_loop
from policy_export.parity.recorded_inputs import pick_recorded_inputs
from policy_export.parity.samples import ROWS, Samples, check_samples
from policy_export.parity.ties import find_ties
from policy_export.program.calls import wrap
from policy_export.program.policy import make_agent
from policy_export.program.step import Step, load_step
from policy_export.program.weights import load_weights, save_weights
from stages.export_onnx import export_onnx
from stages.export_pt2 import export_pt2
from stages.golden import golden
from stages.record import record

pytestmark = pytest.mark.slow


FOLDER = Path("models/dqn")
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An untrained policy with its programs and a few recorded episodes."""

    folder: Path
    profile: Profile
    eager: Run
    programs: dict[str, Run]
    recorded: list[Episode]
    manifest: dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    few = {"record.greedy_episodes": 1, "record.epsilon_episodes": 2, "parity_check.min_observations": 1}
    write_params(folder, TINY | few | {"policies.dqn.preprocess.grey": [1.0, 0.0, 0.0]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        profile = load_profile("dqn")
        torch.manual_seed(0)
        save_weights(FOLDER / "policy.safetensors", "dqn", make_agent("dqn", profile).actor)
        choose_programs(folder, "dqn", ["pt2", "onnx"])
        export_pt2("dqn")
        export_onnx("dqn")
        record("dqn")
        golden("dqn")
        write_manifest("dqn")
        step = load_step("dqn", profile)
        _, files = runtimes.read_model("dqn")
        recorded = episodes.load(Path("data/dqn/episodes.safetensors"), "dqn")
        change_params(
            folder / "params.yaml",
            {"parity_check.min_observations": sum(len(episode.actions) for episode in recorded)},
        )
        return Bundle(
            folder,
            profile,
            wrap(step),
            {name: runtimes.load(path, 1) for name, path in files.items()},
            recorded,
            read_manifest(FOLDER),
        )


def open_loop(bundle: Bundle, name: str, run: Run) -> Comparison:
    return check_open_loop(bundle.eager, {name: run}, bundle.recorded, bundle.manifest, SHORT_CHECK)[name]


def closed_loop(bundle: Bundle, run: Run) -> ClosedLoop:
    seeds = range(SHORT_CHECK.seed, SHORT_CHECK.seed + SHORT_CHECK.episodes)
    played = [play_episodes(Player(program, bundle.manifest, len(seeds)), seeds) for program in (run, bundle.eager)]
    return compare_episodes(*played, TOLERANCE)


def test_programs_of_the_same_policy_pass(bundle):
    results = check_open_loop(bundle.eager, bundle.programs, bundle.recorded, bundle.manifest, SHORT_CHECK)
    assert set(results) == {"pt2", "pt2_random", "onnx", "onnx_random"}
    steps = [len(episode.actions) for episode in bundle.recorded]
    for name, result in results.items():
        assert result.failures == result.ties == []
        every = EXPLORING_STRIDE if name.endswith(RANDOM) else 1
        assert result.observations == sum(len(range(0, length, every)) for length in steps)
        assert set(result.max_abs_difference) == {"action_value", "next_frames"}
        assert max(result.max_abs_difference.values()) < TOLERANCE
    for name in ("pt2", "onnx"):
        result = closed_loop(bundle, bundle.programs[name])
        assert (result.episodes, result.identical, result.failures) == (2, 2, [])
        assert result.steps == 2 * TINY["policies.dqn.env.max_episode_steps"]


def test_episodes_of_different_lengths_are_compared_to_their_ends(bundle):
    recorded = [
        dataclasses.replace(episode, actions=episode.actions[:steps])
        for episode, steps in zip(bundle.recorded, (40, 100, 70), strict=True)
    ]
    programs = {"pt2": bundle.programs["pt2"], "onnx": shift_actions_late(bundle.programs["onnx"])}
    results = check_open_loop(bundle.eager, programs, recorded, bundle.manifest, SHORT_CHECK)
    assert [result.observations for result in results.values()] == [210, 210]
    assert not results["pt2"].failures
    found = [(episode.seed, step) for step in range(50, 100) for episode in recorded if step < len(episode.actions)]
    assert results["onnx"].failed == len(found)
    assert [tuple(failure.place) for failure in results["onnx"].failures] == found[:MAX_FAILURES]


def test_drift_of_a_state_is_told_per_hundred_steps(bundle):
    """Check the drift of a memory that is slightly off after step 60, in episodes of a hundred and of seventy steps."""
    steps, run = itertools.count(), bundle.programs["pt2"]

    def drift(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["next_frames"] = outputs["next_frames"] + np.float32(3e-6 * (next(steps) >= 60))
        return outputs

    result = open_loop(bundle, "pt2", drift)
    assert result.state_drift["next_frames"] == pytest.approx([3e-6], rel=0.5)
    assert not result.failures


def test_situations_are_decisions_of_an_episode(bundle):
    """Check that each has the memory of its step, which contains the previous frame."""
    episode = bundle.recorded[1]
    places, recorded_inputs = pick_recorded_inputs(bundle.eager, episode, bundle.manifest, 4)
    assert places == [Place(episode.seed, step) for step in (0, 33, 66, 99)]
    assert {name: len(array) for name, array in recorded_inputs.items()} == {
        "observation": 4,
        "frames": 4,
        "is_init": 4,
    }
    assert recorded_inputs["is_init"].ravel().tolist() == [True, False, False, False]
    for name in ("observation", "frames"):
        assert len({row.tobytes() for row in recorded_inputs[name]}) == 4
    screens = [shown["observation"] for shown in observe(episode, bundle.manifest)]
    last = bundle.eager(
        {"observation": screens[-2][None], "frames": recorded_inputs["frames"][:1], "is_init": np.ones((1, 1), bool)}
    )
    assert np.array_equal(recorded_inputs["observation"][3], screens[-1])
    assert np.array_equal(recorded_inputs["frames"][3], last["next_frames"][0])


def changed_onnx(bundle: Bundle, change: Callable[[onnx.ModelProto], None], path: Path) -> Run:
    model = onnx.load(bundle.folder / FOLDER / "policy.onnx")
    change(model)
    onnx.save(model, path)
    return load_onnx(path)


def nudge(index: int) -> Callable[[onnx.ModelProto], None]:
    """Make the largest number of the network's first (0) or last (-1) matrix of weights larger by a thousandth."""

    def change(model: onnx.ModelProto) -> None:
        weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith("weight")]
        tensor = [tensor for tensor in weights if len(tensor.dims) > 1][index]
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[np.abs(array).argmax()] *= 1.001
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


@pytest.mark.parametrize("index", [0, -1])
def test_one_slightly_wrong_weight_is_found(bundle, tmp_path, index):
    result = open_loop(bundle, "onnx", changed_onnx(bundle, nudge(index), tmp_path / "policy.onnx"))
    assert result.max_abs_difference["action_value"] > TOLERANCE
    assert "action_value differs by" in str(result.failures[0])


def swap_colours(run: Run) -> Run:
    return lambda inputs: run(inputs | {"observation": np.ascontiguousarray(inputs["observation"][..., ::-1])})


def shift_actions(run: Run) -> Run:
    return lambda inputs: (outputs := run(inputs)) | {"action": (outputs["action"] + 1) % 6}


def shift_values(run: Run) -> Run:
    return lambda inputs: (outputs := run(inputs)) | {"action_value": np.roll(outputs["action_value"], 1, -1)}


def forget(run: Run) -> Run:
    return lambda inputs: run(
        inputs | {"frames": np.zeros_like(inputs["frames"]), "is_init": np.ones_like(inputs["is_init"])}
    )


def never_reset(run: Run) -> Run:
    return lambda inputs: run(inputs | {"is_init": inputs["is_init"] & False})


def not_a_number(run: Run) -> Run:
    return lambda inputs: (outputs := run(inputs)) | {"action_value": outputs["action_value"] * np.float32(np.nan)}


def infinity(run: Run) -> Run:
    return lambda inputs: (outputs := run(inputs)) | {"action_value": outputs["action_value"] + np.float32(np.inf)}


def repeat_first(run: Run) -> Run:
    first: Arrays = {}

    def constant(inputs: Arrays) -> Arrays:
        first.update(first or run(inputs))
        return {name: array[: len(inputs["observation"])] for name, array in first.items()}

    return constant


def shift_actions_late(run: Run) -> Run:
    steps = itertools.count()
    shifted = shift_actions(run)
    return lambda inputs: shifted(inputs) if next(steps) >= 50 else run(inputs)


FAULTS = [
    swap_colours,
    shift_actions,
    shift_actions_late,
    shift_values,
    forget,
    never_reset,
    not_a_number,
    infinity,
    repeat_first,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_fault_is_found_in_open_loop(bundle, name, fault):
    assert open_loop(bundle, name, fault(bundle.programs[name])).failures


def test_faults_of_one_program_are_not_the_other_programs(bundle):
    programs = bundle.programs | {"onnx": not_a_number(bundle.programs["onnx"])}
    results = check_open_loop(bundle.eager, programs, bundle.recorded, bundle.manifest, SHORT_CHECK)
    assert {name for name, result in results.items() if result.failures} == {"onnx"}


def test_random_program_is_held_to_its_values_only(bundle):
    run = bundle.programs["pt2_random"]
    assert not open_loop(bundle, "pt2_random", shift_actions(run)).failures
    assert open_loop(bundle, "pt2_random", shift_values(run)).failures


def other_policy(bundle: Bundle) -> Run:
    torch.manual_seed(1)
    agent = make_agent("dqn", bundle.profile)
    return wrap(Step(agent.policy.eval(), agent.input_spec, ExplorationType.DETERMINISTIC))


def test_other_policy_is_found(bundle):
    assert open_loop(bundle, "pt2", other_policy(bundle)).different_actions
    assert closed_loop(bundle, other_policy(bundle)).identical == 0


def before_action(model: onnx.ModelProto, *added: onnx.NodeProto) -> None:
    """Rename the output ``action``, and let other nodes compute ``action`` from it."""
    for node in model.graph.node:
        node.output[:] = ["decided" if name == "action" else name for name in node.output]
    model.graph.node.extend(added)


def rename_action(model: onnx.ModelProto) -> None:
    before_action(model)
    model.graph.output[0].name = "decided"


def action_of_fewer_bits(model: onnx.ModelProto) -> None:
    before_action(model, onnx.helper.make_node("Cast", ["decided"], ["action"], to=onnx.TensorProto.INT32))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


def column_of_actions(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    before_action(model, onnx.helper.make_node("Unsqueeze", ["decided", "axis"], ["action"]))
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1


OTHER_OUTPUTS = [
    (rename_action, r"onnx: outputs are .*'decided'.*, expected .*'action'"),
    (action_of_fewer_bits, r"onnx: output action is int32\[3\], expected int64\[3\]"),
    (column_of_actions, r"onnx: output action is int64\[3, 1\], expected int64\[3\]"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_OUTPUTS)
def test_other_outputs_are_found(bundle, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        open_loop(bundle, "onnx", changed_onnx(bundle, change, tmp_path / "policy.onnx"))


@pytest.mark.parametrize("name", ["pt2", "pt2_random"])
def test_missing_state_is_found(bundle, name):
    def wrong(inputs: Arrays) -> Arrays:
        return {key: array for key, array in bundle.programs[name](inputs).items() if key != "next_frames"}

    with pytest.raises(UserError, match=f"^{name}: has no output 'next_frames'$"):
        open_loop(bundle, name, wrong)


def test_open_loop_failure_tells_where_and_what(bundle):
    result = open_loop(bundle, "onnx", shift_actions_late(bundle.programs["onnx"]))
    steps = [len(episode.actions) for episode in bundle.recorded]
    assert result.different_actions == sum(steps) - 50 * len(steps)
    first = bundle.recorded[0].seed
    pattern = rf"episode with seed {first}, step 50: another action \(eager's margin .*\): "
    pattern += r"action \d, action_value \[.*\], eager action \d, action_value \[.*\]"
    assert re.fullmatch(pattern, str(result.failures[0]))


@pytest.mark.parametrize(("fault", "step"), [(shift_actions, 0), (shift_actions_late, 50)])
def test_closed_loop_failure_tells_where_and_what(bundle, fault, step):
    result = closed_loop(bundle, fault(bundle.programs["onnx"]))
    assert result.identical == 0
    pattern = rf"episode with seed 3, step {step}: the action differs: action \d, action_value .*, eager action \d, .*"
    assert re.fullmatch(pattern, str(result.failures[0]))


def test_closed_loop_compares_the_console(bundle, monkeypatch):
    """Check that equal actions are not enough: here the program's emulator has other random numbers."""
    seeds = itertools.count(3)
    monkeypatch.setattr(
        closed_loop_module, "make_environment", lambda manifest, _: make_environment(manifest, next(seeds))
    )

    def alternate() -> Player:
        actions = itertools.cycle([2, 3])
        manifest = bundle.manifest | {"states": [], "inputs": bundle.manifest["inputs"][:1]}
        return Player(lambda _: {"action": np.array([next(actions)])}, manifest)

    result = compare_episodes(play_episodes(alternate(), [3]), play_episodes(alternate(), [3]), TOLERANCE)
    assert "the state differs" in str(result.failures[0])


def tied(run: Run, steps: set[int], *, swapped: bool, off: float = 1e-6) -> Run:
    """Return a program with another action that is almost as good at some steps, or slightly better and so taken."""
    count = itertools.count()

    def decide(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        if next(count) in steps:
            values, row = outputs["action_value"].copy(), np.arange(len(outputs["action"]))
            best = values.argmax(-1)
            other = (best + 3) % 6
            values[row, other] = values[row, best] + np.float32(off if swapped else -off)
            outputs |= {"action_value": values, "action": other if swapped else best}
        return outputs

    return decide


def follow(bundle: Bundle, run: Callable[[], Run], eager: Run, *, again: bool = True) -> ClosedLoop:
    """Let both play, and the program again where it diverges at ties; ``run`` starts it anew."""
    seeds = range(SHORT_CHECK.seed, SHORT_CHECK.seed + SHORT_CHECK.episodes)
    played, own = (play_episodes(Player(program, bundle.manifest, len(seeds)), seeds) for program in (run(), eager))
    guides = part_at_ties(played, own, TOLERANCE) if again else []
    player = Player(run(), bundle.manifest, len(guides))
    followed = play_episodes(player, [guide.seed for guide in guides], guides=guides, tolerance=TOLERANCE)
    return compare_episodes(played, own, TOLERANCE, followed)


@pytest.mark.parametrize("off", [1e-6, 0.0])
def test_episode_goes_on_after_a_tie(bundle, off):
    """Check that it continues with eager's action, whether the values are nearly or exactly the same."""
    steps = {20, 21, 60}

    def program() -> Run:
        return tied(bundle.programs["onnx"], steps, swapped=True, off=off)

    def eager() -> Run:
        return tied(bundle.eager, steps, swapped=False, off=off)

    result = follow(bundle, program, eager())
    assert (result.failures, result.identical) == ([], 0)
    assert result.steps == 2 * TINY["policies.dqn.env.max_episode_steps"]
    assert [(tie["seed"], tie["step"]) for tie in result.ties] == list(itertools.product((3, 4), sorted(steps)))
    assert all(0 <= tie["margin"] <= 2 * tie["difference"] <= 2 * TOLERANCE for tie in result.ties)
    assert [str(failure)[:50] for failure in follow(bundle, program, eager(), again=False).failures] == [
        f"episode with seed {seed}, step 20: the action differs: "[:50] for seed in (3, 4)
    ]


def test_fault_after_a_tie_is_found(bundle):
    """Check that the failure names its own step, and that the ties before it stay listed."""
    result = follow(
        bundle,
        lambda: shift_actions_late(tied(bundle.programs["onnx"], {20}, swapped=True)),
        tied(bundle.eager, {20}, swapped=False),
    )
    assert [tie["step"] for tie in result.ties] == [20, 20]
    assert "episode with seed 3, step 50: the action differs: action " in str(result.failures[0])
    assert len(result.failures) == 2


def test_only_episodes_that_part_at_a_tie_are_followed(bundle):
    """Check that actions that differ for other reasons, or in another state of the console, are not followed."""
    seeds = range(SHORT_CHECK.seed, SHORT_CHECK.seed + SHORT_CHECK.episodes)
    programs = bundle.eager, shift_actions(bundle.programs["onnx"]), tied(bundle.eager, {20}, swapped=True, off=1e-3)
    own, *others = (play_episodes(Player(run, bundle.manifest, len(seeds)), seeds) for run in programs)
    assert [part_at_ties(traces, own, TOLERANCE) for traces in (own, *others)] == [[], [], []]
    near = tied(bundle.eager, {20}, swapped=False)
    near_own = play_episodes(Player(near, bundle.manifest, len(seeds)), seeds)
    swapped = tied(bundle.eager, {20}, swapped=True)
    traces = play_episodes(Player(swapped, bundle.manifest, len(seeds)), seeds)
    assert part_at_ties(traces, near_own, TOLERANCE) == near_own
    elsewhere = [dataclasses.replace(trace, states=trace.states + np.uint64(1)) for trace in traces]
    assert part_at_ties(elsewhere, near_own, TOLERANCE) == []


def trace(actions: list[float], reference: list[float] | None = None, reward: float = 0.0) -> Trace:
    """Return an episode of vectors, with what eager would have done there, and always the same reward."""
    rows = [None if row is None else {"action": np.array(row, np.float32)[:, None]} for row in (actions, reference)]
    return Trace(9, rows[0], rows[1], np.arange(len(actions), dtype=np.uint64), np.full(len(actions), reward))


@pytest.mark.parametrize(("off", "failure"), [(TOLERANCE / 2, None), (3e-5, "step 1: action differs by 3e-05 (")])
def test_vectors_are_compared_with_what_the_policy_does_beside(off, failure):
    found = trace([0.25, off], reference=[0.25, 0.0], reward=-1.5)
    result = compare_episodes([found], [trace([1.0, 1.0])], TOLERANCE)
    assert (result.identical, result.steps, result.mean_score) == (0, 2, -3.0)
    assert result.max_action_difference == pytest.approx(off)
    assert [failure in str(found) for found in result.failures] == ([] if failure is None else [True])


def test_episode_that_ends_early_is_another_one():
    result = compare_episodes([trace([1.0, 2.0])], [trace([1.0, 2.0, 3.0])], TOLERANCE)
    assert "step 1: the episode ends after 2 steps, eager's after 3" in str(result.failures[0])
    result = compare_episodes([trace([1.0, 2.0], reward=1.0)], [trace([1.0, 2.0])], TOLERANCE)
    assert "step 0: the reward differs" in str(result.failures[0])


@pytest.mark.parametrize(
    ("expected", "off", "failures"),
    [
        ([180.0, 0.5], [3.1e-5, 0.0], 0),  # two last places of float32
        ([180.0, 0.5], [0.0, 3.1e-5], 1),
        ([180.0, 0.5], [2e-3, 0.0], 1),
        ([-torch.inf, 0.5], [0.0, 9e-6], 0),
        ([-torch.inf, 0.5], [0.0, 2e-5], 1),
        ([torch.finfo(torch.float32).min, 0.5], [0.0, 2e-5], 1),
    ],
)
def test_tolerance_is_a_share_of_what_is_large(expected, off, failures):
    eager = {"action": np.array([0]), "action_value": np.array([expected], np.float32)}
    found = eager | {"action_value": eager["action_value"] + np.array([off], np.float32)}
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    result.compare(batch(eager, found))
    assert result.failed == failures


@pytest.mark.parametrize(("off", "ties"), [(3.1e-5, 1), (6e-3, 0)])
def test_tie_of_large_values(off, ties):
    eager = {"action": np.array([0]), "action_value": np.array([[180.00002, 180.0, 2.0]], np.float32)}
    values = eager["action_value"] + np.array([[0, off, 0]], np.float32)
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    result.compare(batch(eager, {"action": np.array([1]), "action_value": values}))
    assert (len(result.ties), result.different_actions) == (ties, 1 - ties)


def batch(eager: Arrays, outputs: Arrays) -> Batch:
    return Batch([Place(7, 11)], eager, outputs, inputs={})


def rows(bundle: Bundle, run: Run) -> Comparison:
    recorded_inputs = pick_recorded_inputs(bundle.eager, bundle.recorded[-1], bundle.manifest, 70)
    return check_batch_invariance(bundle.eager, {"pt2": run}, recorded_inputs, bundle.manifest, SHORT_CHECK)["pt2"]


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_rows_of_programs_pass(bundle, name):
    result = rows(bundle, bundle.programs[name])
    assert (result.failures, result.different_actions) == ([], 0)
    assert result.observations == 70 * (len(BATCHES) + 1) + LARGE + ODD_ROWS * 7


def only_alone(run: Run) -> Run:
    """Return a program that treats all rows of a batch as its first, and so is right for one row only."""
    return lambda inputs: run({name: np.repeat(array[:1], len(array), 0) for name, array in inputs.items()})


def only_in_small_batches(run: Run) -> Run:
    def wrong(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["action_value"][32:] += np.float32(1e-3)
        return outputs

    return wrong


def only_in_usual_batches(run: Run) -> Run:
    def wrong(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["action_value"][64:] += 1
        return outputs

    return wrong


def only_at_first(run: Run) -> Run:
    """Return a program that is wrong after some time; the rest of the check calls it less often."""
    calls = itertools.count()

    def wrong(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["action_value"] += next(calls) > 150
        return outputs

    return wrong


def takes_last(run: Run) -> Run:
    """Return a program that takes the last of equal values."""

    def wrong(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        values = outputs["action_value"]
        return outputs | {"action": values.shape[1] - 1 - values[:, ::-1].argmax(1)}

    return wrong


def as_if_contiguous(run: Run) -> Run:
    """Return a program that reads memory from where the array starts, whatever its strides."""

    def read(array: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.as_strided(array, strides=np.empty(array.shape, array.dtype).strides)

    return lambda inputs: run({name: read(array) for name, array in inputs.items()})


def reset_for_all(run: Run) -> Run:
    return lambda inputs: run(inputs | {"is_init": np.broadcast_to(inputs["is_init"][:1], inputs["is_init"].shape)})


def skips_black(run: Run) -> Run:
    """Return a program whose values are zero where the screen is black."""

    def wrong(inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["action_value"][~inputs["observation"].any((1, 2, 3))] = 0
        return outputs

    return wrong


@pytest.mark.parametrize(
    ("fault", "context"),
    [
        (only_alone, "in batches of 2: "),
        (only_in_small_batches, "in batches of 64: "),
        (as_if_contiguous, "not contiguous: "),
        (reset_for_all, r"in batches of (2|7): "),
        (skips_black, "all zero: "),
        (only_in_usual_batches, f"in a batch of {LARGE}: "),
        (only_at_first, "at the [0-9]+th call again: "),
        (takes_last, "constructed from recorded inputs: not the first of equal values is taken in action"),
    ],
)
def test_fault_of_some_batches_or_inputs_is_found(bundle, fault, context):
    assert re.search(context, str(rows(bundle, fault(bundle.programs["pt2"])).failures[0]))


def choose(take: Callable[[Arrays], Arrays]) -> Run:
    """Return a program whose values are what it sees, and whose choice is made of them."""
    return lambda arrays: {"action": take(arrays["x"]), "action_value": arrays["x"]}


def first_of(values):
    return values.argmax(-1)


def last_of(values):
    return values.shape[-1] - 1 - values[:, ::-1].argmax(-1)


def any_of(values):
    """Take the last of equal values in some rows, as where what is computed of them is rounded otherwise."""
    return np.where(np.signbit(np.sin(1e6 * values[:, 0])), last_of(values), first_of(values))


@pytest.mark.parametrize(
    ("policy", "program", "fails"),
    [
        (first_of, first_of, False),
        (first_of, last_of, True),
        (last_of, first_of, True),
        (any_of, any_of, False),
        (any_of, last_of, False),
    ],
)
def test_policy_s_own_rule_for_equal_values_is_asked_for(policy, program, fails):
    inputs = {"x": np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)}
    manifest = {"actions": [{"index": index} for index in range(3)]}
    found = list(find_ties(choose(program), inputs, manifest, seed=0))
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set(), kinds=action_kinds(manifest))
    rule = "last" if policy is last_of else "first"
    check_ties(found, rule, choose(policy), [Place(0, row) for row in range(64)], result)
    assert sum(len(each.taken) for each in found) > 5
    assert bool(result.failures) == fails
    assert result.equal_values == (0 if policy is any_of else sum(len(each.taken) for each in found))


def test_tie_is_between_eagers_best_and_the_action_taken():
    """Check that a third action is a fault, however close the two best are."""
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    values = np.array([[0.5, 0.5, -9.0]], np.float32)
    eager = {"action": np.array([0]), "action_value": values}
    result.compare(batch(eager, {"action": np.array([2]), "action_value": values + np.float32(1e-6)}))
    assert (result.different_actions, result.ties) == (1, [])


def compare(eager: list[float], found: list[float]) -> Comparison:
    """Compare two programs that each take their best action, on one screen."""
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    rows = [np.array([values], np.float32) for values in (eager, found)]
    result.compare(batch(*({"action": values.argmax(-1), "action_value": values} for values in rows)))
    return result


@pytest.mark.parametrize(
    ("eager", "found"),
    [
        ([0.5, 0.500002], [0.500003, 0.500001]),
        ([0.5, 0.500003], [0.500002, 0.500001]),  # both are off by two thirds of what lies between them
    ],
)
def test_tie_is_no_fault_and_is_listed(eager, found):
    result = compare(eager, found)
    assert (result.failures, result.different_actions) == ([], 0)
    (tie,) = result.ties
    assert (tie["seed"], tie["step"]) == (7, 11)
    assert 0 < tie["margin"] <= 2 * tie["difference"] <= 2 * TOLERANCE


@pytest.mark.parametrize(
    ("eager", "found"),
    [
        ([0.5, 0.50002], [0.50003, 0.50001]),  # closer than the difference, which is larger than the tolerance
        ([0.5, 0.6], [0.6, 0.5]),
        ([0.5, 0.6], [0.6, 0.6]),
    ],
)
def test_another_action_without_a_tie_is_a_fault(eager, found):
    result = compare(eager, found)
    assert (result.different_actions, result.ties) == (1, [])
    assert result.failures


def test_another_action_for_the_same_values_is_a_fault():
    values, result = (
        np.array([[0.5, 0.500002]], np.float32),
        Comparison(compares_actions=True, tolerance=TOLERANCE, states=set()),
    )
    rows = [{"action": np.array([action]), "action_value": values} for action in (1, 0)]
    result.compare(batch(*rows))
    assert (result.different_actions, result.ties) == (1, [])


def test_exact_tie_is_no_fault():
    """Check this where one program takes the first of the best actions and the other the last."""
    values, result = np.array([[0.5, 0.1, 0.5]], np.float32), Comparison(True, TOLERANCE, set())  # noqa: FBT003
    rows = [{"action": np.array([action]), "action_value": values} for action in (0, 2)]
    result.compare(batch(*rows))
    assert (result.different_actions, result.ties) == (0, [{"seed": 7, "step": 11, "margin": 0.0, "difference": 0.0}])
    assert [part.tolist() for part in result.margins] == [[0.0]]


def distributional(action: int, means: list[float]) -> Arrays:
    """Return a decision with distributions of the actions' values, ``(batch, atoms, actions)``, and their means."""
    atoms = np.full((1, 51, len(means)), np.float32(-3.9))
    return {
        "action": np.array([action]),
        "action_value": atoms,
        "expected_action_value": np.array([means], np.float32),
    }


@pytest.mark.parametrize(("second", "tied_or_not"), [(0.499999, True), (0.4, False)])
def test_means_of_distributions_are_what_an_action_was_chosen_by(second, tied_or_not):
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    result.compare(batch(distributional(0, [0.5, second]), distributional(1, [0.5, second + 2e-6])))
    assert (len(result.ties), result.different_actions) == ((1, 0) if tied_or_not else (0, 1))
    assert result.margins[0] == pytest.approx(0.5 - second, rel=0.1)
    assert all("expected_action_value [0.5, " in str(failure) for failure in result.failures)
    assert all(len(str(failure)) < 300 for failure in result.failures)


@pytest.mark.parametrize("names", [["action"], ["action", "action_value"]])
def test_without_a_value_for_each_action_any_other_is_a_fault(names):
    """Check this where there are no values, or only distributions: then no margin is known."""
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    result.compare(batch(*({name: distributional(action, [0, 0])[name] for name in names} for action in (0, 1))))
    assert (result.ties, result.different_actions, result.margins) == ([], 1, [])
    assert "step 11: another action: action 1, eager action 0" in str(result.failures[0])


def test_only_action_has_no_margin():
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    values = np.array([[0.5]], np.float32)
    for action in (0, 1):
        result.compare(batch(*({"action": np.array([taken]), "action_value": values} for taken in (0, action))))
    assert (result.observations, result.ties, result.different_actions, result.margins) == (2, [], 1, [])


def test_several_indices_are_one_action():
    """Check this with MultiDiscrete actions: whatever the values are, no index has a value of its own."""
    result = Comparison(compares_actions=True, tolerance=TOLERANCE, states=set())
    values = np.array([[0.5, 0.5]], np.float32)
    result.compare(batch(*({"action": np.array([[0, last]]), "logits": values} for last in (1, 0))))
    assert (result.ties, result.different_actions, result.margins) == ([], 1, [])


@pytest.mark.parametrize("explores", [False, True])
def test_vectors_without_values(explores):
    """Check that only the action of a deterministic actor is compared, and nothing of one that explores."""
    result = Comparison(compares_actions=not explores, tolerance=TOLERANCE, states=set())
    result.compare(batch(*({"action": np.array([[action]], np.float32)} for action in (0.5, 0.6))))
    assert (result.failed, result.observations) == (0 if explores else 1, 1)
    assert set(result.max_abs_difference) == (set() if explores else {"action"})


def test_failure_keeps_all_rows_that_were_computed_together():
    rows = np.arange(150)
    eager = {"action": np.zeros(150, np.int64)}
    found = {"action": np.where(rows == 70, 1, 0)}
    result = Comparison(compares_actions=True, tolerance=1e-5, states=set())
    result.compare(Batch([Place(0, int(row)) for row in rows], eager, found, {"x": rows}, size=64))
    (failure,) = result.failures
    assert failure.inputs is not None
    assert failure.inputs["x"].tolist() == list(range(64, 128))
    assert failure.row == 70 - 64


def test_tie_that_swaps_the_likeliest_action_is_none_of_the_draws_faults():
    """Check that only equal values explain other probabilities, and only of the same sizes."""
    kinds = {"action": {"kind": "index", "sizes": [2]}}
    eager = {"action": np.array([0]), "action_value": np.array([[1.0, 1.0 - 1e-7]], np.float32)}
    own = {"action": np.array([1]), "action_value": np.array([[1.0, 1.0 + 1e-7]], np.float32)}
    apart = {"action": np.array([1]), "action_value": np.array([[1.0, 0.5]], np.float32)}
    for values, chances, failed in (
        (own, [0.1, 0.9], 0),
        (own, [0.2, 0.8], 1),
        (apart, [0.1, 0.9], 1),
    ):
        result = Comparison(compares_actions=False, tolerance=1e-5, states=set(), kinds=kinds)
        expected = eager | {"action_probs": np.array([[0.9, 0.1]], np.float32)}
        if values is apart:
            expected["action_value"] = np.array([[1.0, 0.5]], np.float32)
        found = values | {"action_probs": np.array([chances], np.float32)}
        result.compare(Batch([Place(0, 0)], expected, found, {}))
        assert (result.failed, len(result.ties)) == (failed, 1 - failed)


def test_samples_that_are_no_numbers_are_a_fault():
    random = np.random.default_rng(0)
    names = ("eager_random", "pt2_random", "onnx_random")

    def draw(calls):
        drawn = {name: {"action": random.standard_normal((2, calls, ROWS, 1)).astype(np.float32)} for name in names}
        return {name: Samples(actions, {}) for name, actions in drawn.items()}

    sampled, first = draw(8), [draw(2) for _ in range(2)]
    assert not any(result.failures for result in check_samples(sampled, first, SHORT_CHECK).values())
    sampled["onnx_random"].actions["action"][0, 0, 0] = np.nan
    results = check_samples(sampled, first, SHORT_CHECK)
    assert {name for name, result in results.items() if result.failures} == {"onnx_random"}


@pytest.fixture
def project(bundle, tmp_path, monkeypatch) -> Path:
    """Give a copy of the bundle in which the stage runs, short as its episodes are."""
    shutil.copytree(bundle.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def report() -> dict[str, Any]:
    return json.loads(Path("results/dqn/parity.json").read_text())


@pytest.mark.usefixtures("project")
def test_stage_passes_and_reports():
    stage.parity_check("dqn")
    assert report()["passed"]
    assert report()["failures"] == []
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    checked = report()["checked"]
    assert {name: entry["sha256"] for name, entry in checked["programs"].items()} == {
        name: sha256(path) for name, path in runtimes.read_model("dqn")[1].items()
    }
    assert checked["weights_sha256"] == manifest["files"]["policy.safetensors"]["sha256"]
    assert checked["manifest_sha256"] == sha256(FOLDER / "manifest.json")
    assert checked["revision"] == manifest["revision"]
    assert checked["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    assert Path(manifest["parity_report"]) == Path("results/dqn/parity.json")
    verdict = json.loads((FOLDER / manifest["verdict"]).read_text())
    assert (verdict["passed"], verdict["digest"]) == (True, manifest["digest"])
    assert verdict["report_sha256"] == sha256(Path(verdict["report"]))
    for name, entry in verdict["programs"].items():
        assert entry["sha256"] == manifest["files"][entry["file"]]["sha256"]
        assert entry["decisions"] == report()["programs"][name]["observations"]
    assert {name: entry["passed"] for name, entry in report()["programs"].items()} == dict.fromkeys(
        ("pt2", "onnx", "pt2_random", "onnx_random"), True
    )


@pytest.mark.usefixtures("project")
def test_stage_reports_and_fails(bundle):
    changed_onnx(bundle, nudge(-1), FOLDER / "policy.onnx")
    accept_files("dqn")
    row = r"action \d, action_value \[.*\]"
    what = rf"action_value differs by \S+ \(parity_check.tolerance allows 1e-05\): {row}, eager {row} "
    with pytest.raises(
        UserError,
        match=r"onnx: episode with seed \d+, step \d+: " + what + r"\(\d+ failures; report: results/dqn/parity.json\)$",
    ):
        stage.parity_check("dqn")
    assert not report()["passed"]
    verdict = json.loads((FOLDER / "verdict.json").read_text())
    assert [name for name, entry in verdict["programs"].items() if not entry["passed"]] == ["onnx"]
    assert not verdict["passed"]
    assert 0 < len(report()["failures"]) <= stage.MAX_FAILURES
    assert [name for name, entry in report()["programs"].items() if not entry["passed"]] == ["onnx"]
    (divergence,) = report()["divergences"].values()
    assert len(divergence["state"]) == 2 * 128
    assert np.shape(divergence["program"]["action_value"]) == np.shape(divergence["eager"]["action_value"])
    assert divergence["location"]["operator"] == "weight"
    assert divergence["location"]["tensor"] in divergence["first_difference"]
    with Image.open(divergence["screens"]) as picture:
        assert picture.size == (2 * 160 * 2 + 8, 210 * 2 + 14)


# What a manifest says, with the right digest, and is not so.
FALSE = {
    "environment.frame_skip": 5,
    "environment.repeat_action_probability": 0.65,
    "environment.max_episode_steps": 99,
    "environment.rom": "tennis",
    "actions.2.ale_id": 2,
    "actions.2.name": "FIRE",
    "outputs.1.name": "values",
    "states.0.output": "action_value",
    "parameters.policy.epsilon": 0.015,
    "onnx_session.threads": 2,
    "control_rate_hz": 15.0,
    "files.policy\u2024onnx.content": "another",
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("key", FALSE)
def test_manifest_that_says_what_is_not_so_is_named_by_the_key(key):
    *path, last = [int(part) if part.isdigit() else part.replace("\u2024", ".") for part in key.split(".")]

    def change(manifest: dict[str, Any]) -> None:
        for part in path:
            manifest = manifest[part]
        manifest[last] = FALSE[key]

    assert check_facts("dqn") == []
    change_manifest(FOLDER, change)
    (line,) = check_facts("dqn")
    assert line.startswith(f"{FOLDER}/manifest.json: {key.replace(chr(0x2024), '.')} is {FALSE[key]!r}, ")


def tell(**changes: Any) -> Callable[[onnx.ModelProto], None]:
    """Change what a model's metadata says."""

    def change(model: onnx.ModelProto) -> None:
        told = {prop.key: prop.value for prop in model.metadata_props}
        facts = json.loads(told["facts"]) | {key: value for key, value in changes.items() if key != "policy"}
        props = {"policy": changes.get("policy", told["policy"]), "facts": json.dumps(facts)}
        onnx.helper.set_model_props(model, {} if changes.get("facts") == "" else props)

    return change


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"policy": "ppo"}, "policy is 'ppo', "),
        ({"environment": {"id": "ALE/Tennis-v5"}}, "environment.id is 'ALE/Tennis-v5', "),
        ({"license": "MIT"}, "license is 'MIT', "),
        ({"weights_sha256": "0"}, "weights_sha256 is '0', "),
        ({"exploration_type": "MEAN"}, "exploration_type is 'MEAN', "),
        ({"facts": ""}, "does not say of which policy it is"),
    ],
)
def test_program_that_says_what_is_not_so_is_named_by_the_key(bundle, changes, what):
    changed_onnx(bundle, tell(**changes), FOLDER / "policy.onnx")
    accept_files("dqn")
    (line,) = check_facts("dqn")
    assert line.startswith(f"{FOLDER}/policy.onnx: {what}")


@pytest.mark.usefixtures("project")
def test_stage_tells_what_is_not_so_and_nothing_that_follows_from_it():
    change_manifest(FOLDER, lambda manifest: manifest["environment"].update(frame_skip=5))
    with pytest.raises(UserError, match=r"^models/dqn/manifest\.json: environment\.frame_skip is 5, .* say 4$"):
        stage.parity_check("dqn")


def last_of_the_best(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "ArgMax")
    (last,) = (attribute for attribute in node.attribute if attribute.name == "select_last_index")
    last.i = 1


@pytest.mark.usefixtures("project")
def test_stage_passes_where_all_decisions_are_ties(bundle):
    """Check this with a policy whose actions are all equally good; one program takes one that moves the paddle."""
    agent = make_agent("dqn", load_profile("dqn"))
    load_weights(FOLDER / "policy.safetensors", "dqn", agent.actor)
    with torch.no_grad():
        for parameter in list(agent.actor.parameters())[-2:]:  # of the last layer
            parameter.zero_()
    save_weights(FOLDER / "policy.safetensors", "dqn", agent.actor)
    export_pt2("dqn")
    export_onnx("dqn")
    changed_onnx(dataclasses.replace(bundle, folder=Path.cwd()), last_of_the_best, FOLDER / "policy.onnx")
    accept_files("dqn")
    stage.parity_check("dqn")
    found = {name: report()["programs"][name]["closed_loop"] for name in ("pt2", "onnx")}
    assert (found["pt2"]["identical"], found["pt2"]["ties"]) == (2, [])
    assert (found["onnx"]["identical"], found["onnx"]["steps"]) == (0, found["pt2"]["steps"])
    assert found["onnx"]["mean_score"] == found["pt2"]["mean_score"]
    assert len(found["onnx"]["ties"]) == found["onnx"]["steps"]


def no_numbers(model: onnx.ModelProto) -> None:
    """Make every value NaN."""
    tensor = [tensor for tensor in model.graph.initializer if tensor.name.endswith("weight")][-1]
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(np.nan), tensor.name))


@pytest.mark.usefixtures("project")
def test_stage_reports_values_that_are_no_numbers(bundle):
    changed_onnx(bundle, no_numbers, FOLDER / "policy.onnx")
    accept_files("dqn")
    with pytest.raises(UserError, match=r"onnx: episode with seed .* report: results/dqn/parity.json"):
        stage.parity_check("dqn")
    assert not report()["passed"]
    assert report()["programs"]["onnx"]["max_abs_difference"]["action_value"] is None


@pytest.mark.usefixtures("project")
def test_stage_names_the_program_with_other_outputs(bundle):
    change, message = OTHER_OUTPUTS[0]
    changed_onnx(bundle, change, FOLDER / "policy.onnx")
    accept_files("dqn")
    with pytest.raises(UserError, match=message):
        stage.parity_check("dqn")


@pytest.mark.usefixtures("project")
def test_stage_needs_enough_observations(bundle):
    least = 1 + sum(len(episode.actions) for episode in bundle.recorded)
    change_params(Path("params.yaml"), {"parity_check.min_observations": least})
    with pytest.raises(UserError, match=rf"data/dqn/episodes.safetensors: holds {least - 1} obs.*asks for {least}"):
        stage.parity_check("dqn")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "file", ["policy.onnx", "policy.pt2", "policy_random.pt2", "policy_random.onnx", "policy.safetensors"]
)
def test_stage_refuses_files_that_the_manifest_does_not_know(file):
    path = FOLDER / file
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=f"{path}: damaged or from another policy: its SHA-256 is"):
        stage.parity_check("dqn")
