"""Whether a run is worth going on with, and whether its end is good: what was bad so far.

Judged as a whole: whoever seals a store that many processes filled counts every shard of it
(``judge_whole``). While it goes on a run is stopped as soon as its end can only be bad.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import Sampling, ScoreConfig
from ..errors import RapError, RapInputError, RapModelError, RapStoreError
from ..samples.sample import TEXT_ONLY
from ..samples.text import clean
from .columns import as_fraction
from .files import write_atomic
from .shards import REFUSED, Shards
from .table import QUARANTINED

MIN_SEEN = 20
"""A run is not given up before this many samples were seen."""

FAINT = 1e-8
"""A median p(answer) a token, its geometric mean, below this stops a run: no model that
writes answers in the reference's form is so sure of another."""

COLUMNS = ("id", "status", "stage", "code", "message", "logp_mean1")
"""What of a row is counted."""


class Judge:
    """Counts rows of ``n`` samples. ``least``: samples seen before the first verdict on
    the model; a process that is one of many sees but its own."""

    def __init__(
        self, n: int, config: ScoreConfig, allow_degenerate: bool, least: int = MIN_SEEN
    ) -> None:
        self.n, self.config, self.allow_degenerate = n, config, allow_degenerate
        self.bad: Counter[str] = Counter()  # "stage/code"
        self.text_only = 0
        self.example = ""
        self.seen = 0
        self.logs: list[float] = []  # logp_mean1 of the samples scored so far
        self.next_look = least

    def count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take note of rows."""
        for row in rows:
            self.seen += 1
            if row["status"] == QUARANTINED and row["code"] == TEXT_ONLY:
                self.text_only += 1
            elif row["status"] == QUARANTINED:
                self.bad[f"{row['stage']}/{row['code']}"] += 1
                self.example = self.example or f"{row['id']!r}: {row['message']}"
            elif row.get("logp_mean1") is not None:
                self.logs.append(row["logp_mean1"])

    def stop(self, *, final: bool) -> None:
        """Raises ``RapInputError`` or ``RapModelError`` where the run is not to go on, or
        to end well."""
        self._stop_if_bad(final=final)
        self._stop_if_faint(final=final)

    def _stop_if_faint(self, *, final: bool) -> None:
        """Give up where the model gives the reference answers no probability at all."""
        least = MIN_SEEN if final else self.next_look
        if self.allow_degenerate or len(self.logs) < least:
            return
        self.next_look = 2 * len(self.logs)  # a median of all is looked at seldom
        median = math.exp(statistics.median(self.logs))
        if median < FAINT:
            raise RapInputError(
                f"median p(answer) a token is {median:.2g} over {len(self.logs)} samples: "
                "the model gives the reference answers no probability. Is the reference "
                "the bare answer, in the form the model writes after answer_prefix? Pass "
                "allow_degenerate=True to go on"
            )

    def _stop_if_bad(self, *, final: bool) -> None:
        """Give up at the end, or as soon as the end can only be bad; always if all are.

        One bad sample never stops a run, however small the data set.
        """
        n, bad = self.n - self.text_only, self.bad.total()
        if not n:
            raise RapInputError(
                f"{self.n} of {self.n} rows have no image: there is nothing to score"
            )
        limit = self.config.max_bad_fraction
        allowed_bad = max(1, math.floor(as_fraction("max_bad_fraction", limit) * n))
        if bad <= allowed_bad and not (final and bad == n):
            return
        if not final and self.seen < min(MIN_SEEN, n):
            return
        allowed = "none is left" if bad == n else f"more than max_bad_fraction = {limit:g}"
        counts = ", ".join(f"{code}: {c}" for code, c in self.bad.most_common())
        model = sum(c for code, c in self.bad.items() if code.startswith("model/"))
        error: type[RapError] = RapModelError if 2 * model > bad else RapInputError
        missing = 2 * self.bad["image/image_missing"] > bad
        roots = ". Image paths are relative to the data's folder, or to root= (--root)"
        raise error(
            f"{bad} of {n} samples are bad, {allowed} ({counts}; {self.seen} seen). "
            f"First: {clean(self.example, 300)}{roots * missing}"
        )


def require_varied(groups: int, degenerate: int, sampling: Sampling) -> None:
    """Raises ``RapModelError`` if half of all groups of completions are degenerate."""
    if 2 * degenerate >= groups:
        raise RapModelError(
            f"{degenerate} of {groups} groups of completions are "
            "identical although the model gives other answers a fair chance: rollouts "
            f"sampled with {sampling} tell nothing about difficulty. Raise "
            "temperature, top_p or top_k, or pass allow_degenerate=True."
        )


@contextmanager
def verdict_kept(store: Path) -> Iterator[None]:
    """What raises inside stays in the store as the verdict on it (`read_refusal`), until
    another run of this ends well."""
    path = store / REFUSED
    try:
        yield
    except (RapInputError, RapModelError) as error:
        text = json.dumps({"refused": str(error)})
        with contextlib.suppress(RapStoreError):  # the error itself is what matters
            write_atomic(path, lambda file: file.write(text.encode() + b"\n"))
        raise
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def judge_whole(shards: Shards, config: ScoreConfig, allow_degenerate: bool) -> None:
    """Judge a store of which every shard is there, whoever wrote it.

    Raises ``RapInputError`` or ``RapModelError`` as a run of one process does."""
    judge = Judge(shards.n_samples, config, allow_degenerate)
    total: Counter[str] = Counter()
    for k in range(shards.n_shards):
        judge.count(shards.read_shard(k).select(list(COLUMNS)).to_pylist())
        total.update(shards.tally(k))
    if not allow_degenerate and total["degenerate"] >= 2:
        require_varied(total["groups"], total["degenerate"], config.sampling)
    judge.stop(final=True)
