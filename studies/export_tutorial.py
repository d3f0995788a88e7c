"""Export the policy of TorchRL's tutorial as the tutorial does, to ONNX and with AOTInductor, for comparison."""

from __future__ import annotations

import warnings

import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.program.torch_private import compile_package
from policy_export.stage.command import run
from policy_export.stage.files import replacing
from studies import tutorial
from studies.settings import BASELINES


def export_tutorial() -> None:
    policy, pixels = tutorial.make_policy()
    aoti, onnx = (BASELINES / file for file in tutorial.FILES.values())
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dtypes and versions, which are the tutorial's
        program = torch.export.export(
            policy.select_out_keys("action"), args=(), kwargs={"pixels": pixels}, strict=False
        )
        with replacing(aoti) as temporary:
            options = {"cpp.threads": 1}  # all are measured on one core
            compile_package(program, temporary, options)
        converted = torch.onnx.export(policy, kwargs={"pixels": pixels}, dynamo=True, verbose=False)
        assert converted is not None  # only without dynamo=True
        with replacing(onnx) as temporary:
            converted.save(temporary)
    for path in (aoti, onnx):
        print(f"export_tutorial  {path.name}  {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    run(export_tutorial, __doc__, policy=False)
