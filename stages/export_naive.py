"""Export a policy to ONNX the straightforward way, to be measured beside: what lowering it has bought.

The same weights and decisions, but preprocessing in the order of tutorials, on floats of the whole screen, and no
rewriting of the graph.
"""

from __future__ import annotations

import onnx
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs.utils import ExplorationType

from stages.benchmark.programs import naive_path
from stages.common import params
from stages.common.errors import run
from stages.common.files import replacing
from stages.common.preprocess import Screen
from stages.common.profile import Preprocess, load_profile
from stages.common.program import Step, load_agent
from stages.export_onnx import translate
from stages.export_pt2 import export


class NaiveScreen(nn.Module):
    """What :class:`~stages.common.preprocess.Screen` does: to floats, grey, crop, resize, normalise."""

    weights: torch.Tensor

    def __init__(self, params: Preprocess) -> None:
        super().__init__()
        self.params = params
        self.register_buffer("weights", torch.tensor(params.grey)[:, None, None], persistent=False)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """``(batch, H, W, 3)`` uint8 to ``(batch, 1, h, w)`` float32."""
        crop, (height, width) = self.params.crop, self.params.size
        colours = observation.permute(0, 3, 1, 2).float()
        grey = (self.weights * colours).sum(1, keepdim=True)
        window = grey[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        if self.params.resize == "area" and crop.height % height == 0 and crop.width % width == 0:
            small = nn.functional.avg_pool2d(window, (crop.height // height, crop.width // width))
        else:
            align = {"align_corners": False} if self.params.resize == "bilinear" else {}
            small = nn.functional.interpolate(window, (height, width), mode=self.params.resize, **align)
        return (small - self.params.mean) / self.params.std


def export_naive(policy: str) -> None:
    profile = load_profile(policy)
    agent = load_agent(policy, profile)
    whole = agent.policy
    if profile.preprocess is not None:
        naive = NaiveScreen(profile.preprocess)
        whole = TensorDictSequential(
            *(
                TensorDictModule(naive, module.in_keys, module.out_keys) if isinstance(module, Screen) else module
                for module in agent.policy
            )
        )
    step = Step(whole, agent.input_spec, ExplorationType.DETERMINISTIC)
    model = translate(export(step), step.signature.as_dict(), params.load().export_onnx.opset).model_proto
    with replacing(naive_path(policy)) as temporary:
        onnx.save(model, temporary)
    print(f"export_naive {policy}  {naive_path(policy)}  {len(model.graph.node)} nodes", flush=True)


if __name__ == "__main__":
    run(export_naive, __doc__)
