"""Play with an exported policy, without PyTorch: an Atari game, or another gymnasium environment.

Needs numpy, onnxruntime and ale-py; also gymnasium for other environments, and Pillow for a GIF. With ``--native``,
the folder's native library takes the place of ``policy.onnx`` and onnxruntime. A model folder holds a copy of this
package as ``player``, so that the folder is all that a device needs.

    python -m policy_export.device models/dqn --episodes 3 --gif pong.gif
    python models/dqn/player --native --selftest

A copy plays the policy of the model folder that it lies in, unless another folder is named.
"""

import hashlib
import importlib
import json
import sys
from pathlib import Path


def check_own_files(here: Path) -> None:
    """End where a file of this copy is not the manifest's, before it is run: what Python says of it would be long."""
    try:
        files = json.loads((here.parent / "manifest.json").read_bytes())["files"]
        expected = {here.parent / name: files[name]["sha256"] for name in files if name.startswith(f"{here.name}/")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # the command says what is wrong with the manifest
    for path, hashed in expected.items():
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            sys.exit(f"error: {path}: {error.strerror}")
        if found != hashed:
            sys.exit(f"error: {path}: damaged: its SHA-256 is {found}, manifest.json says {hashed}")


if __package__:
    package, program = __package__, f"python -m {__package__}"
else:  # the folder was given to python as a program
    here = Path(__file__).resolve().parent
    check_own_files(here)
    package, program, sys.path[0] = here.name, f"python {sys.argv[0]}", str(here.parent)

sys.exit(importlib.import_module(f"{package}.command").main(program=program))
