"""Write manifest.json: what a device must know about a policy's programs, and the hash of every file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from policy_export.config import params
from policy_export.device.errors import UserError
from policy_export.device.manifest import SCHEMA_VERSION, sha256
from policy_export.program.archive import read_facts
from policy_export.stage.files import write_json

LIBRARIES = ("torch", "tensordict", "torchrl", "gymnasium", "ale-py", "onnx", "onnxscript", "onnxruntime", "numpy")
FILES = {
    "policy.safetensors": "trained weights",
    "policy.pt2": "torch.export program, DETERMINISTIC",
    "policy_random.pt2": "torch.export program, RANDOM",
    "policy.aoti.pt2": "AOTInductor package, DETERMINISTIC, for the machine that compiled it",
    "policy_random.aoti.pt2": "AOTInductor package, RANDOM, for the machine that compiled it",
    "policy.onnx": "ONNX program, DETERMINISTIC",
    "policy_random.onnx": "ONNX program, RANDOM",
}
NATIVE = {
    "libpolicy.so": "native library, DETERMINISTIC, for the machine that compiled it or what its folder names",
    "policy": "the same as a command",
    "policy.h": "the library's interface",
    "golden.bin": "recorded decisions that selftest replays",
}


SIGNATURE = ("inputs", "outputs", "states")


def read_program(path: Path, policy: str) -> dict[str, Any]:
    """A program's facts, with how its states start."""
    facts = read_facts(path, policy)
    facts["states"] = [state | {"start": "zeros; ignored where is_init is true"} for state in facts["states"]]
    return facts


def manifest(policy: str) -> None:
    folder = Path("models", policy)
    facts = read_program(folder / "policy.pt2", policy)
    if facts["weights_sha256"] != sha256(folder / "policy.safetensors"):
        raise UserError(f"{folder / 'policy.pt2'}: made from other weights than policy.safetensors; run `dvc repro`")
    exploring = read_program(folder / "policy_random.pt2", policy)
    if any(exploring[key] != facts[key] for key in SIGNATURE):
        facts["random"] = {key: exploring[key] for key in SIGNATURE}
    del facts["exploration_type"], facts["weights_sha256"]
    files = {
        name: {"content": content, "bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name, content in FILES.items()
    }
    for path in sorted((folder / "native").rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = {
                "content": NATIVE[path.name],
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
    versions = {library: metadata.version(library) for library in LIBRARIES}
    write_json(
        folder / "manifest.json",
        {
            "schema_version": SCHEMA_VERSION,
            **facts,
            "onnx_session": params.load().manifest.onnx_session.model_dump(),
            "versions": versions,
            "files": files,
        },
    )
