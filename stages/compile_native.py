"""Compile a policy into a library, a C header and a command that need no PyTorch at run time."""

from __future__ import annotations

from policy_export.lowering.native import compile_native
from policy_export.stage.command import run

if __name__ == "__main__":
    run(compile_native, __doc__)
