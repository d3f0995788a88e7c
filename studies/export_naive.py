"""Export a policy to ONNX in the straightforward way, to measure what lowering it has gained.

The weights and decisions are the same, but preprocessing has the order of tutorials, on floats of the whole screen, and
the graph is not rewritten.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.envs.utils import ExplorationType

from policy_export.config import params
from policy_export.config.profile import Preprocess, load_profile
from policy_export.environments.preprocess import Screen
from policy_export.lowering.onnx import translate
from policy_export.program.export import export
from policy_export.program.step import Step, load_agent
from policy_export.stage.command import run
from policy_export.stage.files import replacing
from studies.settings import BASELINES

# Colours weighed where they are, or moved first as TorchRL's ToTensorImage does.
NAIVE = {"onnx_naive": "policy.onnx", "onnx_naive_channels_first": "policy_channels_first.onnx"}


def naive_path(policy: str, name: str) -> Path:
    """Return where a naive export of a policy lies."""
    return BASELINES / policy / NAIVE[name]


class NaiveScreen(nn.Module):
    """Does what :class:`~policy_export.environments.preprocess.Screen` does: to floats, grey, crop, resize, normalise.

    Args:
        params: the preprocessing.
        channels_first: move the colours to where PyTorch's images have them before anything else.
    """

    weights: torch.Tensor

    def __init__(self, params: Preprocess, *, channels_first: bool) -> None:
        super().__init__()
        self.params, self.channels_first = params, channels_first
        self.register_buffer("weights", torch.tensor(params.grey), persistent=False)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Turn ``(batch, H, W, 3)`` uint8 into ``(batch, 1, h, w)`` float32."""
        crop, (height, width) = self.params.crop, self.params.size
        if self.channels_first:
            colours = observation.permute(0, 3, 1, 2).float()
            grey = (colours * self.weights[:, None, None]).sum(1, keepdim=True)
        else:
            grey = (observation.float() * self.weights).sum(-1).unsqueeze(1)
        window = grey[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        if self.params.resize == "area" and crop.height % height == 0 and crop.width % width == 0:
            small = nn.functional.avg_pool2d(window, (crop.height // height, crop.width // width))
        else:
            align = {"align_corners": False} if self.params.resize == "bilinear" else {}
            small = nn.functional.interpolate(window, (height, width), mode=self.params.resize, **align)
        return (small - self.params.mean) / self.params.std


def make_naive(policy: TensorDictModuleBase, screen: NaiveScreen) -> TensorDictModuleBase:
    """Return the policy with ``screen`` in place of its own :class:`Screen`."""
    return TensorDictSequential(
        *(
            TensorDictModule(screen, module.in_keys, module.out_keys) if isinstance(module, Screen) else module
            for module in policy
        )
    )


def export_naive(policy: str) -> None:
    profile, opset = load_profile(policy), params.load().export_onnx.opset
    agent = load_agent(policy, profile)
    for name in NAIVE:
        whole = agent.policy
        if profile.preprocess is not None:
            whole = make_naive(whole, NaiveScreen(profile.preprocess, channels_first=name.endswith("channels_first")))
        step = Step(whole, agent.input_spec, ExplorationType.DETERMINISTIC, agent.actions)
        model = translate(export(step), step.signature.as_dict(), opset).model_proto
        path = naive_path(policy, name)
        with replacing(path) as temporary:
            onnx.save(model, temporary)
        print(f"export_naive {policy}  {path.name}  {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    run(export_naive, __doc__)
