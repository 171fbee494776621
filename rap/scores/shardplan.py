"""``plan.json``: what every worker of a store has to know, worked out once.

    kind, schema_version, token      of this very plan, at random
    n_samples, shard_size, fingerprint, data
                                     as in store.json
    shards                           sha256 of the rows of each shard: ids, texts, columns
                                     that a score depends on; without image bytes
    hashed                           `ROWS`: what these are taken of
    sealed                           null, or what the sealed store holds in sum

While it is there and not sealed, workers may claim shards (``claims``). A run that wants
the store for itself removes it; a worker that finds it gone claims nothing more.

Beside it, in the folder `INDEX`: what is known of the data set (``samples.index``), so that
workers need not look through its rows.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RapStoreError
from .claims import FOLDER, Claims, require_idle
from .drawn import Drawn
from .files import check_version, read_regular, store_error, write_atomic
from .table import SCHEMA_VERSION

NAME = "plan.json"
INDEX = "index"
ROWS = "rows"
"""Of the rows as they stand (``SampleSet.shard_hashes``); a plan that was not made so is
made again."""
DRIVER_FOLDER = "ray"
"""Folder with the claim of a driver that leads workers (executor ray)."""

FEW_SAMPLES, SMALL_SHARD, LARGE_SHARD = 1_000_000, 256, 4096
MANY_SHARDS = 32_768


def shard_size_for(n_samples: int) -> int:
    """Samples a shard where nobody has said how many: 256 for up to a million samples,
    above 4,096, doubled until there are at most 32,768 shards."""
    if n_samples <= FEW_SAMPLES:
        return SMALL_SHARD
    size = LARGE_SHARD
    while -(-n_samples // size) > MANY_SHARDS:
        size *= 2
    return size


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """See the module's docstring. ``shards``: one hash a shard."""

    n_samples: int
    shard_size: int
    fingerprint: Mapping[str, Any]
    data: Mapping[str, Any] | None
    shards: tuple[str, ...]
    token: str
    sealed: Mapping[str, Any] | None = None
    hashed: str = ""

    @property
    def drawn(self) -> Drawn:
        """The completions of the sealed store."""
        return Drawn() if self.sealed is None else Drawn.of_json(self.sealed["drawn"])

    def write(self, store: Path) -> None:
        """Write it into a store. Raises ``RapStoreError``."""
        found = {"kind": "plan", "schema_version": SCHEMA_VERSION, **asdict(self)}
        text = json.dumps(found, indent=1, sort_keys=True, allow_nan=False).encode()
        write_atomic(store / NAME, lambda file: file.write(text + b"\n"))

    def seal(self, store: Path, drawn: Drawn) -> None:
        """Say in a store that it is whole and was judged. Raises ``RapStoreError``."""
        replace(self, sealed={"drawn": asdict(drawn)}).write(store)


def make_plan(
    header: Mapping[str, Any], data: Mapping[str, Any] | None, shards: tuple[str, ...]
) -> ShardPlan:
    """A plan for the store with this header."""
    names = ("n_samples", "shard_size", "fingerprint")
    token = secrets.token_hex(8)
    n, size, fingerprint = (header[name] for name in names)
    return ShardPlan(n, size, fingerprint, data, shards, token, hashed=ROWS)


def read_plan(store: Path) -> ShardPlan | None:
    """The plan of a store; None if it has none. Raises ``RapStoreError`` if it cannot be
    read."""
    path = store / NAME
    try:
        found = json.loads(read_regular(path))
        check_version(path, found.pop("schema_version"))
        if found.pop("kind") != "plan":
            raise ValueError("no plan")
        plan = ShardPlan(**found | {"shards": tuple(found["shards"])})
        wrong = len(plan.shards) != -(-plan.n_samples // plan.shard_size)
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, RapStoreError):
            raise
        raise store_error(f"{path}: cannot be read", error) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RapStoreError(
            f"{path}: is damaged: {error!r}; make it again with rap plan"
        ) from error
    if wrong:
        raise RapStoreError(f"{path}: is damaged: other shards than the store has")
    return plan


def have_alone(store: Path) -> None:
    """Take a store from its workers: no plan, no claims. Whoever calls holds the lock.

    Raises ``RapStoreError`` if a worker lives; the plan is still there then."""
    driver = store / DRIVER_FOLDER
    if driver.exists():
        with Claims(driver) as claims:
            require_idle(driver, claims)
        shutil.rmtree(driver, ignore_errors=True)
    if not has_plan(store) and not (store / FOLDER).exists():
        return
    forget_plan(store)
    for name in (FOLDER, INDEX):
        shutil.rmtree(store / name, ignore_errors=True)


def forget_plan(store: Path) -> None:
    """Take the plan away, so that the next worker looks the store over and plans anew.

    Raises ``RapStoreError`` if a worker lives; the plan is still there then."""
    path = store / NAME
    with Claims(store) as claims:
        require_idle(store, claims)
        try:
            text = path.read_bytes() if path.exists() else None
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(f"{path}: cannot be removed", error) from error
        try:  # one that has read the plan may have claimed a shard just now
            require_idle(store, claims)
        except RapStoreError:
            if text is not None:
                write_atomic(path, lambda file: file.write(text))
            raise


def has_plan(store: Path) -> bool:
    """Whether a store has a plan, sealed or not."""
    return os.path.exists(store / NAME)
