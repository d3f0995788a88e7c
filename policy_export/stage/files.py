"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from policy_export.device.errors import RefusedError, describe_refusal, refusal


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces ``path`` when the block ends without an error.

    The file written has the same ending as ``path`` and lies in a folder of its own next to it, so that the last step
    is a rename, of a file that is on the disk. After an error, or if the process dies, ``path`` is as it was. Everyone
    who may read the folder may read the file, no matter which mode a library wrote it with.

    Raises:
        RefusedError: it cannot be written: there is no room, or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_by_a_dead_process in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(left_by_a_dead_process, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    except Exception as error:
        if (refused := refusal(error)) is None:
            raise
        if path.name in str(refused.filename):  # the temporary one, of which nobody knows
            refused.filename = None
        raise RefusedError(f"{path}: cannot be written: {describe_refusal(refused)}") from error


@contextlib.contextmanager
def in_memory(path: Path) -> Iterator[io.BytesIO]:
    """Yield a file in memory, which is written to ``path`` when the block ends without an error.

    It is for what PyTorch writes: where the disk is full, its own writer of files tells of a wrong position, or aborts
    Python.
    """
    content = io.BytesIO()
    yield content
    path.write_bytes(content.getbuffer())


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write CSV with a header; entries of the rows that have no column are left out."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
