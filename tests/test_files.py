"""Files that belong together: a rollouts file that another run of the same shard made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rap.errors import RapStoreError
from rap.scores.store import ScoreStore
from rap.scores.table import ROLLOUT_SCHEMA, table_from_rows


def one_sample(path: Path, text: str) -> ScoreStore:
    """A finished store of one sample whose completion is ``text``."""
    score = {"id": "s0", "index": 0, "status": "scored", "evidence": "rollouts"}
    score |= {"c1": 1, "m1": 1, "c0": 0, "m0": 1}
    rollout = {"id": "s0", "index": 0, "arm": "image", "number": 0, "text": text}
    with ScoreStore.open(path, {"config": {}}, 1, 1) as store:
        for k in store.missing():
            rollouts = table_from_rows([rollout], ROLLOUT_SCHEMA)
            store.write(k, table_from_rows([score]), rollouts)
    return ScoreStore.load(path)


def test_rollouts_of_another_generation_are_not_taken_for_these(tmp_path: Path) -> None:
    """Whole, undamaged and of the same run's settings, yet not what was scored."""
    one_sample(tmp_path / "a", "first").close()
    one_sample(tmp_path / "b", "second").close()
    name = "rollouts-00000.parquet"
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(RapStoreError, match="is not what scores-00000.parquet was made"):
        with ScoreStore.load(tmp_path / "a") as store:
            store.read_rollouts()
