"""The faults: what goes wrong between a trained policy and a device, each made with the pipeline's own tools.

Every fault is a function that writes a faulty deterministic program into a folder and returns its path. It may raise
:class:`UserError` where the pipeline itself refuses: that counts as caught.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
from torch import nn
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule

from policy_export.config import params
from policy_export.lowering.aoti import compile_to
from policy_export.lowering.onnx import convert
from policy_export.program.archive import load_program
from policy_export.program.epsilon_greedy import EpsilonGreedy
from policy_export.program.policy import Agent
from policy_export.program.step import Step
from studies.faults.subject import Subject, find_policies, insert, save

Fault = Callable[[Subject, Path], Path]


def change(function: Callable[..., Any], *keys: NestedKey, out: NestedKey | None = None) -> TensorDictModule:
    """Return a module that replaces an entry by a function of it, and of others."""
    return TensorDictModule(function, in_keys=list(keys), out_keys=[keys[0] if out is None else out])


def before(function: Callable[..., Any], *keys: NestedKey) -> Fault:
    """Make a fault: the export of a policy that is shown something else."""
    return lambda subject, folder: save(
        folder / "policy.pt2", subject, insert(subject.agent(), [change(function, *keys)], [])
    )


def after(function: Callable[..., Any], *keys: NestedKey) -> Fault:
    """Make a fault: the export of a policy whose outputs are changed."""
    return lambda subject, folder: save(
        folder / "policy.pt2", subject, insert(subject.agent(), [], [change(function, *keys)])
    )


def preprocess(**changed: Any) -> Fault:
    """Make a fault: the export with other preprocessing than the training's."""
    return lambda subject, folder: save(folder / "policy.pt2", subject, insert(subject.agent(**changed), [], []))


def crop(**moved: int) -> Fault:
    def fault(subject: Subject, folder: Path) -> Path:
        assert subject.profile.preprocess is not None
        window = subject.profile.preprocess.crop
        shifted = {side: getattr(window, side) + pixels for side, pixels in moved.items()}
        return preprocess(crop=window.model_copy(update=shifted))(subject, folder)

    return fault


def weights(edit: Callable[[nn.Module], None]) -> Fault:
    """Make a fault: the export of other weights."""

    def fault(subject: Subject, folder: Path) -> Path:
        agent = subject.agent()
        with torch.no_grad():
            edit(agent.actor)
        return save(folder / "policy.pt2", subject, insert(agent, [], []))

    return fault


def noise(relative: float) -> Callable[[nn.Module], None]:
    def edit(actor: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in actor.parameters():
            parameter.mul_(1 + relative * torch.randn(parameter.shape, generator=generator))

    return edit


def matrices(actor: nn.Module) -> list[nn.Parameter]:
    """Return the weights of layers, first to last."""
    return [parameter for parameter in actor.parameters() if parameter.ndim > 1]


def permute_head(actor: nn.Module) -> None:
    head = matrices(actor)[-1]
    head.copy_(head.roll(1, 0))


def not_a_number(actor: nn.Module) -> None:
    matrices(actor)[0].view(-1)[0] = float("nan")


def dead_unit(actor: nn.Module) -> None:
    matrices(actor)[-1][:, 0] = 0


def round_to(dtype: torch.dtype) -> Callable[[nn.Module], None]:
    def edit(actor: nn.Module) -> None:
        for parameter in actor.parameters():
            parameter.copy_(parameter.to(dtype).float())

    return edit


def stale(actor: nn.Module) -> None:
    """Move every weight a little in one direction, as before the last step of a training with a small learning rate."""
    for parameter in actor.parameters():
        parameter.sub_(1e-5 * torch.sign(parameter))


def swap_gates(actor: nn.Module) -> None:
    """Swap input and forget gates of an LSTM, into the order that another library keeps them in."""
    for name, parameter in actor.named_parameters():
        if "_ih" in name or "_hh" in name:
            quarters = list(parameter.chunk(4))
            parameter.copy_(torch.cat([quarters[1], quarters[0], *quarters[2:]]))


def other_seed(actor: nn.Module) -> None:
    torch.manual_seed(1)
    for module in actor.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()


def other_rows(flags: torch.Tensor) -> torch.Tensor:
    """Return the flags of a batch in the opposite order."""
    return flags.flip(0)


def as_ale_ids(action: torch.Tensor) -> torch.Tensor:
    """Return the emulator's own numbers in place of indices, for up to six actions."""
    return torch.tensor([0, 1, 3, 4, 5, 2])[action]


def random_baked_in(subject: Subject, folder: Path) -> Path:
    agent = subject.agent()
    return save(folder / "policy.pt2", subject, Step(agent.policy, agent.input_spec, ExplorationType.RANDOM))


def frozen_batch(subject: Subject, folder: Path) -> Path:
    step = insert(subject.agent(), [], [])
    examples = step.example_inputs(batch=2)
    with torch.no_grad():
        return save(folder / "policy.pt2", subject, step, torch.export.export(step, (), examples))


def half_precision(subject: Subject, folder: Path) -> Path:
    """Export a policy whose last layer computes in bfloat16."""
    agent = subject.agent()
    layers = [module for module in agent.actor.modules() if isinstance(module, nn.Linear)]
    layers[-1].register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16().float(),))
    return save(folder / "policy.pt2", subject, insert(agent, [], []))


