"""Write manifest.json: what a device must know about a policy's programs, and the hash of every file."""

from __future__ import annotations

from policy_export.backends.manifest import write_manifest
from policy_export.stage.command import run

if __name__ == "__main__":
    run(write_manifest, __doc__)
