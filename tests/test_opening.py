"""Opening a data set: what is read through Arrow is what Python reads, row by row."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rap
from rap.errors import RapInputError
from rap.samples import canonical, index, jsonblocks, jsonlines, parquet
from rap.samples.canonical import Inexact, row_texts
from rap.samples.cells import cell
from rap.samples.jsonlines import JsonlRows
from rap.samples.sample import BadSample
from rap.samples.sampleset import SampleSet, open_samples
from rap.samples.sources import ArrowRows, row_or_bad
from rap.scores.match import describe, match

PNG = b"\x89PNG\r\n\x1a\nabc"


def row(k: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": f"s{k}", "question": f"Q{k}?", "answer": "3", "image": "a.png", **more}


def write(path: Path, *lines: str | bytes | Mapping[str, Any]) -> Path:
    texts = [
        line
        if isinstance(line, bytes)
        else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def plain_hash(samples: SampleSet, more: tuple[str, ...] = ()) -> str:
    """``content_hash`` as it was first written: one row after the other, in Python."""
    content = samples.content(more)
    counted = [] if content.counted is None else [content.counted]
    head = [samples.ids, list(content.roles), list(content.more), *counted]
    digest = hashlib.sha256(json.dumps(head).encode())
    for i in range(len(samples)):
        found = row_or_bad(samples.rows, i)
        if isinstance(found, BadSample):
            digest.update(found.message.encode("utf-8", "replace"))
        else:
            names = (*content.named, *content.more)
            digest.update(canonical.canonical([cell(found, name) for name in names]))
        digest.update(b"\n")
    return digest.hexdigest()


# ---------------------------------------------------------------- JSON Lines

VALUES = [
    *('"x"', '"2020-01-01"', '"2020-01-01 10:00:00"', '""', '"\\u00e9 \\ud83d\\ude00"'),
    *('"\\n\\t\\"\\\\\\u007f"', "null", "true", "1", "-0", "1.0", "1.5", "1e5", "-1e-400"),
    *("123456789012345678901", "9223372036854775807", "9223372036854775808", "NaN"),
    *("Infinity", "1e999", "[]", '["a", "b"]', '["2020-01-01"]', "[1, 2]", '[1, "a"]'),
    *("[null]", "[[1]]", '{"a": 1}', '{"b": "2020-01-01", "a": null}', "{}", '"\\ud800"'),
    *('"\\u0000"', "01", "[1.0, 2]", '{"a": {"b": ["c"]}}', "9" * 400, "[" * 600),
    *("[" * 600 + "]" * 600, '{"a": 1, "a": 2}'),
]
ODD = [
    *(b"", b"   ", b"[1]", b"7", b"not json", b'{"id": "a"} {"id": "b"}', b'{"id":', b"}"),
    *(b'{"id": "\xff"}', b'  {"id": "z"}', b'{"id": "y"}   ', b'{"id": "w"}\r', b"\r"),
    *(b'{"id": "a",}', b'{"id": "a"}, ', b'{"id": "t\tab"}', b"\xef\xbb\xbf", b"{}"),
    *(b'\xef\xbb\xbf{"id": "bom"}', b'{"id": "a", "id": "b"}', b'{"": 1}', b"\x0b"),
]
KEYS = ["id", "question", "answer", "choices", "image", "late", "a.b"]


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    keys = st.lists(st.sampled_from(KEYS), unique=True, max_size=5)
    known = st.sampled_from(VALUES[:6])
    lines = []
    for _ in range(draw(st.integers(1, 12))):
        if draw(st.integers(0, 5)) == 0:
            lines.append(draw(st.sampled_from(ODD)))
            continue
        values = draw(st.sampled_from([known, known, st.sampled_from(VALUES)]))
        pairs = [f"{json.dumps(key)}: {draw(values)}" for key in draw(keys)]
        lines.append(f"{{{', '.join(pairs)}}}".encode())
    return draw(st.sampled_from([b"\n", b"\r\n"])).join(lines) + draw(
        st.sampled_from([b"", b"\n", b"\n\n"])
    )


def python_rows(rows: JsonlRows) -> list[Any]:
    return [row_or_bad(rows, i) for i in range(len(rows))]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonblocks, "ALONE", 1)
    monkeypatch.setattr(jsonlines, "BLOCK_BYTES", 150)
    monkeypatch.setattr(jsonlines, "LOOKED_AT", 2)


@settings(max_examples=300, deadline=None)
@given(data=json_lines())
def test_what_arrow_reads_is_what_python_reads(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("d") / "d.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonblocks, "ALONE", 1)
        patch.setattr(jsonlines, "BLOCK_BYTES", 150)
        patch.setattr(jsonlines, "LOOKED_AT", 2)
        rows = JsonlRows(path, keep=["id"])
        # the same lines, as a file has them
        wanted = [line for line in data.split(b"\n") if _is_row(line)]
        assert len(rows) == len(wanted)
        expected = python_rows(rows)
        keys = [k for r in expected if isinstance(r, Mapping) for k in r]
        assert rows.columns == list(dict.fromkeys(keys))
        for names in (["id"], ["id"], ["answer", "choices", "a.b"], ["question", "late"]):
            at = 0
            for part in rows.parts(names):
                found = part.to_pylist() if isinstance(part, pa.Table) else part
                for got, want in zip(found, expected[at : at + len(part)], strict=True):
                    if isinstance(want, BadSample):
                        assert isinstance(got, BadSample) and str(got) == str(want)
                    else:
                        assert _cells(got, names) == _cells(want, names)
                at += len(part)
            assert at == len(rows)


def _is_row(line: bytes) -> bool:
    return bool(line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n"))


def _cells(found: Mapping[str, Any], names: list[str]) -> str:
    """With types told apart: 1, 1.0 and True are not the same."""
    return repr([cell(found, name) for name in names])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("value", [v for v in VALUES if v != "NaN"])
@pytest.mark.parametrize("key", ["id", "answer", "extra"])
def test_one_odd_value_among_many(tmp_path: Path, key: str, value: str) -> None:
    lines = [json.dumps(row(k)) for k in range(40)]
    odd = json.dumps(row(40, **{key: "HERE"})).replace('"HERE"', value)
    path = write(tmp_path / "d.jsonl", *lines[:25], odd, *lines[25:])
    samples = open_samples(path)
    expected = python_rows(samples.rows)  # type: ignore[arg-type]
    ids = [str(v) if (v := _cell(r, "id")) is not None else None for r in expected]
    got = samples.ids
    assert [
        g for g, want in zip(got, ids, strict=True) if want is not None and g != want
    ] in (
        [],
        ["line:26"],
    )
    assert samples.content_hash() == plain_hash(samples)
    assert samples.content_hash(["extra"]) == plain_hash(samples, ("extra",))


def _cell(found: Any, name: str) -> Any:
    return None if isinstance(found, BadSample) else found.get(name)


def test_columns_of_other_kinds_have_the_content_they_had(tmp_path: Path) -> None:
    """Chats, choices by label, numbers: what Arrow does not keep is read in Python."""
    chat = [{"role": "user", "content": "Why?"}, {"content": "x", "role": "assistant"}]
    rows = [
        row(k, messages=chat, number=k / 2, choices={"B": "1", "A": f"3 {k}"}, answer="A")
        for k in range(30)
    ]
    path = write(tmp_path / "d.jsonl", *rows)
    for columns in ({}, {"question": "messages"}, {"id": "number"}, {"answer": "number"}):
        samples = open_samples(path, columns=columns)
        assert samples.content_hash(["number"]) == plain_hash(samples, ("number",))
    assert open_samples(path, columns={"id": "number"}).ids[:3] == ["0.0", "0.5", "1.0"]


def test_rows_with_keys_of_their_own_do_not_become_columns(tmp_path: Path) -> None:
    rows = [row(k, meta={f"key {k} {i}": i for i in range(20)}) for k in range(300)]
    path = write(tmp_path / "d.jsonl", *rows)
    opened = JsonlRows(path)
    assert all(isinstance(part, list) for part in opened.parts(["id"]))
    assert opened.columns == ["id", "question", "answer", "image", "meta"]


def test_few_bad_lines_leave_the_others_to_arrow(tmp_path: Path) -> None:
    lines: list[str | bytes] = [json.dumps(row(k)) for k in range(4000)]
    lines[1000] = b'{"id": "\xff"}'
    lines[3000] = '{"id": NaN}'
    parts = [*JsonlRows(write(tmp_path / "d.jsonl", *lines)).parts(["id"])]
    in_python = sum(len(part) for part in parts if isinstance(part, list))
    assert 2 <= in_python <= 2 * jsonblocks.ALONE
    mixed = [json.dumps(row(k, id=k if k % 2 else str(k))) for k in range(4000)]
    parts = [*JsonlRows(write(tmp_path / "m.jsonl", *mixed)).parts(["id"])]
    assert sum(len(part) for part in parts if isinstance(part, list)) == 4000


@pytest.mark.usefixtures("small_blocks")
def test_ids_that_are_not_there(tmp_path: Path) -> None:
    rows = [row(k) for k in range(20)]
    for k in (3, 4, 17):
        rows[k]["id"] = None
    rows[8]["id"] = "line:4"  # what row 3 would be called
    rows[9]["id"] = "line:4'"
    samples = open_samples(write(tmp_path / "d.jsonl", *rows))
    expected = [f"s{k}" for k in range(20)]
    expected[3:5] = ["line:4''", "line:5"]
    expected[17], expected[8], expected[9] = "line:18", "line:4", "line:4'"
    assert samples.ids == expected == [samples.id_of(k) for k in range(20)]
    assert samples.id_column.to_pylist() == expected
    assert samples.rows_of(pa.array(["s5", "x", "line:5"])).tolist() == [5, -1, 4]


@pytest.mark.usefixtures("small_blocks")
def test_the_first_id_that_is_there_twice_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(k) for k in range(30)]
    rows[20]["id"], rows[25]["id"] = "s7", "s2"
    path = write(tmp_path / "d.jsonl", *rows)
    for weak in (False, True):
        if weak:  # other ids of the same hash are no doubles
            monkeypatch.setattr(rap.samples.ids, "hash64", lambda c: np.zeros(len(c), "u8"))
        with pytest.raises(RapInputError, match="'s7' is there twice: line 8 and line 21"):
            open_samples(path)
    rows[20]["id"], rows[25]["id"] = "s20", "s25"
    assert len(open_samples(write(path, *rows))) == 30


def test_ids_past_the_limit_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GiB of text an array, made small."""
    table = pa.Table.from_pylist([row(k, image=PNG) for k in range(500)])
    cut = pa.concat_tables([table.slice(0, 200), table.slice(200)])
    expected = open_samples(cut).content_hash()
    monkeypatch.setattr(rap.samples.text, "TEXT_LIMIT", 64)
    samples = open_samples(cut)
    assert samples.content_hash() == expected
    assert samples.rows_of(samples.id_column).tolist() == list(range(500))
    assert samples.rows_of(pa.array(["s499", "?"], pa.large_string())).tolist() == [499, -1]


