"""Compile the exported programs for this machine's processor with AOTInductor."""

from __future__ import annotations

from policy_export.lowering.aoti import compile_aoti
from policy_export.stage.command import run

if __name__ == "__main__":
    run(compile_aoti, __doc__)
