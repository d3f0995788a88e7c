"""Files of a model folder that were made to do harm: each is refused in a line, without much memory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pipeline_helpers import ROOT, python

from policy_export.device.golden import GOLDEN
from policy_export.device.manifest import digest, sha256

pytestmark = pytest.mark.slow

MOST_MB = 512  # of the player, which takes about 90
HUGE = 1 << 40
# Ends with the most memory that it has used, in KiB.
PLAY = """
import re, sys
from pathlib import Path
from policy_export.device.command import main
status = main([sys.argv[1], "--selftest"])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def outside(model: onnx.ModelProto) -> None:
    """Let a weight lie in a file that is not in the model folder."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../../../../../../etc/passwd", "length": "4"}.items():
        tensor.external_data.add(key=key, value=value)


def huge_weight(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("dims")
    tensor.dims.extend([HUGE])


def huge_constant(model: onnx.ModelProto) -> None:
    """Let the values depend on a tensor that has no bytes in the file."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([HUGE], np.int64), "huge_shape"))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["own_value" if name == "action_value" else name for name in names]
    graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]))
    graph.node.insert(1, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["own_value", "sum"], ["action_value"]))


def change_model(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model = onnx.load(folder / "policy.onnx")
        change(model)
        (folder / "policy.onnx").write_bytes(model.SerializeToString())

    return write


def change_golden(**entry: Any) -> Callable[[Path], None]:
    """Change what the header of the golden decisions says of their ties."""

    def write(folder: Path) -> None:
        content = (folder / GOLDEN).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:end])
        header["tie"] |= entry
        text = json.dumps(header).encode()
        (folder / GOLDEN).write_bytes(struct.pack("<Q", len(text)) + text + content[end:])

    return write


def change_facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return write


HOSTILE = {
    "weights in another file": (change_model(outside), "not a program that ONNX Runtime loads"),
    "a huge weight": (change_model(huge_weight), "not a program that ONNX Runtime loads"),
    "a huge constant": (change_model(huge_constant), "does not run on 1 rows"),
    "a huge header": (
        lambda folder: (folder / GOLDEN).write_bytes(struct.pack("<Q", 1 << 62) + b"{}"),
        "not golden decisions",
    ),
    "a huge tensor": (change_golden(shape=[HUGE], data_offsets=[0, HUGE]), "not golden decisions"),
    "a tensor elsewhere": (change_golden(data_offsets=[HUGE, HUGE + 64]), "not golden decisions"),
    "a shape of many rows and no bytes": (change_golden(shape=[HUGE, 0]), "not golden decisions"),
    "a huge observation": (
        change_facts(lambda manifest: manifest["inputs"][0].update(shape=["batch", HUGE, 160, 3])),
        "its inputs.0.shape.1 is 210",
    ),
    "a huge state": (
        change_facts(lambda manifest: manifest["states"][0].update(shape=[HUGE])),
        "states.0.shape: is unknown",
    ),
    "a huge manifest": (
        lambda folder: (folder / "manifest.json").write_text("[" * (64 << 20)),
        "has 67,108,864 bytes, may have 16,777,216",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_player_refuses(workspace, tmp_path, name):
    """Check this where the manifest lists the file as it is: whoever made it could write that, too."""
    write, message = HOSTILE[name]
    folder = shutil.copytree(workspace / "models/dqn", tmp_path / "dqn")
    write(folder)
    if name != "a huge manifest":
        manifest = json.loads((folder / "manifest.json").read_text())
        for file, listed in manifest["files"].items():
            listed["sha256"] = sha256(folder / file)
        (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": digest(manifest)}))
    done = python("-c", PLAY, str(folder), cwd=ROOT, status=1)
    *remarks, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not any("Traceback" in remark for remark in remarks)  # ONNX Runtime makes some of its own
    assert int(done.stdout) / 1024 < MOST_MB