# ---------------------------------------------------------------- Arrow's own types


def test_text_of_arrow_values_is_that_of_json() -> None:
    inner = pa.struct([("role", pa.string()), ("n", pa.int32()), ("b", pa.binary())])
    columns = {
        "text": ["a", None, 'é"\\\n', "\U0001f600\x7f", ""],
        "whole": [1, None, -(2**62), 0, 7],
        "float": [1.0, None, float("nan"), 1e-300, -0.0],
        "bool": [True, None, False, True, False],
        "bytes": [b"x", None, b"", PNG, b"\xff"],
        "nothing": [None] * 5,
        "list": [["a", None, "é"], None, [], [""], ["x", "y"]],
        "nested": [[[1], []], None, [], [None], [[None, 2]]],
    }
    table = pa.table(columns)
    structs = pa.array(
        [{"role": "u", "n": 1, "b": b"x"}, None, {"role": None}, {}, {}], inner
    )
    table = table.append_column("struct", structs)
    table = table.append_column("chat", pa.array([[s] for s in structs.to_pylist()]))
    table = table.append_column("coded", table["text"].dictionary_encode())
    table = table.append_column("large", table["text"].cast(pa.large_string()))
    for part in (table, table.slice(1), table.slice(2, 2), table.slice(5)):
        names = part.column_names
        arrays = [
            pa.concat_arrays([pa.array([], part[name].type), *part[name].chunks])
            for name in names
        ]
        texts = row_texts(arrays, part.num_rows)
        expected = [canonical.canonical([r[n] for n in names]) for r in part.to_pylist()]
        assert [text.encode() for text in texts.to_pylist()] == [
            e + b"\n" for e in expected
        ]


