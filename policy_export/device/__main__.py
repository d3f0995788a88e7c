"""Play with an exported policy, without PyTorch: an Atari game, or another environment of gymnasium's.

Needs numpy, onnxruntime and ale-py; gymnasium too for what is no Atari game, and Pillow for a GIF. With ``--native``,
the folder's native library takes the place of ``policy.onnx`` and onnxruntime. A model folder holds a copy of this
package as ``player``, so that the folder is all that a device needs.

    python -m policy_export.device models/dqn --episodes 3 --gif pong.gif
    python models/dqn/player --native --selftest

A copy plays what lies beside it, unless another folder is named.
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
