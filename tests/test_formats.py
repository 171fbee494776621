"""Every format by every reader, and the committed page that says so (``format_rows``)."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from format_rows import (
    FORMATS,
    PAGE,
    READERS,
    Format,
    as_bytes,
    fits,
    opened,
    options_of,
    page,
    png,
    polars,
    read_as,
)
from PIL import Image

from rap.cli import main
from rap.config import ScoreConfig
from rap.engines import EngineConfig
from rap.errors import RapInputError
from rap.samples.forms import form_of
from rap.samples.sample import Bad, Sample
from rap.samples.sampleset import open_samples
from rap.scores.judge import Judge
from rap.scores.match import describe
from rap.scoring.session import Recipe


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_format_by_a_reader(form: Format, reader: str, tmp_path: Path) -> None:
    if fits(form, reader):
        return  # no such rows
    if form.refused:
        with pytest.raises(RapInputError, match=form.refused):
            opened(form, reader, tmp_path)
        return
    samples = opened(form, reader, tmp_path)
    assert [read_as(row) for row in samples] == list(form.want)
    assert samples.answer_forms.form == form.form


def test_polars_reads_as_arrow_does(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    for form in FORMATS:
        if not form.refused:
            options = options_of(form, "Polars", tmp_path)
            samples = open_samples(polars(form.rows, tmp_path), **options)
            assert [read_as(row) for row in samples] == list(form.want)


def test_the_page_says_what_happens() -> None:
    assert PAGE.read_text() == page(), "write it anew: python tests/format_rows.py"


# ------------------------------------------------------------------------- images


def pixels() -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png())))


@pytest.mark.parametrize(
    "image",
    [
        lambda: torch.from_numpy(pixels().copy()),
        lambda: torch.from_numpy(pixels().copy()).permute(2, 0, 1),
        lambda: torch.from_numpy(pixels().copy()).permute(2, 0, 1).float() / 255,
        lambda: torch.from_numpy(pixels().copy()).to(torch.int64),
        lambda: np.moveaxis(pixels(), 2, 0),
        lambda: pixels() / 255.0,
        lambda: [pixels()],
        lambda: pixels()[None],
    ],
    ids="uint8 channels-first float int64 leading decimals list batch".split(),
)
def test_arrays_and_tensors_are_the_pixels_they_hold(image: Any) -> None:
    (sample,) = open_samples([{"question": "q?", "answer": "3", "image": image()}])
    found = np.asarray(Image.open(io.BytesIO(sample.images[0].data)))
    assert np.array_equal(found, pixels())


def test_a_tensor_of_bfloat16_is_rounded_to_bytes() -> None:
    white = torch.ones(3, 8, 9, dtype=torch.bfloat16)
    (sample,) = open_samples([{"question": "q?", "answer": "3", "image": white}])
    found = np.asarray(Image.open(io.BytesIO(sample.images[0].data)))
    assert found.shape == (8, 9, 3) and (found == 255).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 9, 8)) - 2.0, "expected 0 to 1, before any normalisation"),
        (np.full((9, 8, 3), 300), "expected 0 to 255"),
        (np.full((9, 8), np.nan), "expected 0 to 1"),
        (np.zeros((9, 8, 5), "uint8"), "no side of 1, 3 or 4 channels"),
        (np.zeros((0, 8, 3), "uint8"), "is empty"),
        (np.zeros((9, 8), "complex64"), "array of complex64"),
    ],
)
def test_arrays_that_are_no_image_say_why(image: np.ndarray, message: str) -> None:
    rows = [{"question": "q?", "answer": "3", "image": x} for x in (image, png())]
    bad = open_samples(rows)[0]
    assert isinstance(bad, Bad) and bad.code == "image_unreadable"
    assert message in bad.message


def test_a_file_url_stays_inside_the_root(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a b.png").write_bytes(png())
    urls = [(inside / "a b.png").as_uri(), (outside / "a b.png").as_uri()]
    urls += ["file://other/a.png", "https://x.org/a.png"]
    rows = [{"question": "q?", "answer": "3", "image": url} for url in urls]
    first, *rest = open_samples(rows, root=inside)
    assert isinstance(first, Sample) and first.images[0].path == str(inside / "a b.png")
    assert [bad.code for bad in rest] == ["path_outside_root", "url_refused", "url_refused"]


def test_an_image_inside_of_a_column() -> None:
    media = {"width": 3, "image": as_bytes(0)}
    samples = open_samples([{"question": "q?", "answer": "3", "media": media}])
    assert samples.columns["images"] == "media.image" and len(samples[0].images) == 1
    assert samples[0].extra["media"] == {"width": 3} and samples.content_sha256


def test_images_in_a_chat_come_before_fields_of_other_columns() -> None:
    said = [
        {"role": "user", "content": [{"type": "image", "image": as_bytes(0)}, QUESTION]}
    ]
    row = {"prompt": said, "answer": "3", "extra_info": {"image": "elsewhere.png"}}
    assert open_samples([row]).columns["images"] == "prompt"


def test_columns_known_from_a_store_get_no_new_role() -> None:
    row = {"instruction": "q?", "output": "3", "images": [png()], "system": "A."}
    scored = dict.fromkeys(("id", "choices", "source"), "")
    scored |= {"question": "instruction", "answer": "output", "images": "images"}
    assert open_samples([row], columns=scored)[0].turns == ()
    assert open_samples([row])[0].turns == (("system", "A."),)


# ------------------------------------------------------------------ what is no image


def test_case_18_rows_without_an_image_are_text_rows_and_no_fault() -> None:
    rows = [{"question": "q?", "answer": "3", "images": [png()] * k} for k in (1, 0)]
    rows += [{"question": "<image> q?", "answer": "3", "images": []}]
    assert [getattr(row, "code", "") for row in open_samples(rows)] == [
        "",
        "text_only",
        "image_count",
    ]


QUESTION = {"type": "text", "text": "q?"}
VIDEOS: list[dict[str, Any]] = [
    {"videos": ["v.mp4"], "images": []},
    {"video": "v.mp4", "images": [png()]},
    {"images": ["v.MP4"]},
    {"prompt": [{"role": "user", "content": [{"type": "video", "video": "v"}]}]},
]


@pytest.mark.parametrize("row", VIDEOS)
def test_case_19_videos_are_named(row: dict[str, Any], tmp_path: Path) -> None:
    usable = {"question": "q?", "answer": "3", "images": [png()], "videos": []}
    rows = [{"question": "q?", "answer": "3", **row}, usable]
    columns = {"question": "prompt"} if "prompt" in row else None
    if columns:
        rows[0]["images"] = [png()]
        rows[1]["prompt"] = "q?"
    bad = open_samples(rows, root=tmp_path, columns=columns)[0]
    assert isinstance(bad, Bad) and bad.code == "video"
    assert "videos are not supported" in bad.message


def test_a_system_prompt_in_the_chat_and_in_a_column_is_set_aside() -> None:
    said = [{"role": "system", "content": "A."}, {"role": "user", "content": "q?"}]
    rows = [
        {"messages": messages, "system": "B.", "answer": "3", "images": [png()]}
        for messages in (said, said[1:])
    ]
    both, one = open_samples(rows)
    assert both.code == "system_turn" and one.turns == (("system", "B."),)
    assert open_samples(rows, columns={"system": ""})[0].turns == (("system", "A."),)


def test_what_stands_beside_the_prompt_counts_for_its_hash() -> None:
    row = {"instruction": "q?", "output": "3", "images": [png()]}
    hashes = {
        open_samples([{**row, **more}]).content_sha256
        for more in ({}, {"system": "A."}, {"system": "B."}, {"input": "all"})
    }
    assert len(hashes) == 4


# -------------------------------------------------------------------------- streams


def test_a_stream_gives_its_first_rows_with_the_bytes_they_have() -> None:
    import datasets

    rows = [{"question": f"q{k}?", "answer": "3", "image": as_bytes(k)} for k in range(5)]
    typed = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    samples = open_samples(typed.to_iterable_dataset(), limit=2)
    assert [row.question for row in samples] == ["q0?", "q1?"]
    assert [row.images[0].data for row in samples] == [png(0), png(1)]


def test_streams_without_a_limit_are_refused_with_the_way_out() -> None:
    rows = ({"question": "q?", "answer": "3", "image": png()} for _ in range(3))
    with pytest.raises(RapInputError, match="limit=1000"):
        open_samples(rows)
    assert len(open_samples(rows, limit=2)) == 2


def test_a_loader_of_batches_is_refused_with_the_way_out() -> None:
    rows = [{"question": "q?", "answer": "3", "image": png()} for _ in range(3)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    with pytest.raises(RapInputError, match="pass its data set"):
        open_samples(loader, limit=2)
    batches = pa.Table.from_pylist(rows).to_reader()
    assert len(open_samples(batches, limit=2)) == 2


@pytest.mark.parametrize("limit", [0, -1, True, 2.5])
def test_a_limit_is_a_whole_number_from_one(limit: Any) -> None:
    with pytest.raises(RapInputError, match="limit"):
        open_samples([{"question": "q?", "answer": "3", "image": png()}], limit=limit)


def test_the_first_rows_of_a_file_are_a_data_set(tmp_path: Path) -> None:
    rows = [
        {"id": str(k), "question": "q?", "answer": "3", "image": "a.png"} for k in (0, 1, 2)
    ]
    (tmp_path / "a.png").write_bytes(png())
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = open_samples(path, limit=2)
    assert part.ids == ["0", "1"] and len(part.dataset) == 2
    whole = tmp_path / "two.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert part.content_sha256 == open_samples(whole).content_sha256


# ---------------------------------------------------------------- what was understood


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("3", "number"),
        ("-1,250.5", "number"),
        ("3/4", "number"),
        ("12.5\\%", "percentage"),
        ("5 km/h", "number with unit"),
        ("12\\text{ cm}", "number with unit"),
        ("$5", "number with unit"),
        ("5\u4e2a", "number with unit"),
        ("(3, 4)", "tuple"),
        ("[1, 2)", "interval"),
        ("(-\\infty, 3)", "interval"),
        ("5-7", "interval"),
        ("14 and 25", "several values, all needed"),
        ("No.", "yes or no"),
        ("May 4, 2023", "date or time"),
        ("\\frac{3}{4}", "LaTeX"),
        ("\u84dd\u8272", "text"),
        ("C", "letter"),
        ("ACD", "set of letters"),
        ('["a", "b"]', "list of accepted answers"),
        ("[12, 30, 50, 60]", "box"),
        ('{"bbox_2d": [1, 2, 3, 4]}', "box"),
        ("[60, 30, 12, 5]", "expression"),
        ("<answer>[1, 2, 3, 4]</answer>", "box"),
    ],
)
def test_the_form_of_an_answer(answer: str, form: str) -> None:
    assert form_of(answer) == form


def test_the_column_decides_its_form_and_says_the_exceptions() -> None:
    answers = ["B"] * 18 + ["12"] * 2
    rows = [{"question": "q?", "answer": a, "image": png()} for a in answers]
    samples = open_samples(rows)
    assert samples.answer_forms.as_dict() == {
        "form": "letter",
        "counts": {"letter": 18, "number": 2},
        "looked_at": 20,
    }
    said = samples.describe()
    assert "form of the answers: letter (90.0 %), number (10.0 %), by 20 rows" in said
    assert "the questions state no options as text" in said


@pytest.mark.parametrize("n", [1, 99, 150, 2_001, 4_321])
def test_the_form_is_decided_by_rows_of_the_whole_column(n: int) -> None:
    answers = ["3"] * (n - n // 2) + ["B"] * (n // 2)
    table = pa.table({"question": ["q?"] * n, "answer": answers, "image": [png()] * n})
    forms = open_samples(table).answer_forms
    assert forms.looked_at == min(n, 2_000)
    if n > 1:
        assert forms.counts["letter"] == pytest.approx(forms.looked_at / 2, rel=0.1)


def test_what_was_guessed_is_kept_with_the_scores() -> None:
    row = {"query": "q?", "label": 1, "options": ["a", "b"], "image": png()}
    rows = [dict(row, label=k % 2) for k in range(4)]
    known = describe(open_samples(rows, columns={"question": "query"}))["guessed"]
    assert known["columns"] == {"answer": "label", "choices": "options", "images": "image"}
    assert known["counted_from"] == 0
    assert known["answers"]["counts"] == {"place of a choice, counted from 0": 4}


def test_an_index_known_by_its_name_counts_from_zero() -> None:
    row = {"question": "q?", "choices": ["1", "2", "3"], "image": png()}
    (sample,) = open_samples([{**row, "correct_choice_idx": 1}])
    assert sample.answer == "2"
    first, _ = open_samples([{**row, "answer_idx": 1}, {**row, "answer_idx": 3}])
    assert first.answer == "1"  # 3 fits only from 1


def test_rap_inspect_prints_roles_and_two_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"query": f"How many {k}?", "label": "3", "img": "a.png"} for k in range(3)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = CliRunner().invoke(main, ["inspect", str(path)], catch_exceptions=False)
    assert said.exit_code == 0
    for line in ("question <- query", "answer   <- label", "line 2: How many 1?"):
        assert line in said.output
    assert "line 3" not in said.output
    again = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    found = json.loads(again.output)
    assert found["guessed"]["columns"]["answer"] == "label"
    assert [row["question"] for row in found["samples"]] == ["How many 0?", "How many 1?"]


def test_rap_inspect_says_which_rows_cannot_be_used(tmp_path: Path) -> None:
    rows = [
        {"question": "q?", "answer": "x", "choices": ["a", "b"], "image": ""},
        {"question": "q?", "answer": "a", "choices": ["a", "b"], "image": "a.png"},
    ]
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "d.json").write_text(json.dumps(rows))
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "d.json")])
    assert "1 of the first 2 rows: bad_answer: answer 'x' is not among" in said.output


# -------------------------------------------------------------------------- scoring


def test_boxes_are_refused_unless_a_reward_function_compares_them() -> None:
    rows = [
        {"image": png(), "problem": "Where is the cup?", "solution": [1, 2, 30, 40 + k]}
        for k in range(3)
    ]
    recipe = Recipe(None, None, rows, ScoreConfig(evidence="rollouts"), EngineConfig())
    with pytest.raises(RapInputError, match=r"'solution' are boxes.*--reward"):
        recipe.samples()
    judged = dataclasses.replace(recipe, reward=lambda **_: [1.0])
    assert judged.samples()[0].answer == "[1, 2, 30, 40]"


def row_with(code: str) -> dict[str, Any]:
    return {
        "status": "quarantined",
        "stage": "data",
        "code": code,
        "message": "",
        "id": "0",
    }


def test_case_18_text_rows_are_not_bad_beyond_the_limit() -> None:
    text, bad, good = row_with("text_only"), row_with("bad_answer"), {"status": "scored"}
    judge = Judge(10, ScoreConfig(max_bad_fraction=0.5), False)
    judge.count([text] * 8 + [good, good])
    judge.stop(final=True)
    judge = Judge(10, ScoreConfig(max_bad_fraction=0.5), False)
    judge.count([text] * 6 + [bad] * 3 + [good])
    with pytest.raises(RapInputError, match="3 of 4 samples are bad"):
        judge.stop(final=True)
    judge = Judge(2, ScoreConfig(), False)
    judge.count([text] * 2)
    with pytest.raises(RapInputError, match="2 of 2 rows have no image"):
        judge.stop(final=True)
