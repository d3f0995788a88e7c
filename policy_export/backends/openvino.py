"""ONNX programs, run by OpenVINO on the CPU: ``pip install openvino``, and ``openvino`` in a profile's ``programs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.backends import onnx
from policy_export.backends.base import Backend, Settings
from policy_export.device.arrays import Arrays, Run
from policy_export.device.checked import CheckedProgram
from policy_export.device.errors import UserError, first_line

if TYPE_CHECKING:
    from policy_export.localise.case import Case
    from policy_export.localise.compare import Location


def load(path: Path, settings: Settings) -> Run:
    """Compile a program for one row at a time or many, in float32 throughout.

    Raises:
        UserError: OpenVINO is not installed, or does not accept the program.
    """
    try:
        import openvino
    except ImportError:
        raise UserError(f"{path} needs OpenVINO: pip install openvino") from None
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro`")
    options = {
        "INFERENCE_NUM_THREADS": settings.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would compute in fewer bits where the processor can
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
    except RuntimeError as error:
        raise UserError(f"{path}: not a program that OpenVINO loads: {first_line(error)}") from None
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(arrays: Arrays) -> Arrays:
        request.infer(arrays, share_inputs=True)
        return {name: request.get_output_tensor(place).data.copy() for place, name in enumerate(names)}

    return CheckedProgram(f"{path} (OpenVINO)", run, [_describe(spec) for spec in compiled.inputs])


def _describe(spec: Any) -> dict[str, Any]:
    shape = [size.get_length() if size.is_static else "batch" for size in spec.get_partial_shape()]
    return {"name": spec.get_any_name(), "dtype": spec.get_element_type().to_dtype(), "shape": shape}


def inspect(case: Case, path: Path) -> Location:
    """Look for the fault in the program itself, with ONNX Runtime: OpenVINO's intermediate results cannot be read."""
    from policy_export.localise.case import no_location

    if not case.wrong(load(path, Settings(1))(case.inputs)):
        return no_location("nothing differs: every output agrees for these inputs")
    location = onnx.inspect(case, path)
    return (
        location if location.tensor else no_location("the program is right with ONNX Runtime: the fault is in OpenVINO")
    )


# It has no program that explores: its Multinomial draws nearly the same numbers at every call and after every start.
BACKEND = Backend(
    name="openvino",
    file=onnx.BACKEND.file,
    content=onnx.BACKEND.content,
    load=load,
    inspect=inspect,
    run_by=("openvino",),
    owns_file=False,
    default=False,
    batches=True,
)
