"""``rap merge``: stores scored apart become the one that a single run would have filled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_claims import planned
from test_store import FINGERPRINT, SIZE, N, files, fill, flip, opened, shard

import rap
from rap.cli.commands import main
from rap.errors import RapConfigError, RapInputError, RapModelError, RapStoreError
from rap.scores.claims import Claims
from rap.scores.merge import merge
from rap.scores.profile import NAME, Profile, add_profile, read_profile
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore
from rap.selection.choosing import choose


def part(path: Path, numbers: tuple[int, ...], **more) -> Path:  # type: ignore[no-untyped-def]
    """A store that holds these shards only."""
    about = {"fingerprint": FINGERPRINT, "n_samples": N, "shard_size": SIZE, **more}
    with ScoreStore.open(path, **about) as store:
        for k in numbers:
            store.write(k, *shard(store.shard_range(k)))
    return path


@pytest.fixture
def halves(tmp_path: Path) -> list[Path]:
    return [part(tmp_path / "a", (0, 2, 4)), part(tmp_path / "b", (1, 3))]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    fill(tmp_path / "whole")
    return tmp_path / "whole"


def test_a_merged_store_is_that_of_one_run(halves, whole, tmp_path: Path) -> None:
    before = [files(path) for path in halves]
    out = tmp_path / "c"
    merged = merge(halves[::-1], out)
    assert merged.path == out and merged.missing() == []
    assert files(out) == files(whole)
    assert [files(path) for path in halves] == before
    assert Scores.load(out).rollouts.equals(Scores.load(whole).rollouts)
    choose(Scores.load(out), budget=0.3).save(tmp_path / "x")
    choose(Scores.load(whole), budget=0.3).save(tmp_path / "y")
    assert files(tmp_path / "x") == files(tmp_path / "y")
    with opened(out) as store:  # a run finds nothing to do
        assert store.missing() == [] and store.warnings == []
    assert rap.merge is merge


def test_three_parts_and_a_shard_in_progress(whole, tmp_path: Path) -> None:
    parts = [part(tmp_path / str(i), (i, *((3, 4) if i == 1 else ()))) for i in range(3)]
    with opened(parts[0]) as store:  # what was begun is no part of it
        scores, rollouts = shard(range(5, 7))
        store.write_partial(1, scores, rollouts)
    merge(parts, tmp_path / "c")
    assert files(tmp_path / "c") == files(whole)


def test_overlaps_and_gaps_are_named(halves, tmp_path: Path) -> None:
    a, b = halves
    out = tmp_path / "c"
    more = part(tmp_path / "more", (4,))
    with pytest.raises(
        RapInputError, match=r"a and .*more overlap: both have shard 4 \(samples 20 to 22\)"
    ):
        merge([a, b, more], out)
    with pytest.raises(
        RapInputError, match=r"have 3 shards 0, 2, 4 \(samples 0 to 4, 10 to 14, 20 to 22\)"
    ):
        merge([a, part(tmp_path / "again", (0, 2, 4)), b], out)
    with pytest.raises(
        RapInputError, match=r"no store has 2 shards 1, 3 \(samples 5 to 9, 15 to 19\)"
    ):
        merge([a, part(tmp_path / "none", ())], out)
    with pytest.raises(RapInputError, match="overlap"):
        merge([a, a], out)
    with pytest.raises(RapInputError, match="two stores or more"):
        merge([a], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"n_samples": 24}, r"n_samples: 23 in .*a, 24 in .*b"),
        ({"shard_size": 4}, r"shard_size: 5 in .*a, 4 in .*b"),
        ({"fingerprint": FINGERPRINT | {"dataset": "x"}}, "dataset: "),
        (
            {"fingerprint": FINGERPRINT | {"config": FINGERPRINT["config"] | {"seed": 1}}},
            r"config.seed: 0 in .*a, 1 in .*b",
        ),
    ],
)
def test_stores_of_different_runs(tmp_path: Path, other: dict, says: str) -> None:
    a = part(tmp_path / "a", (0, 2, 4))
    b = part(tmp_path / "b", (1, 3), **other)
    with pytest.raises(RapConfigError, match=f"b: is not a part of the same run: .*{says}"):
        merge([a, b], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_cascade_cannot_be_scored_apart(tmp_path: Path) -> None:
    fingerprint = {"config": {"evidence": "cascade"}}
    parts = [part(tmp_path / str(i), (i,), fingerprint=fingerprint) for i in range(2)]
    with pytest.raises(
        RapConfigError, match="evidence 'cascade' scores samples by what others"
    ):
        merge(parts, tmp_path / "c")


def test_what_cannot_be_read_or_is_at_work(halves, whole, tmp_path: Path) -> None:
    a, b = halves
    with pytest.raises(RapStoreError, match="no score store here"):
        merge([a, tmp_path / "nothing"], tmp_path / "c")
    planned(tmp_path / "busy")
    with Claims(tmp_path / "busy", rank=1) as claims:
        assert claims.take("1")
        with pytest.raises(RapStoreError, match="workers are scoring .*shard 1: rank 1"):
            merge([a, tmp_path / "busy"], tmp_path / "c")
    for damaged in ("rollouts-00001.parquet", "scores-00003.parquet"):
        flip(b / damaged, 100)
        with pytest.raises(RapStoreError, match=f"{damaged}: is damaged"):
            merge(halves, tmp_path / "c")
        flip(b / damaged, 100)
    merge(halves, tmp_path / "c")  # goes on where it stopped
    assert files(tmp_path / "c") == files(whole)
    merge(halves, tmp_path / "c")  # and finds nothing to do
    assert files(tmp_path / "c") == files(whole)


def test_what_holds_something_else_is_not_touched(halves, tmp_path: Path) -> None:
    a, b = halves
    with pytest.raises(RapInputError, match="is one of the stores that are merged"):
        merge(halves, os.path.join(a, "..", "a"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("all of it")
    with pytest.raises(RapStoreError, match="holds something else"):
        merge(halves, tmp_path / "d")
    other = part(tmp_path / "e", (0,), fingerprint=FINGERPRINT | {"dataset": "x"})
    with pytest.raises(RapStoreError, match="holds something else"):
        merge(halves, other)
    (tmp_path / "f").write_text("")
    with pytest.raises(RapStoreError, match="cannot be"):
        merge(halves, tmp_path / "f")
    assert os.listdir(tmp_path / "d") == ["thesis.tex"]


def test_limits_are_judged_over_the_whole(tmp_path: Path) -> None:
    def parts(bad: int, degenerate: int) -> list[Path]:
        made = []
        for name, numbers in (("a", (0, 2, 4)), ("b", (1, 3))):
            path = tmp_path / f"{name}{bad}{degenerate}"
            with ScoreStore.open(path, FINGERPRINT, N, SIZE) as store:
                for k in numbers:
                    scores, rollouts = shard(store.shard_range(k))
                    rows = scores.to_pylist()
                    if k < bad:
                        rows[0] |= {"status": "quarantined", "stage": "image", "code": "x"}
                        rows[0] |= {"message": "is gone"}
                    tally = {"groups": 4, "degenerate": 4 * (k < degenerate)}
                    scores = type(scores).from_pylist(rows, schema=scores.schema)
                    store.write(k, scores, rollouts, tally=tally)
            made.append(path)
        return made

    with pytest.raises(RapInputError, match="3 of 23 samples are bad"):
        merge(parts(3, 0), tmp_path / "c")
    refused = choose(Scores.load(tmp_path / "c"), budget=0.3)
    assert "scores was refused: 3 of 23 samples are bad, more" in refused.summary()
    merge(parts(3, 0), tmp_path / "c", max_bad_fraction=0.14)
    assert "refused" not in Scores.load(tmp_path / "c").meta
    assert not choose(Scores.load(tmp_path / "c"), budget=0.3).warnings
    with pytest.raises(RapModelError, match="12 of 20 groups of completions"):
        merge(parts(0, 3), tmp_path / "d")
    merge(parts(0, 3), tmp_path / "d", allow_degenerate=True)


def test_the_shell_merges(halves, whole, tmp_path: Path) -> None:
    def run(*args: object, code: int = 0):
        result = CliRunner().invoke(main, ["merge", *(str(a) for a in args)])
        assert result.exit_code == code, result.output
        return result

    out = tmp_path / "c"
    said = run(halves[0], "--out", out, code=1).stderr
    assert "rap: error: merge: expected two stores or more" in said
    said = run(*halves, halves[0], "--out", out, code=1).stderr
    assert said.rstrip().endswith("a is named twice")
    found = json.loads(run(*halves, "--out", out, "--json").stdout)
    assert found == {"store": str(out), "samples": 23}
    assert f"23 samples in {out}" in run(*halves, "--out", out).stdout
    assert files(out) == files(whole)


def test_profiles_of_the_parts_are_summed(halves, tmp_path: Path) -> None:
    a, b = halves
    add_profile(a, Profile(1, 13, 2.5, {"vision": 1.5}, {}, {"forwards": 7}))
    add_profile(a, Profile(1, 13, 0.5, {"store": 0.25}, {}, {"forwards": 1}))
    add_profile(b, Profile(1, 10, 4.0, {"vision": 2.0}, {"prepare": 1.0}, {"forwards": 5}))
    for _ in range(2):  # a call that is repeated adds nothing
        merge(halves, tmp_path / "c")
        assert read_profile(tmp_path / "c") == Profile(
            *(3, 36, 7.0, {"vision": 3.5, "store": 0.25}),
            *({"prepare": 1.0}, {"forwards": 13}),
        )
    (a / NAME).unlink()
    merge(halves, tmp_path / "d")  # one part was profiled
    assert read_profile(tmp_path / "d") == read_profile(b)
    (b / NAME).unlink()
    merge(halves, tmp_path / "e")
    assert not (tmp_path / "e" / NAME).exists()
