"""The score store: a folder of shards that a killed run resumes from.

A folder::

    store.json              schema version, n_samples, shard_size, fingerprint
    lock                    held (POSIX record lock) while a process may write
    rollouts-00000.parquet  ROLLOUT_SCHEMA: every completion of shard 0 (if any were made)
    scores-00000.parquet    SCORE_SCHEMA: samples 0 .. shard_size - 1
    partial-00001.parquet   some rows of a shard in progress, with their rollouts
    refused.json            why the last run did not end well (``judge``), if so
    profile.json            where the time of its profiled runs went (``profile``), if any
    previous/               what was scored before the data set changed (``previous``)
    *.parquet.old           a shard that is being scored again; goes when it is
    *.corrupt               what was found damaged or foreign, set aside
    .*.tmp                  a write in progress; leftovers go at the next open
    plan.json, claims/, index/
                            while many processes fill it (``shardplan``, ``claims``)

Shard k holds the rows with index ``shard_range(k)``. Its rollouts are written before
its scores, and the scores name the digest of their rollouts: a scores shard implies its
rollouts. A partial shard is one file, so it never disagrees with its rollouts.
``scores.files`` writes each file whole or not at all, also through kill -9 or power loss,
with a digest over all its bytes and a note (kind, schema version, fingerprint, shard
number, ...): one flipped bit anywhere makes the shard set aside, never a wrong score.

A store is a cache a sample: where only the data set is another, the rows of its unchanged
samples are taken over (``Reuse``), and what has to be scored is what is new or changed.

A store of an older schema is read, and gone on with, as if its new columns were null
(``table.SINCE``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapConfigError, RapStoreError
from .completions import StoredCompletions
from .drawn import DRAWN_COLUMNS, Drawn
from .files import (
    NO_FSYNC,
    OtherVersionError,
    decoded_columns,
    make_folder,
    store_error,
    verified,
    write_atomic,
    write_parquet,
)
from .fingerprint import as_json, in_words, other_run
from .lock import Lock
from .owner import stale_tmps
from .previous import DATA, Reuse
from .shardplan import have_alone
from .shards import Partial, columns_of, read_header
from .table import SCHEMA_VERSION, SCORE_SCHEMA
from .writer import Shard, ShardWriter, old

_SHARD = re.compile(r"(scores|rollouts|partial)-(\d{5,})\.parquet")
_TMP_AGE = 3600.0
"""Seconds after which a temporary file of another machine is left over."""


class ScoreStore(ShardWriter):
    """Shards of scores in a folder; see the module's docstring.

    ``open`` to write (holds the lock until ``close``), ``load`` to read. Attributes:
    ``path``, ``n_samples``, ``shard_size``, ``fingerprint``, ``warnings`` (what was set
    aside at ``open``). Not for several threads at once.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], lock: Lock | None = None
    ) -> None:
        super().__init__(path, header)
        self._lock = lock
        self._done: dict[int, Shard] = {}
        self._parts: dict[int, Partial] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fingerprint: Mapping[str, Any],
        n_samples: int,
        shard_size: int,
        *,
        data: Mapping[str, Any] | None = None,
        reuse: Reuse | None = None,
        shared: bool = False,
    ) -> ScoreStore:
        """Open to write, or make, a store; a context manager that holds the lock.

        ``fingerprint``: nested dict of JSON values, everything that decides a score:
        model, settings, seed, the data set's content hash, versions.
        ``data``: what is known of the data set, for ``meta``; decides nothing.
        ``reuse``: what makes another data set welcome: where nothing else differs and it
        has a sample in common with the store, the old shards move to ``previous/`` and
        ``reused`` gives their rows back. None: another data set is refused.
        ``shared``: the caller holds the claim to plan or to seal the store; its plan stays,
        and a file system without locks will do. Else a store on which workers are at work
        is refused, and the plan of others is void.

        Every shard's bytes are verified, and read only this once: a writer keeps the score
        tables that it found. One that is damaged, cut off, empty or of other
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
        if data is not None:
            header["data"] = as_json(data)
        folder = Path(path)
        make_folder(folder)
        lock = Lock(folder, required=not shared)
        try:
            if not shared:
                have_alone(folder)
            store = cls(folder, header, lock)
            store._start(header, reuse)
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

    def redo(self, k: int) -> None:
        """Have shard ``k`` scored again: it is ``missing()`` from now on, also after a
        restart. Its old file stays beside it, as ``.old``, until ``write`` replaces it."""
        self._writable(k)
        try:
            if self._scores(k).exists():
                os.replace(self._scores(k), old(self._scores(k)))
        except OSError as error:
            raise store_error(f"{self._scores(k)}: cannot be renamed", error) from error
        self._done.pop(k, None)
        self._remove(self._partial(k))
        self._parts.pop(k, None)

    def replace(self, k: int, scores: pa.Table) -> None:
        """Write the scores of the finished shard ``k`` anew: same rows, same rollouts."""
        wanted = self._writable(k)
        scores = scores.cast(SCORE_SCHEMA)
        if k not in self._done or scores["index"].to_pylist() != list(wanted):
            raise ValueError(f"shard {k} is not whole, or these are not its rows")
        _, note, _ = self._verified_shard(self._scores(k), k, "score shard")
        note["schema_version"] = SCHEMA_VERSION
        write_parquet(self._scores(k), scores, note)
        self._done[k] = dataclasses.replace(self._done[k], table=None)

    def read_shard(self, k: int) -> pa.Table:
        """As ``Shards.read_shard``; what ``open`` read is not read again."""
        known = self._done.get(k)
        if known is None or known.table is None:
            return super().read_shard(k)
        return known.table

    def tally(self, k: int) -> dict[str, int]:
        """As ``Shards.tally``, without reading."""
        return super().tally(k) if k not in self._done else self._done[k].tally

    def partial(self, k: int) -> Partial | None:
        """As ``Shards.partial``, without reading again."""
        return super().partial(k) if self._lock is None else self._parts.get(k)

    def drawn(self) -> Drawn:
        """The completions of the finished shards, without reading them."""
        return sum((shard.drawn for shard in self._done.values()), Drawn())

    def completions(self) -> StoredCompletions | None:
        """The completions of the finished shards, read when asked for; None if none
        exist."""
        if self._lock is None:
            digests = {k: self.rollouts_digest(k) for k in self.finished()}
        else:
            digests = {k: shard.rollouts for k, shard in self._done.items()}
        there = {k: digest for k, digest in digests.items() if digest is not None}
        return StoredCompletions(self.path, there) if there else None

    # -- inside

    def _whole(self, k: int) -> bool:
        return super()._whole(k) if self._lock is None else k in self._done

    def _took(self, k: int, shard: Shard) -> None:
        self._done[k] = shard
        self._parts.pop(k, None)

    def _took_part(self, k: int, part: Partial) -> None:
        self._parts[k] = part

    def _writable(self, k: int) -> range:
        if self._lock is None or self._lock.pid != os.getpid():
            raise RapStoreError(f"{self.path}: the store is not open for writing")
        return self.shard_range(k)

    def _start(self, header: dict[str, Any], reuse: Reuse | None) -> None:
        """Everything ``open`` does once it holds the lock."""
        try:
            names = sorted(os.listdir(self.path))
            for name in stale_tmps(self.path, names, _TMP_AGE):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise store_error(f"{self.path}: cannot be cleaned up", error) from error
        there = self._header_there(header, names)
        if self._is_another(header, there, names, reuse):
            shards = [name for name in names if _SHARD.fullmatch(name)]
            if shards:
                self._previous.put_by(shards, there)
            names = [name for name in names if name not in shards]
        else:
            self.fingerprint = there["fingerprint"]
            header = there | ({"data": self.data} if self.data is not None else {})
        path = self.path / "store.json"
        if not path.exists() or path.read_bytes() != _dump(header):
            write_atomic(path, lambda f: f.write(_dump(header)))
        self._probe_fsync()
        for name in names:
            match = _SHARD.fullmatch(name)
            if match and int(match[2]) >= self.n_shards:
                self._set_aside(self.path / name, "no shard of this store has that number")
        for k in range(self.n_shards):
            if (shard := self._good(k)) is not None:
                self._done[k] = shard
                self._remove(self._partial(k))  # we died between its two last steps
                self._remove(old(self._scores(k)))
            elif (part := self._good_part(k)) is not None:
                self._parts[k] = part

    def _header_there(self, header: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """What the store was made with; ours if there is none."""
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
        return there

    def _is_another(
        self,
        header: dict[str, Any],
        there: dict[str, Any],
        names: list[str],
        reuse: Reuse | None,
    ) -> bool:
        """The store is of an older data set that has samples in common with this one, or of
        which nothing is scored yet. Raises ``RapConfigError`` if it is of another run."""
        lines = other_run(header, there)
        fields = {line.partition(":")[0] for line in lines}
        if not lines:
            return False
        if reuse is not None and fields <= DATA:
            dataset = there["fingerprint"].get("dataset")
            if "n_samples" not in fields and reuse.same(dataset):
                return False
            folders = {self.path: names}
            folders |= {path: os.listdir(path) for path in self._previous.generations()}
            found = [name for listed in folders.values() for name in listed]
            if not any(map(_SHARD.fullmatch, found)) or any(
                self._previous.holds_any(path, listed, reuse.find)
                for path, listed in folders.items()
            ):
                return True
        raise RapConfigError(
            f"{self.path}: the store was made with other settings: "
            f"{'; '.join(map(in_words, lines))}. Use those settings, or another folder"
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

    def _good(self, k: int) -> Shard | None:
        """Shard ``k`` if it is whole, with its rollouts; what is not is set aside."""
        path = self._scores(k)
        if not os.path.lexists(path):
            return None
        try:
            data, note, _ = self._verified_shard(path, k, "score shard")
            table = columns_of(path, data, SCORE_SCHEMA.names)
        except OtherVersionError:
            raise
        except RapStoreError as error:
            self._set_aside(path, str(error))
            return None
        digest, tally = note["rollouts"], note.get("tally", {})
        if digest is None:
            return Shard(table, None, tally, Drawn())
        try:
            data = self._verified_rollouts(k, digest)
            drawn = decoded_columns(self._rollouts(k), data, DRAWN_COLUMNS)[0]
            return Shard(table, digest, tally, Drawn.of(drawn))
        except OtherVersionError:
            raise
        except RapStoreError as error:
            if os.path.lexists(self._rollouts(k)):
                self._set_aside(self._rollouts(k), str(error))
            else:
                self._warn(f"{self._rollouts(k)} is missing; its samples are scored again")
            return None

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


def _dump(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
