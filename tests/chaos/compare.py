"""What lies in a folder, for comparisons."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def digests(
    folder: Path, skip: Sequence[str] = ("lock",), *, clocks: bool = False
) -> dict[str, str]:
    """{file: digest}; with ``clocks`` of tables without their clock readings."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name in skip or name.startswith("index/"):
            continue
        data = path.read_bytes()
        with contextlib.suppress(pa.ArrowException):  # half written: its bytes
            if clocks and path.suffix == ".parquet":
                table = pq.read_table(pa.BufferReader(data))
                timed = {"seconds"} & set(table.column_names)
                data = repr(table.drop_columns([*timed]).to_pydict()).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def finished(store: Path, *, clocks: bool = False) -> dict[str, str]:
    """Of the shards that are there: what was acknowledged."""
    if not store.is_dir():
        return {}
    return {
        name: digest
        for name, digest in digests(store, clocks=clocks).items()
        if name.split("/")[-1].startswith(("scores-", "rollouts-"))
        and f"scores-{name[-13:]}" in os.listdir(store)
        and "/" not in name
    }


def leftovers(folder: Path) -> list[str]:
    """What no undisturbed run leaves."""
    found = []
    for pattern in ("*.corrupt", ".*.tmp", ".*.old", "partial*", "*.old", "claims/*"):
        found += [str(p.relative_to(folder)) for p in folder.rglob(pattern)]
    return sorted(found)
