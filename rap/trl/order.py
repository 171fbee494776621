"""Which prompts a trainer gets next: pure state, no torch, kept in checkpoints.

``PromptOrder`` samples the active rows of a pool in shuffled epochs, a batch of different
rows at a time. It remembers the batches it gave out, so that a restarted trainer, which
asks for all batches from the first again, gets the same ones: also those that the data
loader had prefetched (one batch ahead) before the checkpoint was written.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import RapConfigError


class PromptOrder:
    """Row numbers of a pool, batch after batch, in shuffled epochs.

    pool: number of rows. active: those to train on, at least ``batch`` of them, because
    a batch never holds a row twice. Raises ``RapConfigError`` otherwise.
    """

    def __init__(
        self, pool: int, active: Iterable[int], *, batch: int, seed: int = 0
    ) -> None:
        self.pool, self.batch, self.seed = pool, batch, seed
        self.active = self._checked(active)
        self.dealt: list[list[int]] = []
        """Every batch so far."""
        self._pending: list[int] = []
        self._shuffles = 0

    def batch_at(self, number: int) -> list[int]:
        """Batch ``number``, from 0: an earlier one, or the next."""
        if number > len(self.dealt):
            raise IndexError(f"batch {number} after only {len(self.dealt)} batches")
        if number == len(self.dealt):
            self.dealt.append(self._deal(self.batch, avoid=()))
        return self.dealt[number]

    def spare(self, count: int, *, avoid: Iterable[int] = ()) -> list[int]:
        """Up to ``count`` further rows, none of ``avoid``: for groups that taught
        nothing. They are taken out of the pass like any other."""
        avoided = set(avoid)
        count = min(count, len(set(self.active) - avoided))
        return self._deal(count, avoid=avoided)

    def replace(self, active: Iterable[int]) -> tuple[int, int]:
        """Train on other rows from the next batch on; returns (come in, gone).

        The pass goes on: rows that stay keep their turn, new ones get one in it.
        """
        new = self._checked(active)
        before, after = set(self.active), set(new)
        came = [row for row in new if row not in before]
        if before != after:
            self._pending = [row for row in self._pending if row in after] + came
            self._shuffle(self._pending)
        self.active = new
        return len(came), len(before - after)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "pool": self.pool,
            "batch": self.batch,
            "seed": self.seed,
            "active": list(self.active),
            "pending": list(self._pending),
            "shuffles": self._shuffles,
            "dealt": [list(rows) for rows in self.dealt],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises ``RapConfigError``, naming what differs,
        if it is of another pool, batch size or seed."""
        for name in ("pool", "batch", "seed"):
            if state[name] != getattr(self, name):
                raise RapConfigError(
                    f"the checkpoint was made with {name} = {state[name]}, this run has "
                    f"{getattr(self, name)}: resume with the same, or start anew"
                )
        self.active = self._checked(state["active"])
        self._pending = list(state["pending"])
        self._shuffles = state["shuffles"]
        self.dealt = [list(rows) for rows in state["dealt"]]

    def _deal(self, count: int, avoid: Iterable[int]) -> list[int]:
        """``count`` different rows. A pass that ends inside a batch is followed by the
        next one: no row is left out, as whole batches only would do."""
        taken = set(avoid)
        rows: list[int] = []
        kept: list[int] = []
        while len(rows) < count:
            if not self._pending:
                self._pending = [row for row in self.active if row not in kept]
                self._shuffle(self._pending)
            row = self._pending.pop()
            if row in taken:
                kept.append(row)  # it keeps its turn, after this batch
            else:
                taken.add(row)
                rows.append(row)
        self._pending += reversed(kept)
        return rows

    def _shuffle(self, rows: list[int]) -> None:
        # a generator of its own each time: nothing of it needs keeping but the number
        random.Random(f"rap order 1 {self.seed} {self._shuffles}").shuffle(rows)
        self._shuffles += 1

    def _checked(self, active: Iterable[int]) -> list[int]:
        rows = sorted(set(active))
        if rows and not 0 <= rows[0] <= rows[-1] < self.pool:
            raise RapConfigError(f"rows {rows[0]} to {rows[-1]} of a pool of {self.pool}")
        if len(rows) < self.batch:
            raise RapConfigError(
                f"{len(rows)} prompts are selected, a generation batch takes {self.batch} "
                "different ones: raise the budget, or lower the batch size or the "
                "accumulation (prompts = per_device_train_batch_size x processes x "
                "steps_per_generation / num_generations)"
            )
        return rows
