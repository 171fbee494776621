"""Files as people have them: read, or refused by a sentence that names what they are."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rap.errors import RapInputError
from rap.samples.images import decode
from rap.samples.sample import BadSample
from rap.samples.sampleset import open_samples
from rap.samples.splits import split_of


def png(**options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype="uint8")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def row(k: int, **more: object) -> dict[str, object]:
    return {"id": f"s{k}", "question": f"Q{k}?", "answer": "3", "image": "a.png", **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def lines(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def questions(path: Path) -> list[str]:
    return [sample.question for sample in open_samples(path)]


# ---------------------------------------------------------------- rows


def test_a_key_that_comes_after_the_first_thousand_rows_is_a_column(folder):
    rows = [row(k, **({"choices": ["x", "3"]} if k == 1500 else {})) for k in range(1501)]
    (folder / "d.jsonl").write_bytes(lines(*rows))
    samples = open_samples(folder / "d.jsonl")
    assert samples.columns["choices"] == "choices"
    assert samples[1500].choices == ("x", "3") and samples[0].choices == ()


def test_gzip_is_unpacked(folder):
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines(row(0), row(1))))
    samples = open_samples(folder / "d.jsonl.gz")
    assert [s.question for s in samples] == ["Q0?", "Q1?"]
    assert samples[1].images[0].path == str((folder / "a.png").resolve())


@pytest.mark.parametrize("cut", [30, -4])
def test_a_cut_gzip_is_refused_by_name(folder, cut):
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines(row(0)))[:cut])
    with pytest.raises(RapInputError, match="gzip file is damaged"):
        open_samples(folder / "d.jsonl.gz")


@pytest.mark.parametrize(("suffix", "by"), [("csv", ","), ("tsv", "\t")])
def test_separated_values(folder, suffix, by):
    text = by.join(("id", "question", "answer", "image")) + "\n"
    text += by.join(("7", '"two\nlines"', "03", "a.png")) + "\n"
    (folder / f"d.{suffix}").write_text(text)
    (sample,) = open_samples(folder / f"d.{suffix}")
    assert (sample.id, sample.question) == ("7", "two\nlines")


def test_an_object_of_rows_and_an_object_around_rows(folder):
    plain = {k: v for k, v in row(0).items() if k != "id"}
    (folder / "o.json").write_text(json.dumps({"x": plain, "y": plain}, indent=1))
    assert open_samples(folder / "o.json").ids == ["x", "y"]
    (folder / "d.json").write_text(json.dumps({"version": 1, "data": [row(0), row(1)]}))
    assert questions(folder / "d.json") == ["Q0?", "Q1?"]


def test_one_line_with_messages_is_a_row(folder):
    chat = [{"role": "user", "content": "Q?"}]
    (folder / "d.jsonl").write_bytes(
        lines({"messages": chat, "answer": "3", "image": "a.png"})
    )
    assert questions(folder / "d.jsonl") == ["Q?"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x28\xb5\x2f\xfdrest", "compressed with zstd"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"SQLite format 3\0", "an SQLite data base"),
    ],
)
def test_other_files_are_named(folder, data, message):
    (folder / "d.parquet").write_bytes(data)
    with pytest.raises(RapInputError, match=message):
        open_samples(folder / "d.parquet")


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("test.parquet", "test"),
        ("geometry_val.jsonl", "val"),
        ("0001.parquet", None),
        ("training_notes_2.parquet", "training"),
        ("latest.parquet", None),
    ],
)
def test_split_of_a_file(name, split):
    assert split_of(name) == split


def parquet(path: Path, *rows: dict[str, object]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def test_splits_are_not_mixed(folder):
    for k, name in enumerate(("test", "train-00000-of-00002", "train-00001-of-00002")):
        parquet(folder / f"{name}.parquet", row(k))
    with pytest.raises(RapInputError, match=r"test \(1 file\), train \(2 files\)"):
        open_samples(folder)
    assert questions(folder / "train-*.parquet") == ["Q1?", "Q2?"]
    assert questions(folder / "test.parquet") == ["Q0?"]
    with pytest.raises(RapInputError, match="several splits"):
        open_samples(folder / "*.parquet")
    with pytest.raises(RapInputError, match="no file has such a name"):
        open_samples(folder / "dev-*.parquet")


def test_folders_of_splits_are_named(folder):
    for name in ("train", "test"):
        (folder / name).mkdir()
        parquet(folder / name / "0000.parquet", row(0))
    with pytest.raises(RapInputError, match=f"name one: {folder / 'test'}, "):
        open_samples(folder)


def test_parts_without_names_of_splits_are_one_data_set(folder):
    parquet(folder / "0000.parquet", row(0))
    parquet(folder / "0001.parquet", row(1))
    assert questions(folder) == ["Q0?", "Q1?"]


# ---------------------------------------------------------------- images


def chunk(kind: bytes, body: bytes) -> bytes:
    whole = kind + body
    return len(body).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"p\0\0" + zlib.compress(b"\0" * (2 << 20))),
        chunk(b"zTXt", b"t\0\0" + zlib.compress(b"a" * (2 << 20))),
        chunk(b"tEXt", b"t\0" + b"a" * (2 << 20)),
        chunk(b"iTXt", b"t\0\1\0\0\0" + zlib.compress(b"a" * (2 << 20))),
    ],
    ids=["profile", "packed text", "text", "unicode text"],
)
def test_a_large_profile_or_text_changes_no_pixel(extra):
    plain = png()
    large = plain[:33] + extra + plain[33:]  # after the header
    assert (
        decode(large, max_pixels=10**6).tobytes()
        == decode(plain, max_pixels=10**6).tobytes()
    )


def test_a_cut_png_with_a_large_profile_stays_damaged():
    large = png(icc_profile=b"\0" * (2 << 20))
    with pytest.raises(BadSample, match="image_truncated"):
        decode(large[:-200], max_pixels=10**6)
