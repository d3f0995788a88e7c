"""What a person sees: the pipeline's own lines, and what libraries say only where it matters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipeline_helpers import ROOT, python

PROGRAM = """
import logging
from policy_export.stage.command import run
from policy_export.stage.processes import processes

def remark():
    logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/cuda")
    logging.getLogger("torch._inductor.ir").warning("%s is missing a c-shim implementation, using proxy", "aten.sort")
    logging.warning("Please consider to run pre-processing before quantization. Refer to example: ...")
    logging.warning("Please consider pre-processing before quantization. See ...")
    logging.warning("the disk is full")

def stage():
    remark()
    with processes(1) as executor:
        executor.submit(remark).result()

if __name__ == "__main__":
    run(stage, "A stage.", policy=False)
"""


@pytest.mark.slow
def test_a_compiler_that_chooses_between_kernels_prints_nothing(tmp_path):
    program = """
import sys
import torch
from pathlib import Path
from policy_export.config.params import load
from policy_export.lowering.aoti import compile_to
from policy_export.stage.quiet import drop_remarks

class Layer(torch.nn.Linear):
    def forward(self, observation):
        return {"action_value": super().forward(observation)}

settings = load(Path(sys.argv[1])).compile_aoti
settings = settings.model_copy(update={"gemm_backends": ["ATEN", "CPP"], "max_autotune": True})
batch = {"observation": {0: torch.export.Dim("batch", min=1)}}
layer, seen = Layer(16, 64).requires_grad_(False), {"observation": torch.zeros(2, 16)}
exported = torch.export.export(layer, (), seen, dynamic_shapes=batch)
drop_remarks()
compile_to(Path("policy.aoti.pt2"), exported, {"policy": "layer"}, settings)
"""
    done = python("-c", program, str(ROOT / "params.yaml"), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_tutorials_environment_has_no_banner(tmp_path):
    done = python("-c", "from studies.tutorial import make_policy; make_policy()", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


def test_remarks_are_dropped_and_warnings_are_not(tmp_path):
    (tmp_path / "remarks.py").write_text(PROGRAM)
    assert python("-m", "remarks", cwd=tmp_path).stderr.splitlines() == 2 * ["WARNING:root:the disk is full"]


@pytest.mark.parametrize(
    ("file", "remark"),
    [
        ("utils/cpp_extension.py", "No CUDA runtime is found"),
        ("_inductor/ir.py", "is missing a c-shim implementation"),
    ],
)
def test_remarks_are_still_made(file, remark):
    """Check that PyTorch still makes these remarks; otherwise they need not be dropped any more."""
    assert remark in (Path(torch.__file__).parent / file).read_text()
