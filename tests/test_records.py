"""Rollouts made elsewhere become exact counts, whatever table they come in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rap.errors import RapInputError
from rap.scores.scores import Scores
from rap.selection.choosing import choose

ROWS = [
    {"id": "b", "with_image": True, "correct": True, "text": "4", "model": "m"},
    {"id": "a", "with_image": True, "correct": False, "text": "5", "model": "m"},
    {"id": "b", "with_image": False, "correct": False, "text": "6", "model": "m"},
    {"id": "a", "with_image": False, "correct": True, "text": "5", "model": "m"},
    {"id": "b", "with_image": True, "correct": True, "text": "4", "model": "n"},
    {"id": "b", "with_image": True, "correct": None, "text": "?", "model": "n"},
]


def counts(scores: Scores) -> dict[str, tuple[int, int, int, int]]:
    rows = scores.table.select(["id", "c1", "m1", "c0", "m0"]).to_pylist()
    return {r["id"]: (r["c1"], r["m1"], r["c0"], r["m0"]) for r in rows}


WANTED = {"b": (2, 2, 0, 1), "a": (0, 1, 1, 1)}


def as_columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_kind_of_table_gives_the_same_counts(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "rollouts.bin")  # the name does not matter
    jsonl = write_jsonl(tmp_path / "rollouts.txt", ROWS)
    halves = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    sources = [
        ROWS,
        tuple(ROWS),
        as_columns(ROWS),
        table,
        halves,
        table.set_column(0, "id", table["id"].dictionary_encode()),
        tmp_path / "rollouts.bin",
        str(jsonl),
    ]
    for source in sources:
        scores = Scores.from_rollouts(source)
        assert counts(scores) == WANTED
        assert scores.table["id"].to_pylist() == ["b", "a"]  # first appearance
        assert scores.table["index"].to_pylist() == [0, 1]
        assert scores.rollouts is not None
        assert scores.rollouts["text"].to_pylist() == ["4", "5", "6", "5", "4", "?"]


def test_a_flipped_bit_in_parquet_is_an_error(tmp_path: Path) -> None:
    """Uncompressed, so that nothing but the page's checksum can tell."""
    path = tmp_path / "rollouts.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.Table.from_pylist(ROWS * 50), path, **options)
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RapInputError, match="cannot be read"):
        Scores.from_rollouts(path)


def test_pandas_and_datasets() -> None:
    pd = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    assert counts(Scores.from_rollouts(pd.DataFrame(ROWS))) == WANTED
    assert counts(Scores.from_rollouts(datasets.Dataset.from_list(ROWS))) == WANTED


@pytest.mark.parametrize(
    "right", [[True, False, None], [1, 0, None], [1.0, 0.0, float("nan")]]
)
def test_what_counts_as_correct(right: list) -> None:
    rows = {
        "key": [7, 7, 7, 7],
        "arm": ["image", "image", "image", "counterfactual"],
        "ok": [*right, right[1]],
    }
    scores = Scores.from_rollouts(rows, id="key", with_image="arm", correct="ok")
    assert counts(scores) == {"7": (1, 2, 0, 1)}
    assert scores.meta["ignored"] == {"without_arm": 0, "not_judged": 1}


def test_where_and_drop() -> None:
    assert counts(Scores.from_rollouts(ROWS, where={"model": "m"}))["b"] == (1, 1, 0, 1)
    assert counts(Scores.from_rollouts(ROWS, drop={"model": ["n", "x"]}))["b"] == (
        1,
        1,
        0,
        1,
    )
    assert counts(Scores.from_rollouts(ROWS, drop={"correct": None})) == WANTED
    both = Scores.from_rollouts(ROWS, where={"text": ["4", "6"], "model": ["m", "n"]})
    assert counts(both) == {"b": (2, 2, 0, 1)}
    with pytest.raises(RapInputError, match="no rows"):
        Scores.from_rollouts(ROWS, where={"model": "other"})
    with pytest.raises(RapInputError, match="'modle' is not there .* id, with_image"):
        Scores.from_rollouts(ROWS, where={"modle": "m"})
    with pytest.raises(RapInputError, match="column 'model' holds string"):
        Scores.from_rollouts(ROWS, where={"model": 3})


