"""The score store: what has been scored is never lost and never mixed.

A folder::

    store.json              schema version, n_samples, shard_size, fingerprint
    lock                    held (POSIX record lock) while a process may write
    rollouts-00000.parquet  ROLLOUT_SCHEMA: every completion of shard 0 (if any were made)
    scores-00000.parquet    SCORE_SCHEMA: samples 0 .. shard_size - 1
    partial-00001.parquet   the first rows of a shard in progress, with their rollouts
    *.parquet.old           a shard that is being scored again; goes when it is
    *.corrupt               what was found damaged or foreign, set aside
    .*.tmp                  a write in progress; leftovers go at the next open

Shard k holds the rows with index ``shard_range(k)``. Its rollouts are written before
its scores, and the scores name the digest of their rollouts: a scores shard implies its
rollouts. A partial shard is one file, so it never disagrees with its rollouts.
``scores.files`` writes each file whole or not at all, also through kill -9 or power loss,
with a digest over all its bytes and a note (kind, schema version, fingerprint, shard
number, ...): one flipped bit anywhere makes the shard set aside, never a wrong score.

A store of an older schema is read, and gone on with, as if its new columns were null
(``table.SINCE``).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import RapConfigError, RapStoreError
from .files import (
    NO_FSYNC,
    OtherVersionError,
    store_error,
    verified,
    write_atomic,
    write_parquet,
)
from .fingerprint import as_json, other_run
from .lock import Lock
from .shards import PARTIAL_SCHEMA, Shards, read_header
from .table import ROLLOUT_SCHEMA, SCHEMA_VERSION, SCORE_SCHEMA

_SHARD = re.compile(r"(scores|rollouts|partial)-(\d{5,})\.parquet")
_TMP = re.compile(r"\..*\.tmp")


class ScoreStore(Shards):
    """Shards of scores in a folder; see the module's docstring.

    ``open`` to write (holds the lock until ``close``), ``load`` to read. Attributes:
    ``path``, ``n_samples``, ``shard_size``, ``fingerprint``, ``warnings`` (what was set
    aside at ``open``). Not for several threads at once.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], lock: Lock | None = None
    ) -> None:
        super().__init__(path, header)
        self.warnings: list[str] = []
        self._lock = lock
        self._done: set[int] = set()
        self._parts: set[int] = set()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fingerprint: Mapping[str, Any],
        n_samples: int,
        shard_size: int,
    ) -> ScoreStore:
        """Open to write, or make, a store; a context manager that holds the lock.

        ``fingerprint``: nested dict of JSON values, everything that decides a score:
        model, settings, seed, the data set's content hash, versions.

        Every shard's bytes are verified. One that is damaged, cut off, empty or of other
        origin is renamed to ``.corrupt``, is ``missing()`` again, and a ``UserWarning``
        says so. Raises ``RapConfigError`` naming the fields if the store was made with
        another fingerprint, n_samples or shard_size; ``RapStoreError`` if the folder
        cannot be written or locked, another process has it, or its schema is newer.
        """
        for name, value in (("n_samples", n_samples), ("shard_size", shard_size)):
            if value < 1:
                raise RapConfigError(f"{name} = {value!r}: expected an integer >= 1")
        header = {
            "kind": "store",
            "schema_version": SCHEMA_VERSION,
            "n_samples": n_samples,
            "shard_size": shard_size,
            "fingerprint": as_json(fingerprint),
        }
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(f"{folder}: cannot be made", error) from error
        lock = Lock(folder)
        try:
            store = cls(folder, header, lock)
            store._start(header)
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreStore:
        """Open to read, without a lock; a run may be writing (its finished shards are
        seen). Raises ``RapStoreError`` if there is no readable store."""
        folder = Path(path)
        header = read_header(folder / "store.json")
        if header is None:
            raise RapStoreError(f"{folder}: no score store here (store.json is missing)")
        return cls(folder, header)

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the lock go. Harmless when called twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def parts(self) -> list[int]:
        """Numbers of the shards of which ``partial`` has something, ascending."""
        return super().parts() if self._lock is None else sorted(self._parts)

    def write(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
    ) -> None:
        """Write shard ``k``, its rollouts first; when this returns it survives power
        loss. What was there of it before (whole, partial) is replaced.

        ``scores``: SCORE_SCHEMA, one row per index of ``shard_range(k)``, in order.
        ``rollouts``: ROLLOUT_SCHEMA with indices of that range, or None if none exist.
        ``tally``: counts that ``tally(k)`` gives back.
        Raises ``RapStoreError``; what was there before is intact then. ``ValueError``
        for rows that are not this shard's.
        """
        wanted = self._writable(k)
        scores = scores.cast(SCORE_SCHEMA)
        if scores["index"].to_pylist() != list(wanted):
            raise ValueError(f"shard {k} needs the rows {wanted}, in order")
        note = self._note(k)
        digest = None
        if rollouts is not None:
            rollouts = rollouts.cast(ROLLOUT_SCHEMA)
            if not set(rollouts["index"].unique().to_pylist()) <= set(wanted):
                raise ValueError(f"shard {k} holds rollouts of {wanted} only")
            digest = write_parquet(
                self._rollouts(k), rollouts, note | {"kind": "rollout shard"}
            )
        note |= {"kind": "score shard", "rollouts": digest, "tally": dict(tally or {})}
        write_parquet(self._scores(k), scores, note)
        self._done.add(k)
        self._remove(self._partial(k))
        self._remove(_old(self._scores(k)))
        self._parts.discard(k)

    def write_partial(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
    ) -> None:
        """Keep the first rows of shard ``k``, which is not whole yet; replaces what was
        kept of it before. Arguments and errors as for ``write``, but ``scores`` may end
        early, and ``rollouts`` must be in the order of the rows."""
        wanted = list(self._writable(k))
        scores = scores.cast(SCORE_SCHEMA)
        index = scores["index"].to_pylist()
        if k in self._done or not index or index != wanted[: len(index)]:
            raise ValueError(f"shard {k}: not the first rows of a shard in progress")
        rollouts = ROLLOUT_SCHEMA.empty_table() if rollouts is None else rollouts
        rollouts = rollouts.cast(ROLLOUT_SCHEMA).combine_chunks()
        of = rollouts["index"].to_numpy()
        ends = np.searchsorted(of, [*index, index[-1] + 1])
        if (np.diff(of) < 0).any() or ends[0] != 0 or ends[-1] != len(of):
            raise ValueError(f"shard {k}: rollouts that are not of its rows, in order")
        rows = pa.concat_arrays(rollouts.to_struct_array().chunks or [_NO_ROLLOUTS])
        nested = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), rows)
        table = scores.append_column(PARTIAL_SCHEMA.field("rollouts"), nested)
        note = self._note(k) | {"kind": "partial shard", "tally": dict(tally or {})}
        write_parquet(self._partial(k), table, note)
        self._parts.add(k)

    def redo(self, k: int) -> None:
        """Have shard ``k`` scored again: it is ``missing()`` from now on, also after a
        restart. Its old file stays beside it, as ``.old``, until ``write`` replaces it."""
        self._writable(k)
        try:
            if self._scores(k).exists():
                os.replace(self._scores(k), _old(self._scores(k)))
        except OSError as error:
            raise store_error(f"{self._scores(k)}: cannot be renamed", error) from error
        self._done.discard(k)
        self._remove(self._partial(k))
        self._parts.discard(k)

    # -- inside

    def _whole(self, k: int) -> bool:
        return super()._whole(k) if self._lock is None else k in self._done

    def _writable(self, k: int) -> range:
        if self._lock is None or self._lock.pid != os.getpid():
            raise RapStoreError(f"{self.path}: the store is not open for writing")
        return self.shard_range(k)

    def _note(self, k: int) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "shard": k,
            "fingerprint": self.fingerprint,
        }

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(f"{path}: cannot be removed", error) from error

    def _start(self, header: dict[str, Any]) -> None:
        """Everything ``open`` does once it holds the lock."""
        try:
            names = sorted(os.listdir(self.path))
            for name in filter(_TMP.fullmatch, names):
                (self.path / name).unlink()
        except OSError as error:
            raise store_error(f"{self.path}: cannot be cleaned up", error) from error
        self._check_header(header, names)
        if not (self.path / "store.json").exists():
            write_atomic(self.path / "store.json", lambda f: f.write(_dump(header)))
        self._probe_fsync()
        for name in names:
            match = _SHARD.fullmatch(name)
            if match and int(match[2]) >= self.n_shards:
                self._set_aside(self.path / name, "no shard of this store has that number")
        for k in range(self.n_shards):
            if self._is_good(k):
                self._done.add(k)
                self._remove(self._partial(k))  # we died between its two last steps
                self._remove(_old(self._scores(k)))
            elif self._is_good_part(k):
                self._parts.add(k)

    def _check_header(self, header: dict[str, Any], names: list[str]) -> None:
        path = self.path / "store.json"
        try:
            there = read_header(path)
        except OtherVersionError:
            raise
        except RapStoreError as error:
            self._set_aside(path, str(error))
            there = None
        if there is None:  # lost: the shards know what they were made with
            there = header | {"fingerprint": self._fingerprint_of_shards(names, header)}
        lines = other_run(header, there)
        if lines:
            text = "; ".join(line.removeprefix("fingerprint.") for line in lines)
            raise RapConfigError(
                f"{self.path}: the store was made with other settings: {text}. Use those "
                "settings, or another folder"
            )

    def _fingerprint_of_shards(
        self, names: list[str], header: dict[str, Any]
    ) -> dict[str, Any]:
        for name in filter(_SHARD.fullmatch, names):
            try:
                _, note, _ = verified(self.path / name)
            except OtherVersionError:
                raise
            except RapStoreError:
                continue
            if "fingerprint" in note:
                return note["fingerprint"]
        return header["fingerprint"]

    def _is_good(self, k: int) -> bool:
        """Shard ``k`` is whole, with its rollouts; what is not is set aside."""
        path = self._scores(k)
        if not os.path.lexists(path):
            return False
        try:
            _, note, _ = self._verified_shard(path, k, "score shard")
        except OtherVersionError:
            raise
        except RapStoreError as error:
            self._set_aside(path, str(error))
            return False
        if note["rollouts"] is None:
            return True
        try:
            self._verified_rollouts(k, note["rollouts"])
        except OtherVersionError:
            raise
        except RapStoreError as error:
            if os.path.lexists(self._rollouts(k)):
                self._set_aside(self._rollouts(k), str(error))
            else:
                self._warn(f"{self._rollouts(k)} is missing; its samples are scored again")
            return False
        return True

    def _is_good_part(self, k: int) -> bool:
        """Something is kept of shard ``k``, which is not whole; damage is set aside."""
        try:
            return self.partial(k) is not None
        except OtherVersionError:
            raise
        except (RapStoreError, pa.ArrowException, ValueError) as error:
            self._set_aside(self._partial(k), str(error))
            return False

    def _set_aside(self, path: Path, why: str) -> None:
        """Rename to ``.corrupt``: nothing is deleted, someone may want to look."""
        target = path.with_name(path.name + ".corrupt")
        number = 2
        while os.path.lexists(target):
            target = path.with_name(f"{path.name}.{number}.corrupt")
            number += 1
        try:
            os.rename(path, target)
        except OSError as error:
            raise store_error(f"{path}: cannot be set aside", error) from error
        self._warn(f"{why}; set aside as {target.name}, its samples are scored again")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        warnings.warn(text, UserWarning, stacklevel=5)

    def _probe_fsync(self) -> None:
        """Say at the start, not after a power loss, that a rename is not durable here."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in NO_FSYNC:
                raise store_error(f"{self.path}: cannot be synced", error) from error
            self._warn(
                f"{self.path}: this file system cannot sync a folder; a power loss may "
                "lose the last shards (a killed process loses nothing)"
            )
        finally:
            os.close(handle)


_NO_ROLLOUTS = pa.array([], pa.struct(list(ROLLOUT_SCHEMA)))


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _dump(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