def test_types_that_json_does_not_tell_are_left_to_python() -> None:
    times = pa.array([0, 1], pa.timestamp("s"))
    for array in (times, pa.array([b"\xff", b"a"]).view(pa.string())):
        with pytest.raises(Inexact):
            row_texts([array], 2)
    table = pa.Table.from_pylist([row(k, image=PNG) for k in range(2)])
    samples = open_samples(table.append_column("when", times))
    assert samples.content_hash(["when"]) == plain_hash(samples, ("when",))


# ---------------------------------------------------------------- Parquet


def shards(
    folder: Path, n: int = 90, files: int = 3, group: int = 10
) -> list[dict[str, Any]]:
    rows = [row(k, image=PNG + bytes([k]) * 50, answer=str(k)) for k in range(n)]
    size = n // files
    for k in range(files):
        table = pa.Table.from_pylist(rows[k * size : (k + 1) * size])
        name = f"train-{k:05d}-of-{files:05d}.parquet"
        pq.write_table(table, folder / name, row_group_size=group)
    return rows


@pytest.fixture
def on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "HELD_BYTES", 0)
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 300)


@pytest.mark.usefixtures("on_demand")
def test_parquet_shards_are_one_set_read_on_demand(tmp_path: Path) -> None:
    rows = shards(tmp_path)
    held = ArrowRows(pa.Table.from_pylist(rows), "table")
    for source in (tmp_path, tmp_path / "*.parquet", tmp_path / "train-*-of-00003.parquet"):
        samples = open_samples(source)
        assert isinstance(samples.rows, parquet.ParquetRows)
        assert samples.ids == [r["id"] for r in rows]
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        assert [samples.row(i) for i in order] == [rows[i] for i in order]
        assert [samples.row(i) for i in range(len(rows))] == rows
        assert list(samples.rows.each(["id"])) == list(held.each(["id"]))
        assert samples.content_hash() == plain_hash(samples)
        assert samples.take([70, 3]).to_list() == [rows[70], rows[3]]
        assert samples.arrow([4, 88]).to_pylist() == [rows[4], rows[88]]
        assert samples.dataset is not None and samples.dataset.to_list() == rows
        parts = [p for p in samples.rows.parts(["id", "answer"], 17, 44)]
        assert (
            [r for p in parts for r in p.to_pylist()]
            == [  # type: ignore[union-attr]
                {"id": r["id"], "answer": r["answer"]} for r in rows[17:44]
            ]
        )


