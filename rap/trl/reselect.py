"""Which prompts of the pool a trainer trains on, and how that changes while it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from ..config import ScoreConfig
from ..errors import RapConfigError
from ..selection.choosing import choose
from ..selection.reselection import ReselectConfig, decide, open_rows, pass_counts
from ..selection.selection import Selection
from ..settings import Ge, setting, settings
from .rewardlog import Outcome

if TYPE_CHECKING:
    from ..scores.scores import Scores

ModeName = Literal["off", "rewards", "rescore"]
MODES: tuple[str, ...] = get_args(ModeName)


@settings
class Reselect:
    """Which prompts of the pool a trainer of ``rap.trl`` trains on, and their changes."""

    selection: Selection | None = setting(
        "The selection to start with.", default=None, none="every row of train_dataset"
    )
    mode: ModeName = setting(
        "How the selection changes while training. off: not at all. rewards: by the rules "
        "of rap.selection.reselection, on the rewards that training gives anyway. rescore: "
        "the pool is also scored again with the policy as it is.",
        default="off",
    )
    every: Annotated[int, Ge(1)] = setting(
        "Optimiser steps between re-selections.", default=50
    )
    refill: Annotated[int, Ge(0)] = setting(
        "Generations, at most, in which groups without variance are replaced by groups of "
        "other prompts before the optimiser sees the batch (DAPO's dynamic sampling); 0: "
        "never. What they cost and brought is counted in trainer.refilled.",
        default=0,
    )
    id_column: str = setting("Column of train_dataset that names a sample.", default="id")
    rules: ReselectConfig = setting(
        "What leaves, what comes in and how much of the first selection stays.",
        default_factory=ReselectConfig,
    )
    config: ScoreConfig | None = setting(
        "How rescore scores; evidence rollouts is graded by the built-in checker.",
        default=None,
        none="as the selection was scored",
    )

    def __post_init__(self) -> None:
        if self.mode != "off" and self.selection is None:
            raise RapConfigError(
                f"mode = {self.mode!r}: re-selection needs the first selection, whose "
                "scores it goes on from"
            )
        if self.mode == "rescore" and self.selection.samples is None:  # type: ignore[union-attr]
            raise RapConfigError(
                "mode = 'rescore': the selection does not know its data set: "
                "rap.load(folder, dataset=...)"
            )

    def first_ids(self, pool: Sequence[str]) -> list[str]:
        """Ids to start with."""
        return list(pool) if self.selection is None else self.selection.ids

    def visited(
        self, passes: Mapping[str, tuple[float, float]], outcomes: Mapping[str, Outcome]
    ) -> dict[str, tuple[float, float]]:
        """``passes`` (see ``reselection.pass_counts``) after one more visit each."""
        visits = [(name, *passes[name]) for name in outcomes if name in passes]
        visits += [(name, o.passed, o.judged) for name, o in outcomes.items()]
        return {**passes, **pass_counts(visits, decay=self.rules.decay)}

    def next_ids(
        self,
        active: Sequence[str],
        passes: Mapping[str, tuple[float, float]],
        scores: Scores | None = None,
    ) -> tuple[list[str], dict[str, int]]:
        """(ids to train on from now on, {why: samples}), by ``reselection.decide``.

        active: ids trained on now; passes: what their completions got; scores: the pool's,
        by the policy as it is (``"rescore"``).
        """
        assert self.selection is not None  # __post_init__ saw to it
        now = None
        if scores is not None:
            now = choose(scores, **self.selection.settings["choose"])
        current = _with_active(self.selection, active)
        known = set(current.table["id"].to_pylist())
        passes = {name: counts for name, counts in passes.items() if name in known}
        decision = decide(current, passes, self.rules, now=now)
        ids = current.table["id"].filter(pa.array(decision.active)).to_pylist()
        return ids, decision.counts

    def score_config(self) -> ScoreConfig:
        """How ``"rescore"`` scores."""
        if self.config is not None or self.selection is None:
            return self.config or ScoreConfig()
        told = (self.selection.settings["scores"] or {}).get("config")
        return ScoreConfig.of_fingerprint(told or {})

    def fingerprint(self, pool: Sequence[str]) -> dict[str, Any]:
        """What a resumed run must share with the one that wrote the checkpoint."""
        fixed = {"every": self.every, "refill": self.refill, "rules": asdict(self.rules)}
        return {
            "pool": _digest(pool),  # in its order: a checkpoint names rows by their number
            "selection": _digest(sorted(self.first_ids(pool))),
            "mode": self.mode,
            "settings": fixed,
        }

    def candidates(self) -> list[str]:
        """Ids that a re-selection may bring in."""
        if self.selection is None or self.mode == "off":
            return []
        table = self.selection.table
        return table["id"].filter(pa.array(open_rows(table))).to_pylist()


def _with_active(first: Selection, active: Sequence[str]) -> Selection:
    """The first selection with ``active`` as what is kept, as ``reselect`` remembers it."""
    table = first.table
    now = pc.is_in(table["id"], value_set=pa.array(list(active), pa.string()))
    reason = pc.if_else(
        now,
        pc.if_else(pa.array(first.kept), table["reason"], "kept_replacement"),
        pc.if_else(pa.array(first.kept), "dropped_over_budget", table["reason"]),
    )
    base = table["reason"]
    table = table.drop_columns(["reason"]).append_column("reason", reason)
    if "first" not in table.column_names:
        table = table.append_column("first", pa.array(first.kept))
        table = table.append_column("first_reason", base)
    return type(first)(table, first.settings, first.source)


def _digest(names: Sequence[str]) -> str:
    text = json.dumps(list(names)).encode()
    return hashlib.sha256(text).hexdigest()[:16]
