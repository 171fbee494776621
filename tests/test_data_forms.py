"""Every function that takes a data set takes all the forms of one: the same rows as a list
of dicts, a dict of columns, tables of pandas and Arrow, a datasets.Dataset, a path."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pytest
from PIL import Image

import rap
from rap.engines.settings import EngineConfig
from rap.errors import RapConfigError, RapInputError
from rap.report.page import write_report
from rap.samples.sampleset import open_samples
from rap.scores.scores import Scores
from rap.scoring.session import Recipe
from rap.trl import prepare

IDS = ["c", "a", "d", "b"]
KEPT = ["a", "b"]
ROLLOUTS = [
    {"id": name, "with_image": arm, "correct": arm and name in KEPT and k < 3}
    for name in "abcd"
    for arm in (True, False)
    for k in range(5)
]
GROUPS = ["g-c", "g-a", "g-d", "g-b"]


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def rows_of(folder: Path, *, bare: bool) -> list[dict[str, Any]]:
    """Rows in memory, their images in the rows; ``bare``: an id and a group, no samples."""
    rows = [{"id": i, "family": g} for i, g in zip(IDS, GROUPS, strict=True)]
    more = [
        {"question": f"What is {k}?", "answer": str(k), "image": png(k)} for k in range(4)
    ]
    return rows if bare else [a | b for a, b in zip(rows, more, strict=True)]


def as_jsonl(rows: list[dict[str, Any]], folder: Path) -> Path:
    lines = []
    for k, row in enumerate(rows):
        if "image" in row:
            (folder / f"{k}.png").write_bytes(row["image"])
            row = row | {"image": f"{k}.png"}
        lines.append(json.dumps(row) + "\n")
    path = folder / "data.jsonl"
    path.write_text("".join(lines))
    return path


FORMS = {
    "list of dicts": lambda rows, folder: rows,
    "tuple of dicts": lambda rows, folder: tuple(rows),
    "dict of columns": lambda rows, folder: {k: [r[k] for r in rows] for k in rows[0]},
    "pandas": lambda rows, folder: pandas.DataFrame(rows),
    "arrow": lambda rows, folder: pa.Table.from_pylist(rows),
    "datasets": lambda rows, folder: datasets.Dataset.from_list(rows),
    "path": as_jsonl,
    "text of a path": lambda rows, folder: str(as_jsonl(rows, folder)),
    "SampleSet": lambda rows, folder: open_samples(as_jsonl(rows, folder)),
}
BARE = [form for form in FORMS if form != "SampleSet"]


@pytest.fixture(params=FORMS)
def data(request, tmp_path) -> Any:
    return FORMS[request.param](rows_of(tmp_path, bare=False), tmp_path)


@pytest.fixture(params=BARE)
def bare(request, tmp_path) -> Any:
    return FORMS[request.param](rows_of(tmp_path, bare=True), tmp_path)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A selection whose data set was in memory, so that it has to be handed in."""
    scores = Scores.from_rollouts(ROLLOUTS, dataset=rows_of(tmp_path, bare=False))
    rap.choose(scores, budget=0.5).save(tmp_path / "chosen")
    return tmp_path / "chosen"


def test_case_20_scores_of_rollouts_and_their_selection(data) -> None:
    scores = Scores.from_rollouts(ROLLOUTS, dataset=data)
    assert scores.table["id"].to_pylist() == IDS
    assert scores.column("family").to_pylist() == GROUPS
    assert scores.meta["data"]["rows"] == 4
    chosen = rap.choose(scores, budget=0.5)
    assert chosen.ids == KEPT
    assert chosen.dataset["family"] == ["g-a", "g-b"]
    by_family = rap.choose(scores, budget=0.5, by="family")
    assert {g["group"] for g in by_family.settings["groups"]} == set(GROUPS)


def test_rows_that_are_no_samples(bare) -> None:
    scores = Scores.from_rollouts(ROLLOUTS, dataset=bare)
    assert scores.table["id"].to_pylist() == IDS
    assert scores.column("family").to_pylist() == GROUPS
    assert scores.meta["data"] is None
    chosen = rap.choose(scores, budget=0.5)
    assert chosen.ids == KEPT
    assert chosen.dataset["family"] == ["g-a", "g-b"]
    assert chosen.dataset.column_names == ["id", "family"]
    with pytest.raises(RapConfigError, match="no such column.* There are: .*, family$"):
        scores.column("groups")
    with pytest.raises(RapInputError, match="no column 'qid' to match .* it has id, fam"):
        Scores.from_rollouts(
            [row | {"qid": row["id"]} for row in ROLLOUTS], id="qid", dataset=bare
        )


def test_scores_that_are_handed_their_data(data, tmp_path) -> None:
    table = Scores.from_rollouts(ROLLOUTS, dataset=rows_of(tmp_path, bare=False)).table
    scores = Scores(table, {}, data)
    assert scores.column("family").to_pylist() == GROUPS
    assert rap.choose(scores, budget=0.5).dataset["family"] == ["g-a", "g-b"]


def test_a_loaded_selection(data, saved) -> None:
    again = rap.load(saved, dataset=data)
    assert again.ids == KEPT
    assert again.dataset["family"] == ["g-a", "g-b"]


def test_prepare(data, saved) -> None:
    assert prepare(data)["id"] == IDS
    chosen = prepare(rap.load(saved, dataset=data))
    assert [row["solution"] for row in chosen] == ["1", "3"]


def test_export(data, saved, tmp_path) -> None:
    rap.load(saved).export("jsonl", tmp_path / "out", data=data)
    lines = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == KEPT


def test_report(data, saved, tmp_path) -> None:
    page = write_report(rap.load(saved), tmp_path / "report.html", dataset=data)
    text = page.read_text()
    assert "What is 1?" in text and "data:image/webp;base64," in text


def test_case_20_score(data) -> None:
    """What ``score``, ``select`` and ``plan`` score."""
    recipe = Recipe(None, None, data, rap.ScoreConfig(), EngineConfig())
    assert recipe.samples().ids == IDS


@pytest.mark.parametrize(
    "source, message",
    [
        (3, "data set is int; expected"),
        ({"id": "a"}, "data set is dict; expected"),
        (iter([]), "rows come one after the other"),
        ("/nowhere/data.jsonl", "no such file or folder"),
        ("s3://bucket/data.jsonl", "allow_network"),
        ([{"id": "a"}, {"id": "a"}], "'a'"),
    ],
)
def test_what_is_no_data_set_is_refused_by_name(source, message) -> None:
    with pytest.raises(RapInputError, match=message):
        Scores.from_rollouts(ROLLOUTS, dataset=source)
