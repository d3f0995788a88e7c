"""ONNX Runtime for browsers: the two files that a page needs of npm's package onnxruntime-web.

``web/package-lock.json`` has its version and the SHA-512 of every package, which npm checks.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from policy_export.stage.files import replacing

WEB = Path(__file__).with_name("web")
LISTS = ("package.json", "package-lock.json")
CACHE = Path(".npm_cache")  # of the project, which git ignores: the package takes 140 MB, these files 14
# The smallest of its builds: for the processor alone. It runs in one thread where a page asks for one, so that the
# server need not send the headers that threads need.
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Its scripts would do nothing that is needed here. Where there is no network, npm would try for minutes.
INSTALL = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1")
MOST_SECONDS = 300


class MissingRuntimeError(Exception):
    """ONNX Runtime for browsers cannot be had; the message is the reason."""


def copy_runtime(folder: Path) -> None:
    """Copy ONNX Runtime's files for browsers to a folder; install them first where that has not been done.

    Raises:
        MissingRuntimeError: npm is not installed, or cannot install it.
    """
    lists = [WEB / name for name in LISTS]
    cache = CACHE / hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:16]
    if not all((cache / name).is_file() for name in FILES):
        _install(lists, cache)
    for name in FILES:
        _copy(cache / name, folder / name)


def _install(lists: list[Path], cache: Path) -> None:
    if shutil.which(INSTALL[0]) is None:
        raise MissingRuntimeError("npm is not installed (Debian: apt install npm)")
    with tempfile.TemporaryDirectory() as folder:
        for path in lists:
            shutil.copy(path, folder)
        try:
            done = subprocess.run(
                INSTALL, cwd=folder, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise MissingRuntimeError(f"`npm ci` has not ended after {MOST_SECONDS} seconds") from None
        if done.returncode:
            reason = next(iter(done.stderr.splitlines()), f"status {done.returncode}")
            raise MissingRuntimeError(f"`npm ci` fails: {reason}")
        for name in FILES:
            _copy(Path(folder, "node_modules/onnxruntime-web/dist", name), cache / name)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
