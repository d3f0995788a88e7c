"""The policy of TorchRL's tutorial "Exporting TorchRL modules", built and called as it says, for comparison.

It is the Nature network on one frame of 84 by 84 pixels, untrained: its speed matters here, not its play. What the
tutorial exports has no batch, so that several screens need several calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from policy_export.device.arrays import Arrays
from studies.settings import BASELINES

if TYPE_CHECKING:
    import torch
    from tensordict.nn import TensorDictModuleBase

EAGER = "tutorial_eager"
FILES = {"tutorial_aoti": "tutorial.aoti.pt2", "tutorial_onnx": "tutorial.onnx"}


def make_policy() -> tuple[TensorDictModuleBase, torch.Tensor]:
    """Return the policy, and an example of the one screen that it takes, ``(210, 160, 3)`` uint8."""
    import ale_py
    import torch
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.envs import Compose, GrayScale, GymEnv, Resize, ToTensorImage, TransformedEnv
    from torchrl.modules import ConvNet, EGreedyModule, QValueModule

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    torch.manual_seed(0)
    transforms = Compose(ToTensorImage(), Resize(84, interpolation="nearest"), GrayScale())
    env = TransformedEnv(GymEnv("ALE/Pong-v5", categorical_action_encoding=True), transforms)
    network = ConvNet.default_atari_dqn(num_actions=env.action_spec.space.n)
    value = TensorDictModule(network, in_keys=["pixels"], out_keys=["action_value"])
    exploration = EGreedyModule(env.action_spec, annealing_num_steps=100_000, eps_init=0.5)
    policy = TensorDictSequential(value, QValueModule(spec=env.action_spec), exploration)
    env.rollout(2, policy)  # the network's layers are lazy
    whole = TensorDictSequential(env.transform, policy.requires_grad_(requires_grad=False))
    return whole.eval(), env.base_env.fake_tensordict()["pixels"]


def one_at_a_time(act: Callable[[np.ndarray], object]) -> Callable[[Arrays], Arrays]:
    """Turn a function of one screen into a program of ``observation`` ``(batch, 210, 160, 3)``."""

    def run(inputs: Arrays) -> Arrays:
        return {"action": np.array([act(screen) for screen in inputs["observation"]], np.int64)}

    return run


def load_baseline(path: str, threads: int) -> Callable[[Arrays], Arrays]:
    """Open one of the tutorial's programs by its file, or its eager policy where ``path`` is empty."""
    programs = {str(BASELINES / file): program for program, file in FILES.items()}
    return load(programs.get(path, EAGER), threads)


def load(program: str, threads: int) -> Callable[[Arrays], Arrays]:
    """Load one of ``tutorial_eager``, ``tutorial_aoti`` and ``tutorial_onnx``, called as the tutorial does."""
    if program == "tutorial_onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        session = onnxruntime.InferenceSession(BASELINES / FILES[program], options, providers=["CPUExecutionProvider"])
        (name,) = (spec.name for spec in session.get_inputs())
        return one_at_a_time(lambda screen: session.run(None, {name: screen})[0].item())

    import torch

    from policy_export.program.torch_private import part

    torch.set_num_threads(threads)
    if program == "tutorial_aoti":
        package = part(torch, "_inductor").aoti_load_package(str(BASELINES / FILES[program]))

        def act(screen: np.ndarray) -> object:
            with torch.no_grad():
                return package(pixels=torch.from_numpy(screen)).item()

        return one_at_a_time(act)

    from tensordict import TensorDict
    from torchrl.envs.utils import ExplorationType, set_exploration_type

    policy, _ = make_policy()

    def decide(screen: np.ndarray) -> object:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            return policy(TensorDict({"pixels": torch.from_numpy(screen)}))["action"].item()

    return one_at_a_time(decide)
