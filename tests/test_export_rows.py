"""Exports that are a row filter: the chosen rows as they came in."""

from __future__ import annotations

import base64
import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_cli import refused, run

import rap
from rap.errors import RapConfigError, RapInputError
from rap.export.formats import TARGETS
from rap.export.target import MANIFEST
from rap.samples.sampleset import open_samples

N, KEPT = 9, [1, 4, 7]
FEATURES = {
    b"huggingface": json.dumps(
        {"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "List"}}}}
    ).encode(),
    b"mine": b"kept, too",
}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def select(data: object) -> rap.Selection:
    samples = open_samples(data)
    made = [
        {"id": name, "with_image": arm, "correct": arm and k < 3 and i in KEPT}
        for i, name in enumerate(samples.ids)
        for arm in (True, False)
        for k in range(5)
    ]
    scores = rap.Scores.from_rollouts(made, dataset=samples)
    return rap.choose(scores, budget=len(KEPT) / N)


def packed(i: int) -> list[dict]:
    return [{"bytes": png(i), "path": f"some/{i}.png"}]


def verl(i: int) -> dict:
    return {
        "data_source": "mine/tasks",
        "prompt": [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": f"<image>Square {i}?"},
        ],
        "images": packed(i),
        "ability": "geometry",
        "reward_model": {"style": "rule", "ground_truth": str(i), "weight": i / 3},
        "extra_info": {"index": i, "split": "train", "tools": ["zoom"]},
        "weight": np.float32(i / 7).item(),
    }


def easyr1(i: int) -> dict:
    return {"problem": f"<image>Square {i}?", "answer": str(i), "images": packed(i), "w": i}


def trl(i: int) -> dict:
    turn = {"role": "user", "content": f"Square {i}?"}
    more = {"solution": f"\\boxed{{{i}}}", "difficulty": i / 9}
    return {"prompt": [turn], "images": packed(i), **more}


def openrlhf(i: int) -> dict:
    row = {"prompt": f"<image>Square {i}?", "label": f"{i}", "images": [f"{i}.png"]}
    return row | {"datasource": "mine", "extra": {"a": [i, None, 0.1]}}


def swift(i: int) -> dict:
    turns = [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": f"<image>Square {i}?"},
    ]
    return {"messages": turns, "images": [f"{i}.png"], "solution": f"{i}", "channel": "x"}


def llamafactory(i: int) -> dict:
    turns = [
        {"role": "user", "content": f"<image>Square {i}?"},
        {"role": "assistant", "content": f"It is {i}."},
    ]
    return {"messages": turns, "images": [f"{i}.png"], "answer": f"{i}", "mark": "ü"}


FORMS: dict[str, Callable[[int], dict]] = {
    "verl": verl,
    "easyr1": easyr1,
    "trl": trl,
    "openrlhf": openrlhf,
    "ms-swift": swift,
    "llamafactory": llamafactory,
}
PACKED = ("verl", "easyr1", "trl")


def write(folder: Path, form: str) -> Path:
    """The data set as its trainer has it: Parquet with features, or JSONL beside images."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [FORMS[form](i) for i in range(N)]
    if form in PACKED:
        table = pa.Table.from_pylist(rows).replace_schema_metadata(FEATURES)
        if form == "verl":  # types that a rewriting would not keep
            at = table.schema.get_field_index("weight")
            table = table.set_column(at, "weight", table["weight"].cast(pa.float32()))
        pq.write_table(table, folder / "data.parquet", row_group_size=4)
        return folder / "data.parquet"
    for i in range(N):
        (folder / f"{i}.png").write_bytes(png(i))
    spaced = "".join(json.dumps(row).replace(": ", ":  ") + " \r\n\n" for row in rows)
    (folder / "data.jsonl").write_text(spaced)
    return folder / "data.jsonl"


@pytest.mark.parametrize("form", FORMS)
def test_case_30_the_form_that_came_in_is_kept_byte_for_byte(tmp_path, form):
    file = write(tmp_path / "data", form)
    selection = select(file)
    found = selection.export(form, tmp_path / "out")
    assert found.filtered and found.dropped == () and found.samples == 3
    if form in PACKED:
        before, after = pq.read_table(file), pq.read_table(tmp_path / "out/train.parquet")
        assert after.schema.equals(before.schema, check_metadata=True)
        assert after.equals(before.take(KEPT))
    else:
        lines = [x.rstrip() for x in file.read_bytes().splitlines() if x.strip()]
        wanted = b"".join(lines[i] + b"\n" for i in KEPT)
        assert (tmp_path / "out" / "train.jsonl").read_bytes() == wanted
        for i in KEPT:
            assert (tmp_path / "out" / f"{i}.png").read_bytes() == png(i)
        assert not (tmp_path / "out" / "0.png").exists()
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["filtered"] is True and manifest["dropped"] == []
    assert [one["id"] for one in manifest["samples"]] == selection.ids
    assert "as they came in" in str(found)
    assert TARGETS[form].is_its_own(FORMS[form](1))


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_told_by_one_form_only_where_another_reads_them_otherwise(form):
    own = {name for name, target in TARGETS.items() if target.is_its_own(FORMS[form](1))}
    shared = {"llamafactory": {"ms-swift"}}  # its chats are ms-swift's, too
    assert own == {form} | shared.get(form, set())
    plain = {"question": "q", "answer": "1", "image": "a.png"}
    assert not any(target.is_its_own(plain) for target in TARGETS.values())


def test_a_name_for_the_reward_is_all_that_changes_when_one_is_given(tmp_path):
    file = write(tmp_path / "data", "verl")
    select(file).export("verl", tmp_path / "out", data_source="other", add=["reason", "D"])
    before = pq.read_table(file).take(KEPT)
    after = pq.read_table(tmp_path / "out" / "train.parquet")
    assert after["data_source"].to_pylist() == ["other"] * 3
    assert after["rap_reason"].to_pylist() == ["kept_cognitive"] * 3
    assert after["rap_D"].to_pylist() == [0.6] * 3
    names = [name for name in before.column_names if name != "data_source"]
    assert after.select(names).equals(before.select(names))


def test_verls_reward_log_goes_along_where_its_index_is_the_id(tmp_path):
    file = write(tmp_path / "data", "verl")
    found = select(file).export("verl", tmp_path / "a")
    assert "rap_reward.py" in found.files  # row numbers, as in extra_info.index
    table = pq.read_table(file)
    ids = pa.array([f"s{i}" for i in range(N)])
    pq.write_table(table.append_column("id", ids), file)
    found = select(file).export("verl", tmp_path / "b")
    assert "rap_reward.py" not in found.files and "needs --rewrite" in str(found)


@pytest.mark.parametrize("form", FORMS)
def test_rewriting_can_be_asked_for(tmp_path, form):
    file = write(tmp_path / "data", form)
    selection = select(file)
    with (
        pytest.warns(UserWarning, match="export does not have")
        if form != "openrlhf"
        else (pytest.warns(UserWarning, match="does not have: extra; --to parquet"))
    ):
        found = selection.export(form, tmp_path / "out", filter=False)
    assert not found.filtered and found.samples == 3
    assert found.dropped
    rows = (
        pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
        if form in PACKED
        else lines_of(tmp_path / "out" / "train.jsonl")
    )
    assert all("rap_reason" in (row.get("extra_info") or row) for row in rows)


def test_options_of_rewriting_rewrite_and_say_so_when_they_cannot(tmp_path):
    selection = select(write(tmp_path / "data", "verl"))
    with pytest.warns(
        UserWarning, match="export does not have: ability, extra_info, weight;"
    ):
        found = selection.export("verl", tmp_path / "a", prompt_template="Q: {question}")
    assert not found.filtered
    with pytest.raises(
        RapConfigError, match="prompt_template: no effect on rows that stay"
    ):
        selection.export("verl", tmp_path / "b", prompt_template="{question}", filter=True)
    with pytest.raises(RapInputError, match="does not have the form that easyr1 reads"):
        selection.export("easyr1", tmp_path / "b", filter=True)
    with pytest.raises(RapConfigError, match="filter=False .*to jsonl rows go as they are"):
        selection.export("jsonl", tmp_path / "b", filter=False)
    with pytest.raises(RapConfigError, match="add: rows that are written anew have"):
        selection.export("verl", tmp_path / "b", add=["D"], filter=False)
    with pytest.raises(RapConfigError, match="no column 'E'; it has id, index"):
        selection.export("jsonl", tmp_path / "b", add=["E"])
    assert not (tmp_path / "b").exists()


# ---------------------------------------------------------------- parquet and jsonl


def test_to_parquet_keeps_a_datasets_features(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {
        "id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "answer": datasets.ClassLabel(names=[str(i) for i in range(N)]),
        "image": datasets.Image(),
        "when": datasets.Value("timestamp[ms]"),
    }
    rows = [
        {
            "id": f"s{i}",
            "question": f"Square {i}?",
            "answer": i,
            "image": {"bytes": png(i), "path": None},
            "when": datetime.datetime(2026, 1, 1 + i),
        }
        for i in range(N)
    ]
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    found = select(data).export("parquet", tmp_path / "out", add=["reason"])
    assert found.filtered and found.encoded == 0 and found.target == "parquet"
    again = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "out" / "train.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert {k: v for k, v in again.features.items() if k in features} == data.features
    assert again["id"] == [f"s{i}" for i in KEPT]
    assert again["rap_reason"] == ["kept_cognitive"] * 3
    raw = pq.read_table(tmp_path / "out" / "train.parquet")
    assert [image["bytes"] for image in raw["image"].to_pylist()] == [png(i) for i in KEPT]
    select(data.select(range(N))).export("jsonl", tmp_path / "lines")
    lines = lines_of(tmp_path / "lines" / "train.jsonl")
    assert [line["when"] for line in lines] == [f"2026-01-0{1 + i}T00:00:00" for i in KEPT]


@pytest.mark.parametrize("to", ["parquet", "jsonl"])
def test_lists_and_lines_keep_all_columns(tmp_path, to):
    rows = [
        {
            "question": f"Square {i}?",
            "answer": str(i),
            "image": Image.open(io.BytesIO(png(i))),
            "nested": {"deep": [{"x": "ü", "i": i}]},
            "raw": b"\x00\xff",
        }
        for i in range(N)
    ]
    select(rows).export(to, tmp_path / "out")
    if to == "parquet":
        found = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
        images = [row["image"]["bytes"] for row in found]
        assert found[0]["raw"] == b"\x00\xff"
    else:
        text = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
        found = list(map(json.loads, text.splitlines()))
        images = [(tmp_path / "out" / row["image"]).read_bytes() for row in found]
        assert base64.b64decode(found[0]["raw"]) == b"\x00\xff" and "ü" in text
    assert [row["nested"]["deep"] for row in found] == [[{"x": "ü", "i": i}] for i in KEPT]
    for i, data in zip(KEPT, images, strict=True):
        want = Image.open(io.BytesIO(png(i))).convert("RGB").tobytes()
        assert Image.open(io.BytesIO(data)).tobytes() == want


def test_lines_to_parquet_and_parquet_to_lines(tmp_path):
    lines = write(tmp_path / "lines", "openrlhf")
    select(lines).export("parquet", tmp_path / "a")
    rows = pq.read_table(tmp_path / "a" / "train.parquet").to_pylist()
    assert rows == [openrlhf(i) for i in KEPT]
    assert (tmp_path / "a" / "4.png").read_bytes() == png(4)
    select(write(tmp_path / "table", "easyr1")).export("jsonl", tmp_path / "b")
    rows = lines_of(tmp_path / "b" / "train.jsonl")
    for i, row in zip(KEPT, rows, strict=True):
        (name,) = row.pop("images")
        assert (tmp_path / "b" / name).read_bytes() == png(i)
        assert row == {k: v for k, v in easyr1(i).items() if k != "images"}
    select(lines).export("jsonl", tmp_path / "with", add=["reason"])
    rows = lines_of(tmp_path / "with" / "train.jsonl")
    assert rows == [openrlhf(i) | {"rap_reason": "kept_cognitive"} for i in KEPT]
    with pytest.raises(RapInputError, match="column 'x' has no one Arrow type.*--to jsonl"):
        odd = [{"question": "q", "answer": "1", "image": packed(i)[0]} for i in range(N)]
        for i, row in enumerate(odd):
            row["x"] = i if i % 2 else str(i)
        select(odd).export("parquet", tmp_path / "c")


def test_a_form_that_is_not_there_cannot_be_kept(tmp_path):
    """--filter on rows of another trainer's form."""
    selection = select(write(tmp_path, "trl"))
    with pytest.raises(RapInputError, match="does not have the form that verl reads"):
        selection.export("verl", tmp_path / "out", filter=True)
    assert not (tmp_path / "out").exists()


def test_nothing_outside_of_the_export_is_written(tmp_path):
    file = write(tmp_path / "data", "openrlhf")
    text = file.read_text().replace('"4.png"', '"sub/../train.jsonl"')
    (tmp_path / "data" / "train.jsonl").write_bytes(png(4))
    (tmp_path / "data" / "sub").mkdir()
    file.rename(tmp_path / "data" / "rows.json.txt")
    (tmp_path / "data" / "rows.json.txt").write_text(text)
    with pytest.raises(RapInputError, match="'train.jsonl' would lie in the place"):
        select(tmp_path / "data" / "rows.json.txt").export("openrlhf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_path_that_leads_above_the_export_is_refused(tmp_path):
    """In the data set it comes back into its folder."""
    file = write(tmp_path / "data", "openrlhf")
    file.write_text(file.read_text().replace('"4.png"', '"../data/4.png"'))
    (tmp_path / "to").mkdir()
    with pytest.raises(RapInputError, match="'../data/4.png' would lie in the place"):
        select(file).export("openrlhf", tmp_path / "to" / "out")
    assert list((tmp_path / "to").iterdir()) == []


# ---------------------------------------------------------------- the shell


@pytest.mark.filterwarnings("default:columns of the data set")
def test_shell_filters_and_rewrites(tmp_path):
    file = write(tmp_path / "data", "verl")
    select(file).save(tmp_path / "selection")
    there = ("export", tmp_path / "selection", "--to")
    report = json.loads(run(*there, "verl", "--out", tmp_path / "a", "--json").stdout)
    assert report["filtered"] is True and report["samples"] == 3
    text = run(*there, "verl", "--out", tmp_path / "b", "--rewrite").output
    assert text.count("ability") == 1, text
    assert "columns left out: ability, " in text and "(--to parquet or jsonl keeps" in text
    out = ("--out", tmp_path / "c", "--add", "reason", "--add", "difficulty")
    assert "3 samples for parquet" in run(*there, "parquet", *out).output
    table = pq.read_table(tmp_path / "c" / "train.parquet")
    assert table.column_names[-2:] == ["rap_reason", "rap_difficulty"]
    refused(
        *there, "trl", "--filter", "--out", tmp_path / "d", code=1, says="form that trl"
    )
