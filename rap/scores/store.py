"""The score store: what has been scored is never lost and never mixed.

A folder::

    store.json              schema version, n_samples, shard_size, fingerprint
    lock                    held (POSIX record lock) while a process may write
    rollouts-00000.parquet  ROLLOUT_SCHEMA: every completion of shard 0 (if any were made)
    scores-00000.parquet    SCORE_SCHEMA: samples 0 .. shard_size - 1
    partial-00001.parquet   the first rows of a shard in progress, with their rollouts
    previous/               what was scored before the data set changed (``previous``)
    *.parquet.old           a shard that is being scored again; goes when it is
    *.corrupt               what was found damaged or foreign, set aside
    .*.tmp                  a write in progress; leftovers go at the next open

Shard k holds the rows with index ``shard_range(k)``. Its rollouts are written before
its scores, and the scores name the digest of their rollouts: a scores shard implies its
rollouts. A partial shard is one file, so it never disagrees with its rollouts.
``scores.files`` writes each file whole or not at all, also through kill -9 or power loss,
with a digest over all its bytes and a note (kind, schema version, fingerprint, shard
number, ...): one flipped bit anywhere makes the shard set aside, never a wrong score.

A store is a cache a sample: where only the data set is another, the rows of its unchanged
samples are taken over (``Reuse``), and what has to be scored is what is new or changed.

The lock is a POSIX record lock, not flock: a forked data-loader worker does not inherit
it, so it dies with the process that took it, and a dead process's lock is simply free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import RapConfigError, RapStoreError
from .files import (
    NO_FSYNC,
    OtherVersionError,
    check_version,
    decoded,
    store_error,
    verified,
    write_atomic,
    write_parquet,
)
from .previous import Find, Kept, Previous
from .table import ROLLOUT_SCHEMA, SCHEMA_VERSION, SCORE_SCHEMA

_SHARD = re.compile(r"(scores|rollouts|partial)-(\d{5,})\.parquet")
_TMP = re.compile(r"\..*\.tmp")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_PARTIAL_SCHEMA = SCORE_SCHEMA.append(
    pa.field("rollouts", pa.list_(pa.struct(list(ROLLOUT_SCHEMA))))
)

# A record lock does not keep out a second store of the same process: this does.
_open_here: set[str] = set()


# ---------------------------------------------------------------- fingerprint


def differences(ours: object, theirs: object, prefix: str = "") -> list[str]:
    """One line a field that differs, e.g. ``config.sampling.temperature: 1.0 here, 0.7
    in the store``. Both are JSON values; a key that one side lacks reads "absent"."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        lines = []
        for key in sorted({*ours, *theirs}):
            name = f"{prefix}.{key}" if prefix else key
            lines += differences(ours.get(key, _ABSENT), theirs.get(key, _ABSENT), name)
        return lines
    # 1 and 1.0 and True are equal in Python, but only the first two mean the same.
    if ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool):
        return []
    return [f"{prefix}: {_show(ours)} here, {_show(theirs)} in the store"]


_ABSENT = object()


UNCHECKED = ("fingerprint.model.name_or_path", "fingerprint.model.revision", "data")
"""Said of a run, but no score depends on it: a model is its weights and processor."""

DATA = ("fingerprint.dataset", "n_samples")
"""What may be another where rows are reused."""

_IN_WORDS = {
    "model.weights_sha256": "the model's weights are others",
    "model.processor_sha256": "the processor (tokenizer, chat template, image settings) is "
    "another",
    "dataset": "the data set is another",
}


def _in_words(line: str) -> str:
    """A line of ``differences`` for people: hashes say nothing to them."""
    line = line.removeprefix("fingerprint.")
    name, _, rest = line.partition(": ")
    return (
        f"{name}: {_IN_WORDS[name]}" if name in _IN_WORDS and _HASH.search(rest) else line
    )


_HASH = re.compile(r"[0-9a-f]{64}")


def _checked(lines: list[str]) -> dict[str, str]:
    """{field: line} of what decides a score."""
    named = {line.partition(":")[0]: line for line in lines}
    return {
        name: line
        for name, line in named.items()
        if not any(name == other or name.startswith(f"{other}.") for other in UNCHECKED)
    }


