"""``verdict.json`` of a model folder: what the check has found of the programs that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .manifest import DIGEST

VERDICT = "verdict.json"


def describe_verdict(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the check has found of a model folder's programs, as lines of text.

    A verdict is that of one manifest, and so of the files whose hashes this lists.
    """
    try:
        verdict = json.loads((folder / VERDICT).read_text())
        if verdict[DIGEST] != manifest[DIGEST]:
            yield f"not checked: {VERDICT} is of other files; run `dvc repro`"
            return
        told = "passed" if verdict["passed"] else "FAILED"
        lines = [f"checked: {told}, report {verdict['report']}, sha256 {verdict['report_sha256']}"]
        lines += [_describe(name, program) for name, program in verdict["programs"].items()]
    except FileNotFoundError:
        yield f"not checked: there is no {VERDICT}; `dvc repro` writes it"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        yield f"not checked: {VERDICT} is damaged: {type(error).__name__}"
    else:
        yield from lines


def _describe(name: str, program: Mapping[str, Any]) -> str:
    told = f"checked: {name} {'passed' if program['passed'] else 'FAILED'}, {program['decisions']:,} decisions"
    if program["different"] is None:
        return told
    return f"{told}, {program['different']} other, {program['ties']} at ties, sha256 {program['sha256']}"
