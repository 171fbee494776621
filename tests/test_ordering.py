"""Samples of a shard are scored longest first, and stored as they stand."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from tiny_models import NAMES, build

from rap.config import ScoreConfig
from rap.model.driver import ModelDriver
from rap.samples.images import HEAD_BYTES, image_size
from rap.samples.part import Part
from rap.samples.sample import BadSample, ImageRef
from rap.samples.sampleset import open_samples
from rap.scores.store import ScoreStore
from rap.scoring import filling
from rap.scoring.ordering import longest_first
from rap.scoring.prepare import prepare_job
from rap.scoring.run import score


def rows_of(n: int) -> list[dict]:
    rows = []
    for i in range(n):
        file = io.BytesIO()
        Image.new("RGB", (60 + 60 * (i % 3), 50 + 40 * (i % 5)), (9, i, 7)).save(
            file, "PNG"
        )
        rows.append(
            {
                "id": f"s{i}",
                "question": "Is it " + "very " * (7 * i % 11) + "large?",
                "answer": "yes",
                "image": {"bytes": file.getvalue(), "path": None},
            }
        )
    return rows


UNKNOWN = ("smolvlm",)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_that_of_the_prompts(name):
    driver = ModelDriver(*build(name), ScoreConfig())
    samples = open_samples(rows_of(12))
    found = longest_first(samples, driver, range(12))
    if name in UNKNOWN:
        assert found == list(range(12))
        return
    made = {i: len(prepare_job(samples, driver, driver.config, i).image) for i in found}
    lengths = [made[i] for i in found]
    if name == "internvl":  # what its processor foresees is two tokens off, for all
        assert all(a >= b - 2 for a, b in zip(lengths, lengths[1:], strict=False))
    else:
        assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 3
    assert longest_first(samples, driver, found[3:]) == found[3:]
    assert longest_first(samples, None, range(12)) == list(range(12))


def test_what_cannot_be_used_comes_first(tiny):
    rows = rows_of(6)
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    rows[2]["answer"] = None
    driver = ModelDriver(*tiny, ScoreConfig())
    found = longest_first(open_samples(rows), driver, range(6))
    assert sorted(found) == list(range(6)) and found[:2] == [1, 2]


def test_only_the_head_of_a_file_is_read(tmp_path):
    pixels = Image.effect_noise((1500, 700), 90).convert("RGB")
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        path = tmp_path / kind
        pixels.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
        whole = path.read_bytes()
        assert image_size(ImageRef(None, str(path))) == (1500, 700)
        if len(whole) > HEAD_BYTES and kind != "WEBP":
            path.write_bytes(whole[:HEAD_BYTES])
            assert image_size(ImageRef(None, str(path))) == (1500, 700)
    (tmp_path / "x").write_bytes(b"no image")
    for ref in (ImageRef(None, str(tmp_path / "x")), ImageRef(None, str(tmp_path / "y"))):
        with pytest.raises(BadSample):
            image_size(ref)


OPTIONS = {
    "evidence": "answer",
    "batch_size": 3,
    "shard_size": 8,
    "progress": False,
    "max_bad_fraction": 0.2,
}


@pytest.fixture(scope="module")
def whole(tiny):
    return score(*tiny, pool(), **OPTIONS)


def pool() -> list[dict]:
    rows = rows_of(20)
    rows[4]["image"] = {"bytes": b"no image", "path": None}
    return rows


def batches_of(monkeypatch, stop: int | None = None) -> list[list[str]]:
    """The ids of the batches that are scored from now on; the one after ``stop`` raises."""
    real, seen = filling.score_batch, []

    def noted(scorer, jobs):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append([job.row["id"] for job in jobs])
        real(scorer, jobs)

    monkeypatch.setattr(filling, "score_batch", noted)
    return seen


def test_rows_are_stored_as_they_stand(tiny, whole, monkeypatch):
    assert whole.table["index"].to_pylist() == list(range(20))
    seen = batches_of(monkeypatch)
    driver = ModelDriver(*tiny, ScoreConfig())
    for workers in (0, 3):
        seen.clear()
        again = score(*tiny, pool(), **OPTIONS, workers=workers)
        left = [t.drop_columns(["seconds"]) for t in (again.table, whole.table)]
        assert left[0].equals(left[1])
        wanted = [
            f"s{i}"
            for start in (0, 8, 16)
            for i in longest_first(
                open_samples(pool()), driver, range(start, min(start + 8, 20))
            )
            if i != 4
        ]
        assert [name for batch in seen for name in batch] == wanted
        assert [len(batch) for batch in seen] == [3, 3, 1, 3, 3, 2, 3, 1]


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_with_the_same_batches(
    tiny, whole, tmp_path, monkeypatch, stop
):
    """What is kept of a shard is not its first rows, and none of it is scored again."""
    store = tmp_path / "store"
    seen = batches_of(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        score(*tiny, pool(), store=store, **OPTIONS)
    with ScoreStore.load(store) as shards:
        (k,) = shards.parts()
        kept = shards.partial(k).scores["index"].to_pylist()
        first = shards.shard_range(k)[: len(kept)]
        assert kept == sorted(kept) and kept != list(first) and len(kept) >= 3
    monkeypatch.undo()
    rest = batches_of(monkeypatch)
    again = score(*tiny, pool(), store=store, **OPTIONS)
    left = [t.drop_columns(["seconds"]) for t in (again.table, whole.table)]
    assert left[0].equals(left[1])
    monkeypatch.undo()
    fresh = batches_of(monkeypatch)
    score(*tiny, pool(), **OPTIONS)
    assert seen + rest == fresh


def test_less_is_padded_than_in_data_set_order(tiny, monkeypatch):
    def padded() -> int:
        scores = score(*tiny, pool(), **OPTIONS | {"shard_size": 20}, profile=True)
        return scores.meta["profile"]["counts"]["padded_tokens"]

    found = padded()
    monkeypatch.setattr(filling, "longest_first", lambda samples, driver, new: list(new))
    assert 2 * found < padded()


def test_a_part_of_a_data_set_has_its_own_numbers(tiny):
    import numpy as np

    driver = ModelDriver(*tiny, ScoreConfig())
    samples = open_samples(rows_of(12))
    places = np.array([1, 4, 5, 9])
    found = longest_first(Part(samples, places), driver, range(4))
    assert [places[i] for i in found] == longest_first(samples, driver, places.tolist())
