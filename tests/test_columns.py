"""What a column decides for its rows: options in the questions, answers read in one way."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from format_rows import png
from PIL import Image
from test_export import everything

from rap.config import ScoreConfig
from rap.errors import RapInputError
from rap.rewards.checker import make_checker
from rap.rewards.exported import reward
from rap.samples import index
from rap.samples.answers import answer_to_train, read_answer
from rap.samples.sample import Sample, sample_sha256
from rap.samples.sampleset import SampleSet, open_samples
from rap.samples.stated import options_in
from rap.samples.telling import told
from rap.scoring.jobs import reference_text

CHECKER = make_checker()
PNG = png()


def opened(*rows: tuple[str, str]) -> SampleSet:
    return open_samples([{"question": q, "answer": a, "image": PNG} for q, a in rows])


def right(sample: Sample, text: str) -> bool:
    return CHECKER.check(sample, text).correct is True


# ------------------------------------------------------------ options in the question


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which? Choices: (A) red (B) blue", ("red", "blue")),
        ("Which?\nA. red\nB. blue", ("red", "blue")),
        ("Which?\nA. red\nB. blue\nAnswer with the letter.", ("red", "blue")),
        ("Which? A) 3.5 cm, B) 4.5 cm. Please reason.", ("3.5 cm", "4.5 cm")),
        ("How large?\nChoices:\nA:145\u00b0\nB:35\u00b0", ("145\u00b0", "35\u00b0")),
        ("In ABC, A: 3. How many? (A) 1 (B) 2", ("1", "2")),
        ("Which? (a) red (b) blue", ("red", "blue")),
        ("哪个? 选项：A、红色；B、蓝色；C、绿色。请选择", ("红色", "蓝色", "绿色")),
        ("哪个?\nA．12cm\nB．13cm", ("12cm", "13cm")),
        ("Which? A. Both A and B hold B. Only C.", ("Both A and B hold", "Only C.")),
        ("Go from point A. Find B.", ()),
        ("What is f(A) in (B)?", ()),
        ("Which picture?\n(A) <image>\n(B) <image>", ()),
        ("(A) red (B) red", ()),
        ("How many?", ()),
    ],
)
def test_case_10_45_options_that_stand_in_a_question(question, options):
    assert options_in(question) == options


COLOURS = "Which colour? Choices: (A) red (B) blue (C) green"


def test_a_letter_is_matched_with_the_text_of_its_option_and_the_other_way_round():
    letters = opened((COLOURS, "B"), ("How? (A) fast (B) slowly", "A"))
    texts = opened((COLOURS, "blue"), ("How? (A) fast (B) slowly", "fast"))
    for samples in (letters, texts):
        first = samples[0]
        assert isinstance(first, Sample)
        assert first.stated == ("red", "blue", "green") and first.choices == ()
        assert first.question == COLOURS
        said = {t: right(first, t) for t in ("B", "blue", "It is blue.", "(B) blue", "A")}
        assert list(said.values()) == [True, True, True, True, False]
        assert not right(first, "red") and not right(first, "(A) red (B) blue (C) green")
    assert "options stand in the questions (2 of 2 rows" in letters.describe()
    assert "(B) blue, one of 3 options in the question" in letters.describe()


def test_the_column_decides_whether_options_are_stated():
    """Of the rows with options nearly all must have an answer among them."""
    points = [("Points (A) left (B) right are given. How far?", str(k)) for k in range(9)]
    samples = opened(*points, (COLOURS, "B"))
    assert not samples.stated_options and samples[9].stated == ()
    mixed = opened(*[(COLOURS, "B")] * 9, ("How far?", "12"), (COLOURS, "12"))
    assert mixed.stated_options.as_list() == [11, 10, 9]
    assert [bool(s.stated) for s in mixed] == [True] * 9 + [False, False]
    assert right(mixed[9], "12") and right(mixed[10], "12")


def test_a_column_of_choices_comes_first():
    row = {"question": COLOURS, "answer": "B", "choices": ["x", "y"], "image": PNG}
    (sample,) = open_samples([row])
    assert sample.options == ("x", "y") and sample.stated == ()


def test_letters_without_options_are_said():
    said = opened(("Which picture?", "B"), ("Which picture?", "A")).describe()
    assert "the questions state no options as text: only the letter counts" in said


def test_what_training_counts_is_what_scoring_counts(tmp_path):
    """The trainer's row brings the options of the question for its reward, and the answer
    as the column reads it."""
    dates = [("When?", "25/12/2020"), ("When?", "03/04/2021")]
    rows = [(COLOURS, "B"), (COLOURS, "A"), *dates]
    data = [
        {"id": str(k), "question": q, "answer": a, "image": Image.new("RGB", (8, 8))}
        for k, (q, a) in enumerate(rows)
    ]
    out = tmp_path / "out"
    everything(data).export("verl", out)
    exported = {
        row["extra_info"]["index"]: row
        for row in pq.read_table(out / "train.parquet").to_pylist()
    }
    assert exported["0"]["prompt"][0]["content"] == f"<image>{COLOURS}"
    assert exported["0"]["extra_info"]["choices"] == ["red", "blue", "green"]
    for row, text in (("0", "It is blue."), ("0", "B"), ("3", "3 April 2021")):
        truth = exported[row]["reward_model"]["ground_truth"]
        assert reward(text, truth, exported[row]["extra_info"]["choices"]) == 1.0
    assert exported["3"]["reward_model"]["ground_truth"] == "2021-04-03"


# ------------------------------------------------------------------------- images


def folder_of(tmp_path, paths: list[str]):
    rows = [{"question": "How many?", "answer": "3", "image": path} for path in paths]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_inspect_opens_images_and_says_what_is_missing(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "torn.png").write_bytes(PNG[:20])
    samples = open_samples(folder_of(tmp_path, ["a.png"] * 20))
    said = samples.describe()
    assert "images of 20 rows, spread over all: each can be read" in said
    assert "image files of 20 rows, spread over all: all are there" in said
    paths = ["torn.png", *["a.png"] * 301, "gone.png"]
    found = told(open_samples(folder_of(tmp_path, paths)))["images"]
    assert found["rows"] == 20 and list(found["unreadable"]) == [
        "image_truncated",
        "image_missing",
    ]
    rows, message = found["unreadable"]["image_truncated"]
    assert rows == 1 and message.startswith("damaged or cut PNG")
    assert (found["looked_for"], found["missing"]) == (200, 1)
    assert found["first"] == f"line 303: {tmp_path / 'gone.png'}"
    assert (
        "1 lack one, first line 303" in open_samples(folder_of(tmp_path, paths)).describe()
    )


def test_images_in_the_rows_are_opened_and_no_file_is_looked_for():
    found = told(opened(("How many?", "3"), ("How many?", "4")))["images"]
    assert found == {"rows": 2, "unreadable": {}}


def test_an_absolute_path_names_the_option_that_allows_it(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(PNG)
    (tmp_path / "rows").mkdir()
    file = folder_of(tmp_path / "rows", [str(images / "a.png")])
    wanted = f"with root='{images}' \\(--root {images}\\)"
    with pytest.raises(
        RapInputError, match=f"path_outside_root.*no file outside.*{wanted}"
    ):
        open_samples(file)
    rows = [{"question": "How many?", "answer": "3", "image": str(images / "a.png")}]
    with pytest.raises(RapInputError, match=f"one folder only, and none.*{wanted}"):
        open_samples(rows)
    assert isinstance(open_samples(rows, root=images)[0], Sample)


# ------------------------------------------------------------------ two readings


def settled(answers: list[str]) -> list[str]:
    return [s.reference for s in opened(*[("How many?", a) for a in answers])]


def test_a_comma_of_thousands_is_one_of_a_pair_where_the_others_are_pairs():
    pairs = ["3,4", "10,20", "5,16", "1,250"]
    assert settled(pairs)[3] == "1, 250"
    assert read_answer(settled(pairs)[3]).accepted[0].values == ("1", "250")
    assert settled(["1,250", "37", "8", "3,4"])[0] == "1,250"
    assert settled(["1,250", "2,500"]) == ["1,250", "2,500"]
    samples = opened(*[("How many?", a) for a in pairs])
    assert "answers are pairs of numbers" in samples.describe()
    assert right(samples[3], "1 and 250") and not right(samples[3], "1250")


def test_rare_letters_are_text():
    words = [f"word {k}" for k in range(59)]
    samples = opened(*[("What is written?", a) for a in [*words, "A"]])
    assert read_answer(samples[59].reference).letters == ""
    assert samples.answer_forms.counts == {"text": 60}
    assert right(samples[59], "A") and reference_text(samples[59], ScoreConfig()) == "A"
    assert "answers are no options" in samples.describe()
    many = opened(*[("What is it?", a) for a in [*words[:16], "A", "B", "C", "D"]])
    assert read_answer(many[19].reference).letters == "D"


def test_names_of_segments_are_no_sets_of_letters():
    names = settled(["AB", "PQ", "12"])
    assert read_answer(names[0]).letters == ""
    assert read_answer(settled(["AB", "C", "AD"])[0]).letters == "AB"


GERMAN = ("Wie lang ist die Seite?", "Welche Zahl ist das?", "Wie viel kostet es?")


@pytest.mark.parametrize(
    ("answers", "reference", "accepted", "refused"),
    [
        (
            ["3,5", "2,5 cm"],
            "3.5 (3,5)",
            ["3,5", "3.5", "7/2", "$3{,}5$"],
            ["35", "3 and 5"],
        ),
        (["3,5 cm"], "3.5 cm (3,5 cm)", ["3,5", "3.5 cm", "35 mm", "0,035 m"], ["3,5 m"]),
        (["1,234", "0,05"], "1.234 (1,234)", ["1,234", "1.234"], ["1234", "1,235"]),
        (["1.234", "0,05"], "1234 (1.234)", ["1.234", "1234"], ["1,235", "1.235"]),
        (["1.234,5"], "1234.5 (1.234,5)", ["1.234,5", "1234.5", "1,234.5"], ["1.2345"]),
        (["3,5", "12,5 %"], "3.5 (3,5)", ["Der Wert ist 3,5."], ["Der Wert ist 3,6."]),
        (["2,5; 3,5", "1,5 m"], "2.5; 3.5 (2,5; 3,5)", ["3,5; 2,5"], ["2,5"]),
        (["12", "12,5 %"], "12", ["12"], ["12,5"]),
        (["3,5", "2,5 cm"] + ["3.5"] * 9, "3,5", ["3 and 5"], ["3.5"]),
        (["3,5", "2, 5", "2,5 cm"], "3,5", ["3 and 5"], ["3.5"]),
        (["1,234", "2,345", "2,5 cm"], "1,234", ["1234"], ["1.234"]),
        (["3,5", "12", "0,25"], "3,5", ["3 and 5"], ["3.5"]),
    ],
)
def test_decimal_commas_are_told_by_the_column(answers, reference, accepted, refused):
    """By answers that can be read in one way only; none decides by itself."""
    sample = opened(*[("How long?", a) for a in answers])[0]
    assert isinstance(sample, Sample) and sample.reference == reference
    assert [text for text in accepted if not right(sample, text)] == []
    assert [text for text in refused if right(sample, text)] == []


def test_the_language_of_the_questions_tells_decimal_commas():
    answers = ("3,5", "1,234", "0,25")
    samples = opened(*zip(GERMAN, answers, strict=True))
    assert [s.reference for s in samples] == [
        "3.5 (3,5)", "1.234 (1,234)", "0.25 (0,25)"
    ]  # fmt: skip
    assert "answers have decimal commas" in samples.describe()
    assert samples.answer_forms.form == "number"
    assert reference_text(samples[0], ScoreConfig()) == "3,5"  # as its language says it
    english = ("How long is the side?", "What is the number?", "How much does it cost?")
    assert opened(*zip(english, answers, strict=True))[0].settled is None


@pytest.mark.parametrize("latex", [False, True])
def test_a_reward_in_training_knows_the_decimal_comma(latex):
    samples = opened(*zip(GERMAN, ("3,5 cm", "1,234", "1.234"), strict=True))
    for sample, yes, no in zip(
        samples, ("3,5", "1,234", "1.234"), ("5", "1234", "1,235"), strict=True
    ):
        truth = answer_to_train(sample.reference, (), False, latex=latex)
        assert reward(yes, truth) == 1.0 and reward(no, truth) == 0.0
    assert truth == ("$1234$ (1.234)" if latex else "1234 (1.234)")
    verify = pytest.importorskip("math_verify")
    if latex:
        assert verify.verify(verify.parse(truth), verify.parse("1234"))


@pytest.mark.parametrize(
    ("other", "said", "wrong"),
    [
        ("25/12/2020", "3 April 2021", "4 March 2021"),
        ("12/25/2020", "March 4, 2021", "3 April 2021"),
    ],
)
def test_one_date_tells_which_number_is_the_day(other, said, wrong):
    samples = opened(("When?", other), ("When?", "03/04/2021"))
    assert right(samples[1], said) and not right(samples[1], wrong)
    assert right(samples[1], "03/04/2021")
    assert "of dates as 03/04/2021 is the day" in samples.describe()
    alone = opened(("When?", "03/04/2021"))
    assert not right(alone[0], said)


def test_what_the_column_decides_is_not_hashed():
    """Stores that were made before still know their samples."""
    one, both = (
        opened(("When?", "03/04/2021")),
        opened(("When?", "03/04/2021"), ("When?", "25/12/2020")),
    )
    assert one[0].settled is None and both[0].settled == "2021-04-03"
    assert sample_sha256(one[0], ["x"]) == sample_sha256(both[0], ["x"])


def test_workers_read_as_the_whole_column_does(tmp_path):
    """What was decided is kept beside a store, so that no worker decides by its rows."""
    answers = ["03/04/2021"] * 3 + ["25/12/2020"]
    rows = [{"question": "When?", "answer": a, "image": "a.png"} for a in answers]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = open_samples(file)
    assert index.save(samples, index.build(samples, 2), tmp_path / "index")
    again = index.open_kept(tmp_path / "index", file)
    assert again is not None and again[0].settled == "2021-04-03"
    assert again.answer_column == samples.answer_column
    assert again.stated_options == samples.stated_options
