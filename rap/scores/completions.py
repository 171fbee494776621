"""The completions behind scores: in memory, or in the shards of their store.

``tables`` gives them a shard at a time, ``read`` all at once. Those of a store are read
when asked for and must be those that the scores were made from, by their digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapStoreError
from .shards import Shards, read_header
from .table import ROLLOUT_SCHEMA


class Completions:
    """Attribute: ``column_names``."""

    column_names: list[str]

    def tables(self) -> Iterator[pa.Table]:
        """Tables that together are ``read``, in its order."""
        raise NotImplementedError

    def read(self) -> pa.Table:
        """One row a completion, in data-set order."""
        return pa.concat_tables(self.tables())


class HeldCompletions(Completions):
    """A table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.table, self.column_names = table, table.column_names

    def tables(self) -> Iterator[pa.Table]:
        yield self.table

    def read(self) -> pa.Table:
        return self.table


class StoredCompletions(Completions):
    """Those of a store. ``digests``: {shard: digest of its rollouts}, as its scores say.

    Reading raises ``RapStoreError`` if one is missing, damaged, or another by now."""

    column_names = ROLLOUT_SCHEMA.names

    def __init__(self, store: str | os.PathLike[str], digests: dict[int, str]) -> None:
        self.store = Path(os.path.abspath(store))
        self.digests = digests

    def tables(self) -> Iterator[pa.Table]:
        header = read_header(self.store / "store.json")
        if header is None:
            raise RapStoreError(
                f"{self.store}: the score store is not there any more, which has the "
                "completions"
            )
        shards = Shards(self.store, header)
        for k in sorted(self.digests):
            yield shards.rollouts_of(k, self.digests[k])


def as_completions(source: pa.Table | Completions | None) -> Completions | None:
    if source is None or isinstance(source, Completions):
        return source
    return HeldCompletions(source)


class ReadCompletions:
    """An attribute that is given as a table, ``Completions`` or None, and is a table or
    None: read whenever it is asked for, and not kept. What was given is ``completions``."""

    def __get__(self, holder: Any, owner: type | None = None) -> pa.Table | None:
        if holder is None:
            return None
        found = vars(holder)["completions"]
        return None if found is None else found.read()

    def __set__(self, holder: Any, value: pa.Table | Completions | None) -> None:
        vars(holder)["completions"] = as_completions(value)
