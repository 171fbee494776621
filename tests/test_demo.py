"""The demo and the data it ships."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rap
from rap import demo
from rap.samples.images import load_images
from rap.samples.sample import Sample
from rap.samples.sampleset import open_samples

SETS = {"mathvision": demo.MATHVISION, "puzzlevqa": demo.PUZZLES}


def test_shipped_data_are_small_and_carry_their_licences():
    files = [path for path in demo.DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for name in SETS:
        licence = (demo.DATA / name / "LICENSE").read_text()
        assert licence.startswith("MIT License\n\nCopyright (c) 20")
        assert "commit" in (demo.DATA / name / "SOURCE.md").read_text()


@pytest.mark.parametrize("name", SETS)
def test_every_shipped_sample_can_be_used(name):
    samples = open_samples(SETS[name])
    for i in range(len(samples)):
        sample = samples[i]
        assert isinstance(sample, Sample)
        assert len(load_images(sample.images, max_pixels=10**7)[0]) == 1
    named = {Path(image.path).name for s in samples for image in s.images}
    assert named == {path.name for path in (SETS[name].parent / "images").iterdir()}


@pytest.mark.parametrize("name", SETS)
def test_shipped_data_are_the_published_ones_byte_for_byte(name, shared):
    source = shared / "data" / name
    rows = {
        row["id"]: row
        for row in map(json.loads, (source / "samples.jsonl").read_text().splitlines())
    }
    for line in SETS[name].read_text().splitlines():
        row = json.loads(line)
        assert row == rows[row["id"]]
        ours, theirs = (
            hashlib.sha256((folder / row["image"]).read_bytes()).digest()
            for folder in (SETS[name].parent, source)
        )
        assert ours == theirs


def test_shipped_rollouts_are_all_of_the_published_ones(shared):
    ours = pq.read_table(demo.ROLLOUTS)
    ids = set(open_samples(demo.MATHVISION).ids)
    theirs = pq.read_table(shared / "data" / "mathvision_records" / "records.parquet")
    wanted = [
        row
        for row in theirs.to_pylist()
        if row["id"] in ids and row["augment"] == "none" and row["model"] != "random"
    ]
    assert ours.to_pylist() == wanted and len(wanted) == 14 * len(ids)


def test_published_selection_says_why():
    selection = demo.published()
    counts = selection.counts()
    assert len(selection) == 9 and sum(counts.values()) == 105
    for reason in ("kept_cognitive", "dropped_unsolved", "dropped_image_hurts"):
        assert counts[reason] > 0
    assert selection.dataset["id"] == selection.ids


def test_demo_leaves_selection_report_and_scores(tmp_path):
    lines: list[str] = []
    selection = demo.run(tmp_path / "out", samples=3, echo=lines.append)
    text = "\n".join(lines)
    assert "random" in text and "nothing meaningful" in text and "pool of models" in text
    assert rap.load(tmp_path / "out" / "selection").ids == selection.ids
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "9 of 105 samples kept" in page and page.count("data:image/webp") > 30
    scores = rap.Scores.load(tmp_path / "out" / "scores")
    assert scores.table["id"].to_pylist() == demo.puzzles(3).ids
    assert set(scores.table["status"].to_pylist()) == {"scored"}
    assert f"{sum(scores.table['forwards'].to_pylist())} forward passes" in text
    demo.run(tmp_path / "out", samples=3, echo=lines.append)  # resumes, does not refuse