EXPLORING = "policy_random.onnx"


def edit_onnx(edit: Callable[[onnx.ModelProto], None], file: str = "policy.onnx") -> Fault:
    """Make a fault: a change of one of the bundle's own ONNX programs."""

    def fault(subject: Subject, folder: Path) -> Path:
        model = onnx.load(Path("models", subject.policy, file))
        edit(model)
        path = folder / file
        onnx.save(model, path)
        return path

    return fault


def initializer(pick: int, edit: Callable[[Any], Any]) -> Callable[[onnx.ModelProto], None]:
    """Return a function that changes the ``pick``-th matrix of weights."""

    def change_model(model: onnx.ModelProto) -> None:
        kept = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1 and tensor.data_type == 1]
        array = onnx.numpy_helper.to_array(kept[pick]).copy()
        kept[pick].CopyFrom(onnx.numpy_helper.from_array(edit(array).astype(np.float32), kept[pick].name))

    return change_model


def nudge(array: Any) -> Any:
    largest = np.unravel_index(np.abs(array).argmax(), array.shape)
    array[largest] *= 1.001
    return array


def worst_action(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "ArgMax":
            node.op_type = "ArgMin"


def fixed_batch(model: onnx.ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def later_rows(model: onnx.ModelProto) -> None:
    """Move the rows of the screen that the program reads: they start and end one row later."""
    height = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    cut, read = (node for node in model.graph.node if "preprocessing_rows_of_pieces" in [*node.input, *node.output])
    pieces = onnx.numpy_helper.to_array(constants[cut.input[1]])[1] // height
    places = constants[read.input[1]]
    places.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(places) + pieces, places.name))


def truncated(subject: Subject, folder: Path) -> Path:
    path = folder / "policy.onnx"
    content = Path("models", subject.policy, "policy.onnx").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def bundled(kind: str, file: str) -> Fault:
    """Make a fault: another program that the pipeline has built, for the policy of a kind."""
    return lambda _, __: Path("models", find_policies()[kind], file)


def compiled(fault: Fault) -> Fault:
    """Make a fault: what AOTInductor makes of a faulty export."""

    def compiled_fault(subject: Subject, folder: Path) -> Path:
        program, facts = load_program(fault(subject, folder), subject.policy)
        path = folder / "policy.aoti.pt2"
        compile_to(path, program, facts, params.load().compile_aoti)
        return path

    return compiled_fault


def converted(fault: Fault) -> Fault:
    """Make a fault: what ONNX makes of a faulty export."""

    def converted_fault(subject: Subject, folder: Path) -> Path:
        model = convert(*load_program(fault(subject, folder), subject.policy), params.load().export_onnx.opset)
        path = folder / "policy.onnx"
        onnx.save(model, path)
        return path

    return converted_fault


