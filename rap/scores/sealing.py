"""The end of a store that many processes filled: verified once, judged, sealed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Sampling, ScoreConfig
from ..errors import RapStoreError
from .claims import LEASE, SEAL, Claims, require_idle
from .judge import judge_whole, verdict_kept
from .shardplan import ShardPlan, read_plan
from .store import ScoreStore


def seal(
    folder: Path,
    plan: ShardPlan,
    config: ScoreConfig,
    allow_degenerate: bool,
    *,
    judged: bool = True,
) -> bool:
    """Verify every byte of a store, judge it as a whole (``judged``), and seal it; False if
    shards are missing. The caller holds `SEAL`.

    Raises ``RapInputError``, ``RapModelError`` as `rap.score` does."""
    with ScoreStore.open(
        folder,
        plan.fingerprint,
        plan.n_samples,
        plan.shard_size,
        data=plan.data,
        shared=True,
    ) as shards:
        if shards.missing():
            return False
        if judged:
            with verdict_kept(folder):
                judge_whole(shards, config, allow_degenerate)
        plan.seal(folder, shards.drawn())
    return True


def finish(
    store: str | os.PathLike[str],
    *,
    max_bad_fraction: float | None = None,
    allow_degenerate: bool = False,
    lease: float = LEASE,
) -> bool:
    """Seal a store that many processes filled, when none of them is left to do it; False
    if shards are missing. Needs neither the model nor the data. ``lease``: see ``claims``.

    Raises ``RapStoreError`` if nothing was planned there or workers are at work, and as
    ``seal``."""
    folder = Path(store)
    plan = read_plan(folder)
    if plan is None:
        raise RapStoreError(
            f"{folder}: no store that was planned for many processes, or a cascade in an "
            "early round: the command that scores it goes on"
        )
    if plan.sealed is not None:
        return True
    config = limits(plan.fingerprint, max_bad_fraction)
    with Claims(folder, lease=lease) as claims:
        require_idle(folder, claims)
        with claims.holding(SEAL):
            return seal(folder, plan, config, allow_degenerate)


def limits(fingerprint: Mapping[str, Any], max_bad_fraction: float | None) -> ScoreConfig:
    """What a store is judged by: its own sampling, for the words of a refusal, and
    ``max_bad_fraction``, None for the default."""
    found = fingerprint.get("config", {}).get("sampling", {})
    known = {f.name for f in dataclasses.fields(Sampling)}
    sampling = Sampling(**{name: v for name, v in found.items() if name in known})
    config = ScoreConfig(sampling=sampling)
    if max_bad_fraction is None:
        return config
    return dataclasses.replace(config, max_bad_fraction=max_bad_fraction)