@pytest.mark.usefixtures("on_demand")
def test_parquet_files_of_two_schemas(tmp_path: Path) -> None:
    first = pa.Table.from_pylist([row(k) for k in range(5)])
    second = pa.Table.from_pylist([row(k, hint="h") for k in range(5, 9)])
    pq.write_table(first, tmp_path / "a.parquet")
    pq.write_table(second, tmp_path / "b.parquet")
    samples = open_samples(tmp_path)
    assert samples.column_names == [*first.column_names, "hint"]
    assert [samples.row(i)["hint"] for i in (0, 4, 5, 8)] == [None, None, "h", "h"]
    assert samples.content_hash(["hint"]) == plain_hash(samples, ("hint",))


@pytest.mark.usefixtures("on_demand")
def test_bytes_inside_of_objects_are_not_read_for_the_content(tmp_path: Path) -> None:
    """verl's form: a list of {bytes, path}. What else is there keeps its content."""
    images = [
        [{"bytes": PNG * 9, "path": None}],
        None,
        [],
        [None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": "b.png"}],
    ]
    nested = [{"k": {"b": b"1", "t": "x"}, "only": {"b": b"2"}}, None, {"k": None}, {}]
    table = pa.Table.from_pylist(
        [
            row(k, images=images[k % 4], n=nested[k % 4], m=[("a", b"x")], id=f"s{k}")
            for k in range(40)
        ],
        schema=pa.schema(
            {
                **dict.fromkeys(["id", "question", "answer"], pa.string()),
                "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "n": pa.struct(
                    {
                        "k": pa.struct({"b": pa.binary(), "t": pa.string()}),
                        "only": pa.struct({"b": pa.large_binary()}),
                    }
                ),
                "m": pa.map_(pa.string(), pa.binary()),
            }
        ),
    )
    path = tmp_path / "d.parquet"
    pq.write_table(table, path, row_group_size=15)
    samples = open_samples(path)
    rows = samples.rows
    assert isinstance(rows, parquet.ParquetRows)
    file = rows._files[0][0]
    assert parquet.leaves_without_bytes(file, ["images", "n", "m"]) == [
        "images.list.element.path",
        "n.k.t",
        "n.only.b",
        "m.key_value.key",
        "m.key_value.value",
    ]
    assert samples.content_hash(["n"]) == plain_hash(samples, ("n",))
    assert [samples.row(k)["images"] for k in range(40)] == [
        images[k % 4] for k in range(40)
    ]
    assert [r["n"] for r in rows.each(["n"])] == table["n"].to_pylist()  # type: ignore[index]
    (first, *_) = rows.parts(["images"])
    assert (
        isinstance(first, pa.Table) and first.schema.field(0).type == table["images"].type
    )
    found = [x for part in rows.parts(["images"]) for x in part["images"].to_pylist()]
    blank = [[v and {**v, "bytes": None} for v in x] if x else x for x in images]
    assert found == [blank[k % 4] for k in range(40)]


