"""Which row is which sample: shuffled, edited, other and older data sets.

No model here: what a store keeps of an older data set is in test_reuse.py.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import rap
from rap.errors import RapConfigError, RapInputError
from rap.samples.sample import sample_sha256
from rap.samples.sampleset import SampleSet, load_images, open_samples
from rap.scores.match import TEXT_COLUMN, find, match
from rap.scores.scores import write_saved
from rap.scores.table import table_from_rows

N = 24
KEPT = list(range(1, N, 3))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_rows(kind: str, *, same_text: bool = False) -> list[dict]:
    """``kind``: "ids" or "numbered"; ``same_text``: only the images differ."""
    rows = []
    for i in range(N):
        question = "How many squares are shown here?" if same_text else f"Square {i}?"
        row = {"question": question, "answer": "3" if same_text else str(i), "mark": i}
        rows.append(row | {"image": {"bytes": png(i), "path": None}})
        if kind == "ids":
            rows[-1]["id"] = f"s{i}"
    return rows


def write(folder: Path, rows: list[dict]) -> Path:
    """The rows as JSONL beside image files, named by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        name = f"{row['mark']}.png"
        (folder / name).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps(row | {"image": name}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return folder / "data.jsonl"


def select(data: object, how: str = "rollouts") -> rap.Selection:
    """``KEPT`` of the rows as they stand in ``data``. ``how``: "rollouts" made elsewhere,
    "scored" as a model's scores are, with every hash, "bare" without any, as once."""
    samples = data if isinstance(data, SampleSet) else open_samples(data)
    if how == "rollouts":
        made = [
            {"id": name, "with_image": arm, "correct": arm and k < 3 and i in KEPT}
            for i, name in enumerate(samples.ids)
            for arm in (True, False)
            for k in range(5)
        ]
        scores = rap.Scores.from_rollouts(made, dataset=samples)
    else:
        table = []
        for i, sample in enumerate(samples):
            row = {"id": sample.id, "index": i, "status": "scored", "evidence": "rollouts"}
            row |= {"c1": 3 if i in KEPT else 0, "m1": 5, "c0": 0, "m0": 5}
            if how == "scored":
                hashes = load_images(sample, max_pixels=10**6)[1]
                row["image_sha256"] = ",".join(hashes)
                row["sample_sha256"] = sample_sha256(sample, hashes)
            table.append(row)
        scores = rap.Scores(table_from_rows(table), {}, samples)
    selection = rap.choose(scores, budget=len(KEPT) / N)
    assert selection.indices.tolist() == KEPT
    return selection


def shuffled(rows: list[dict]) -> list[dict]:
    rows = list(rows)
    random.Random(3).shuffle(rows)
    assert [row["mark"] for row in rows] != list(range(N))
    return rows


# ---------------------------------------------------------------- the right rows


@pytest.mark.parametrize("how", ["rollouts", "scored"])
@pytest.mark.parametrize("same_text", [False, True], ids=["texts", "images only"])
@pytest.mark.parametrize("kind", ["ids", "numbered"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_shuffled_data_set_gives_the_right_rows(tmp_path, where, kind, same_text, how):
    pytest.importorskip("datasets")
    rows = make_rows(kind, same_text=same_text)
    other = shuffled(rows)
    if where == "file":
        first, second = write(tmp_path / "a", rows), write(tmp_path / "b", other)
    else:
        first, second = rows, other
    select(first, how).save(tmp_path / "selection")
    again = rap.load(tmp_path / "selection", second)
    assert again.dataset["mark"] == KEPT
    assert [other[i]["mark"] for i in again.rows] == KEPT
    assert again.indices.tolist() == KEPT  # as they were scored

    from rap.trl import prepare

    for pool in (False, True):
        data = prepare(again, pool=pool)
        marks = {row["id"]: row["mark"] for row in data}
        assert [marks[name] for name in again.ids] == KEPT
        assert data[0]["images"][0].size == (16, 12)
    with pytest.warns(UserWarning, match="does not have: mark"):
        found = again.export("trl", tmp_path / "trl")
    written = pq.read_table(found.folder / "train.parquet").to_pylist()
    assert [row["images"][0]["bytes"] for row in written] == [png(i) for i in KEPT]
    assert [row["id"] for row in written] == again.ids
    page = again.report(tmp_path / "page.html", per_reason=100).read_text()
    for i in KEPT:
        assert same_text or f"Square {i}?" in page
    assert page.count("data:image/webp") == N  # every sample shown has its image
    assert "not in the data set" not in page


def test_case_27_a_saved_selection_opens_its_data_again(tmp_path, monkeypatch):
    file = write(tmp_path / "data", make_rows("numbered"))
    monkeypatch.chdir(tmp_path)
    select("data/data.jsonl").save(tmp_path / "selection")
    known = json.loads((tmp_path / "selection" / "settings.json").read_text())["data"]
    assert known["path"] == "data/data.jsonl" and known["absolute"] == str(file)
    assert known["rows"] == N and known["columns"]["question"] == "question"
    assert known["kind"].startswith("JSONL") and known["root"] is None
    assert known["content_sha256"] == open_samples(file).content_hash()

    import rap.scores.match as module

    opened = []
    real = module.open_samples
    monkeypatch.setattr(
        module, "open_samples", lambda *a, **k: opened.append(a) or real(*a, **k)
    )
    monkeypatch.chdir("/")
    again = rap.load(tmp_path / "selection")
    assert "samples kept" in again.summary() and opened == []
    assert again.dataset["mark"] == KEPT and len(opened) == 1
    assert len(again.samples) == N and len(opened) == 1
    assert "<img" in again._repr_html_()

    file.parent.rename(tmp_path / "moved")
    gone = rap.load(tmp_path / "selection")
    assert gone.dataset is None and "<img" not in gone._repr_html_()
    with pytest.raises(RapInputError, match="data.jsonl is not there any more"):
        gone.export("trl", tmp_path / "out")
    moved = rap.load(tmp_path / "selection", tmp_path / "moved" / "data.jsonl")
    assert moved.dataset["mark"] == KEPT


def test_columns_and_root_are_remembered(tmp_path):
    write(tmp_path / "images", make_rows("numbered"))
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "data.jsonl"
    rows = [
        {"q": row["question"], "a": row["answer"], "question": "Not this.", "answer": "no"}
        | {"image": f"images/{row['mark']}.png", "mark": row["mark"]}
        for row in make_rows("numbered")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": "q", "answer": "a"}
    select(open_samples(file, columns=columns, root=tmp_path)).save(tmp_path / "selection")
    again = rap.load(tmp_path / "selection")
    assert again.samples[KEPT[0]].question == f"Square {KEPT[0]}?"
    assert again.dataset["mark"] == KEPT


# ---------------------------------------------------------------- what is refused


def everywhere(selection: rap.Selection, folder: Path) -> list:
    """Every way from a selection to its data."""
    from rap.trl import prepare

    return [
        lambda: selection.dataset,
        lambda: selection.rows,
        lambda: prepare(selection),
        lambda: prepare(selection, pool=True),
        lambda: selection.export("parquet", folder / "out"),
        lambda: selection.export("jsonl", folder / "out"),
    ]


@pytest.mark.parametrize("how", ["rollouts", "scored"])
@pytest.mark.parametrize("kind", ["ids", "numbered"])
def test_another_data_set_of_the_same_size_is_refused_by_name(tmp_path, kind, how):
    select(make_rows(kind), how).save(tmp_path / "selection")
    other = make_rows(kind)
    for row in other:
        row["question"] = row["question"].replace("Square", "Circle")
    again = rap.load(tmp_path / "selection", other)
    every = everywhere(again, tmp_path)
    for asked in [*every, lambda: again.export("trl", tmp_path / "out")]:
        with pytest.raises(RapInputError, match="not the one that was scored") as error:
            asked()
        text = str(error.value)
        assert "8 of 8 selected" in text or "24 of 24 selected" in text
        assert "(row 1) changed: its question" in text or "(row 0) changed" in text
        assert text.count("changed") == 3 and text.endswith("; ...")
    assert not (tmp_path / "out").exists()
    page = again.report(tmp_path / "page.html", per_reason=100).read_text()
    assert "Circle 1?" not in page and "24 of 24 samples shown here are not" in page
    assert "<img" not in again._repr_html_()


@pytest.mark.parametrize("what", ["question", "answer", "image", "gone", "renumbered"])
def test_one_sample_that_is_another_is_named(tmp_path, what):
    rows = make_rows("ids")
    select(rows, "scored").save(tmp_path / "selection")
    at = KEPT[2]
    other = [dict(row) for row in rows]
    says = f"1 of N selected .*: 's{at}' \\(row {at}\\) changed: its question, answer"
    if what == "gone":
        del other[at]
        says = f"1 of N selected .*: row {at} was 's{at}' and is 's{at + 1}'"
    elif what == "image":
        other[at]["image"] = {"bytes": png(99), "path": None}
        says = f"1 of N selected .*: 's{at}' \\(row {at}\\) changed: its image is another"
    elif what == "renumbered":  # the ids were given anew after a shuffle
        other = [row | {"id": f"s{i}"} for i, row in enumerate(shuffled(rows))]
        says = "[0-9]+ of N selected samples are not in the data set"
    else:
        other[at][what] = "other"
    again = rap.load(tmp_path / "selection", other)
    for asked in everywhere(again, tmp_path):
        with pytest.raises(RapInputError, match=says.replace("N", "(8|24)")):
            asked()


def test_an_image_file_that_changed_is_found_when_it_is_read(tmp_path):
    from rap.trl import prepare

    file = write(tmp_path / "data", make_rows("ids"))
    select(file, "scored").save(tmp_path / "selection")
    (tmp_path / "data" / f"{KEPT[0]}.png").write_bytes(png(99))
    again = rap.load(tmp_path / "selection")
    assert again.dataset["mark"] == KEPT  # reads no image
    data = prepare(again)
    assert data[1]["mark"] == KEPT[1]
    with pytest.raises(RapInputError, match=f"'s{KEPT[0]}' .* changed: its image is ano"):
        data[0]
    with pytest.raises(RapInputError, match=f"'s{KEPT[0]}' cannot be exported: changed"):
        again.export("jsonl", tmp_path / "out")
    assert (
        "the image changed since it was scored" in again.report(tmp_path / "p").read_text()
    )


def test_texts_that_stand_twice_are_no_evidence_without_an_image_hash(tmp_path):
    """Row numbers as ids, and a table that knows the texts only."""
    rows = make_rows("numbered", same_text=True)
    selection = select(rows)
    table = selection.table
    for name in ("sample_sha256", "image_sha256"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.nulls(N, pa.string()))
    settings = selection.settings
    same = rap.Selection(table, settings, rows)
    assert same.dataset["mark"] == KEPT  # the whole data set is the same
    other = rap.Selection(table, settings, shuffled(rows)[1:] + shuffled(rows)[:1])
    assert open_samples(other.source).content_hash() == open_samples(rows).content_hash()
    fewer = rap.Selection(table, settings, rows[:-1])
    with pytest.raises(RapInputError, match="8 of 8 .*has no id: its text alone is not"):
        fewer.match()


# ---------------------------------------------------------------- older selections


@pytest.mark.parametrize("how", ["scored", "bare"])
@pytest.mark.parametrize("kind", ["ids", "numbered"])
def test_selections_of_older_versions_are_matched_by_what_they_know(tmp_path, kind, how):
    rows = make_rows(kind)
    selection = select(rows, how)
    old = {k: v for k, v in selection.settings.items() if k != "data"}
    write_saved(tmp_path / "selection.parquet", selection.table, old, "selection")
    assert rap.load(tmp_path).dataset is None
    assert rap.load(tmp_path, rows).dataset["mark"] == KEPT
    again = rap.load(tmp_path, shuffled(rows))
    if kind == "ids" or how == "scored":
        assert again.dataset["mark"] == KEPT
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(RapInputError, match="rows come one after the other"):
        rap.load(tmp_path, stream).dataset  # noqa: B018
    with pytest.raises(RapInputError, match="selected samples are not in the data set"):
        rap.load(tmp_path, rows[:20]).rows  # noqa: B018
    again = rap.load(tmp_path, rows)
    again.save(tmp_path / "new")
    assert rap.load(tmp_path / "new").data["content_sha256"] is not None
    again = rap.load(tmp_path, shuffled(rows))
    if kind == "ids" or how == "scored":
        again.save(tmp_path / "new")  # says nothing of an order that it does not have
        assert rap.load(tmp_path / "new").data["content_sha256"] is None
        assert rap.load(tmp_path / "new", shuffled(rows)).dataset["mark"] == KEPT


def test_positions_are_found_in_the_given_order(tmp_path):
    samples = open_samples(make_rows("ids"))
    table = select(make_rows("ids"), "scored").table
    assert match(table, samples, rows=[5, 2, 9]).tolist() == [5, 2, 9]
    assert match(table, samples).tolist() == list(range(N))
    found = find(table, open_samples(make_rows("ids")[:6]), rows=[5, 7])
    assert found.rows.tolist() == [5, -1] and list(found.why) == [1]
    assert TEXT_COLUMN in select(make_rows("ids")).table.column_names


def test_ids_say_which_sample_it_is_even_where_the_data_set_is_the_same(tmp_path):
    """A table whose rows stand in another order than it says."""
    samples = open_samples(write(tmp_path, make_rows("ids")))
    assert samples.content_counts_images  # the hash of the whole decides, where it may
    table = select(samples, "scored").table
    turned = table.take(list(range(N))[::-1])
    turned = turned.set_column(turned.column_names.index("index"), "index", table["index"])
    data = {"content_sha256": samples.content_sha256}
    assert match(table, samples, data=data).tolist() == list(range(N))
    assert match(turned, samples, data=data).tolist() == list(range(N))[::-1]


# ---------------------------------------------------------------- trainers, re-selection


def test_a_pool_whose_row_numbers_mean_others_is_refused():
    from rap.trl import prepare
    from rap.trl.data import require_selected

    rows = make_rows("numbered")
    selection = select(rows, "scored")
    require_selected(prepare(rows), selection)
    require_selected([], selection)
    with pytest.raises(
        RapConfigError, match=r"of 8 selected samples have other ids .*pool"
    ):
        require_selected(prepare(shuffled(rows)), selection)
    moved = rap.Selection(selection.table, selection.settings, shuffled(rows))
    require_selected(prepare(moved, pool=True), selection)


def test_scores_of_other_samples_under_the_same_ids_do_not_mix():
    from rap.selection.reselection import reselect

    first, rows = select(make_rows("numbered"), "scored"), make_rows("numbered")
    rows[7]["answer"] = "other"
    same = select(make_rows("numbered"), "scored")
    passes = {first.ids[0]: (8.0, 8.0)}
    assert len(reselect(first, passes, now=same)) == 7  # one has become trivial
    with pytest.raises(RapInputError, match="1 of 24 samples are others in the new .*'7'"):
        reselect(first, passes, now=select(rows, "scored"))
