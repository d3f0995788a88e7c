"""``manifest.json`` of a model folder, and the files that it lists."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError
from .schema import first_mistake

MANIFEST = "manifest.json"
SCHEMA = "manifest.schema.json"
SCHEMA_VERSION = 1
MOST_BYTES = 16 * 1024 * 1024  # of a manifest
MEANING = ("facts", "names", "control_rate_hz", "license")  # keys in which the owner says what the numbers mean
MANIFEST_KEYS = ("policy", "inputs", "outputs", "states", "environment", "actions", "files")
# Keys that a program has inside as well: what it is of, what it takes and gives, and where it plays.
TOLD = ("policy", "environment", "actions", "action_names", "inputs", "outputs", "states", *MEANING)
DIGEST = "digest"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path, check: Callable[[Any, Path], None] | None = None) -> dict[str, Any]:
    """Read ``manifest.json`` of a model folder.

    Args:
        folder: the model folder.
        check: looks at the content before its digest does, and can name the key; given the content and the file.

    Raises:
        UserError: it is missing, is not JSON, has a schema this player does not know, or was changed afterwards.
    """
    path = folder / MANIFEST
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{path}: damaged: has {size:,} bytes, may have {MOST_BYTES:,}")
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a model folder that `dvc repro` has built") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not JSON ({error})") from None
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if found != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version is {found!r}, this player reads {SCHEMA_VERSION}")
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing:
        raise UserError(f"{path}: damaged: lacks {', '.join(missing)}")
    if check is not None:
        check(manifest, path)
    check_schema(manifest, path)
    if DIGEST in manifest and manifest[DIGEST] != (expected := digest(manifest)):
        raise UserError(
            f"{path}: damaged: changed since it was written: its {DIGEST} is {manifest[DIGEST]}, expected {expected}; "
            "`dvc repro` writes it anew"
        )
    return manifest


def check_schema(manifest: Any, path: Path) -> None:
    """Hold a manifest against the schema that lies beside it, if one does.

    Raises:
        UserError: it does not fit, or the schema is damaged.
    """
    schema = path.with_name(SCHEMA)
    try:
        mistake = first_mistake(manifest, json.loads(schema.read_bytes())) if schema.exists() else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{schema}: damaged, no schema of this project ({type(error).__name__})") from None
    if mistake:
        raise UserError(f"{path}: {mistake}")


def digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content but for its ``digest``, in hexadecimal digits.

    It is that of the JSON with sorted keys, without spaces, in ASCII, with numbers as the manifest has them.
    """
    content = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_told(told: Mapping[str, Any], manifest: Mapping[str, Any], path: Path) -> None:
    """Compare what a program says of itself with what a manifest says of it.

    Args:
        told: some of the keys ``TOLD``.
        manifest: of the model folder.
        path: of the program, for messages.

    Raises:
        UserError: they differ; the message names the first key.
    """
    if difference := compare_told(told, manifest):
        key, own, listed = difference
        raise UserError(
            f"{path}: its {key} is {reprlib.repr(own)}, {MANIFEST} says {reprlib.repr(listed)}: one of them is not of "
            "this policy; run `dvc repro`"
        )


def compare_told(told: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key that two differ in, and both values; none if they agree in all keys of ``TOLD``.

    A program that explores may have more inputs and outputs, which a manifest lists under ``random``.
    """
    listed = dict(manifest)
    if told.get("exploration_type") == "RANDOM":
        listed |= manifest.get("random") or {}
    one, other = (
        {key: facts.get(key, ["action"] if key == "action_names" else None) for key in TOLD} for facts in (told, listed)
    )
    for facts in (one, other):  # how a state starts is told by the manifest alone
        facts["states"] = [{**state, "start": None} for state in facts["states"] or ()]
    return first_difference(one, other)


def first_difference(one: Any, other: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Return the first key, with dots, that two contents of JSON files differ in, and both values; none if equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = {name: (one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])}
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = {str(place): pair for place, pair in enumerate(zip(one, other, strict=True))}
    else:
        return None if one == other and type(one) is type(other) else (key, one, other)
    differences = (first_difference(*pair, f"{key}.{name}" if key else name) for name, pair in pairs.items())
    return next(filter(None, differences), None)


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