@pytest.mark.usefixtures("on_demand")
def test_a_parquet_image_that_cannot_be_read_is_one_bad_row_group(tmp_path: Path) -> None:
    rows = [row(k, image=os.urandom(4000)) for k in range(40)]
    path = tmp_path / "d.parquet"
    options = {"row_group_size": 10, "write_page_checksum": True, "use_dictionary": False}
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    with pq.ParquetFile(path) as file:
        at = file.metadata.row_group(2).column(3).data_page_offset + 20_000
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    samples = open_samples(path)
    kinds = [type(item).__name__ for item in samples]
    assert kinds == ["Sample"] * 20 + ["Bad"] * 10 + ["Sample"] * 10
    assert samples[20].code == "bad_text" and "cannot be read" in samples[20].message  # type: ignore[union-attr]


@pytest.mark.usefixtures("on_demand")
def test_a_parquet_file_that_changed_is_not_read_on(tmp_path: Path) -> None:
    shards(tmp_path, files=1)
    samples = open_samples(tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    os.utime(path, ns=(1, 1))
    assert "changed since it was opened" in samples[50].message  # type: ignore[union-attr]


@pytest.mark.usefixtures("on_demand")
def test_images_are_read_when_a_sample_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datasets.Dataset.from_list([row(k) for k in range(40)]).remove_columns("image")
    images = [{"bytes": PNG, "path": None}] * 40
    for name in ("image", "other"):
        data = data.add_column(name, images).cast_column(name, datasets.Image())
    data.to_parquet(tmp_path / "d.parquet")
    asked: list[str] = []
    batches = parquet.ParquetRows.batches

    def noting(self: Any, group: int, names: Any, size: int, **more: Any) -> Any:
        asked.extend(names)
        return batches(self, group, names, size, **more)

    monkeypatch.setattr(parquet.ParquetRows, "batches", noting)
    samples = open_samples(tmp_path, columns={"images": "image"})  # looks at one
    asked.clear()
    samples.content_hash()
    assert sorted(asked) == ["answer", "question"]
    assert samples[39].images == samples[0].images  # type: ignore[union-attr]
    assert "image" in asked and "other" not in asked


# ---------------------------------------------------------------- kept


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_index_spares_the_workers_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(parquet, "HELD_BYTES", 0)
    rows = [row(k, level=k % 3) for k in range(50)]
    rows[7]["id"] = None
    rows[9]["id"] = ["no", "id"] if kind == "jsonl" else "s9"
    path = tmp_path / f"d.{kind}"
    if kind == "jsonl":
        write(path, *rows, "no json")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    samples = open_samples(path)
    made = index.build(samples, 8, ["level"])
    assert made.shards == tuple(
        h for k in range(7) for h in samples.shard_hashes([made.shard_range(k)], ["level"])
    )
    assert (
        index.save(samples, made, tmp_path / "kept")
        and index.load(tmp_path / "kept") == made
    )

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("the rows were read")

    with monkeypatch.context() as patch:
        for rows_class in (JsonlRows, parquet.ParquetRows):
            patch.setattr(rows_class, "parts", read)
        again = index.open_kept(tmp_path / "kept", path)
        assert again is not None and again.ids == samples.ids
        assert again.content_sha256 == samples.content_sha256
        assert again.content_hash(["level"]) == made.content_sha256[("level",)]
        assert [again[i] for i in range(len(again))] == list(samples)
        assert describe(again) == describe(samples) | {"kind": again.kind}
    for k in range(7):
        assert again.has_rows(made.shard_range(k), made.shards[k], made.more)
    assert index.open_kept(tmp_path / "kept", tmp_path / "other") is None
    assert index.open_kept(tmp_path / "kept", path, columns={"answer": "id"}) is None
    assert index.open_kept(tmp_path / "kept", path, root=tmp_path) is None
    assert index.open_kept(tmp_path, path) is None
    os.utime(path, ns=(1, 1))
    assert index.open_kept(tmp_path / "kept", path) is None


def test_fault_33_what_a_killed_planner_left_of_the_index_goes_with_the_next(tmp_path):
    write(tmp_path / "d.jsonl", *[row(k) for k in range(5)])
    samples = open_samples(tmp_path / "d.jsonl")
    made = index.build(samples, 2)
    assert index.save(samples, made, tmp_path / "kept")
    there = sorted(p.name for p in (tmp_path / "kept").iterdir())
    for name in there:
        (tmp_path / "kept" / f".{name}.d992a6de.tmp").write_text("half")
    assert index.save(samples, made, tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == there
    assert index.load(tmp_path / "kept") == made


def test_a_shard_that_changed_is_seen(tmp_path: Path) -> None:
    rows = [row(k) for k in range(20)]
    samples = open_samples(write(tmp_path / "d.jsonl", *rows))
    made = index.build(samples, 8)
    rows[9]["answer"] = "other"
    changed = open_samples(write(tmp_path / "d.jsonl", *rows))
    there = [changed.has_rows(made.shard_range(k), made.shards[k]) for k in range(3)]
    assert there == [True, False, True]
    assert not index.save(open_samples(rows, root=tmp_path), made, tmp_path / "kept")


# ---------------------------------------------------------------- from file to selection


def big(path: Path, n: int) -> Path:
    choices = ["1 cm", "2 cm", "3 cm"]
    with path.open("w") as file:
        for k in range(n):
            one = row(k, answer=choices[k % 3], choices=choices, source="ab"[k % 2])
            file.write(json.dumps(one) + "\n")
    return path


def scored(samples: SampleSet) -> rap.Scores:
    from rap.scores.table import SCORE_SCHEMA

    n = len(samples)
    random = np.random.default_rng(0)
    columns = {
        "id": samples.id_column,
        "index": pa.array(np.arange(n)),
        "status": pa.array(["scored"]).take(pa.array(np.zeros(n, np.int8))),
        "evidence": pa.array(["rollouts"]).take(pa.array(np.zeros(n, np.int8))),
        # 64 digits; the data set is as it was, so that none is compared
        "sample_sha256": pa.array(["0" * 64]).take(pa.array(np.zeros(n, np.int8))),
        "image_sha256": pa.array(["0" * 64]).take(pa.array(np.zeros(n, np.int8))),
    }
    for name in ("c1", "c0"):
        columns[name] = pa.array(random.integers(0, 6, n).astype(np.int16))
    for name in ("m1", "m0"):
        columns[name] = pa.array(np.full(n, 5, np.int16))
    full = [columns.get(f.name, pa.nulls(n, f.type)) for f in SCORE_SCHEMA]
    table = pa.table(full, schema=SCORE_SCHEMA)
    return rap.Scores(table, {"data": describe(samples)}, samples)


def test_no_python_object_a_row_from_file_to_selection(tmp_path: Path) -> None:
    """100,000 rows: what is held afterwards, and at any time, is not a tenth of that."""
    n = 100_000
    path = big(tmp_path / "d.jsonl", n)
    warm = open_samples(big(tmp_path / "warm.jsonl", 500))  # imports, caches
    rap.choose(scored(warm), by="source").rows  # noqa: B018
    gc.collect()
    before = sys.getallocatedblocks()
    counts = []

    def count() -> None:
        counts.append(sys.getallocatedblocks() - before)

    samples = open_samples(path)
    count()
    scores = scored(samples)
    count()
    selection = rap.choose(scores, by="source")
    count()
    rows = selection.rows
    count()
    assert len(rows) == int(0.09 * n) and (rows == selection.indices).all()
    found = selection.find(samples, np.arange(n))
    assert (found.rows == np.arange(n)).all() and not found.why
    count()
    gc.collect()
    count()
    assert max(counts) < n / 10, counts


def test_memory_of_opening_does_not_follow_the_rows(tmp_path: Path) -> None:
    """What Arrow holds at a time is a block, and the ids."""
    peaks = []
    for n in (20_000, 80_000):
        pool = pa.default_memory_pool()
        before = pool.bytes_allocated()  # of other tests
        samples = open_samples(big(tmp_path / f"{n}.jsonl", n))
        pool.release_unused()
        held = pool.bytes_allocated()
        samples.content_hash()
        peaks.append(pool.bytes_allocated() - held)
        assert held - before < 100 * n
    assert max(peaks) < 1 << 20


# ---------------------------------------------------------------- as a data set


def test_json_lines_as_a_dataset_are_those_of_python(tmp_path: Path) -> None:
    rows = [
        row(k, level=k, mixed=k if k % 2 else "x", late=None if k < 5000 else k / 2)
        | ({"meta": {"a": k}} if k < 4500 else {"meta": {"b": "x"}})
        for k in range(9000)
    ]
    samples = open_samples(write(tmp_path / "d.jsonl", *rows))
    with pytest.warns(UserWarning, match="column 'mixed' mixes types") as told:
        found = samples.dataset
    assert len(told) == 1 and found is not None
    with pytest.warns(UserWarning, match="column 'mixed' mixes types"):
        expected = open_samples(rows, root=tmp_path).dataset
    assert found.features == expected.features
    assert found.to_list() == expected.to_list()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert samples.take([1, 3])["level"] == [1, 3]


def test_a_column_of_the_data_set_for_groups(tmp_path: Path) -> None:
    rows = [
        row(k, level=k % 2 if k % 3 else None, meta={"kind": "ab"[k % 2]})
        for k in range(60)
    ]
    samples = open_samples(write(tmp_path / "d.jsonl", *rows))
    scores = scored(samples)
    assert scores.column("level").to_pylist() == [r["level"] for r in rows]
    assert scores.column("meta.kind").to_pylist() == ["ab"[k % 2] for k in range(60)]
    other = open_samples(write(tmp_path / "e.jsonl", *reversed(rows)))
    table = scores.table.drop_columns(["sample_sha256", "image_sha256"])
    turned = pa.table(
        {
            n: table[n] if n in table.column_names else pa.nulls(60, t)
            for n, t in zip(
                scores.table.column_names, scores.table.schema.types, strict=True
            )
        }
    )
    again = rap.Scores(turned, scores.meta, other)
    assert again.column("level").to_pylist() == [r["level"] for r in rows]
    assert match(turned, other, data=None).tolist() == list(range(59, -1, -1))


def test_a_shuffled_dataset_object(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([row(k, image=PNG) for k in range(30)]).shuffle(
        seed=1
    )
    samples = open_samples(data)
    assert samples.ids == data["id"][:]
    assert samples.content_hash() == plain_hash(samples)


def test_two_types_of_a_column_name_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(k) for k in range(3)]
    one, two, three = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    pq.write_table(pa.Table.from_pylist([r | {"level": None} for r in rows]), one)
    pq.write_table(pa.Table.from_pylist([row(k, level=k) for k in range(3, 6)]), two)
    assert len(open_samples(tmp_path)) == 6  # null goes with anything
    pq.write_table(pa.Table.from_pylist([row(k, level=f"l{k}") for k in (6, 7)]), three)
    for held in (parquet.HELD_BYTES, 0):
        monkeypatch.setattr(parquet, "HELD_BYTES", held)
        with pytest.raises(
            RapInputError, match=r"'level' is int64 in b.parquet and string "
        ):
            open_samples(tmp_path)
