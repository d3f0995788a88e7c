"""``manifest.json``: what a device must know about a policy's programs, and the hash of every file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from policy_export import device
from policy_export.backends.base import Backend
from policy_export.backends.registry import backends
from policy_export.config import params
from policy_export.config.manifest_schema import Manifest, check_manifest
from policy_export.config.profile import BESIDE, load_profile
from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN
from policy_export.device.manifest import DIGEST, MANIFEST, SCHEMA, SCHEMA_VERSION, digest, sha256
from policy_export.device.verdict import VERDICT
from policy_export.program.archive import read_facts
from policy_export.program.made import read_programs, read_record, versions_of
from policy_export.stage.files import replacing, write_json

WEIGHTS = "policy.safetensors"
PLAYER = "player"  # the folder of the device's code
SIGNATURE = ("inputs", "outputs", "states")
# What the player needs in addition to a runtime.
DEVICE_LIBRARIES = ("numpy", "ale-py", "gymnasium")


def read_program(path: Path, policy: str) -> dict[str, Any]:
    """Return a program's facts, with how its states start."""
    facts = read_facts(path, policy)
    facts["states"] = [state | {"start": "zeros; ignored where is_init is true"} for state in facts["states"]]
    return facts


def read_signature(folder: Path, policy: str, weights_sha256: str) -> dict[str, Any]:
    """Return the facts of a policy's programs; for those that explore, only if they have more inputs or outputs.

    Raises:
        UserError: a program is missing, damaged, or was made from other weights.
    """
    facts = read_program(folder / "policy.pt2", policy)
    if facts["weights_sha256"] != weights_sha256:
        raise UserError(f"{folder / 'policy.pt2'}: made from other weights than {WEIGHTS}; run `dvc repro`")
    exploring = read_program(folder / "policy_random.pt2", policy)
    if any(exploring[key] != facts[key] for key in SIGNATURE):
        facts["random"] = {key: exploring[key] for key in SIGNATURE}
    del facts["exploration_type"], facts["weights_sha256"]
    return facts


def contents(backend: Backend) -> dict[str, str]:
    """Return descriptions of a back end's files, by the end of their paths."""
    inside = {Path(backend.file).name: backend.content, **backend.other_files} if backend.folder is not None else {}
    return backend.outputs | inside


def copy_player(folder: Path) -> None:
    """Copy the device's code into a model folder."""
    source, target = Path(str(device.__file__)).parent, folder / PLAYER
    shutil.rmtree(target, ignore_errors=True)
    for path in source.glob("*.py"):
        with replacing(target / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())


def describe_file(path: Path, content: str) -> dict[str, Any]:
    """Return a file's entry in the manifest.

    Raises:
        UserError: it is missing.
    """
    try:
        return {"content": content, "bytes": path.stat().st_size, "sha256": sha256(path)}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run `dvc repro`") from None


def read_revision() -> str | None:
    """Return the git revision of the working folder, with ``+`` where files differ from it; none outside of git."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or None if told.returncode == 0 else None


def write_manifest(policy: str) -> None:
    """Write the manifest of a policy's folder, and copy the player there.

    Raises:
        UserError: a file is missing or damaged, or was made from other weights.
    """
    folder = Path("models", policy)
    copy_player(folder)
    write_json(folder / SCHEMA, Manifest.model_json_schema())
    content = describe_folder(policy)
    check_manifest(content, folder / MANIFEST)
    write_json(folder / MANIFEST, content)


def describe_folder(policy: str) -> dict[str, Any]:
    """Return what the manifest of a policy's folder must say.

    Raises:
        UserError: a file is missing or damaged, or was made from other weights.
    """
    folder, wanted = Path("models", policy), read_programs(policy)
    files = {
        WEIGHTS: describe_file(folder / WEIGHTS, "trained weights"),
        GOLDEN: describe_file(folder / GOLDEN, "golden decisions: observations, and what every program must decide"),
    }
    facts, profile = read_signature(folder, policy, files[WEIGHTS]["sha256"]), load_profile(policy)
    programs: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for backend in [backend for name, backend in backends().items() if wanted.get(name)]:
        programs[backend.name] = {"file": backend.file, "random_file": backend.random_file}
        versions |= versions_of(backend.run_by)
        if backend.owns_file:
            record, known = read_record(policy, backend.name), contents(backend)
            versions |= record["versions"]
            for name, hashed in record["files"].items():
                entry = describe_file(folder / name, known[Path(name).name])
                if entry["sha256"] != hashed:
                    raise UserError(f"{folder / name}: not the file that its stage has made; run `dvc repro`")
                files[name] = entry | {"versions": record["versions"]}
    for path in sorted((folder / PLAYER).glob("*.py")):
        files[path.relative_to(folder).as_posix()] = describe_file(path, "the player")
    files[SCHEMA] = describe_file(folder / SCHEMA, f"JSON Schema of {MANIFEST}")
    content = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "parameters": profile.model_dump(exclude=BESIDE),
        "programs": programs,
        "onnx_session": params.load().manifest.onnx_session.model_dump(),
        "versions": versions_of(DEVICE_LIBRARIES) | versions,
        "revision": read_revision(),
        "parity_report": f"results/{policy}/parity.json",
        "verdict": VERDICT,
        "files": files,
    }
    return content | {DIGEST: digest(content)}
