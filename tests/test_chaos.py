"""60 harms at random moments, over the commands that cost little (tests/chaos; chaos.md has
a thousand, over all)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from chaos.__main__ import felt, summary
from chaos.trials import COMMANDS, DEAR, Chaos

HARMS, MOST_TRIALS, SEED = 60, 150, 20
CHEAP = {name: weight for name, weight in COMMANDS.items() if name not in DEAR}

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or shutil.which("cc") is None,
        reason="needs Linux and a C compiler for what it preloads",
    ),
]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    chaos = Chaos(tmp_path_factory.mktemp("chaos"), CHEAP)
    yield chaos
    chaos.close()


@pytest.mark.proof
def test_fault_31_32_33_42_sixty_harms_at_random_moments(chaos: Chaos) -> None:
    records = []
    while felt(records) < HARMS and len(records) < MOST_TRIALS:
        records.append(chaos.trial(len(records), SEED))
        assert records[-1]["ok"], records[-1]
    assert felt(records) >= HARMS, summary(records)
    assert {record["command"] for record in records} == set(CHEAP)


@pytest.mark.proof
def test_the_shim_is_felt(chaos: Chaos, tmp_path: Path) -> None:
    """Each kind of harm ends a run that it must end: a shim that does nothing would prove
    nothing."""
    from chaos import harms

    wanted, kinds, _ = chaos._whole_score("score answer")
    assert wanted and all(kinds[:4]), kinds
    for kind, (how, what, value) in harms.HARMS.items():
        if how == harms.NOTHING or kind in ("I/O error of fsync", "no memory"):
            continue
        order = chaos.score_order(tmp_path / kind, "score answer")
        run = chaos.nursery.run(order | {"harm": [how, what, 5, int(value)]})
        assert run.code != 0, (kind, run)
        assert harms.judge(run, kind, 5)
