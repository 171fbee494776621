"""``rap merge``: one store of several that hold parts of one run.

The parts are stores that were scored apart, each with some of the shards (``rap score
--executor env --shard i/n --no-steal``, one folder each): of the same rows, shard size and
fingerprint. Every shard has to be in exactly one of them. The files are copied as they are,
so that the merged store is byte for byte the one that a single run would have filled; its
profile is the sum of those of the parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import RapConfigError, RapInputError, RapStoreError
from .claims import Claims, require_idle
from .files import store_error, write_atomic
from .fingerprint import in_words, other_run
from .judge import judge_whole, verdict_kept
from .profile import join_profiles
from .sealing import limits
from .shardplan import has_plan
from .store import ScoreStore

SHOWN = 5
"""Shards that a refusal names."""


def merge(
    stores: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    max_bad_fraction: float | None = None,
    allow_degenerate: bool = False,
) -> ScoreStore:
    """Join stores into a new one at ``out``, and give it back, open to be read.

    Every byte is verified, and the whole is judged as `rap.score` judges it, by these two
    limits. Killed half-way, the same call goes on.

    Raises ``RapConfigError`` naming the field where two of them are of different runs,
    ``RapInputError`` naming the shards and rows that more than one of them has or none, or
    if too much is bad, ``RapModelError`` for degenerate completions, ``RapStoreError`` for
    a store that is missing, damaged or at work, or an ``out`` that holds something else.
    """
    if isinstance(stores, (str, os.PathLike)):
        raise RapInputError(f"merge: {stores!r} is one path; expected a list of stores")
    parts = [ScoreStore.load(path) for path in stores]
    if len(parts) < 2:
        raise RapInputError("merge: expected two stores or more")
    for part in parts:
        _require_idle(part.path)
        _require_same(parts[0], part)
    places = _places(parts)
    folder = Path(out)
    if any(folder.resolve() == part.path.resolve() for part in parts):
        raise RapInputError(f"--out {folder}: is one of the stores that are merged")
    first = parts[0]
    _require_fresh(folder, first)
    about = (first.fingerprint, first.n_samples, first.shard_size)
    with ScoreStore.open(folder, *about, data=first.data) as merged:
        missing = merged.missing()
    for k in missing:
        for name, data in parts[places[k]].files_of(k).items():

            def fill(file: IO[bytes], data: bytes = data) -> None:
                file.write(data)

            write_atomic(folder / name, fill)
    join_profiles([part.path for part in parts], folder)
    whole = ScoreStore.load(folder)
    with verdict_kept(folder):
        judge_whole(whole, limits(first.fingerprint, max_bad_fraction), allow_degenerate)
    return whole


def _require_idle(store: Path) -> None:
    if has_plan(store):
        with Claims(store) as claims:
            require_idle(store, claims)


def _header(store: ScoreStore) -> Mapping[str, Any]:
    names = ("n_samples", "shard_size", "fingerprint")
    return {name: getattr(store, name) for name in names}


def _require_same(first: ScoreStore, part: ScoreStore) -> None:
    """Raises ``RapConfigError`` for a store of another run."""
    if part.fingerprint.get("config", {}).get("evidence") == "cascade":
        raise RapConfigError(
            f"{part.path}: evidence 'cascade' scores samples by what others have shown: "
            "its parts cannot be scored apart"
        )
    lines = other_run(_header(first), _header(part))
    if lines:
        said = "; ".join(map(in_words, lines))
        said = said.replace(" in the store", f" in {part.path}")
        said = said.replace(" here, ", f" in {first.path}, ")
        raise RapConfigError(f"{part.path}: is not a part of the same run: {said}")


def _places(parts: Sequence[ScoreStore]) -> dict[int, int]:
    """{shard: the part that has it}. Raises ``RapInputError`` for one that is in several,
    or in none."""
    found: dict[int, int] = {}
    twice: dict[int, tuple[int, int]] = {}
    for place, part in enumerate(parts):
        for k in part.finished():
            if found.setdefault(k, place) != place:
                twice[k] = found[k], place
    if twice:
        a, b = next(iter(twice.values()))
        if parts[a].path.resolve() == parts[b].path.resolve():
            raise RapInputError(f"{parts[a].path} is named twice")
        raise RapInputError(
            f"{parts[a].path} and {parts[b].path} overlap: both have "
            f"{_named(parts[0], twice)}; parts that are scored apart with --shard i/n need "
            "--no-steal, or each takes the others' shards"
        )
    gaps = [k for k in range(parts[0].n_shards) if k not in found]
    if gaps:
        raise RapInputError(
            f"no store has {_named(parts[0], gaps)}: score them first, or name the store "
            "that has them"
        )
    return found


def _named(store: ScoreStore, shards: Iterable[int]) -> str:
    """ "shards 3, 7 (samples 12 to 15, 28 to 31)"."""
    numbers = sorted(shards)
    shown = numbers[:SHOWN]
    more = ", ..." * (len(numbers) > SHOWN)
    ranges = (store.shard_range(k) for k in shown)
    rows = ", ".join(f"{r.start} to {r.stop - 1}" for r in ranges)
    what = "shard" if len(numbers) == 1 else f"{len(numbers)} shards"
    return f"{what} {', '.join(map(str, shown))}{more} (samples {rows}{more})"


def _require_fresh(folder: Path, first: ScoreStore) -> None:
    """Raises ``RapStoreError`` where ``folder`` is not empty, unless an earlier call has
    begun there."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise store_error(f"{folder}: cannot be read", error) from error
    if not names:
        return
    there = None
    if "store.json" in names:
        there = ScoreStore.load(folder)
    if there is None or other_run(_header(first), _header(there)):
        raise RapStoreError(f"--out {folder}: holds something else; name a new folder")