def test_filters_are_told_in_the_saved_selection(tmp_path: Path) -> None:
    scores = Scores.from_rollouts(ROWS, where={"model": {"n", "m"}}, drop={"text": "7"})
    choose(scores).save(tmp_path)
    told = json.loads((tmp_path / "settings.json").read_text())["scores"]["rollouts"]
    assert told["where"] == {"model": ["m", "n"]}
    assert told["drop"] == {"text": "7"}


def test_groups_come_from_the_first_row_that_has_one() -> None:
    groups = [None, "x", "y", "z", "y", "y"]
    rows = [row | {"source": g} for row, g in zip(ROWS, groups, strict=True)]
    scores = Scores.from_rollouts(rows)
    assert scores.table["source"].to_pylist() == ["y", "x"]
    renamed = [{**row, "task": g} for row, g in zip(ROWS, groups, strict=True)]
    scores = Scores.from_rollouts(renamed, source="task")
    assert scores.table["source"].to_pylist() == ["y", "x"]


def test_rows_follow_the_data_set_when_there_is_one() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"id": ["a", "c", "b"], "question": ["1", "2", "3"]})
    scores = Scores.from_rollouts(ROWS, dataset=data)
    assert scores.table["id"].to_pylist() == ["a", "c", "b"]
    assert scores.table["code"].to_pylist() == [None, "few_rollouts", None]
    rows = [{"id": i, "with_image": w, "correct": w} for i in "ab" for w in (True, False)]
    rows += [{"id": "b", "with_image": True, "correct": False}]
    chosen = choose(Scores.from_rollouts(rows, dataset=data), budget=0.4)
    assert chosen.ids == ["b"]
    assert chosen.dataset["question"] == ["3"]
    with pytest.raises(RapInputError, match="does not have, the first of 'd'"):
        Scores.from_rollouts([*ROWS, ROWS[0] | {"id": "d"}], dataset=data)


def test_fault_12_and_17_bad_lines_are_named_and_left_out(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    bad = [
        b'{"id": "b", ',
        b"[" * 100_000,
        b'{"id": "b", "with_image": true, "correct": true, "n": ' + b"9" * 5000 + b"}",
        b'{"id": "\\ud800", "with_image": true, "correct": true}',
        b"[1, 2]",
        b"\xff\xfe{}",
    ]
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines[:2], *bad, b"", *lines[2:]]))
    with pytest.warns(UserWarning, match=r"6 lines .* \(lines 3, 4, 5, 6, 7, 8\)"):
        scores = Scores.from_rollouts(path)
    assert counts(scores) == WANTED


def test_columns_of_mixed_types_are_kept_as_text() -> None:
    rows = [
        row | {"note": v} for row, v in zip(ROWS, [1, "a", None, [2], {}, 1.5], strict=True)
    ]
    scores = Scores.from_rollouts(rows)
    assert counts(scores) == WANTED
    assert scores.rollouts is not None
    assert scores.rollouts["note"].to_pylist() == ["1", '"a"', None, "[2]", "{}", "1.5"]


def test_fault_14_ids_are_opaque() -> None:
    ids = ["\u00e9", "e\u0301", "", "a/b", "x" * 10_000, "a\0b", "a\nb", "1"]
    rows = [{"id": i, "with_image": w, "correct": True} for i in ids for w in (True, False)]
    assert list(counts(Scores.from_rollouts(rows))) == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "row 1 has no 'id'"),
        ({"id": 3}, "mixes types"),
        ({"correct": 0.5}, "mixes types"),
        ({"correct": "yes"}, "mixes types"),
    ],
)
def test_rows_that_cannot_be_counted(change: dict, message: str) -> None:
    with pytest.raises(RapInputError, match=message):
        Scores.from_rollouts([ROWS[0], ROWS[1] | change, *ROWS[2:]])


