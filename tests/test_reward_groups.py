"""Reward functions as trainers call them: whole groups, images, lists of functions."""

from __future__ import annotations

import io
import logging
import math
import threading

import numpy as np
import pytest
from scoring_rewards import by_length, by_pixels, one_too_few, zero

from rap.errors import RapConfigError, RapInputError
from rap.rewards.checker import Verdict, callable_name, make_checker, shown_name
from rap.rewards.functions import Response
from rap.rewards.sameness import Sameness
from rap.samples.images import decode, decoded_each
from rap.samples.sample import ImageRef, Sample

Image = pytest.importorskip("PIL.Image")
RIGHT, WRONG = Verdict(True), Verdict(False)


def encoded(
    kind: str = "PNG", mode: str = "RGB", seed: int = 0, **options: object
) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def turned() -> bytes:
    """EXIF of a photograph that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def sample(images: tuple[bytes, ...] = (), name: str = "id", **extra: object) -> Sample:
    refs = tuple(ImageRef(data, None) for data in images)
    return Sample(0, name, "How many?", "3", (), refs, None, extra)


def responses(*texts: str) -> list[Response]:
    return [Response(text, (i,)) for i, text in enumerate(texts)]


def graded(reward: object, *texts: str, of: Sample | None = None, **options: object):
    """The verdicts of one group."""
    with make_checker(reward, **{"timeout": 20, **options}) as checker:
        return checker.check_group(of or sample(), responses(*texts), arm="image")


# ------------------------------------------------------------------------- one group


def test_case_36_a_group_is_one_call_with_everything_repeated():
    calls = []

    def reward(**kwargs: object) -> list[float]:
        calls.append(kwargs)
        return [1.0, 0.0, 1.0]

    data = encoded()
    row = sample((data,), solution="3", marks=[1, {"a": 2}])
    assert graded(reward, "a", "b", "c", of=row) == [RIGHT, WRONG, RIGHT]
    (seen,) = calls
    question = [{"role": "user", "content": "How many?"}]
    assert seen["prompts"] == [question] * 3
    assert seen["completions"] == [[{"role": "assistant", "content": t}] for t in "abc"]
    assert seen["completion_ids"] == [[0], [1], [2]]
    assert seen["solution"] == ["3"] * 3 and seen["marks"] == [[1, {"a": 2}]] * 3
    assert seen["trainer_state"] is None
    pixels = np.asarray(decode(data, max_pixels=10**6))
    for images, image in zip(seen["images"], seen["image"], strict=True):
        assert len(images) == 1 and images[0] is image and image.mode == "RGB"
        assert (np.asarray(image) == pixels).all()
    assert set(seen) == {
        *("prompts", "completions", "completion_ids", "solution", "marks", "images"),
        *("image", "trainer_state", "log_extra", "log_metric"),
    }


def test_texts_where_the_prompt_is_one_and_several_images():
    seen = {}

    def reward(**kwargs: object) -> list[float]:
        seen.update(kwargs)
        return [1.0, 1.0]

    row = sample((encoded(seed=1), encoded("JPEG", seed=2)), prompt="plain")
    assert graded(reward, "a", "b", of=row) == [RIGHT, RIGHT]
    assert seen["prompts"] == ["plain"] * 2 and seen["completions"] == ["a", "b"]
    assert [len(images) for images in seen["images"]] == [2, 2]
    assert "image" not in seen


def test_what_a_function_does_to_one_row_is_not_done_to_the_others():
    def reward(completions, marks, image, **kwargs):
        marks[0].append("x")
        completions[0][0]["content"] = "changed"
        image[0].paste((0, 0, 0), (0, 0, 20, 12))
        same = all(np.asarray(one).any() for one in image[1:])
        if len(completions) == 3:
            raise ValueError("only one by one")
        return [float(same and marks == [["x"]])]

    # alone, too, a completion is what was sampled
    texts = []

    def reads(completions, **kwargs):
        texts.extend(c[0]["content"] for c in completions)
        return reward(completions, **kwargs)

    row = sample((encoded("JPEG"),), marks=[])
    assert graded(reads, "a", "b", "c", of=row)[0] == RIGHT
    assert texts == ["a", "b", "c", "a", "b", "c"]


@pytest.mark.parametrize(
    "data",
    [
        encoded(),
        encoded("JPEG"),
        encoded("JPEG", "L"),
        encoded("PNG", "P"),
        encoded("JPEG", exif=turned()),
    ],
    ids=["png", "jpeg", "grey jpeg", "palette", "turned jpeg"],
)
def test_images_are_those_that_were_scored(data):
    expected = np.asarray(decode(data, max_pixels=10**6))
    images = decoded_each(data, 3, max_pixels=10**6)
    for image in images:
        assert image.mode == "RGB" and (np.asarray(image) == expected).all()
    images[0].paste((0, 0, 0), (0, 0, *images[0].size))
    assert (np.asarray(images[1]) == expected).all()


def test_an_image_that_is_gone_costs_the_grade_of_its_sample():
    row = Sample(0, "", "?", "3", (), (ImageRef(None, "/no/such.png"),), None, {})
    for verdict in graded(by_length, "a", "b", of=row):
        assert verdict.code == "verifier_error" and "image_missing" in verdict.message


def test_a_function_of_the_group_sees_it_whole():
    """The longest is right: alone, each would be."""

    def longest(completions, **kwargs):
        sizes = [len(c[0]["content"]) for c in completions]
        return [float(size == max(sizes)) for size in sizes]

    assert graded(longest, "a", "ccc", "bb") == [WRONG, RIGHT, WRONG]


# ---------------------------------------------- a bad completion costs its own grade only


def test_fault_26_a_group_that_fails_is_graded_one_by_one(caplog):
    """The verdicts of each alone, whatever the others do; hanging is for ever."""
    go_on = threading.Event()

    def singly(completions, **kwargs):
        values = []
        for (message,) in completions:
            text = message["content"]
            if text == "hang":
                go_on.wait(900)
            if text == "raise":
                raise ValueError("no")
            odd = {"none": None, "nan": math.nan, "half": 0.5}
            values.append(odd.get(text, float(text == "3")))
        return values

    texts = ["3", "raise", "4", "hang", "none", "nan", "half"]
    try:
        for chosen in (texts, texts[4:], ["3", "4", "half"], ["raise", "3"], ["hang"]):
            with make_checker(singly, timeout=0.5) as checker:
                alone = [
                    checker.check(sample(), text, token_ids=(i,))
                    for i, text in enumerate(chosen)
                ]
            assert graded(singly, *chosen, timeout=0.5) == alone
    finally:
        go_on.set()
    assert [v.correct for v in alone] == [None] and alone[0].code == "verifier_timeout"
    said = [r.getMessage() for r in caplog.records if "one at a time" in r.getMessage()]
    assert len(said) == 2 and all("singly" in line for line in said)
    assert "took more than checker_timeout = 0.5 s" in said[0] or "failed" in said[0]


@pytest.mark.parametrize("kind", ["list", "array", "tensor", "row", "generator"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_case_24_a_wrong_number_of_values_is_refused_by_name(kind, n):
    def made(values: list[float]) -> object:
        if kind == "tensor":
            return pytest.importorskip("torch").tensor(values)
        if kind == "row":
            return np.array([values, values])
        if kind == "generator":
            return iter(values)
        return np.array(values) if kind == "array" else values

    def short(completions, **kwargs):
        return made([1.0] * (len(completions) + 1))

    got = 2 if kind == "row" else n + 1
    if got == n:
        return  # two rows for two completions: no list of numbers, and so no length
    expected = rf"short': it returned {got} rewards for {n} completions?; expected one each"
    with pytest.raises(RapInputError, match=expected):
        graded(short, *"abcd"[:n])


def test_case_24_one_value_for_every_group_is_refused_though_it_fits_one():
    def first(completions, **kwargs):
        return [1.0]

    with make_checker(first) as checker:
        assert checker.check_group(sample(), responses("a")) == [RIGHT]
        with pytest.raises(RapInputError, match="returned 1 rewards for 4 completions"):
            checker.check_group(sample(), responses(*"abcd"))
    with pytest.raises(RapInputError, match="'scoring_rewards:one_too_few': it"):
        graded(one_too_few, "a", "b")


def test_a_wrong_number_later_costs_that_group_its_call_only(caplog):
    def drops(completions, **kwargs):
        return [1.0 for c in completions if c[0]["content"] != "drop"]

    with make_checker(drops) as checker:
        assert checker.check_group(sample(), responses("a", "b")) == [RIGHT] * 2
        right, dropped = checker.check_group(sample(), responses("a", "drop"))
    assert right == RIGHT
    assert dropped.message == "ValueError: it returned 0 rewards for 1 completion"
    assert "it returned 1 rewards for 2 completions" in caplog.text


# ------------------------------------------------------------------------------ lists


def column(name: str):
    """A function that gives what a column says of each completion."""

    def reward(completions, **kwargs):
        return kwargs[name][0][: len(completions)]

    reward.__qualname__ = name
    return reward


@pytest.mark.parametrize(
    ("weights", "totals"),
    [
        (None, [1.0, 0.4, 1.0, None, None]),
        ([1.0, 0.5], [0.5, 0.4, 0.5, None, None]),
        ([0.0, 1.0], [1.0, 0.0, 1.0, None, None]),
        ([-1.0, 0.4], [0.4, -0.4, 0.4, None, None]),
    ],
)
def test_case_36_the_weighted_sum_of_several_is_trls(weights, totals):
    a, b = [0.0, 0.4, None, None, math.nan], [1.0, None, 1.0, None, 1.0]
    row = sample(a=a, b=b)
    verdicts = graded([column("a"), column("b")], *"vwxyz", of=row, weights=weights)
    assert [v.reward for v in verdicts] == totals
    assert [v.correct for v in verdicts] == [
        None if total is None else total >= 0.5 for total in totals
    ]
    assert verdicts[3].message == "every reward function returned None"
    assert "a' returned nan" in verdicts[4].message
    torch = pytest.importorskip("torch")
    rows = [[math.nan if x is None else x for x in pair] for pair in zip(a, b, strict=True)]
    trl = pytest.importorskip("rap.trl.groups").totals(
        torch.tensor(rows), torch.tensor(weights or [1.0, 1.0])
    )
    assert trl[:4].nan_to_num(nan=9.0).tolist() == pytest.approx(
        [9.0 if total is None else total for total in totals[:4]]
    )


def test_names_of_lists():
    one, two = column("a"), column("b")
    plain = callable_name(one)
    with make_checker([one]) as checker:
        assert checker.name == plain
    with make_checker(one, weights=[0.5]) as checker:
        assert checker.name == f"0.5*{plain}"
    with make_checker((one, two), weights=[1, 0.5]) as checker:
        assert checker.name == f"1.0*{plain} + 0.5*{callable_name(two)}"
        assert shown_name(checker.name) == f"1.0*{__name__}:a + 0.5*{__name__}:b"


def test_one_function_of_a_list_that_raises_leaves_no_grade():
    def raises(**kwargs):
        raise ValueError("no")

    verdicts = graded([by_length, raises], "a", "bb")
    assert [v.message for v in verdicts] == ["ValueError: no"] * 2


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "has 1 numbers for 2 reward functions"),
        ([1.0, math.nan], "expected a list of finite numbers"),
        ([1.0, True], "expected a list of finite numbers"),
        ("11", "expected a list of finite numbers"),
    ],
)
def test_weights_that_are_none_are_refused(weights, said):
    with pytest.raises(RapConfigError, match=said):
        make_checker([by_length, zero], weights=weights)


# ------------------------------------------------------------------------- sameness


def told(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "tells no sample" in r.getMessage()]


def test_case_24_a_reward_that_is_always_the_same_is_said_once_by_name(caplog):
    with make_checker(zero, timeout=20) as checker:
        for i in range(12):
            for arm in ("counterfactual", "image"):
                row = sample(name=f"s{i}")
                assert checker.check_group(row, responses(*"abcd"), arm=arm) == [WRONG] * 4
            # 64 completions of 8 samples
            assert len(told(caplog)) == (i >= 7)
    (line,) = told(caplog)
    assert line.startswith("reward 'scoring_rewards:zero' gave 0 for all 64 ")


@pytest.mark.parametrize(
    ("samples", "arms", "values", "lines"),
    [
        (8, "ab", [0.25], 1),
        (7, "ab", [0.25] * 9, 0),
        (40, "a", [0.25, 0.25], 0),
        (8, "ab", [0.25, None], 1),
        (8, "ab", [None, None], 0),
        (8, "ab", [0.25, 0.0], 0),
    ],
)
def test_when_sameness_is_said(caplog, samples, arms, values, lines):
    caplog.set_level(logging.WARNING, "rap")
    same = Sameness("own:f")
    for i in range(samples):
        for arm in arms:
            same.add(f"s{i}", arm, values)
    same.finish()
    same.finish()
    assert len(told(caplog)) == lines
    if lines:
        assert "'own:f' gave 0.25 for all 16 completions" in told(caplog)[0]


def test_images_travel_to_the_process_of_a_function():
    row = sample((encoded("JPEG", seed=3),), solution="3")
    first = decode(row.images[0].data, max_pixels=10**6).getpixel((0, 0))[0]
    expected = [Verdict((first + n) % 2 == 1) for n in (1, 2, 3)]
    assert graded(by_pixels, "a", "bb", "ccc", of=row) == expected
