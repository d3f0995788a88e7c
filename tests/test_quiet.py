"""What a person sees: the pipeline's own lines, and what libraries say only where it matters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipeline_helpers import python

PROGRAM = """
import logging
from policy_export.stage.command import run
from policy_export.stage.processes import processes

def remark():
    logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/cuda")
    logging.getLogger("torch._inductor.ir").warning("%s is missing a c-shim implementation, using proxy", "aten.sort")
    logging.warning("Please consider to run pre-processing before quantization. Refer to example: ...")
    logging.warning("the disk is full")

def stage():
    remark()
    with processes(1) as executor:
        executor.submit(remark).result()

if __name__ == "__main__":
    run(stage, "A stage.", policy=False)
"""


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