def test_columns_that_cannot_be_counted(tmp_path: Path) -> None:
    columns = as_columns(ROWS)
    for change, message in [
        ({"correct": [0.5] * 6}, "neither true nor false .sample 'b'."),
        ({"correct": [2] * 6}, "neither true nor false"),
        ({"correct": ["yes"] * 6}, "holds string"),
        ({"with_image": ["photo"] * 6}, "neither true nor false"),
        ({"id": [1.5] * 6}, "ids are text or integers"),
        ({"id": ["a"] * 5}, "differ in length"),
    ]:
        with pytest.raises(RapInputError, match=message):
            Scores.from_rollouts(columns | change)
    del columns["correct"]
    with pytest.raises(RapInputError, match="correct column 'correct' is not there"):
        Scores.from_rollouts(columns)
    for source, message in [
        ([], "no rows"),
        ({"id": [], "with_image": [], "correct": []}, "no rows"),
        ([1, 2], "row 0 is int"),
        (3, "got int"),
        (tmp_path / "absent.jsonl", "no such file"),
        (tmp_path, "no such file"),
    ]:
        with pytest.raises(RapInputError, match=message):
            Scores.from_rollouts(source)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(RapInputError, match="no line holds a JSON object"):
        Scores.from_rollouts(tmp_path / "empty.jsonl")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(RapInputError, match="cannot be read"):
        Scores.from_rollouts(tmp_path / "cut.parquet")


def test_rows_without_an_arm_are_left_out_aloud() -> None:
    with pytest.warns(UserWarning, match="1 rows without 'with_image'"):
        scores = Scores.from_rollouts([*ROWS, ROWS[0] | {"with_image": None}])
    assert counts(scores) == WANTED
    assert scores.meta["ignored"]["without_arm"] == 1


def test_fault_25_unequal_and_too_few_rollouts() -> None:
    arms = {"both": "11100", "image only": "11", "text only": "00", "unjudged": "1?0"}
    rows = [
        {"id": name, "with_image": arm == "1", "correct": None if arm == "?" else True}
        for name, text in arms.items()
        for arm in text
    ]
    scores = Scores.from_rollouts(rows)
    assert counts(scores) == {
        "both": (3, 3, 2, 2),
        "image only": (2, 2, 0, 0),
        "text only": (0, 0, 2, 2),
        "unjudged": (1, 1, 1, 1),
    }
    assert scores.table["code"].to_pylist() == [None, "few_rollouts", "few_rollouts", None]
    assert (
        scores.table["message"][1].as_py() == "2 graded rollouts with the image, 0 without"
    )
    assert choose(scores).counts()["quarantined_few_rollouts"] == 2


def test_more_rollouts_than_the_table_can_hold() -> None:
    many = pa.table(
        {
            "id": pa.array(["a"] * 32_769),
            "with_image": pa.array(np.arange(32_769) > 0),
            "correct": pa.array(np.ones(32_769, dtype=bool)),
        }
    )
    assert counts(Scores.from_rollouts(many.slice(1, 2))) == {"a": (2, 2, 0, 0)}
    with pytest.raises(RapInputError, match="32768 completions with, or .* 32767"):
        Scores.from_rollouts(many)


FIGURES = {  # issue 3, part 7
    "mathvista": {
        "samples": 1000,
        "judged": 1000,
        "quarantined": 0,
        "above": 10,
        "image_hurts": 300,
        "never_solved": 303,
        "always_solved": 7,
    },
    "mathvision": {
        "samples": 1533,
        "judged": 1533,
        "quarantined": 0,
        "above": 36,
        "image_hurts": 117,
        "never_solved": 594,
        "always_solved": 1,
    },
}
ARMS = {"mathvista": (8, 8), "mathvision": (13, 1)}


@pytest.mark.parametrize("name", FIGURES)
def test_published_records_give_the_published_figures(shared: Path, name: str) -> None:
    scores = Scores.from_rollouts(
        shared / "data" / f"{name}_records" / "records.parquet",
        where={"augment": "none"},
        drop={"model": ["random"]},
    )
    m1, m0 = ARMS[name]
    assert set(scores.table["m1"].to_pylist()) == {m1}
    assert set(scores.table["m0"].to_pylist()) == {m0}
    assert scores.diagnostics(0.5) == FIGURES[name]

    selection = choose(scores, rule="paper", lambda_c=0.5, replace=False)
    assert len(selection) == FIGURES[name]["above"]
    counted = selection.counts()
    assert counted["dropped_unsolved"] == FIGURES[name]["never_solved"]
    assert sum(counted.values()) == FIGURES[name]["samples"]

    # what the shared notes say a 9 % budget needs
    selection = choose(scores, budget=0.09, order="gain")
    assert len(selection) == FIGURES[name]["samples"] * 9 // 100
    exact = {"mathvista": "1/4", "mathvision": "5/13"}[name]
    assert selection.settings["found"]["lambda_c_exact"] == exact
