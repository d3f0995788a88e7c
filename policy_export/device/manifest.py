"""``manifest.json`` of a model folder, and the files that it lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
MEANING = ("facts", "names", "control_rate_hz", "license")  # keys in which the owner says what the numbers mean
MANIFEST_KEYS = ("policy", "inputs", "outputs", "states", "environment", "actions", "files")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a model folder.

    Raises:
        UserError: it is missing, is not JSON, or has a schema this player does not know.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a model folder that `dvc repro` has built") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error})") from None
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if found != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version is {found!r}, this player reads {SCHEMA_VERSION}")
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing:
        raise UserError(f"{path}: damaged: lacks {', '.join(missing)}")
    return manifest


def check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> Path:
    """Return the path of a file of the model folder, after a check that its SHA-256 is the manifest's.

    Raises:
        UserError: it is missing or is not the file that the manifest was written for.
    """
    path = folder / name
    if name not in manifest["files"]:
        raise UserError(f"{folder / MANIFEST}: lists no {name}, only {', '.join(manifest['files'])}")
    expected = manifest["files"][name]["sha256"]
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if found != expected:
        raise UserError(f"{path}: damaged or from another policy: its SHA-256 is {found}, {MANIFEST} says {expected}")
    return path


def observation_names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs that are observations; they come before the states and ``is_init``."""
    others = {"is_init", *(state["input"] for state in manifest["states"])}
    return [spec["name"] for spec in manifest["inputs"] if spec["name"] not in others]


def action_names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the outputs that are actions; they come before all others."""
    return list(manifest.get("action_names", ["action"]))


def action_kinds(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each action is, by its name.

    ``kind`` is ``index`` (one of ``sizes[0]``), ``indices`` (``sizes`` has the number of choices of each, in the
    action's shape), ``one_hot`` (rows of the last dimension, each with a 1 for one of its choices), ``bits``, or
    ``vector`` (with ``low`` and ``high``, which are null where there is no bound).
    """
    actions = manifest["actions"]
    if isinstance(actions, list):
        return {action_names(manifest)[0]: {"kind": "index", "sizes": [len(actions)]}}
    if "entries" in actions:
        return dict(actions["entries"])
    return {action_names(manifest)[0]: {"kind": "vector", **actions}}


def value_names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the outputs that an action was chosen by."""
    others = {*action_names(manifest), *(state["output"] for state in manifest["states"])}
    return [spec["name"] for spec in manifest["outputs"] if spec["name"] not in others]
