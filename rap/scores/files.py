"""Atomic file writes, and Parquet files with a checksum.

Every file is written to a temporary name, fsynced, renamed, and the folder is fsynced.
A Parquet file carries a note (JSON) and a SHA-256 over all its other bytes, because
Parquet's page checksums (on, and verified) do not cover the footer. Equal tables give
equal bytes: no time, no host.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RapStoreError
from .table import SCHEMA_VERSION

_NOTE = b"rap.note"
_DIGEST = b"rap.sha256"
_MARK = b"rap-sha256:"
_BLANK = b"0" * 64
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that cannot sync a folder."""


def write_atomic(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write ``path`` whole or not at all: tmp, fsync, rename, fsync of the folder.

    ``fill`` writes into the open file. Raises ``RapStoreError`` (with ``errno``) if the
    disk refuses; the temporary file is gone then, and an older ``path`` untouched.
    """
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(tmp, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
        fsync_folder(path.parent)
    except BaseException as error:  # KeyboardInterrupt too must leave no tmp behind
        with contextlib.suppress(OSError):
            tmp.unlink()
        if isinstance(error, OSError):
            raise store_error(f"{path}: cannot be written", error) from error
        raise


def store_error(text: str, error: OSError) -> RapStoreError:
    wrapped = RapStoreError(f"{text}: {error.strerror or error}")
    wrapped.errno = error.errno
    return wrapped


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it. Raises ``RapStoreError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(f"{folder}: cannot be made", error) from error


def fsync_folder(folder: Path) -> None:
    """Make a rename durable. Some network file systems cannot: the
    store says so when it opens."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)


def write_parquet(path: Path, table: pa.Table, note: Mapping[str, Any]) -> str:
    """Write ``table`` with ``note`` (JSON) atomically; returns the file's digest.

    Byte-same for equal tables and notes. Raises ``RapStoreError``.
    """
    text = json.dumps(note, sort_keys=True, allow_nan=False).encode()
    # Row groups and pages must not follow the chunks the table happens to have.
    table = table.combine_chunks().replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        writer.write_table(table)
        # Not as schema metadata: Arrow would write a second, encoded copy of it.
        writer.add_key_value_metadata({_NOTE: text, _DIGEST: _MARK + _BLANK})
    data = bytearray(sink.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    at = data.rindex(_MARK) + len(_MARK)
    data[at : at + len(_BLANK)] = digest.encode()
    write_atomic(path, lambda file: file.write(data))
    return digest


def read_parquet(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """(table, note) of a file of ``write_parquet``, every byte verified.

    Raises ``RapStoreError`` if it is missing, damaged, foreign, or of a newer schema.
    """
    data, note, _ = verified(path)
    return decoded(path, data), note


def decoded(path: Path, data: bytes) -> pa.Table:
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise RapStoreError(f"{path}: is damaged: {error}") from error
    return table.replace_schema_metadata(None)


def verified(path: Path) -> tuple[bytes, dict[str, Any], str]:
    """(bytes, note, digest), without decoding the pages."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise store_error(f"{path}: cannot be read", error) from error
    at = data.rfind(_MARK) + len(_MARK)
    if at < len(_MARK):
        what = "is empty" if not data else "is cut off or no file of this project"
        raise RapStoreError(f"{path}: {what}")
    digest = data[at : at + len(_BLANK)]
    check = hashlib.sha256(data[:at])
    check.update(_BLANK)
    check.update(memoryview(data)[at + len(_BLANK) :])
    if check.hexdigest().encode() != digest:
        raise RapStoreError(f"{path}: is damaged: its SHA-256 does not match its bytes")
    try:
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
        note = json.loads(metadata[_NOTE])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise RapStoreError(f"{path}: no file of this project: {error}") from error
    check_version(path, note.get("schema_version"))
    return data, note, digest.decode()


class OtherVersionError(RapStoreError):
    """Not damage: the file is fine for another version of this package."""


def check_version(path: Path, version: object) -> None:
    """Raises ``OtherVersionError`` unless ``version`` is this one's or an older one."""
    if isinstance(version, int) and 1 <= version <= SCHEMA_VERSION:
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise OtherVersionError(
            f"{path}: written with score schema {version}; this version reads up to "
            f"{SCHEMA_VERSION}. Upgrade it (pip install -U rap-select), or score into "
            "another folder"
        )
    raise OtherVersionError(
        f"{path}: score schema {version!r} is not one this version knows "
        f"(1 to {SCHEMA_VERSION}); score into another folder"
    )
