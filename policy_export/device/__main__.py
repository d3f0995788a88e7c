"""Play with an exported policy, without PyTorch: an Atari game, or another gymnasium environment.

Needs numpy, onnxruntime and ale-py; also gymnasium for other environments, and Pillow for a GIF. With ``--native``,
the folder's native library takes the place of ``policy.onnx`` and onnxruntime. A model folder holds a copy of this
package as ``player``, so that the folder is all that a device needs.

    python -m policy_export.device models/dqn --episodes 3 --gif pong.gif
    python models/dqn/player --native --selftest

A copy plays the policy of the model folder that it lies in, unless another folder is named.
"""

import importlib
import sys
from pathlib import Path

if __package__:
    package, program = __package__, f"python -m {__package__}"
else:  # the folder was given to python as a program
    here = Path(__file__).resolve().parent
    package, program, sys.path[0] = here.name, f"python {sys.argv[0]}", str(here.parent)

sys.exit(importlib.import_module(f"{package}.command").main(program=program))
