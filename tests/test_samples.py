"""rap.samples: what people's data sets become, and what a broken row becomes."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import rap.samples.jsonlines
import rap.samples.parquet
from rap.errors import RapInputError
from rap.samples.choices import resolve_choice
from rap.samples.parsing import parse_row
from rap.samples.prompts import strip_image_tags
from rap.samples.roles import detect_columns
from rap.samples.sample import Bad, BadSample, ImageRef, Sample, sample_sha256
from rap.samples.sampleset import SampleSet, load_images, open_samples
from rap.samples.strictjson import strict_json


def png(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


PNG = png()
GOOD = {"question": "How many?", "answer": "3", "image": PNG}


def row(**changes: object) -> dict[str, object]:
    return {**GOOD, **changes}


def second(changed: dict[str, object], **options: object) -> Sample | Bad:
    """The item for a row that stands after a good one."""
    return open_samples([row(), changed], **options)[1]


def code(changed: dict[str, object]) -> str:
    item = second(changed)
    assert isinstance(item, Bad), item
    assert item.message and item.stage in ("data", "image")
    return item.code


def jsonl(path: Path, *lines: bytes | str | dict[str, object]) -> Path:
    """A JSONL file beside one image; lines as given, ended by a newline."""
    (path / "x.png").write_bytes(PNG)
    out = b""
    for line in lines:
        if isinstance(line, dict):
            line = json.dumps(line)
        out += (line.encode() if isinstance(line, str) else line) + b"\n"
    file = path / "data.jsonl"
    file.write_bytes(out)
    return file


def line(**changes: object) -> dict[str, object]:
    return {"id": "a", "question": "q", "answer": "1", "image": "x.png", **changes}


def codes(samples: SampleSet) -> list[str]:
    return ["ok" if isinstance(item, Sample) else item.code for item in samples]


# --------------------------------------------------------------------- what people have


def test_jsonl_with_image_folder(tmp_path):
    file = jsonl(tmp_path, line(choices=["1", "2"], source="s", level=3))
    samples = open_samples(file)
    assert len(samples) == 1
    assert samples[0] == Sample(
        index=0,
        id="a",
        question="q",
        answer="1",
        choices=("1", "2"),
        images=(ImageRef(None, str(tmp_path / "x.png")),),
        source="s",
        extra={
            "id": "a",
            "question": "q",
            "answer": "1",
            "choices": ["1", "2"],
            "source": "s",
            "level": 3,
        },
    )
    assert samples[-1] == samples[0] == open_samples(tmp_path)[0]
    assert samples.ids == ["a"]
    assert samples.root == str(tmp_path)
    with pytest.raises(IndexError):
        samples[1]


def test_trl_parquet(tmp_path):
    """Messages as prompt, images as {bytes, path}, the answer in `solution`."""
    rows = [
        {
            "prompt": [
                {"role": "system", "content": "Think."},
                {"role": "user", "content": f"What is {k}?"},
            ],
            "images": [{"bytes": PNG, "path": None}],
            "solution": f"<answer>{k}</answer>",
        }
        for k in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=2)
    samples = open_samples(tmp_path / "train.parquet")
    assert samples.ids == ["0", "1", "2", "3", "4"]
    assert "row numbers are used" in samples.describe()
    assert [s.question for s in samples] == [f"What is {k}?" for k in range(5)]
    assert samples[3].answer == "<answer>3</answer>"
    assert samples[3].images == (ImageRef(PNG, None),)
    assert samples[3].extra == {
        "prompt": rows[3]["prompt"],
        "solution": "<answer>3</answer>",
    }


def test_trl_message_parts(tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    rows = [
        {
            "prompt": [{"role": "user", "content": parts}],
            "images": [PNG] * n,
            "solution": "1",
        }
        for n in (1, 2)
    ]
    samples = open_samples(rows)
    assert samples[0].question == "What?"
    assert samples[1].code == "image_count"


def test_verl_parquet(tmp_path):
    rows = [
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": "<image>Find x."}],
            "images": [{"bytes": PNG, "path": None}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "48"},
            "extra_info": {"split": "train", "index": 7},
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    samples = open_samples(tmp_path / "v.parquet")
    assert samples.columns["answer"] == "reward_model.ground_truth"
    assert samples.columns["source"] == "data_source"
    sample = samples[0]
    assert (sample.question, sample.answer, sample.source) == (
        "Find x.",
        "48",
        "hiyouga/geometry3k",
    )
    assert sample.extra["reward_model"] == {"style": "rule", "ground_truth": "48"}
    by_index = open_samples(tmp_path / "v.parquet", columns={"id": "extra_info.index"})
    assert by_index.ids == ["7"]


def test_easyr1_json_array(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    rows = [{"problem": "<image>Q", "answer": "48", "images": ["x.png"]}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    sample = open_samples(tmp_path / "train.json")[0]
    assert (sample.question, sample.answer) == ("Q", "48")


def test_ms_swift_messages():
    sample = second(
        {
            "messages": [
                {"role": "user", "content": "<image>Q"},
                {"role": "assistant", "content": "secret answer"},
            ],
            "images": [PNG],
            "solution": "48",
        },
        columns={"question": "messages", "answer": "solution", "images": "images"},
    )
    assert (sample.question, sample.answer) == ("Q", "48")


def image_dataset(n: int = 6) -> datasets.Dataset:
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "image": datasets.Value("string"),
            "decoded_image": datasets.Image(),
            "thumbnail": datasets.Image(),
        }
    )
    data = {
        "id": list(range(n)),
        "question": [f"q{k}" for k in range(n)],
        "answer": ["1"] * n,
        "image": [f"images/{k}.jpg" for k in range(n)],
        "decoded_image": [{"bytes": PNG, "path": None}] * n,
        "thumbnail": [{"bytes": PNG, "path": None}] * n,
    }
    return datasets.Dataset.from_dict(data, features=features)


def test_dataset_object_is_never_decoded(monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded an image")

    monkeypatch.setattr(datasets.Image, "decode_example", fail)
    samples = open_samples(image_dataset())
    assert samples.columns["images"] == "decoded_image"  # typed as image; `image` is a path
    assert samples[2].images == (ImageRef(PNG, None),)
    assert samples.ids == ["0", "1", "2", "3", "4", "5"]
    assert set(samples[2].extra) == {"id", "question", "answer", "image"}
    assert samples.dataset is not None and len(samples.take([4, 1])) == 2
    assert samples.content_hash()


def test_dataset_object_that_was_shuffled_and_selected():
    dataset = image_dataset().select([5, 3, 1])
    samples = open_samples(dataset)
    assert samples.ids == ["5", "3", "1"]
    assert samples[1].question == "q3"
    taken = samples.take([2, 0])
    assert list(taken["id"]) == [1, 5]
    assert taken.features == dataset.features


def test_saved_dataset_is_read_without_the_datasets_library(tmp_path, monkeypatch):
    image_dataset().select([5, 3, 1]).save_to_disk(tmp_path / "d", num_shards=2)
    monkeypatch.setitem(sys.modules, "datasets", None)  # any import of it fails
    samples = open_samples(tmp_path / "d")
    assert samples.ids == ["5", "3", "1"]
    assert samples[1].images == (ImageRef(PNG, None),)
    assert samples.columns["images"] == "decoded_image"
    assert samples.dataset is None
    with pytest.raises(RapInputError, match="pip install datasets"):
        samples.take([0])


def test_saved_dataset_and_its_parquet_have_the_same_content(tmp_path):
    dataset = image_dataset()
    dataset.save_to_disk(tmp_path / "d")
    dataset.to_parquet(tmp_path / "d.parquet")
    opened = [open_samples(s) for s in (dataset, tmp_path / "d", tmp_path / "d.parquet")]
    assert len({s.content_hash() for s in opened}) == 1
    assert all(list(s) == list(opened[0]) for s in opened)
    assert all(s.take([1]).features == dataset.features for s in opened)


def test_parquet_shards_in_a_folder_and_a_large_one_spilled(
    tmp_path, tmp_path_factory, monkeypatch
):
    spilled = tmp_path_factory.mktemp("spilled")
    monkeypatch.setattr(tempfile, "tempdir", str(spilled))
    for k in range(3):
        rows = [row(id=f"{k}-{i}") for i in range(300)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"train-{k}.parquet")
    expected = [f"{k}-{i}" for k in range(3) for i in range(300)]
    small = open_samples(tmp_path)
    monkeypatch.setattr(rap.samples.parquet, "HELD_BYTES", 100)
    large = open_samples(tmp_path)
    assert not os.listdir(spilled)
    assert small.ids == large.ids == expected
    assert list(small) == list(large)


def test_splits_are_named(tmp_path):
    both = datasets.DatasetDict({"train": image_dataset(), "test": image_dataset()})
    with pytest.raises(RapInputError, match=r"one split.*train, test"):
        open_samples(both)
    both.save_to_disk(tmp_path / "d")
    with pytest.raises(RapInputError, match=r"splits; name one: .*test, .*train"):
        open_samples(tmp_path / "d")
    assert len(open_samples(tmp_path / "d" / "test")) == 6


@pytest.mark.parametrize(
    "source",
    [7, None, b"abc", {"question": ["q"]}, "/nowhere/x.jsonl", "/dev/zero", "/dev/null"],
)
def test_what_is_no_data_set_is_refused(source):
    with pytest.raises(RapInputError):
        open_samples(source)


def test_files_that_are_no_data_set_are_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    (tmp_path / "x.bin").write_bytes(b"\0" * 100)
    (tmp_path / "x.json").write_bytes(b"[{]")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo.jsonl")
    for name in ("x.parquet", "x.bin", "x.json", "empty", "fifo.jsonl"):
        with pytest.raises(RapInputError):
            open_samples(tmp_path / name)


def test_streaming_dataset_is_refused():
    with pytest.raises(RapInputError, match="limit=1000"):
        open_samples(image_dataset().to_iterable_dataset())


# ------------------------------------------------------------------------- columns


def test_columns_are_detected_and_can_be_named():
    rows = [{"q": "Why?", "question": "other", "answer": "1", "image": PNG, "options": "A"}]
    with pytest.raises(RapInputError, match="not among|not a list"):
        open_samples(rows)
    samples = open_samples(rows, columns={"question": "q", "choices": ""})
    assert samples[0].question == "Why?"
    assert samples[0].choices == ()
    assert "question <- q" in samples.describe()


def test_wrong_column_names_list_what_is_there():
    with pytest.raises(RapInputError, match=r"no column 'q' for question; .*answer, image"):
        open_samples([row()], columns={"question": "q"})
    with pytest.raises(RapInputError, match=r"no role 'questoin'; roles are id, question"):
        open_samples([row()], columns={"questoin": "question"})
    with pytest.raises(RapInputError, match=r"no column for images .*question, answer"):
        open_samples([{"question": "q", "answer": "1"}])
    with pytest.raises(RapInputError, match="no column '' for question"):
        open_samples([row()], columns={"question": ""})


def test_detection_prefers_the_better_name():
    found = detect_columns(["prompt", "problem", "solution", "answer", "image"], {})
    assert found == {
        "id": None,
        "question": "problem",
        "answer": "answer",
        "choices": None,
        "images": "image",
        "source": None,
    }


# ------------------------------------------------------------------------ image tags


@pytest.mark.parametrize(
    ("text", "stripped", "placeholders"),
    [
        ("<image>What?", "What?", 1),
        ("<image>\n<image>\nWhat?", "What?", 2),
        ("What?\n<image1>\n<image2>", "What?", 0),
        ("Look at <image 1> now", "Look at now", 0),
        ("a <image> b <image2> c", "a b c", 1),
        ("if a < image and b > c", "if a < image and b > c", 0),
        ("  x  y\n\n  z ", "x  y\n\n  z", 0),
    ],
)
def test_image_tags_are_stripped(text, stripped, placeholders):
    assert strip_image_tags(text) == (stripped, placeholders)


def test_fault_11_image_count():
    assert code(row(image=None)) == "text_only"
    assert code(row(image=[])) == "text_only"
    assert code(row(question="<image><image>What?")) == "image_count"
    assert code(row(question="<image>What?", image=[PNG, PNG])) == "image_count"
    two = second(row(question="<image> and <image>?", image=[PNG, PNG]))
    assert isinstance(two, Sample) and len(two.images) == 2
    # no placeholder, or names inside the text (MATH-V): any number of images
    assert isinstance(second(row(image=[PNG, PNG])), Sample)
    assert isinstance(second(row(question="What?\n<image1>\n<image2>")), Sample)


# ------------------------------------------------------------------------- broken rows


def test_fault_12_broken_json_line_and_the_later_lines(tmp_path):
    file = jsonl(tmp_path, line(id="a"), '{"id": "b", ', "", line(id="c"), "[1, 2]", "7")
    samples = open_samples(file)
    assert codes(samples) == ["ok", "bad_json", "ok", "bad_json", "bad_json"]
    assert samples.ids == ["a", "line:2", "c", "line:5", "line:6"]
    assert samples[1].message.startswith("line 2: ")
    assert samples[3].message == "line 5: a JSON list, not an object"


def test_fault_12_bom_crlf_and_no_final_newline(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    rows = [json.dumps(line(id=k)).encode() for k in "abc"]
    file = tmp_path / "data.jsonl"
    for text in (
        b"\xef\xbb\xbf" + b"\r\n".join(rows),
        b"\xef\xbb\xbf\r\n\r\n" + b"\r\n \t\r\n".join(rows) + b"\r\n\r\n",
        b"\n\n".join(rows),
    ):
        file.write_bytes(text)
        assert codes(open_samples(file)) == ["ok"] * 3
        assert open_samples(file).ids == ["a", "b", "c"]


def test_fault_12_cut_last_line_and_bytes_that_are_not_utf8(tmp_path):
    file = jsonl(tmp_path, line(), b'{"id": "\xff", "question": "q"}', b'{"id": "z", "que')
    samples = open_samples(file)
    assert codes(samples) == ["ok", "bad_json", "bad_json"]
    assert "not UTF-8" in samples[1].message


def test_fault_12_line_longer_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(rap.samples.jsonlines, "MAX_LINE_BYTES", 200)
    file = jsonl(tmp_path, line(), line(id="b", question="x" * 500), line(id="c"))
    samples = open_samples(file)
    assert codes(samples) == ["ok", "bad_json", "ok"]
    assert samples.ids[2] == "c"


def test_fault_13_duplicate_id_names_both_places(tmp_path):
    file = jsonl(tmp_path, line(id="a"), "broken", line(id="b"), line(id="a"))
    with pytest.raises(RapInputError, match="id 'a' is there twice: line 1 and line 4"):
        open_samples(file)
    with pytest.raises(RapInputError, match="row 0 and row 2"):
        open_samples([row(id="x"), row(id="y"), row(id="x")])


def test_fault_14_ids_are_opaque_text():
    nfc, nfd = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))
    ids = [
        7,
        "8",
        "",
        "x" * 10_000,
        "../../etc/passwd",
        "a\nb",
        "a\0b",
        nfc,
        nfd,
        2**70,
        1.5,
    ]
    samples = open_samples([row(id=i) for i in ids])
    assert samples.ids == [str(i) for i in ids]
    assert codes(samples) == ["ok"] * len(ids)
    assert [s.id for s in samples] == samples.ids


def test_fault_14_number_and_text_twins_are_duplicates():
    with pytest.raises(RapInputError, match="id '1' is there twice: row 0 and row 1"):
        open_samples([row(id=1), row(id="1")])


def test_fault_14_row_without_a_usable_id_gets_its_place():
    rows = [row(id="row:1"), row(id=None), row(), row(id=["x"]), row(id="\ud800")]
    samples = open_samples(rows)
    assert samples.ids == ["row:1", "row:1'", "row:2", "row:3", "row:4"]
    assert codes(samples) == ["ok", "ok", "ok", "bad_text", "bad_text"]


@pytest.mark.parametrize(
    "changes",
    [
        {"question": None},
        {"question": ""},
        {"question": " \n"},
        {"question": "<image>"},
        {"question": 7},
        {"question": [1]},
        {"question": [{"role": "system", "content": "x"}]},
        {"question": [{"role": "user", "content": 7}]},
        {"answer": None},
        {"answer": ""},
        {"answer": "  "},
        {"answer": {"a": 1}},
        {"answer": ["1", {"a": 1}]},
        {"answer": ["1", ""]},
        {"answer": []},
        {"answer": float("nan")},
        {"answer": 10**5000},
        {"answer": "E", "choices": ["x", "y", "z"]},
        {"answer": "w", "choices": ["x", "y", "z"]},
        {"answer": "x", "choices": [["x"], "y"]},
        {"answer": "x", "choices": 7},
        {"answer": "x", "choices": "x or y"},
    ],
)
def test_fault_15_question_answer_and_choices(changes):
    assert code(row(**changes)) == "bad_answer"


def test_fault_15_missing_keys():
    assert code({"answer": "1", "image": PNG}) == "bad_answer"
    assert code({"question": "q", "image": PNG}) == "bad_answer"


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (["12 cm", "13 cm"], ("12 cm", "13 cm")),
        ({"A": "x", "B": "y", "C": None}, ("x", "y")),
        ("['x', \"it's\", 3]", ("x", "it's", "3")),
        ('["x", "y"]', ("x", "y")),
        ("['it\\'s', 'a\\\\b']", ("it's", "a\\b")),
        ([1, 2.5, True], ("1", "2.5", "True")),
        (["<image1>", "<image2>"], ("A", "B")),
        ([], ()),
        (None, ()),
        ("", ()),
        ("[]", ()),
    ],
)
def test_choices_as_people_write_them(choices, expected):
    answer = "A" if expected else "anything"
    sample = second(row(answer=answer, choices=choices))
    assert isinstance(sample, Sample)
    assert sample.choices == expected


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        ("B", ("x", "y"), 1),
        ("(b)", ("x", "y"), 1),
        ("B.", ("x", "y"), 1),
        ("\\boxed{B}", ("x", "y"), 1),
        ("<answer> B </answer>", ("x", "y"), 1),
        ("y", ("x", "y"), 1),
        ("  Y ", ("x", "y"), 1),
        ("(B) y", ("x", "y"), 1),
        ("(B) x", ("x", "y"), None),  # the label says one thing, the text another
        ("A", ("B", "A"), 1),  # a choice's own text comes first
        ("1,250", ("1250", "1350"), 0),
        ("4.0", ("3", "4"), 1),
        ("$\\frac12$", ("\\frac12", "1"), 0),
        ("C", ("x", "y"), None),
        ("z", ("x", "y"), None),
        ("4", ("4", "4"), 0),
    ],
)
def test_resolve_choice(answer, choices, index):
    assert resolve_choice(answer, choices) == index


@pytest.mark.parametrize("name", ["question", "answer", "source"])
@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"])
def test_fault_16_lone_surrogate_and_nul(name, text):
    assert code(row(**{"source": "s", name: text})) == "bad_text"


def test_fault_16_in_choices_paths_and_json(tmp_path):
    assert code(row(answer="x", choices=["x", "\udfff"])) == "bad_text"
    item = open_samples([row(), row(image="a\0.png")], root=tmp_path)[1]
    assert item.code == "bad_text"
    file = jsonl(tmp_path, line(), '{"id":"b","question":"\\ud800","answer":"1"}')
    item = open_samples(file)[1]
    assert item.code == "bad_text"
    pa.array([item.id, item.message]).validate(full=True)  # the store stays writable


def test_fault_16_parquet_text_that_is_not_utf8():
    texts = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    table = pa.table({"question": texts, "answer": ["1", "1"], "image": [PNG, PNG]})
    assert codes(open_samples(table)) == ["ok", "bad_text"]
    ids = pa.table(
        {"id": texts, "question": ["q", "q"], "answer": ["1", "1"], "image": [PNG, PNG]}
    )
    samples = open_samples(ids)
    assert codes(samples) == ["ok", "bad_text"]
    assert samples.ids == ["good", "row:1"]
    assert samples.content_hash()


@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "-" + "9" * 5000,
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
)
def test_fault_17_numbers_and_nesting(tmp_path, value):
    bad = f'{{"id": "b", "question": "q", "answer": {value}, "image": "x.png"}}'
    samples = open_samples(jsonl(tmp_path, line(), bad, line(id="c")))
    assert codes(samples) == ["ok", "bad_json", "ok"]
    assert "line 2" in samples[1].message


def test_fault_17_brackets_inside_strings_are_no_nesting(tmp_path):
    text = "[" * 2000 + '\\"' + "{" * 2000
    samples = open_samples(jsonl(tmp_path, line(question=text)))
    assert samples[0].question == text


def test_fault_17_deep_nesting_in_python_objects():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    samples = open_samples([row(), row(choices=deep), row(answer=deep)])
    assert codes(samples) == ["ok", "bad_answer", "bad_answer"]
    assert samples.content_hash()


def test_fault_18_empty_and_all_bad(tmp_path):
    for source in ([], datasets.Dataset.from_dict({}), pa.table({"question": []})):
        with pytest.raises(RapInputError, match="empty"):
            open_samples(source)
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(RapInputError, match="empty"):
        open_samples(tmp_path / "empty.jsonl")
    rows = [row(answer=""), row(answer=None), row(image=None)]
    with pytest.raises(
        RapInputError, match=r"0 of 3 rows can be used: 2 bad_answer .*1 text_only"
    ):
        open_samples(rows)
    with pytest.raises(RapInputError, match="none of 2 rows can be read"):
        open_samples(jsonl(tmp_path, "x", "y"))


def test_fault_18_one_row_is_enough():
    assert codes(open_samples([row()])) == ["ok"]


# --------------------------------------------------------------------- the sample set


def test_take_keeps_the_original_columns(tmp_path):
    file = jsonl(tmp_path, line(id=1, deep={"x": [1]}), line(id=2), "broken", line(id=4))
    samples = open_samples(file)
    taken = samples.take(np.array([3, 0]))
    assert list(taken["id"]) == [4, 1]
    assert list(taken["image"]) == ["x.png", "x.png"]
    assert taken[1]["deep"] == {"x": [1]}
    assert len(samples.dataset) == 4
    with pytest.raises(IndexError):
        samples.take([4])


def test_take_of_a_column_that_mixes_types():
    samples = open_samples([row(answer="1", note=1), row(answer=2, note="x")])
    with pytest.warns(UserWarning, match="column '(answer|note)' mixes types"):
        taken = samples.take([1, 0])
    assert [json.loads(text) for text in taken["note"]] == ["x", 1]


def test_hashes_change_with_the_content(tmp_path):
    def of(grouped: bool = False, **changes: object) -> str:
        samples = open_samples([row(id="a", choices=None, **changes)])
        return samples.content_hash(source=grouped)

    same = of()
    assert same == of()
    changes = [{"question": "x"}, {"answer": "4"}, {"source": "s"}, {"id2": "x"}]
    # the group decides no score: it counts only in the hash that older stores have
    assert [of(**c) == same for c in changes] == [False, False, True, True]
    grouped = [of(True, **c) == of(True) for c in changes]
    assert grouped == [False, False, False, True]
    sample = second(row())
    assert sample_sha256(sample, ["h"]) == sample_sha256(second(row()), ["h"])
    others = [second(row(question="x")), second(row(answer="4")), sample]
    hashes = {sample_sha256(s, ["h"]) for s in others} | {sample_sha256(sample, ["i"])}
    assert len(hashes) == 4


def test_load_images_of_a_sample():
    images, hashes = load_images(second(row(image=[PNG, png("blue")])), max_pixels=100)
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]
    assert len(set(hashes)) == 2


def test_items_are_the_same_from_many_threads(tmp_path):
    file = jsonl(tmp_path, *(line(id=k, question=f"q{k}") for k in range(300)))
    samples = open_samples(file)
    expected = list(samples)
    got: list[list[object]] = [[] for _ in range(4)]

    def work(k: int) -> None:
        order = range(300) if k % 2 else range(299, -1, -1)
        got[k] = sorted((samples[i] for i in order), key=lambda s: s.index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert got == [expected] * 4


def test_needs_neither_torch_nor_datasets_nor_pillow(tmp_path):
    """Core dependencies are numpy and pyarrow; the other libraries are extras."""
    file = jsonl(tmp_path, line())
    script = (
        "import sys\n"
        "for name in ('torch', 'datasets', 'PIL', 'transformers', 'math_verify'):\n"
        "    sys.modules[name] = None\n"
        "from rap.samples import open_samples\n"
        f"print(open_samples({str(file)!r})[0].id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "a\n", done.stderr


def test_million_row_files_cost_bytes_a_row(tmp_path):
    """Held for a JSONL row: two 8-byte numbers and the id."""
    file = jsonl(tmp_path, *(line(id=str(k), question="q" * 500) for k in range(2000)))
    samples = open_samples(file)
    rows = samples._rows
    held = rows._start.itemsize * len(rows._start) + rows._number.itemsize * len(rows)
    assert held <= 16 * 2001
    assert file.stat().st_size > 1_000_000


# ------------------------------------------------------------------------- real sets


@pytest.mark.parametrize(
    ("name", "rows", "with_choices"),
    [("mathvision", 400, None), ("puzzlevqa", 200, 200), ("tabmwp", 300, None)],
)
def test_real_sets_have_no_bad_row(shared, name, rows, with_choices):
    samples = open_samples(shared / "data" / name)
    kinds = Counter(type(item).__name__ for item in samples)
    assert kinds == {"Sample": rows}
    raw = [samples.row(i) for i in range(rows)]
    assert [s.answer for s in samples] == [r["answer"].strip() for r in raw]
    assert [len(s.choices) for s in samples] == [len(r.get("choices") or ()) for r in raw]
    assert not any("<image" in s.question for s in samples)
    if with_choices is not None:
        assert sum(bool(s.choices) for s in samples) == with_choices


# ----------------------------------------------------------------------- any row at all

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "bytes", "path", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
ROLES = {r: r for r in ("id", "question", "answer", "choices", "images", "source")}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ROLES)), values))
def test_any_row_becomes_a_sample_or_bad(tmp_path_factory, changes):
    valid = {"question": "q", "answer": "1", "choices": None, "images": PNG, "source": None}
    root = os.path.realpath(tmp_path_factory.getbasetemp())
    try:
        sample = parse_row({**valid, **changes}, ROLES, index=0, id="a", root=root)
    except BadSample as bad:
        assert bad.code in {
            "bad_answer",
            "bad_text",
            "image_count",
            "image_missing",
            "image_unreadable",
            "path_outside_root",
            "text_only",
            "url_refused",
        }
        bad.message.encode()
        return
    texts = [sample.question, sample.answer, *sample.choices, sample.source or ""]
    pa.array(texts).validate(full=True)
    assert sample.question.strip() and sample.answer.strip() and sample.images
    assert all(r.data is not None or r.path.startswith(root) for r in sample.images)
    if sample.choices:
        assert resolve_choice(sample.answer, sample.choices) is not None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode()))
def test_strict_json_raises_nothing_but_value_error(text):
    try:
        value = strict_json(text)
    except ValueError:
        return
    # what it accepts, a strict writer can write again
    assert strict_json(json.dumps(value, allow_nan=False).encode()) == value


def test_samples_travel_between_processes():
    sample = second(row(choices=["3", "4"]))
    assert pickle.loads(pickle.dumps(sample)) == sample
    bad = BadSample("image", "image_missing", "gone")
    again = pickle.loads(pickle.dumps(bad))
    assert (again.stage, again.code, again.message) == ("image", "image_missing", "gone")