FRAMES = ("next", "frames")
HIDDEN, CELL = ("next", "hidden0"), ("next", "hidden1")


def exploring(edit: Callable[[Agent], None]) -> Fault:
    """Make a fault: the export of a policy that explores otherwise."""

    def fault(subject: Subject, folder: Path) -> Path:
        edit(agent := subject.agent())
        return save(folder / "policy_random.pt2", subject, Step(agent.policy, agent.input_spec, ExplorationType.RANDOM))

    return fault


def epsilon(factor: float) -> Fault:
    def edit(agent: Agent) -> None:
        for module in agent.actor.modules():
            if isinstance(module, EGreedyModule):
                module.eps.mul_(factor)

    return exploring(edit)


class LacksTheLast(EpsilonGreedy):
    """Exploration that says every action's probability, and never draws the last one unless it is the best."""

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        last, best = probabilities.shape[1] - 1, probabilities.argmax(-1)
        index = super().draw(probabilities)
        return torch.where(index == last, best, index)


class DrawsTwiceAsOften(EpsilonGreedy):
    """Exploration that explores more often than it says."""

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        return super().draw(2 * probabilities - nn.functional.one_hot(probabilities.argmax(-1), self.sizes[0]))


class DrawsAgain(EpsilonGreedy):
    """Exploration that draws for some rows, and for those that follow the same numbers again."""

    after = 24

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        below = probabilities.cumsum(-1)
        rows = torch.arange(probabilities.shape[0])
        return (below <= torch.rand_like(below[:, :1])[rows % self.after]).sum(-1).clamp(max=self.sizes[0] - 1)


class DrawsAgainMuchLater(DrawsAgain):
    after = 200


def explored_by(kind: type[EpsilonGreedy]) -> Fault:
    def edit(agent: Agent) -> None:
        for parent in list(agent.policy.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, EGreedyModule):
                    parent.add_module(name, kind(child))

    return exploring(edit)


def heated(kind: Callable[..., Any], degree: float, logits: torch.Tensor, **options: Any) -> Any:
    return kind(logits=logits / degree, **options)


def temperature(degree: float) -> Fault:
    """Make a fault: actions are drawn by other probabilities than the logits give, which stay as they are."""

    def edit(agent: Agent) -> None:
        for module in agent.policy.modules():
            if isinstance(module, ProbabilisticTensorDictModule):
                module.distribution_class = partial(heated, module.distribution_class, degree)

    return exploring(edit)


def sharper(model: onnx.ModelProto) -> None:
    """Let the program draw by its probabilities, each raised to a power of 1.2, and say the old ones."""
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Multinomial":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.2, np.float32), "power"))
            model.graph.node.insert(index, onnx.helper.make_node("Mul", [node.input[0], "power"], ["sharpened"]))
            node.input[0] = "sharpened"
            return


class OneSample(EGreedyModule):
    """Exploration that decides once for all rows of a batch whether to explore."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        greedy = tensordict[self.action_key]
        explores = torch.rand(1) < self.eps
        return tensordict.set(self.action_key, torch.where(explores, torch.randint_like(greedy, 6), greedy))


def draw_once(agent: Agent) -> None:
    agent.actor.module[-1].__class__ = OneSample


def seeds_itself(model: onnx.ModelProto) -> None:
    """Make the program seed its random numbers itself."""
    sampling = [node for node in model.graph.node if node.op_type in ("RandomUniformLike", "Multinomial")]
    assert sampling
    for node in sampling:
        node.attribute.append(onnx.helper.make_attribute("seed", 1.0))


def last_of_equal(model: onnx.ModelProto) -> None:
    """Let the program take the last of equal values."""
    for node in model.graph.node:
        if node.op_type == "ArgMax":
            others = [attribute for attribute in node.attribute if attribute.name != "select_last_index"]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute("select_last_index", 1)])


def wrong_in_large_batches(values: torch.Tensor) -> torch.Tensor:
    """Return values that are 1 off from the 65th row on."""
    return values + (torch.arange(values.shape[0]) >= 64).unsqueeze(1)


def number_of_rows(values: torch.Tensor) -> torch.Tensor:
    """Return the size of a batch, as a tensor that follows it."""
    return torch.ones_like(values[:, 0]).sum()


def wrong_alone(values: torch.Tensor) -> torch.Tensor:
    """Return values that are wrong where a row is alone in its batch."""
    return values + 1e-3 * (number_of_rows(values) == 1)


def wrong_in_odd_batches(values: torch.Tensor) -> torch.Tensor:
    """Return values that are wrong in batches of an odd number of rows, more than one."""
    rows = number_of_rows(values)
    return values + 1e-3 * ((rows % 2 == 1) & (rows > 1))


def wrong_where_black(values: torch.Tensor, screen: torch.Tensor) -> torch.Tensor:
    """Return values that are wrong where nothing is on the screen."""
    return values + (screen.flatten(1).amax(1, keepdim=True) == 0)


def like_the_first_row(flags: torch.Tensor) -> torch.Tensor:
    """Return for all rows what the first one's flag is."""
    return flags[:1].expand(flags.shape[0], -1)


