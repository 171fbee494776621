"""One reading of an answer: the reference as data, the response as what somebody says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rap.errors import RapInputError
from rap.rewards.grading import grade
from rap.samples.answers import read_answer
from rap.samples.choices import letter, resolve_choice, unlabelled
from rap.samples.sample import Bad, Sample
from rap.samples.sampleset import open_samples

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "grading_pairs.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
PNG = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\2\0\0\0\x90wS\xde\0\0\0\x0c"
    b"IDATx\x9cc```\0\0\0\4\0\1\xf6\x178U\0\0\0\0IEND\xaeB`\x82"
)


# ------------------------------------------------------------------- a table of verdicts


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_pairs_of_reference_and_response(pair):
    """Wording of our own: forms of one answer, and wrong answers that look right."""
    pytest.importorskip("math_verify")
    got = grade(pair["reference"], tuple(pair["choices"]), pair["response"])
    assert got is pair["right"]


def test_the_table_is_balanced():
    wrong = sum(not pair["right"] for pair in PAIRS)
    assert len(PAIRS) >= 300
    assert 0.4 < wrong / len(PAIRS) < 0.6


LENGTHS = ("12 cm", "13 cm", "14 cm", "15 cm")


@pytest.mark.parametrize(
    ("answer", "choices", "response", "right"),
    [
        ("B", LENGTHS, "It is not option B.", False),
        ("dark red", ("red", "dark red"), "a dark red box is there", True),
        ("1 and 2", (), "1, 2 and 3", False),
        ("2, 2, 3", (), "2, 3, 3", False),
        ("3\n5", (), "3\n5", True),
        ("3\n5", (), "5\n3", False),  # lines of numbers have an order
        ("2\\sqrt{3} cm", (), "\\boxed{2\\sqrt{3} m}", False),
        ("C", (), "Option C is wrong.", False),
        ("AC", (), "C, A", True),
        ("10000000", (), "10000001", False),
        ("2000000/3", (), "666666.67", True),  # to 1e-6 of it
        ("3.1415926", (), "3.1415927", False),  # neither is the other one rounded
        ("1234567", (), "1.234.567", True),
        ("5000000", (), "5 million", True),
        ("1980", (), "1980s", False),
        ("50%", (), "0.5", True),
        ("5 m", (), "5 s", False),
        ("5 mW", (), "5 MW", False),
        ("1 m^2", (), "10000 cm^2", True),
        ("1 1/2", (), "1.5", True),
        ("3 \\times 10^8", (), "300000000", True),
        ("300", (), "three hundred", True),
    ],
)
def test_what_one_rule_alone_decides(answer, choices, response, right):
    pytest.importorskip("math_verify")
    assert grade(answer, choices, response) is right


# ------------------------------------------------------------ published reference answers


@pytest.fixture(scope="module")
def references(shared) -> list[tuple[str, tuple[str, ...]]]:
    rows = []
    for name in ("mathvision", "tabmwp", "puzzlevqa"):
        text = (shared / "data" / name / "samples.jsonl").read_text(encoding="utf-8")
        rows += [
            (r["answer"], r.get("choices")) for r in map(json.loads, text.splitlines())
        ]
    for name in ("mathvista_records", "mathvision_records"):
        text = (shared / "data" / name / "gold.jsonl").read_text(encoding="utf-8")
        rows += [(r["gold"], r["choices"]) for r in map(json.loads, text.splitlines())]
    return [(str(answer), tuple(choices or ())) for answer, choices in rows]


FORMS = ("\\boxed{%s}", "%s", "<answer>%s</answer>", "The answer is %s.")


@pytest.mark.parametrize("form", FORMS)
def test_case_46_a_published_reference_accepts_itself(references, form):
    refused = [
        (answer, choices)
        for answer, choices in references
        if not grade(answer, choices, form.replace("%s", answer))
    ]
    assert len(references) == 3433 and refused == []


def value_of(text: str) -> object:
    """Differences that are none: spaces, zeros behind the point."""
    try:
        return float(text)
    except ValueError:
        return text.strip()


def test_case_46_different_published_references_do_not_accept_each_other(references):
    """2,000 pairs drawn at random, and all in which one stands inside the other."""
    texts = sorted({answer for answer, choices in references if not choices})
    pairs = [(a, b) for a in texts for b in texts if value_of(a) != value_of(b)]
    near = [(a, b) for a, b in pairs if a in b or b in a]
    drawn = random.Random(1).sample(pairs, 2000) + near[:: max(len(near) // 2000, 1)]
    accepted = [(a, b) for a, b in drawn if grade(a, (), f"\\boxed{{{b}}}")]
    assert len(drawn) >= 4000 and accepted == []


def test_no_other_choice_is_accepted(references):
    accepted = []
    for answer, choices in random.Random(2).sample(references, 600):
        right = resolve_choice(answer, choices) if choices else None
        for k, text in enumerate(choices):
            names = {letter(right).lower(), choices[right].strip().lower()} if right else ()
            own = text.replace("$\\text{", "").strip("$} ")
            if right is None or k == right or own.upper() in "ABCDE" or text in names:
                continue  # a choice whose text is another one's letter
            for said in (letter(k), text, f"({letter(k)}) {text}"):
                if text.strip() != choices[right].strip() and grade(
                    answer, choices, f"The answer is {said}."
                ):
                    accepted.append((answer, choices, said))
    assert accepted == []


# ------------------------------------------------------------------------ the reading


@pytest.mark.parametrize(
    ("answer", "text", "solution"),
    [
        ("3", "3", None),
        ("<answer> 3 </answer>", "3", None),
        ("<think>1 and 2</think><answer>3</answer>", "3", "1 and 2"),
        ("<think>1 and 2</think>\n3", "3", "1 and 2"),
        ("One and two. #### 3", "3", "One and two."),
        ("$3$", "3", None),
        ("\\(3\\)", "3", None),
        ("\\boxed{3}", "3", None),
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}", None),
        ("x = \\boxed{3} cm", "x = 3 cm", None),
        ("\\boxed{14} and \\boxed{25}", "14 and 25", None),
        (
            "We add the two sides first, so that it is $\\boxed{3}$.",
            "3",
            "We add the two sides first, so that it is $\\boxed{3}$.",
        ),
        ("Answer: 3", "3", None),
        ("The answer is 3.", "3", None),
        ("One and two.\nThe answer is 3.", "3", "One and two."),
        ("答案是3", "3", None),
        ("**3**", "3", None),
        ("\\text{Blue}", "Blue", None),
        ("a sentence. It has two parts", "a sentence. It has two parts", None),
        ('["9.8", "9.81"]', "9.8", None),
        ("[1, 2]", "[1, 2]", None),
    ],
)
def test_case_07_markup_is_taken_away(answer, text, solution):
    reference = read_answer(answer)
    assert (reference.text, reference.solution) == (text, solution)


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        ("14 and 25", ("14", "25")),
        ("14, 25", ("14", "25")),
        ("1,250", ("1,250",)),
        ("1,250, 3", ("1,250", "3")),
        ("(3,6)\n(7,8)", ("(3,6)", "(7,8)")),
        ("(3, 6)", ("(3, 6)",)),
        ("x = 1, y = 2", ("x = 1", "y = 2")),
        ("red and blue", ("red", "blue")),
        ("5 or -5", ("5", "-5")),
        ("sofa or couch", ("sofa or couch",)),
        ("3和4", ("3", "4")),
        ("It fell down, and then it broke into pieces", None),
    ],
)
def test_case_44_values_that_are_all_needed(answer, values):
    (accepted,) = read_answer(answer).accepted
    assert accepted.values == ((answer,) if values is None else values)


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("C", "C"),
        ("(C)", "C"),
        ("ACD", "ACD"),
        ("A, C", "AC"),
        ("A and C", "AC"),
        ('["A", "C"]', "AC"),
        ("答案是B", "B"),
        ("选ABC", "ABC"),
        ("CAB", ""),
        ("Cat", ""),
        ("3", ""),
    ],
)
def test_case_45_letters_where_the_options_stand_in_the_question(answer, letters):
    assert read_answer(answer).letters == letters


CM = ("12 cm", "13 cm", "14 cm", "15 cm")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("ACD", (0, 2, 3)),
        ("A, C", (0, 2)),
        ("(A)(C)", (0, 2)),
        ('["A", "C"]', (0, 2)),
        ("['12 cm', '14 cm']", (0, 2)),
        ("12 cm and 14 cm", (0, 2)),
        ("B. 13 cm", (1,)),
        ("\\boxed{B}", (1,)),
        ("<think>long</think><answer>(B)</answer>", (1,)),
        ("选B", (1,)),
        ("\uff22", (1,)),
        ("Option B", (1,)),
        ('["B", "13 cm"]', (1,)),
    ],
)
def test_case_11_choices_that_a_reference_names(answer, right):
    assert read_answer(answer, CM).choices == right


@pytest.mark.parametrize("answer", ["E", "16 cm", "A, E", "B. 14 cm", "ACE", "<think>B"])
def test_references_that_name_no_choice_are_refused(answer):
    with pytest.raises(ValueError, match=r"not among the choices|thought never ends"):
        read_answer(answer, CM)


def test_case_44_a_thought_that_never_ends_is_no_reference():
    with pytest.raises(ValueError, match="thought never ends"):
        read_answer("<think>maybe 3")
    with pytest.raises(ValueError, match="empty"):
        read_answer("<answer></answer>")


# --------------------------------------------------------------- responses that were cut


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>7, I think</think> \\boxed{7}", True),
        ("so \\boxed{7} and so", True),
        ("<answer>7</answer> and so", True),
        ("The answer is 7. And so", True),
        ("The answer is 7", False),  # 70?
        ("The answer is 7.", False),  # 7.5?
        ("first 3, then 4, so 7", False),
        ("<answer>7", False),
        ("7", False),
    ],
)
def test_a_response_that_was_cut_off_must_have_answered(text, right):
    assert grade("7", (), text) is True
    assert grade("7", (), text, finished=False) is right
    for said in ("It must be (B)", "B"):
        assert grade("B", CM, said) and not grade("B", CM, said, finished=False)


# ------------------------------------------------------------------------ whole columns


def test_a_reference_that_doubts_is_taken_as_it_stands_and_only_when_finished():
    """A response of nothing but doubt says nothing, unless that is the reference."""
    assert grade("I doubt it.", (), "I doubt it.") is True
    assert grade("I doubt it.", (), "I doubt it. ", finished=False) is False
    assert grade("cat", (), "I doubt it.") is False


def rows(choices, answers, **more):
    return [
        {"id": str(k), "question": "How many?", "image": PNG, "choices": c, "answer": a}
        for k, (c, a) in enumerate(zip(choices, answers, strict=True))
    ]


def right(samples) -> list[str]:
    assert all(isinstance(s, Sample) for s in samples), list(samples)
    return [s.choices[resolve_choice(s.answer, s.choices)] for s in samples]


def test_case_01_integers_that_index_every_row_are_places():
    data = rows([["4", "3", "2", "1"]] * 4, [0, 1, 2, 3])
    samples = open_samples(data)
    assert right(samples) == ["4", "3", "2", "1"]
    assert "answers are places of the choices, counted from 0" in samples.describe()
    as_text = [row | {"answer": str(row["answer"])} for row in data]
    assert right(open_samples(as_text)) == ["4", "3", "2", "1"]
    more = rows([["4", "3", "2", "1"], ["x", "y"]], [4, 1])
    assert right(open_samples(more)) == ["1", "x"]  # from 1: there is no fifth choice
    assert (
        open_samples(data).content_hash()
        != open_samples(data, columns={"answer_number": "answer"}).content_hash()
    )


def test_case_01_numbers_that_are_the_choices_texts_stay_texts():
    data = rows([["5", "1", "2", "4"], ["6", "7", "8", "9"]], ["4", "9"])
    assert right(open_samples(data)) == ["4", "9"]
    assert right(open_samples([r | {"answer": int(r["answer"])} for r in data])) == [
        "4",
        "9",
    ]


def test_numbers_that_can_be_read_in_two_ways_are_refused():
    data = rows([["3", "2", "1"], ["2", "1", "3"]], [1, 2])
    with pytest.raises(
        RapInputError, match=r"column 'answer' .*more than one way.*answer_index"
    ):
        open_samples(data)
    assert right(open_samples(data, columns={"answer_index": "answer"})) == ["2", "3"]
    assert right(open_samples(data, columns={"answer_number": "answer"})) == ["3", "1"]
    assert right(open_samples(data, columns={"answer_index": ""})) == ["1", "2"]
    places = rows([["x", "y", "z"]] * 2, ["1", "2"])
    with pytest.raises(RapInputError, match="more than one way"):
        open_samples(places)


def test_a_place_that_is_not_there_is_a_bad_row():
    data = rows([["x", "y"]] * 4, [0, 1, 0, -1])
    samples = open_samples(data)
    assert right([samples[i] for i in range(3)]) == ["x", "y", "x"]
    assert isinstance(samples[3], Bad) and "no place" in samples[3].message


def test_case_02_index_columns_known_by_name():
    """A-OKVQA."""
    data = [
        {
            "question": "What is it?",
            "image": PNG,
            "choices": ["bus", "car"],
            "correct_choice_idx": k,
            "direct_answers": ["car", "auto"],
        }
        for k in (1, 0)
    ]
    samples = open_samples(data)
    assert right(samples) == ["car", "bus"]
    assert samples.columns["answer_index"] == "correct_choice_idx"
    free = open_samples([{k: v for k, v in row.items() if k != "choices"} for row in data])
    assert grade(free[0].answer, (), "It is an auto.") and not free[0].choices


def test_case_05_06_several_accepted_answers():
    base = {"question": "What is it?", "image": PNG}
    chart, several, vqa = open_samples(
        [
            base | {"answer": ["0.72"]},
            base | {"answer": ["sofa", "couch"]},
            base
            | {"answer": [{"answer": a} for a in ["cat"] * 5 + ["dog"] * 3 + ["a", "b"]]},
        ]
    )
    assert chart.answer == "0.72"
    assert [grade(several.answer, (), t) for t in ("couch", "sofa", "chair")] == [1, 1, 0]
    assert read_answer(vqa.answer).text == "cat"
    assert [grade(vqa.answer, (), t) for t in ("cat", "dog", "a")] == [1, 1, 0]


# --------------------------------------------------------- choices as people write them


@pytest.mark.parametrize(
    ("choices", "answer", "expected", "index"),
    [
        (["A. 12 cm", "B. 13 cm"], "13 cm", ("12 cm", "13 cm"), 1),
        (["(A) 12 cm", "(B) 13 cm"], "B. 13 cm", ("12 cm", "13 cm"), 1),
        (["B) 13 cm", "A) 12 cm"], "B", ("12 cm", "13 cm"), 1),
        (["A\u300112", "B\u300113"], "B", ("12", "13"), 1),
        (["1. red", "2. blue"], "2. blue", ("red", "blue"), 1),
        (["1.5 cm", "2.5 cm"], "2.5 cm", ("1.5 cm", "2.5 cm"), 1),
        (["2: 1", "3: 2"], "B", ("2: 1", "3: 2"), 1),
        (["E. coli", "S. aureus"], "B", ("E. coli", "S. aureus"), 1),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "B", ("x", "y"), 1),
        ({"label": ["B", "A"], "text": ["y", "x"]}, "B", ("x", "y"), 1),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2", ("x", "y"), 1),
        ({str(k): f"item {k}" for k in range(1, 11)}, "item 2", None, 1),
        ({str(k): f"item {k}" for k in range(1, 11)}, "10", None, 9),
        ({"option_2": "y", "option_10": "z", "option_1": "x"}, "C", ("x", "y", "z"), 2),
    ],
)
def test_case_08_09_choices_with_labels_of_their_own(choices, answer, expected, index):
    (sample,) = open_samples(
        [{"question": "Which?", "image": PNG, "choices": choices, "answer": answer}]
    )
    assert isinstance(sample, Sample), sample
    assert expected is None or sample.choices == expected
    assert resolve_choice(sample.answer, sample.choices) == index


def test_labels_that_leave_one_out_are_refused():
    with pytest.raises(ValueError, match="labelled A, B, D"):
        unlabelled(("A. x", "B. y", "D. z"))


def test_case_10_choices_spread_over_columns():
    base = {"question": "Which?", "image": PNG, "answer": "C"}
    for names in (("A", "B", "C"), ("option_a", "option_b", "option_c")):
        row = base | dict(zip(names, ("x", "y", "z"), strict=True))
        (sample,) = open_samples([row])
        assert (
            sample.choices == ("x", "y", "z") and read_answer("C", sample.choices).choices
        )


# --------------------------------------------------------------- the table of all forms

TABLE = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "answer_pairs.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@pytest.mark.parametrize("form", sorted({pair["form"] for pair in TABLE}))
def test_the_table_of_forms(form):
    """Pairs of own wording, written before any was graded, but for those of denied, asked
    and hedged answers, which came with their rule; one verdict changed since: 17% gives 17,
    as math-verify and mathruler have it."""
    pytest.importorskip("math_verify")
    wrong = [
        (pair["answer"], pair["response"], pair["right"])
        for pair in TABLE
        if pair["form"] == form
        and grade(pair["answer"], tuple(pair["choices"]), pair["response"]) != pair["right"]
    ]
    assert wrong == []


def test_the_table_of_forms_is_large_and_in_two_languages():
    assert len(TABLE) >= 300
    for language in ("en", "zh"):
        rights = [pair["right"] for pair in TABLE if pair["language"] == language]
        assert len(rights) >= 100 and 0.3 < sum(rights) / len(rights) < 0.75
