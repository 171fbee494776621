"""Files as people have them: read, or refused by a sentence that names what they are."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rap.errors import RapInputError
from rap.samples.choices import resolve_choice
from rap.samples.images import decode
from rap.samples.sample import BadSample, ImageRef
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


def test_case_48_gzip_is_unpacked(folder):
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
def test_case_14_48_separated_values(folder, suffix, by):
    text = by.join(("id", "question", "answer", "image")) + "\n"
    text += by.join(("7", '"two\nlines"', "03", "a.png")) + "\n"
    (folder / f"d.{suffix}").write_text(text)
    (sample,) = open_samples(folder / f"d.{suffix}")
    assert (sample.id, sample.question) == ("7", "two\nlines")


def test_case_48_an_object_of_rows_and_an_object_around_rows(folder):
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
def test_case_48_other_files_are_named(folder, data, message):
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


def test_case_13_splits_are_not_mixed(folder):
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


# ---------------------------------------------------------------- other members of a class


@pytest.mark.parametrize(
    "names",
    [
        ("data-train-v2", "data-test-v2"),
        ("my_train_set", "my_test_set"),
        ("train2014", "val2014"),
        ("trainA", "testA"),
        ("train", "holdout"),
        ("easy-00000-of-00001", "hard-00000-of-00001"),
    ],
)
def test_a_split_may_be_named_anywhere(folder, names):
    for name in names:
        parquet(folder / f"{name}.parquet", row(0) | {"question": name})
    with pytest.raises(RapInputError, match="several splits.*name one: ") as refused:
        open_samples(folder)
    for name in names:  # what is named can be opened
        assert str(folder / f"{name}.parquet") in str(refused.value)
        assert questions(folder / f"{name}.parquet") == [name]


def test_a_pattern_is_named_that_opens_one_split(folder):
    for k, name in enumerate(("test-0", "train-0", "train-1")):
        parquet(folder / f"{name}.parquet", row(k))
    with pytest.raises(RapInputError, match="'.*train-\\*.parquet'$"):
        open_samples(folder)
    assert questions(folder / "train-?.parquet") == ["Q1?", "Q2?"]
    assert questions(folder / "t[r]ain-*.parquet") == ["Q1?", "Q2?"]


def test_splits_inside_a_file(folder):
    (folder / "d.json").write_text(json.dumps({"train": [row(0)], "test": [row(1)]}))
    with pytest.raises(RapInputError, match="several splits: train, test"):
        open_samples(folder / "d.json")
    (folder / "d.json").write_text(json.dumps({"train": [row(0)]}))
    assert questions(folder / "d.json") == ["Q0?"]
    rows = [row(0, split="train"), row(1, split="train"), row(2, split="test")]
    with pytest.warns(UserWarning, match=r"'split' names several .*\(train 2, test 1\)"):
        assert len(open_samples([r | {"image": png()} for r in rows])) == 3


def test_folders_below_are_named(folder):
    for name in ("data", "default/train", "default/test"):
        (folder / name).mkdir(parents=True)
        parquet(folder / name / "0.parquet", row(0))
    with pytest.raises(RapInputError, match=f"several splits; name one: {folder / 'data'}"):
        open_samples(folder)
    (folder / "one").mkdir()
    (folder / "one" / "d.csv").write_text("question,answer,image\nQ,3,a.png\n")
    assert len(open_samples(folder / "one", root=folder)) == 1


def test_a_cell_of_csv_is_what_is_written(folder):
    said = ["007", "1.50", "1e3", "12:30", "2020-01-02", "true", "NA", "null", "nan"]
    said += ["100000000000000000000000001", "-0", "None"]
    text = "id,question,A,B,answer,image\r\n"
    text += "".join(f"{k:02},Q,N/A,{a},{a},a.png\r\n" for k, a in enumerate(said))
    (folder / "d.csv").write_text("\ufeff" + text, newline="")
    samples = open_samples(folder / "d.csv")
    assert samples.ids == [f"{k:02}" for k in range(len(said))]
    assert [(s.answer, s.choices) for s in samples] == [(a, ("N/A", a)) for a in said]


@pytest.mark.parametrize("by", [";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_that_is_separated_by_something_else(folder, by, quote):
    """Spreadsheets of countries with a decimal comma write semicolons."""
    rows = [("question", "answer", "image"), ("How long, in cm?", "3,5", "a.png")]
    lines = (by.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    (folder / "d.csv").write_text("\ufeff" + "\n".join(lines) + "\n")
    samples = open_samples(folder / "d.csv")
    assert samples.kind.endswith(f"d.csv, separated by {by!r}")
    (sample,) = samples
    assert (sample.question, sample.answer) == ("How long, in cm?", "3,5")


def test_whole_numbers_in_csv_are_places(folder):
    head = "question,A,B,C,answer,image\n"
    (folder / "d.csv").write_text(head + "Q,x,y,z,0,a.png\nQ,x,y,z,2,a.png\n")
    assert [s.answer for s in open_samples(folder / "d.csv")] == ["x", "z"]
    (folder / "d.csv").write_text(head + "Q,1,2,3,1,a.png\nQ,1,2,3,2,a.png\n")
    with pytest.raises(RapInputError, match="more than one way"):
        open_samples(folder / "d.csv")


def test_case_14_tsv_with_large_images_in_base64(folder):
    pixels = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype="uint8")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    large = base64.b64encode(out.getvalue()).decode()
    assert len(large) > 3_000_000
    text = "index\tquestion\tA\tB\tanswer\timage\n"
    text += f"0\tWhich?\tred\tblue\tB\t{large}\n1\tWhich?\tred\tblue\tA\t{large}\n"
    for name, pack in (("d.tsv", bytes), ("d.tsv.gz", gzip.compress)):
        (folder / name).write_bytes(pack(text.encode()))
        first, second = open_samples(folder / name)
        assert (first.answer, second.answer) == ("B", "A")
        assert first.images == (ImageRef(out.getvalue(), None),)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([f"option_{k}" for k in range(1, 13)], 12),
        ([f"option{k}" for k in range(11)], 11),
        (["choiceA", "choiceB", "choiceC"], 3),
        (["opa", "opb", "opc", "opd"], 4),
        (["Option A", "Option B"], 2),
        (["ending0", "ending1"], 2),
        (["A", "B", "C", "D", "E"], 5),
    ],
)
def test_case_10_choices_in_columns_of_their_own(names, count):
    texts = {name: f"text {k}" for k, name in enumerate(names)}
    last = f"text {count - 1}"
    (sample,) = open_samples([row(0, answer=last, image=png()) | texts])
    assert sample.choices == tuple(f"text {k}" for k in range(count))


LABELLED = [
    ({"A": "x", "C": "y", "D": "z"}, "C", "y"),
    ({"A": "x", "C": "y", "D": "z"}, "(c)", "y"),
    ({"label": ["A", "C", "D"], "text": ["x", "y", "z"]}, "C", "y"),
    ([{"label": k, "text": t} for k, t in ("Ax", "Cy", "Dz")], "Option C", "y"),
    ([{"label": "B", "text": "x"}, {"label": "A", "text": "y"}], "A", "y"),
    ({"F": "w", "G": "x", "H": "y", "J": "z"}, "G", "x"),
    ({"E": "w", "D": "x", "C": "y"}, "C", "y"),
    ({"I": "w", "V": "x", "X": "y"}, "V", "x"),
    ({"2": "w", "10": "x", "1": "y"}, "10", "x"),
]


@pytest.mark.parametrize(("choices", "answer", "means"), LABELLED)
def test_a_letter_is_the_label_that_the_choices_bring(choices, answer, means):
    (sample,) = open_samples([row(0, choices=choices, answer=answer, image=png())])
    place = resolve_choice(sample.answer, sample.choices)
    assert place is not None and sample.choices[place] == means


def test_a_column_of_choices_that_is_empty_in_the_middle():
    spread = {"A": "x", "B": None, "C": "y", "D": "z"}
    (sample,) = open_samples([row(0, answer="C", image=png()) | spread])
    assert sample.answer == "y" and sample.choices == ("x", "y", "z")


def test_places_and_a_text_in_one_column():
    def rows(choices, *answers):
        return [
            row(k, choices=choices, answer=a, image=png()) for k, a in enumerate(answers)
        ]

    samples = open_samples(rows(["w", "x", "y", "z"], *[k % 4 for k in range(1200)], "x"))
    assert [samples[k].answer for k in range(4)] == ["w", "x", "y", "z"]
    assert samples[1200].code == "bad_answer"
    with pytest.raises(RapInputError, match="more than one way"):
        open_samples(rows(["1", "2", "3", "4"], 0, 1, 2, 3, "b"))


IMAGE = png()
B64 = base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize(
    "cell",
    [
        B64,
        {"image": "a.png"},
        {"url": f"data:image/png;base64,{B64}"},
        {"image_url": {"url": f"data:image/png;base64,{B64}"}},
        [["a.png"]],
        '["a.png"]',
        f"['{B64}']",
        io.BytesIO(IMAGE),
        {"bytes": None, "path": "a.png"},
        [None, "a.png"],
    ],
)
def test_case_15_17_an_image_as_cells_hold_it(folder, cell):
    (sample,) = open_samples([row(0, image=cell)], root=folder)
    (ref,) = sample.images
    assert ref in (
        ImageRef(IMAGE, None),
        ImageRef(None, str((folder / "a.png").resolve())),
    )


def test_an_array_is_an_image():
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    (sample,) = open_samples([row(0, image=pixels)])
    assert (np.asarray(decode(sample.images[0].data, max_pixels=100)) == pixels).all()
    with pytest.raises(RapInputError, match="values from 0 to 255: expected 0 to 1"):
        open_samples([row(0, image=pixels.astype(float))])


def test_case_04_images_in_columns_of_their_own():
    datasets = pytest.importorskip("datasets")
    other = png(compress_level=1)
    rows = [
        {"question": "Is <image 2> like <image 1>?", "answer": "no"}
        | {"image_1": IMAGE, "image_2": other, "image_3": None},
        {"question": "What is <image 1>?", "answer": "no", "image_1": other},
    ]
    typed = datasets.Dataset.from_list(rows)
    for k in (1, 2, 3):
        typed = typed.cast_column(f"image_{k}", datasets.Image())
    for source in (rows, typed):
        samples = open_samples(source)
        assert samples.columns["images"] == "image_1,image_2,image_3"
        assert [ref.data for ref in samples[0].images] == [IMAGE, other]
        assert samples[0].question == "Is image 2 like image 1?"
        assert not {"image_1", "image_2"} & set(samples[0].extra)
        assert [ref.data for ref in samples[1].images] == [other]
    named = datasets.Dataset.from_list(
        [{"question": "Q", "answer": "3", "left": IMAGE, "right": other}]
    )
    for name in ("left", "right"):
        named = named.cast_column(name, datasets.Image())
    with pytest.raises(RapInputError, match="several columns hold images: left, right"):
        open_samples(named)
    (sample,) = open_samples(named, columns={"images": "right,left"})
    assert [ref.data for ref in sample.images] == [other, IMAGE]


def test_fields_and_chats_that_come_late(folder):
    bare = {"question": "Q", "image": "a.png"}
    rows = [*[bare] * 150, bare | {"reward_model": {"ground_truth": "3"}}]
    (folder / "d.jsonl").write_bytes(lines(*rows))
    samples = open_samples(folder / "d.jsonl")
    assert samples.columns["answer"] == "reward_model.ground_truth"
    assert samples[150].answer == "3"
    picture = {"type": "image", "image": "a.png"}
    question = {"type": "text", "text": "Q?"}
    chats = [
        [{"role": "user", "content": [question]}],
        [
            {"role": "user", "content": [picture, question]},
            {"role": "assistant", "content": "3"},
        ],
    ]
    (folder / "c.jsonl").write_bytes(lines(*({"messages": chat} for chat in chats)))
    samples = open_samples(folder / "c.jsonl")
    assert samples[0].code == "bad_answer" and samples[1].answer == "3"


class ByNumber:
    """A data set of torch: dicts by number, and no end to an iteration."""

    def __len__(self):
        return 2

    def __getitem__(self, k):
        return row(k, image=IMAGE)


def test_case_20_rows_in_memory_of_other_kinds():
    pandas = pytest.importorskip("pandas")
    rows = [row(0, image=IMAGE), row(1, image=IMAGE, choices=["3", "4"], score=0.5)]
    frame = pandas.DataFrame(rows, index=[7, 7])
    columns = {
        name: [r[name] for r in rows] for name in ("id", "question", "answer", "image")
    }
    for source in (frame, columns, ByNumber()):
        samples = open_samples(source)
        assert samples.ids == ["s0", "s1"]
        assert [s.question for s in samples] == ["Q0?", "Q1?"]
    assert [s.choices for s in open_samples(frame)] == [(), ("3", "4")]
    assert open_samples(frame)[0].extra["score"] is None
    with pytest.raises(RapInputError, match="different lengths: question 1, answer 2"):
        open_samples({"question": ["Q"], "answer": ["1", "2"]})


# ---------------------------------------------------------------- encodings

GERMAN = "id,question,answer,image\n1,Wie groß?,fünf,a.png\n2,Welches Öl?,zwölf,a.png\n"
QUOTED = GERMAN.replace("fünf", "\u201efünf\u201c")
CHINESE = (
    "id,question,answer,image\n1,\u56fe\u4e2d\u6709\u51e0\u53ea\u732b\uff1f,"
    "\u4e09\u53ea,a.png\n2,\u7403\u662f\u4ec0\u4e48\u989c\u8272\uff1f,\u84dd\u8272,a.png\n"
)


def as_json(text: str, kind: str) -> str:
    names, *cells = (line.split(",") for line in text.splitlines())
    rows = [dict(zip(names, one, strict=True)) for one in cells]
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.jsonl", "d.json"])
@pytest.mark.parametrize(
    ("table", "encoding", "says"),
    [
        (GERMAN, "latin-1", "but, as it seems, in Latin-1 (line {} shows it first)"),
        (QUOTED, "cp1252", "but, as it seems, in Windows-1252 (line {} shows it first)"),
        (
            CHINESE,
            "gb18030",
            "but, as it seems, in GBK or GB18030 (line {} shows it first)",
        ),
        (GERMAN, "utf-16", "but in UTF-16"),
        (GERMAN, "utf-16-le", "but in UTF-16LE"),
        (GERMAN, "utf-16-be", "but in UTF-16BE"),
    ],
)
def test_another_encoding_is_named_with_the_command_that_converts_it(
    folder, name, table, encoding, says
):
    """The command is run, and what it writes is read."""
    kind = name.partition(".")[2]
    text = table if "csv" in kind else as_json(table, kind)
    data = text.encode(encoding)
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(RapInputError) as refused:
        open_samples(path)
    said, _, command = str(refused.value).partition("; convert it: ")
    line = 2 if "csv" in kind else 1
    assert said == f"data set {path}: text not in UTF-8 {says.format(line)}"
    if shutil.which("iconv") is None:
        pytest.skip("iconv is not there to run the command")
    subprocess.run(["sh", "-c", command], check=True)
    made = open_samples(folder / f"d.utf8.{kind.removesuffix('.gz')}")
    wanted = [line.split(",")[2] for line in table.splitlines()[1:]]
    assert [sample.answer for sample in made] == wanted


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.jsonl", "d.json"])
def test_a_byte_order_mark_is_no_part_of_the_data(folder, name):
    kind = name.partition(".")[2]
    data = (GERMAN if "csv" in kind else as_json(GERMAN, kind)).encode("utf-8-sig")
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    samples = open_samples(folder / name)
    assert samples.column_names == ["id", "question", "answer", "image"]
    assert [s.answer for s in samples] == ["f\u00fcnf", "zw\u00f6lf"]


def test_one_broken_line_is_the_fault_of_its_row(folder):
    text = as_json(GERMAN, "jsonl").encode().splitlines(keepends=True)
    (folder / "d.jsonl").write_bytes(text[0].decode().encode("latin-1") + text[1])
    first, second = open_samples(folder / "d.jsonl")
    assert first.code == "bad_json" and "line 1: not UTF-8" in first.message
    assert second.answer == "zw\u00f6lf"
