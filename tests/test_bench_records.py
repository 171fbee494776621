"""Rules on published records: the pure parts, on made-up records; the real ones where
../shared is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rap
from benchmarks import records


def row(i: int, model: str, prompt: str, image: bool, right: bool, **more: str) -> dict:
    return {
        "id": f"q{i:02d}",
        "model": model,
        "prompt": prompt,
        "with_image": image,
        "augment": "none",
        "response": "words",
        "answer": "x",
        "correct": right,
    } | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve questions; models a (twice), b, c, d with the image, s, t without it, and
    what has to be left out. Question i is solved by the first i mod 6 settings."""
    rows = []
    for i in range(12):
        for k, (model, prompt) in enumerate(
            (("a", "cot"), ("a", "direct"), ("b", "cot"), ("c", "cot"), ("d", "cot"))
        ):
            rows.append(row(i, model, prompt, True, k < i % 6))
        rows += [row(i, "s", "cot", False, i == 3), row(i, "t", "cot", False, i >= 10)]
        rows.append(row(i, "t", "ocr", False, True, augment="ocr"))
        rows.append(row(i, "random", "guess", False, True))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "records.parquet")
    gold = [
        json.dumps({"id": f"q{i:02d}", "task": "even odd".split()[i % 2]})
        for i in range(12)
    ]
    (tmp_path / "gold.jsonl").write_text("\n".join(gold))
    return tmp_path


def test_guesses_and_images_in_words_are_left_out(folder):
    read = records.read(folder, "task")
    assert set(read.settings(True)) == {"a/cot", "a/direct", "b/cot", "c/cot", "d/cot"}
    assert read.settings(False) == {"s/cot": "s", "t/cot": "t"}
    table = read.scores().table
    assert table["m1"].to_pylist() == [5] * 12 and table["m0"].to_pylist() == [2] * 12
    assert table["c1"].to_pylist() == [i % 6 for i in range(12)]
    assert table["c0"].to_pylist() == [int(i in (3, 10, 11)) for i in range(12)]


def test_a_model_is_in_one_half_and_every_setting_in_one(folder):
    groups = records.read(folder, "task").settings(True)
    seen = set()
    for seed in range(20):
        one, other = records.halves(groups, seed)
        assert sorted([*one, *other]) == sorted(groups)
        assert not {groups[s] for s in one} & {groups[s] for s in other}
        assert len({groups[s] for s in one}) == 2
        seen.add(tuple(one))
    assert len(seen) == 6  # every pair of the four models comes up
    assert (
        records.halves({"x/cot": "x", "x/direct": "x"}, 0) == (["x/cot", "x/direct"],) * 2
    )


def test_rates_are_unbiased_and_signs_are_counted(folder):
    rate = records.rates(records.read(folder, "task").scores())
    # c of 5 right: c (5 - c) / 20
    np.testing.assert_allclose(rate.variance[:6], [0, 0.2, 0.3, 0.3, 0.2, 0])
    np.testing.assert_allclose(rate.d[:6], [0, 0.2, 0.4, 0.1, 0.8, 1.0])
    assert records.signs(np.array([0.3, 0.1 + 0.2 - 0.3, -1, 2])) == (0.5, 0.25, 0.25)
    assert np.isnan(records.signs(np.array([]))).all()


def test_equal_halves_overlap_in_full_and_judge_themselves(folder):
    scores = records.read(folder, "task").scores()
    found = records.half((scores, scores), 0.25, "budget", 0)
    assert found["kept"] == 3 and found["overlap"] == 1.0
    assert found["chance"] == pytest.approx((3 * 3 / 12) / (6 - 3 * 3 / 12))
    assert (found["above"], found["below"]) == (1.0, 0.0)
    kept = rap.choose(scores, budget=0.25).indices
    rate = records.rates(scores).variance
    assert found["variance"] == pytest.approx(rate[kept].mean() / rate.mean())


def test_the_page_reads_what_the_records_say(shared):
    """The sentences of ``READ`` that numbers stand in, on the real records."""
    sets = {
        name: records.read(shared / "data" / name, topic)
        for name, topic in records.SETS.items()
    }
    kept = {
        (r["set"].split("_")[0], r["rule"]): r
        for one in sets.values()
        for r in records.whole(one, 0.093)
    }
    same = {k: round(100 * v["same"]) for k, v in kept.items()}
    assert [same["mathvision", r] for r in ("budget", "learn")] == [85, 67]
    assert [same["mathvista", r] for r in ("budget", "learn")] == [23, 33]
    assert round(100 * kept["mathvista", "budget"]["above"]) == 100
    assert round(100 * kept["mathvista", "p (1 - p)"]["above"]) == 39
    assert [
        kept[s, "public script, by lot"]["kept"] for s in ("mathvision", "mathvista")
    ] == [23, 41]
    assert [kept[s, "paper (own size)"]["kept"] for s in ("mathvision", "mathvista")] == [
        36,
        10,
    ]
    page = (records.RESULTS / "records.md").read_text()
    assert records.READ in page
