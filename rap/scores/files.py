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
import io
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RapStoreError, install
from .owner import stale_tmps, tmp_name, tmps_of
from .table import SCHEMA_VERSION

_NOTE = b"rap.note"
_DIGEST = b"rap.sha256"
_MARK = b"rap-sha256:"
_BLANK = b"0" * 64
_TAIL, _PIECE, _HELD = 2**18, 2**20, 2**23
ROW_GROUP = 2**20
"""Rows of a row group of a Parquet file."""
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that cannot sync a folder."""


def write_atomic(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write ``path`` whole or not at all: tmp, fsync, rename, fsync of the folder.

    ``fill`` writes into the open file. Raises ``RapStoreError`` (with ``errno``) if the
    disk refuses; the temporary file is gone then, and an older ``path`` untouched.
    """
    tmp = path.with_name(tmp_name(path.name))
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


_LEFT_OVER = 3600.0
"""Seconds after which a temporary file of another machine is left over."""


def write_result(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """As ``write_atomic``, for a file of a folder that no store clears up: what a killed
    writer of the same file left is removed before."""
    clear_leftovers(path)
    write_atomic(path, fill)


def clear_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that nobody writes any more. Raises
    ``RapStoreError``."""
    folder = path.parent
    try:
        names = tmps_of(path.name, os.listdir(folder))
        for name in stale_tmps(folder, names, _LEFT_OVER) if names else ():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise store_error(f"{path}: cannot be written", error) from error


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


def refuse_links(store: Path) -> None:
    """Raises ``RapStoreError`` for a link in a store to a folder, or in place of its lock:
    a store of others could have its files written, or cleared away, where that leads. The
    store itself may be a link; links to other files are read, and replaced."""
    for at, folders, files in os.walk(store):
        for name in (*folders, *(name for name in files if name == "lock")):
            path = os.path.join(at, name)
            if os.path.islink(path):
                raise RapStoreError(
                    f"{path}: is a link to {os.readlink(path)}; a store has none, and what "
                    "it leads to may not be its own: remove it, or use another folder"
                )


def open_regular(path: Path) -> IO[bytes]:
    """A file to read that is neither a pipe, which would be waited for, nor a device.
    Raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb")


def read_regular(path: Path) -> bytes:
    """All of it; as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


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
    parts = (table.slice(at, ROW_GROUP) for at in range(0, table.num_rows, ROW_GROUP))
    return write_parts(path, table.schema, parts, note)


def write_parts(
    path: Path, schema: pa.Schema, parts: Iterable[pa.Table], note: Mapping[str, Any]
) -> str:
    """As ``write_parquet`` of all ``parts``, one row group each: ``ROW_GROUP`` rows but for
    the last. One part at a time is held."""
    text = json.dumps(note, sort_keys=True, allow_nan=False).encode()
    schema, digest = schema.remove_metadata(), ""

    def fill(file: IO[bytes]) -> None:
        nonlocal digest
        sink = _Hashed(file)
        with pq.ParquetWriter(
            pa.PythonFile(sink, "w"), schema, compression="zstd", write_page_checksum=True
        ) as writer:
            empty = True
            for part in parts:
                # Pages must not follow the chunks the table happens to have.
                part = part.combine_chunks().replace_schema_metadata(None)
                writer.write_table(part, row_group_size=ROW_GROUP)
                empty = False
            if empty:
                writer.write_table(schema.empty_table())
            # Not as schema metadata: Arrow would write a second, encoded copy of it.
            writer.add_key_value_metadata({_NOTE: text, _DIGEST: _MARK + _BLANK})
        digest = sink.finish()

    write_atomic(path, fill)
    return digest


class _Hashed(io.RawIOBase):
    """Writes to ``file`` in large pieces and hashes what it writes; ``finish`` puts the
    digest behind the last mark, which is near the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.held = bytearray()
        self.gone = 0  # bytes that are in the file

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.held += data
        if len(self.held) >= _HELD + _TAIL:
            self.file.write(memoryview(self.held)[:-_TAIL])
            self.gone += len(self.held) - _TAIL
            del self.held[:-_TAIL]
        return memoryview(data).nbytes

    def finish(self) -> str:
        digest = self.sha256.hexdigest()
        at = self.held.rindex(_MARK) + len(_MARK)
        self.held[at : at + len(_BLANK)] = digest.encode()
        self.file.write(self.held)
        return digest

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.gone + len(self.held)


def read_parquet(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """(table, note) of a file of ``write_parquet``, every byte verified.

    Raises ``RapStoreError`` if it is missing, damaged, foreign, or of a newer schema.
    """
    data, note, _ = verified(path)
    return decoded(path, data), note


def decoded(path: Path, data: bytes) -> pa.Table:
    """The table in the bytes of a Parquet file. Raises ``RapStoreError``."""
    return decoded_columns(path, data, None)[0].replace_schema_metadata(None)


def decoded_columns(
    path: Path, data: bytes | Path, names: Sequence[str] | None
) -> tuple[pa.Table, list[str], int]:
    """(those of these columns that are there, None: all; the names of all columns; the
    number of rows), of the bytes of a Parquet file, or of that at a path. Raises
    ``RapStoreError``.

    Read in this thread: of several the last to let go of ``data`` may be one of Arrow's, it
    asks for Python's lock then, and a Python that is ending meanwhile ends such a thread,
    and with it the process ("terminate called without an active exception")."""
    try:
        source = data if isinstance(data, Path) else pa.BufferReader(data)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            there = file.schema_arrow.names
            wanted = None if names is None else [name for name in names if name in there]
            table = file.read(wanted, use_threads=False)
            return table, there, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise RapStoreError(f"{path}: is damaged: {error}") from error


def verified(path: Path) -> tuple[bytes, dict[str, Any], str]:
    """(bytes, note, digest), without decoding the pages."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise store_error(f"{path}: cannot be read", error) from error
    digest = _require_digest(path, io.BytesIO(data), len(data))
    return data, _note_of(path, pa.BufferReader(data)), digest


def verified_in_place(path: Path) -> tuple[dict[str, Any], str]:
    """(note, digest) as ``verified``, for a file that may be larger than the memory."""
    try:
        with open_regular(path) as file:
            digest = _require_digest(path, file, os.fstat(file.fileno()).st_size)
            return _note_of(path, pa.PythonFile(file, "r")), digest
    except OSError as error:
        if isinstance(error, RapStoreError):
            raise
        raise store_error(f"{path}: cannot be read", error) from error


def _require_digest(path: Path, file: IO[bytes], size: int) -> str:
    """The digest that the file names, if its bytes have it. Raises ``RapStoreError``."""
    at, tail = -1, _TAIL
    while at < 0 and tail < 2 * max(size, _TAIL):  # the mark is near the end
        start = max(size - tail, 0)
        file.seek(start)
        at = file.read(tail).rfind(_MARK)
        tail *= 2
    if at < 0:
        what = "is cut off or no file of this project" if size else "is empty"
        raise RapStoreError(f"{path}: {what}")
    at += start + len(_MARK)
    check, left = hashlib.sha256(), at
    file.seek(0)
    while left and (piece := file.read(min(left, _PIECE))):
        check.update(piece)
        left -= len(piece)
    digest = file.read(len(_BLANK))
    check.update(_BLANK)
    while piece := file.read(_PIECE):
        check.update(piece)
    if check.hexdigest().encode() != digest:
        raise RapStoreError(f"{path}: is damaged: its SHA-256 does not match its bytes")
    return digest.decode()


def _note_of(path: Path, file: Any) -> dict[str, Any]:
    try:
        note = json.loads((pq.read_metadata(file).metadata or {})[_NOTE])
    except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
        raise RapStoreError(f"{path}: no file of this project: {error}") from error
    if not isinstance(note, dict):
        raise RapStoreError(f"{path}: no file of this project: its note is no object")
    check_version(path, note.get("schema_version"))
    return note


class OtherVersionError(RapStoreError):
    """Not damage: the file is fine for another version of this package."""


def check_version(path: Path, version: object) -> None:
    """Raises ``OtherVersionError`` unless ``version`` is this one's or an older one."""
    if isinstance(version, int) and 1 <= version <= SCHEMA_VERSION:
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise OtherVersionError(
            f"{path}: written with score schema {version}; this version reads up to "
            f"{SCHEMA_VERSION}. Score into another folder, or upgrade it: "
            f"{install(options='-U')}"
        )
    raise OtherVersionError(
        f"{path}: score schema {version!r} is not one this version knows "
        f"(1 to {SCHEMA_VERSION}); score into another folder"
    )
