"""The score store: a folder of shards that a killed run resumes from.

A folder::

    store.json              schema version, n_samples, shard_size, fingerprint
    lock                    held (POSIX record lock) while a process may write
    rollouts-00000.parquet  ROLLOUT_SCHEMA: every completion of shard 0 (if any were made)
    scores-00000.parquet    SCORE_SCHEMA: samples 0 .. shard_size - 1
    partial-00001.parquet   the first rows of a shard in progress, with their rollouts
    profile.json            where the time of its profiled runs went (``profile``), if any
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

A store of an older schema is read, and gone on with, as if its new columns were null
(``table.SINCE``).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from .fingerprint import as_json, in_words, other_run
from .lock import Lock
from .previous import Find, Kept, Previous
from .shards import PARTIAL_SCHEMA, Shards, read_header
from .table import ROLLOUT_SCHEMA, SCHEMA_VERSION, SCORE_SCHEMA

_SHARD = re.compile(r"(scores|rollouts|partial)-(\d{5,})\.parquet")
_TMP = re.compile(r"\..*\.tmp")


DATA = {"fingerprint.dataset", "n_samples"}
"""What may be another where rows are reused."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """How a store finds out what another data set has in common with its own.

    ``find``: see ``previous.Find``. ``same``: whether a data set's hash in an older store's
    header is that of this very data set."""

    find: Find
    same: Callable[[object], bool]


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
            "fingerprint": as_json(fingerprint),
        }
        if data is not None:
            header["data"] = as_json(data)
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(f"{folder}: cannot be made", error) from error
        lock = Lock(folder)
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
        table = scores.append_column(PARTIAL_SCHEMA.field("rollouts"), nested)
        note = self._note(k) | {"kind": "partial shard", "tally": dict(tally or {})}
        note |= {"rows": dict(rows)} if rows else {}
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

    def replace(self, k: int, scores: pa.Table) -> None:
        """Write the scores of the finished shard ``k`` anew: same rows, same rollouts."""
        wanted = self._writable(k)
        scores = scores.cast(SCORE_SCHEMA)
        if k not in self._done or scores["index"].to_pylist() != list(wanted):
            raise ValueError(f"shard {k} is not whole, or these are not its rows")
        _, note, _ = self._verified_shard(self._scores(k), k, "score shard")
        note["schema_version"] = SCHEMA_VERSION
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

    # -- inside

    def _same_but_data(self, fingerprint: Mapping[str, Any]) -> bool:
        lines = other_run(self.fingerprint, fingerprint, "fingerprint")
        return {line.partition(":")[0] for line in lines} <= DATA

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