def last_row_like_first(values: torch.Tensor) -> torch.Tensor:
    """Return values of which the last row has the first's, where there are more than 7."""
    rows = torch.arange(values.shape[0])
    return values[torch.where((rows == values.shape[0] - 1) & (rows > 7), 0, rows)]


def wrong_for_equal_values(action: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return another action where the two best values are equal."""
    best = values.topk(2).values
    return torch.where(best[:, 0] == best[:, 1], (action + 1) % values.shape[1], action)


def reset_by_product(subject: Subject, folder: Path) -> Path:
    """Export a policy that resets its states by a product with 0, of which what is no number stays what it is."""

    class Resets(Step):
        def decide(self, entries: TensorDict) -> TensorDictBase:
            begins = entries["is_init"]
            for key in self.memory.written:
                kept = ~begins.view(-1, *[1] * (entries[key].ndim - 1))
                entries[key] = entries[key] * kept
            return super().decide(entries.set("is_init", torch.zeros_like(begins)))

    agent = subject.agent()
    return save(folder / "policy.pt2", subject, Resets(agent.policy, agent.input_spec, ExplorationType.DETERMINISTIC))


# Of the programs that explore, by the kind of policy and name.
RANDOM_FAULTS: dict[str, dict[str, Fault]] = {
    "stacked": {
        "explores three times as often": epsilon(3),
        "epsilon of 0.015 for 0.01": epsilon(1.5),
        "epsilon a hundredth larger": epsilon(1.01),
        "never draws the last action": explored_by(LacksTheLast),
        "explores more often than it says": explored_by(DrawsTwiceAsOften),
        "draws again after 24 rows": explored_by(DrawsAgain),
        "draws again after 200 rows": explored_by(DrawsAgainMuchLater),
        "explores never": bundled("stacked", "policy.onnx"),
        "one draw for all rows": exploring(draw_once),
        "same draws after every start": edit_onnx(seeds_itself, EXPLORING),
    },
    "actor": {
        "draws never": bundled("actor", "policy.onnx"),
        "temperature of 1.1": temperature(1.1),
        "temperature of 1.001": temperature(1.001),
        "ONNX: draws by sharper probabilities than it says": edit_onnx(sharper, EXPLORING),
        "ONNX: same draws after every start": edit_onnx(seeds_itself, EXPLORING),
    },
}

# Of the deterministic programs, by the kind of policy and name.
FAULTS: dict[str, dict[str, Fault]] = {
    "stacked": {
        "crop one row lower": crop(top=1),
        "crop one row higher": crop(top=-1),
        "nearest for area": preprocess(resize="nearest"),
        "bilinear for area": preprocess(resize="bilinear"),
        "red and blue swapped": before(lambda screen: screen.flip(-1), "observation"),
        "grey of all colours": preprocess(grey=[0.299, 0.587, 0.114]),
        "missing mean": preprocess(mean=0.0),
        "missing scale": preprocess(std=1.0),
        "bytes divided by 255 again": preprocess(std=10.0 * 255),
        "mirrored screen": before(lambda screen: screen.flip(-2), "observation"),
        "transposed frames": before(
            lambda screen: torch.cat([screen[:, :34], screen[:, 34:194].transpose(1, 2), screen[:, 194:]], 1),
            "observation",
        ),
        "previous frame one step late": after(lambda _, frames: frames.clone(), FRAMES, "frames"),
        "state not carried": after(torch.zeros_like, FRAMES),
        "state not reset": before(torch.zeros_like, "is_init"),
        "state reset in the wrong row": before(other_rows, "is_init"),
        "state reset always": before(torch.ones_like, "is_init"),
        "emulator's ids for indices": after(as_ale_ids, "action"),
        "next action": after(lambda action: (action + 1) % 6, "action"),
        "constant output": after(lambda values: values * 0, "action_value"),
        "values scaled": after(lambda values: values * 1.0001, "action_value"),
        "permuted head": weights(permute_head),
        "noise of 1e-3": weights(noise(1e-3)),
        "noise of 1e-4": weights(noise(1e-4)),
        "stale weights": weights(stale),
        "dead unit": weights(dead_unit),
        "one weight NaN": weights(not_a_number),
        "weights in float16": weights(round_to(torch.float16)),
        "weights in bfloat16": weights(round_to(torch.bfloat16)),
        "weights of another seed": weights(other_seed),
        "last layer in bfloat16": half_precision,
        "RANDOM baked in": random_baked_in,
        "frozen batch": frozen_batch,
        "truncated file": truncated,
        "another policy's file": bundled("recurrent", "policy.onnx"),
        "another policy of the same shapes": bundled("actor", "policy.onnx"),
        "the program that explores": bundled("stacked", "policy_random.onnx"),
        "ONNX: one weight off by 1e-3": edit_onnx(initializer(0, nudge)),
        "ONNX: head's rows reversed": edit_onnx(initializer(-2, lambda array: array[::-1])),
        "ONNX: weights in float16": edit_onnx(initializer(-3, lambda array: array.astype(np.float16))),
        "ONNX: worst action": edit_onnx(worst_action),
        "ONNX: batch of 1": edit_onnx(fixed_batch),
        "ONNX: cut one row later": edit_onnx(later_rows),
        "ONNX: last of equal values": edit_onnx(last_of_equal),
        "last of equal values": after(
            lambda _, values: values.shape[1] - 1 - values.flip(1).argmax(1), "action", "action_value"
        ),
        "another action where values are equal": after(wrong_for_equal_values, "action", "action_value"),
        "wrong in batches above 64": after(wrong_in_large_batches, "action_value"),
        "last row like the first": after(last_row_like_first, "action_value"),
        "wrong alone": after(wrong_alone, "action_value"),
        "wrong in batches of an odd number": after(wrong_in_odd_batches, "action_value"),
        "wrong where the screen is black": after(wrong_where_black, "action_value", "observation"),
        "every row begins as the first does": before(like_the_first_row, "is_init"),
        "AOTInductor: wrong in batches above 64": compiled(after(wrong_in_large_batches, "action_value")),
        "ONNX: converted with noise of 1e-4": converted(weights(noise(1e-4))),
        "AOTInductor: crop one row lower": compiled(crop(top=1)),
        "AOTInductor: noise of 1e-4": compiled(weights(noise(1e-4))),
    },
    "recurrent": {
        "hidden state not carried": after(torch.zeros_like, HIDDEN),
        "cell state not carried": after(torch.zeros_like, CELL),
        "states swapped": after(lambda _, cell: cell.clone(), HIDDEN, CELL),
        "states not reset": before(torch.zeros_like, "is_init"),
        "states reset by a product": reset_by_product,
        "every row begins as the first does": before(like_the_first_row, "is_init"),
        "states reset in the wrong row": before(other_rows, "is_init"),
        "states in bfloat16": after(lambda state: state.bfloat16().float(), CELL),
        "gates in another order": weights(swap_gates),
        "recurrent noise of 1e-4": weights(noise(1e-4)),
        "AOTInductor: states not reset": compiled(before(torch.zeros_like, "is_init")),
    },
}
