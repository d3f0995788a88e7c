"""What a model folder holds, as lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .environments import environment_name
from .manifest import MEANING, action_kinds
from .verdict import describe_verdict


def describe(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that a model folder tells.

    It is what the policy takes and gives, means, and comes from, and what the check has found.
    """
    yield f"policy {manifest['policy']}"
    yield f"environment {environment_name(manifest)}"
    for what in ("input", "output"):
        for spec in manifest[f"{what}s"]:
            yield f"{what} {spec['name']} {spec['dtype']}[{', '.join(map(str, spec['shape']))}]"
    for state in manifest["states"]:
        yield f"state {state['input']}, which {state['output']} is the next value of"
    for name, kind in action_kinds(manifest).items():
        yield f"action {name} {json.dumps(kind)}"
    yield from (f"{key} {json.dumps(manifest[key])}" for key in MEANING if key in manifest)
    yield from (describe_file(name, file) for name, file in manifest["files"].items() if not name.startswith("player/"))
    yield f"revision {manifest.get('revision')}"
    yield from describe_verdict(folder, manifest)


def describe_file(name: str, file: Mapping[str, Any]) -> str:
    made = ", ".join(f"{library} {version}" for library, version in file.get("versions", {}).items())
    return f"file {name} {file['bytes']:,} bytes, sha256 {file['sha256']}{', made by ' if made else ''}{made}"
