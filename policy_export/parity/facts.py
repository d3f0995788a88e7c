"""What a model folder says of its programs, held against the profile and the trained policy."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from policy_export.backends.manifest import describe_folder
from policy_export.backends.registry import RANDOM, backends, deterministic, exploring
from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN, read_golden
from policy_export.device.manifest import DIGEST, MANIFEST, compare_told, first_difference, read_manifest
from policy_export.parity.libraries import check_libraries
from policy_export.program.golden import absolute_tolerance

# Of the manifest: the commit may be another, and who reads it checks the digest.
UNCOMPARED = dict.fromkeys(("revision", DIGEST))
OWN = ("weights_sha256", "exploration_type", "parameters")  # of a program's facts, beside those of a manifest


def check_facts(policy: str) -> list[str]:
    """Return what the files of a model folder say that is not so: for each a line that names the file and the key.

    What each program says of itself is compared with facts made anew from the profile and the trained policy, the
    manifest with one made anew from the folder and ``params.yaml``, and the tolerance of the golden decisions with its
    setting. Libraries for other instruction sets are run as far as they can be here.
    """
    # Only here, as who starts the process does not need PyTorch.
    from torchrl.envs.utils import ExplorationType

    from policy_export.program.facts import describe_policy, describe_step
    from policy_export.program.step import load_step

    profile = load_profile(policy)
    shared = describe_policy(policy, profile)
    expected = {
        ending: _as_json(shared | describe_step(load_step(policy, profile, exploration)))
        for ending, exploration in (("", ExplorationType.DETERMINISTIC), (RANDOM, ExplorationType.RANDOM))
    }
    try:
        return list(_mistakes(policy, expected))
    except UserError as error:
        return [str(error)]


def _as_json(content: Any) -> Any:
    """Return content as it is read from a file of JSON."""
    return json.loads(json.dumps(content))


def _mistakes(policy: str, expected: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    folder = Path("models", policy)
    manifest = read_manifest(folder)
    listed, right = ({**content, **UNCOMPARED} for content in (manifest, _as_json(describe_folder(policy))))
    if difference := first_difference(listed, right):
        yield _line(folder / MANIFEST, *difference)
    for name, file in (deterministic(manifest) | exploring(manifest)).items():
        read = backends()[name.removesuffix(RANDOM)].told
        if read is None:
            continue
        if (told := read(folder / file)) is None:
            yield f"{folder / file}: does not say of which policy it is"
            continue
        right = expected[RANDOM if name.endswith(RANDOM) else ""]
        own, other = ({key: facts[key] for key in OWN if key in told} for facts in (told, right))
        if difference := compare_told(told, right) or first_difference(own, other):
            yield _line(folder / file, *difference)
    yield from check_libraries(folder, manifest, expected[""])
    golden = read_golden(folder / GOLDEN, expected[""])
    tolerance = absolute_tolerance(expected[""], params.load().golden.tolerance)
    if golden.tolerance != tolerance:
        yield _line(folder / GOLDEN, "tolerance", golden.tolerance, tolerance)


def _line(path: Path, key: str, found: Any, expected: Any) -> str:
    return f"{path}: {key} is {reprlib.repr(found)}, the profile and the trained policy say {reprlib.repr(expected)}"
