"""What a page needs to prove policies in its reader's browser: the programs, their decisions, and ONNX Runtime."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from policy_export.device.errors import UserError, first_line
from policy_export.device.golden import GOLDEN
from policy_export.device.manifest import MANIFEST, check_file, read_manifest
from policy_export.report.episode import pack_episode
from policy_export.report.web_runtime import WEB, MissingRuntimeError, copy_runtime
from policy_export.stage.files import replacing

PROGRAM, EPISODE = "policy.onnx", "episode.safetensors.gz"
MODULES = ("replay.mjs", "screens.mjs")


def prepare(folder: Path, policies: Sequence[str]) -> list[str]:
    """Write all that ``templates/browser.html.j2`` loads; return the policies that a browser can prove.

    These are the ones with an ONNX program; none where ONNX Runtime for browsers cannot be had, which is told in a
    line. A policy whose recorded episode does not replay on this machine goes without it.

    Args:
        folder: next to the page; it is replaced when all is there.
        policies: their names.

    Raises:
        UserError: a file of a model folder is missing or damaged.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_dead_process in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left_by_a_dead_process, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        new = Path(name, folder.name)
        new.mkdir()
        proofs = _fill(new, policies)
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)
    return proofs


def _fill(folder: Path, policies: Sequence[str]) -> list[str]:
    proofs = [policy for policy in policies if Path("models", policy, PROGRAM).is_file()]
    if not proofs:
        return []
    try:
        copy_runtime(folder / "ort")
    except MissingRuntimeError as error:
        print(f"report: without the proof in the browser, as {error}", flush=True)
        return []
    for name in MODULES:
        _copy(WEB / name, folder / name)
    for policy in proofs:
        _prepare_policy(folder / policy, policy)
    return proofs


def _prepare_policy(folder: Path, policy: str) -> None:
    model = Path("models", policy)
    manifest = read_manifest(model)
    for name in (PROGRAM, GOLDEN):
        _copy(check_file(model, name, manifest), folder / name)
    _copy(model / MANIFEST, folder / MANIFEST)
    try:
        content = pack_episode(policy, manifest)
    except UserError as error:
        print(f"report {policy}: without its recorded episode in the browser: {first_line(error)}", flush=True)
        return
    with replacing(folder / EPISODE) as temporary:
        temporary.write_bytes(content)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