def _show(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else text[:197] + "..."


def _as_json(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples are lists, keys text."""
    try:
        return json.loads(json.dumps(fingerprint, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RapConfigError(f"fingerprint: cannot be written as JSON: {error}") from error


# ---------------------------------------------------------------- lock


class _Lock:
    """The right to write into a folder, held until ``release`` or the process ends."""

    def __init__(self, folder: Path) -> None:
        self.key = os.path.realpath(folder)
        self.path = folder / "lock"
        self.pid = os.getpid()
        if self.key in _open_here:
            raise RapStoreError(f"{folder}: this process has the store open already")
        try:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise store_error(f"{folder}: cannot be written to", error) from error
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = {"pid": self.pid, "host": socket.gethostname(), "since": _now()}
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, json.dumps(owner).encode(), 0)
        except OSError as error:
            refused = self._refused(folder, error)
            os.close(self.handle)
            raise refused from error
        _open_here.add(self.key)

    def _refused(self, folder: Path, error: OSError) -> RapStoreError:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = os.pread(self.handle, 1000, 0).decode(errors="replace")
            return RapStoreError(
                f"{folder}: another process is scoring into this store ({owner}); wait "
                "for it, or use another folder"
            )
        if error.errno in _NO_LOCKS:
            return RapStoreError(
                f"{folder}: this file system has no locks ({error.strerror}), so two runs "
                "could mix; put the store on a local disk"
            )
        return store_error(f"{folder}: cannot be locked", error)

    def release(self) -> None:
        if self.pid != os.getpid():  # a forked child holds nothing
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self.handle, 0)
        os.close(self.handle)  # lets the record lock go
        _open_here.discard(self.key)


def _now() -> str:
    """For the message of a refused lock only; it reaches no other file."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# ---------------------------------------------------------------- store


@dataclass(frozen=True, slots=True)
class Partial:
    """The first rows of a shard, as ``ScoreStore.write_partial`` was given them."""

    scores: pa.Table
    rollouts: pa.Table | None
    tally: dict[str, int]
    rows: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reuse:
    """How a store finds out what another data set has in common with its own.

    ``find``: see ``previous.Find``. ``same``: whether a data set's hash in an older store's
    header is that of this very data set."""

    find: Find
    same: Callable[[object], bool]


class ScoreStore:
    """Shards of scores in a folder; see the module's docstring.

    ``open`` to write (holds the lock until ``close``), ``load`` to read. Attributes:
    ``path``, ``n_samples``, ``shard_size``, ``fingerprint``, ``warnings`` (what was set
    aside at ``open``). Not for several threads at once.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], lock: _Lock | None = None
    ) -> None:
        self.path = path
        self.n_samples: int = header["n_samples"]
        self.shard_size: int = header["shard_size"]
        self.fingerprint: dict[str, Any] = header["fingerprint"]
        self.warnings: list[str] = []
        self._lock = lock
        self._done: set[int] = set()
        self._parts: set[int] = set()
        self._data: Mapping[str, Any] | None = header.get("data")
        self._previous = Previous(path)

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
    ) -> ScoreStore:
        """Open to write, or make, a store; a context manager that holds the lock.

        ``fingerprint``: nested dict of JSON values, everything that decides a score:
        model, settings, seed, the data set's content hash, versions.
        ``data``: what is known of the data set, for ``meta``; decides nothing.
        ``reuse``: what makes another data set welcome: where nothing else differs and it
        has a sample in common with the store, the old shards move to ``previous/`` and
        ``reused`` gives their rows back. None: another data set is refused.

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
            "fingerprint": _as_json(fingerprint),
        }
        if data is not None:
            header["data"] = _as_json(data)
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(f"{folder}: cannot be made", error) from error
        lock = _Lock(folder)
        try:
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
        header = _read_header(folder / "store.json")
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

    @property
    def meta(self) -> dict[str, Any]:
        """What ``Scores.meta`` holds: schema version, fingerprint, sizes."""
        known = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "n_samples": self.n_samples,
            "shard_size": self.shard_size,
        }
        return known if self._data is None else known | {"data": dict(self._data)}

    @property
    def n_shards(self) -> int:
        return -(-self.n_samples // self.shard_size)

    def shard_range(self, k: int) -> range:
        """The sample indices of shard ``k``."""
        if not 0 <= k < self.n_shards:
            raise IndexError(f"shard {k} of {self.n_shards}")
        start = k * self.shard_size
        return range(start, min(start + self.shard_size, self.n_samples))

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there (whole), ascending."""
        if self._lock is not None:
            return [k for k in range(self.n_shards) if k not in self._done]
        return [k for k in range(self.n_shards) if not self._scores(k).exists()]

    def write(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
        rows: Mapping[str, list[Any]] | None = None,
    ) -> None:
        """Write shard ``k``, its rollouts first; when this returns it survives power
        loss. What was there of it before (whole, partial) is replaced.

        ``scores``: SCORE_SCHEMA, one row per index of ``shard_range(k)``, in order.
        ``rollouts``: ROLLOUT_SCHEMA with indices of that range, or None if none exist.
        ``tally``: counts that ``tally(k)`` gives back.
        ``rows``: what to know of each row where it is reused, lists of JSON values:
        ``inputs`` (a hash of what else it was scored from), ``groups`` (its part of tally).
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
        note |= {"rows": dict(rows)} if rows else {}
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
        rows: Mapping[str, list[Any]] | None = None,
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
        flat = pa.concat_arrays(rollouts.to_struct_array().chunks or [_NO_ROLLOUTS])
        nested = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), flat)
        table = scores.append_column(_PARTIAL_SCHEMA.field("rollouts"), nested)
        note = self._note(k) | {"kind": "partial shard", "tally": dict(tally or {})}
        note |= {"rows": dict(rows)} if rows else {}
        write_parquet(self._partial(k), table, note)
        self._parts.add(k)

    def partial(self, k: int) -> Partial | None:
        """What is kept of shard ``k`` while it is not whole; None if nothing is.

        Raises ``RapStoreError`` if it is damaged (``open`` has set such a file aside).
        """
        path = self._partial(k)
        whole = k in self._done or (self._lock is None and self._scores(k).exists())
        if whole or not path.exists():
            return None
        data, note, _ = self._verified_shard(path, k, "partial shard")
        table = decoded(path, data).cast(_PARTIAL_SCHEMA)
        wanted = list(self.shard_range(k))
        if table["index"].to_pylist() != wanted[: table.num_rows]:
            raise RapStoreError(f"{path}: holds other rows than the first of its shard")
        flat = pa.concat_arrays(table["rollouts"].chunks).flatten()
        rollouts = pa.Table.from_struct_array(flat).cast(ROLLOUT_SCHEMA)
        scores = table.drop_columns(["rollouts"])
        rollouts = rollouts if len(flat) else None
        return Partial(scores, rollouts, note.get("tally", {}), note.get("rows") or {})

    def tally(self, k: int) -> dict[str, int]:
        """The counts that ``write`` was given. Raises ``RapStoreError``."""
        _, note, _ = self._verified_shard(self._scores(k), k, "score shard")
        return note.get("tally", {})

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

    def replace(self, k: int, scores: pa.Table) -> None:
        """Write the scores of the finished shard ``k`` anew: same rows, same rollouts."""
        wanted = self._writable(k)
        scores = scores.cast(SCORE_SCHEMA)
        if k not in self._done or scores["index"].to_pylist() != list(wanted):
            raise ValueError(f"shard {k} is not whole, or these are not its rows")
        _, note, _ = self._verified_shard(self._scores(k), k, "score shard")
        write_parquet(self._scores(k), scores, note)

    def look_back(self, reuse: Reuse) -> int:
        """How many samples of unfinished shards were scored before, for an older data set,
        and are unchanged: ``reused`` has them."""
        if not self._previous.generations() or not self.missing():
            return 0
        self._previous.index(self.n_samples, reuse.find, self._same_but_data)
        return sum(
            self._previous.has(i) for k in self.missing() for i in self.shard_range(k)
        )

    def reusable(self, i: int) -> bool:
        """``reused`` has sample ``i`` (after ``look_back``)."""
        return self._previous.has(i)

    def reused(self, wanted: Iterable[int]) -> dict[int, Kept]:
        """{sample: its row and rollouts} of those that ``look_back`` found. ``index`` and
        group are those of the older data set. Raises ``RapStoreError``."""
        return self._previous.rows(wanted)

    def clear_previous(self) -> None:
        """Remove older shards that the store has taken over as a whole; it is whole now."""
        if not self.missing():
            self._previous.prune()

    def _same_but_data(self, fingerprint: Mapping[str, Any]) -> bool:
        lines = differences(self.fingerprint, fingerprint, "fingerprint")
        return not (_checked(lines).keys() - set(DATA))

    def finished(self) -> list[int]:
        """Numbers of the shards that are there (whole), ascending."""
        missing = set(self.missing())
        return [k for k in range(self.n_shards) if k not in missing]

    def parts(self) -> list[int]:
        """Numbers of the shards of which ``partial`` has something, ascending."""
        if self._lock is not None:
            return sorted(self._parts)
        return [k for k in self.missing() if self._partial(k).exists()]

    def n_kept(self) -> int:
        """Rows that a run which goes on need not score again."""
        kept = sum(len(self.shard_range(k)) for k in self.finished())
        for k in self.parts():
            part = self.partial(k)
            kept += 0 if part is None else part.scores.num_rows
        return kept

    def read(self) -> pa.Table:
        """All scores, in data-set order.

        Raises ``RapStoreError`` if shards are missing or damaged.
        """
        missing = self.missing()
        if missing:
            raise RapStoreError(
                f"{self.path}: {len(missing)} of {self.n_shards} shards are not scored yet "
                f"(first: {missing[0]}); run the same scoring command again to go on"
            )
        return pa.concat_tables(self.read_shard(k) for k in range(self.n_shards))

    def read_shard(self, k: int) -> pa.Table:
        """Scores of shard ``k``. Raises ``RapStoreError`` if it is missing or damaged."""
        data, _, _ = self._verified_shard(self._scores(k), k, "score shard")
        return decoded(self._scores(k), data).cast(SCORE_SCHEMA)

    def read_rollouts(self) -> pa.Table | None:
        """All rollouts of the finished shards, in data-set order; None if none exist.

        Raises ``RapStoreError`` if one is missing or damaged.
        """
        tables = []
        for k in range(self.n_shards):
            if not self._scores(k).exists():
                continue
            _, note, _ = self._verified_shard(self._scores(k), k, "score shard")
            if note["rollouts"] is not None:
                data = self._verified_rollouts(k, note["rollouts"])
                tables.append(decoded(self._rollouts(k), data).cast(ROLLOUT_SCHEMA))
        return pa.concat_tables(tables) if tables else None

    # -- inside

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

    def _partial(self, k: int) -> Path:
        return self.path / f"partial-{k:05d}.parquet"

    def _scores(self, k: int) -> Path:
        return self.path / f"scores-{k:05d}.parquet"

    def _rollouts(self, k: int) -> Path:
        return self.path / f"rollouts-{k:05d}.parquet"

    def _verified_shard(
        self, path: Path, k: int, kind: str
    ) -> tuple[bytes, dict[str, Any], str]:
        """(bytes, note, digest) of a shard that is shard ``k`` of this very store."""
        data, note, digest = verified(path)
        if note.get("kind") != kind or note.get("shard") != k:
            raise RapStoreError(f"{path}: holds {note.get('kind')} {note.get('shard')}")
        other = differences(self.fingerprint, note.get("fingerprint"), "fingerprint")
        if other:
            raise RapStoreError(f"{path}: is of another run ({other[0]})")
        return data, note, digest

    def _verified_rollouts(self, k: int, wanted: str) -> bytes:
        path = self._rollouts(k)
        data, _, digest = self._verified_shard(path, k, "rollout shard")
        if digest != wanted:
            raise RapStoreError(f"{path}: is not what {self._scores(k).name} was made from")
        return data

    def _start(self, header: dict[str, Any], reuse: Reuse | None) -> None:
        """Everything ``open`` does once it holds the lock."""
        try:
            names = sorted(os.listdir(self.path))
            for name in filter(_TMP.fullmatch, names):
                (self.path / name).unlink()
        except OSError as error:
            raise store_error(f"{self.path}: cannot be cleaned up", error) from error
        there = self._header_there(header, names)
        if self._is_another(header, there, names, reuse):
            shards = [name for name in names if _SHARD.fullmatch(name)]
            if shards:
                self._previous.put_by(shards, there)
            names = [name for name in names if name not in shards]
        else:
            self.fingerprint = header["fingerprint"] = there["fingerprint"]
        path = self.path / "store.json"
        if not path.exists() or path.read_bytes() != _dump(header):
            write_atomic(path, lambda f: f.write(_dump(header)))
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

    def _header_there(self, header: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """What the store was made with; ours if there is none."""
        path = self.path / "store.json"
        try:
            there = _read_header(path)
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
        which nothing is scored yet.
        Raises ``RapConfigError`` where it is of another run."""
        found = _checked(differences(header, there))
        if found.keys() == {DATA[0]} and reuse is not None:
            if reuse.same(there["fingerprint"].get("dataset")):
                return False
        if not found:
            return False
        if found.keys() <= set(DATA) and reuse is not None:
            folders = {self.path: names}
            folders |= {path: os.listdir(path) for path in self._previous.generations()}
            nothing = not any(map(_SHARD.fullmatch, sum(folders.values(), [])))
            if nothing or any(
                self._previous.holds_any(path, there, reuse.find)
                for path, there in folders.items()
            ):
                return True
        text = "; ".join(map(_in_words, found.values()))
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


def _read_header(path: Path) -> dict[str, Any] | None:
    """store.json; None if there is none. Raises ``RapStoreError`` if it is damaged."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(f"{path}: cannot be read", error) from error
    try:
        header = json.loads(text)
        version = header["schema_version"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise RapStoreError(f"{path}: is damaged: {error!r}") from error
    check_version(path, version)
    names = ("n_samples", "shard_size")
    ok = all(isinstance(header.get(n), int) and header[n] >= 1 for n in names)
    if not ok or not isinstance(header.get("fingerprint"), dict):
        raise RapStoreError(f"{path}: is damaged: not the header of a score store")
    return header
