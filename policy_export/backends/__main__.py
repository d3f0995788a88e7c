"""Replay a model folder's golden decisions with each of its programs, also with those that the player does not run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from policy_export.backends.base import Settings
from policy_export.backends.registry import backends, deterministic
from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN, selftest
from policy_export.device.manifest import check_file, check_told, read_manifest
from policy_export.device.player import Player


def main(arguments: Sequence[str] | None = None) -> int:
    """Test the programs of a folder, and return the exit status: 1 if one cannot be loaded or decides otherwise."""
    parser = argparse.ArgumentParser(prog="python -m policy_export.backends", description=__doc__)
    parser.add_argument("folder", type=Path, help="model folder, such as models/dqn")
    options = parser.parse_args(arguments)
    try:
        manifest = read_manifest(options.folder)
        golden = check_file(options.folder, GOLDEN, manifest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wrong = 0
    for name, file in deterministic(manifest).items():
        try:
            path = check_file(options.folder, file, manifest)
            if (read := backends()[name].told) is not None:
                check_told(read(path) or {}, manifest, path)
            run = backends()[name].load(path, Settings(1, manifest.get("onnx_session", {})))
            print(f"selftest {manifest['policy']}, {name}: {selftest(Player(run, manifest), golden)}", flush=True)
        except UserError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            wrong += 1
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
