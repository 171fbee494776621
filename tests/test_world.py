"""The world with planted causes: pure, as asked for, its answers right by construction."""

from __future__ import annotations

import collections
import json
import random
import re
import shutil

import numpy as np
import pytest

from rap.demo import questions, scenes, world
from rap.errors import RapConfigError, RapError
from rap.samples.sample import Bad
from rap.samples.sampleset import load_images, open_samples

pytest.importorskip("PIL")

N = 2000


@pytest.fixture(scope="module")
def drawn():
    return world.draw(N, seed=3)


def inked(scene: world.Scene) -> np.ndarray:
    """bool [84, 84]: pixels that are neither paper nor a line between cells."""
    pixels = np.asarray(world.render(scene)).astype(int)
    paper = scenes.YELLOW if scene.kind == "sign" else scene.layout.paper
    dry = np.all(pixels == paper, axis=2)
    if scene.kind == "grid":
        dry |= np.all(pixels == scene.layout.line, axis=2)
    return ~dry


def ink_names(scene: world.Scene, part: np.ndarray) -> set[tuple[str, int]]:
    """(colour, how faint) of the inks among some pixels."""
    paper = np.array(scenes.YELLOW if scene.kind == "sign" else scene.layout.paper)
    found = set()
    for name, ink in world.COLOURS.items():
        for fade, left in enumerate(scenes.FADES):
            mixed = np.round(paper + left * (np.array(ink) - paper)).astype(int)
            if np.all(part == mixed, axis=1).any():
                found.add((name, fade))
    return found


def digits_on(scene: world.Scene) -> list[int]:
    """What a picture shows, read back from its pixels alone: nine digits."""
    seen = inked(scene)
    found = []
    for cell in range(9):
        y, x = cell // 3 * world.CELL, cell % 3 * world.CELL
        part = seen[y : y + world.CELL, x : x + world.CELL]
        dx, dy = scene.layout.dx, scene.layout.dy
        glyph = part[dy : dy + 21 : 3, dx : dx + 15 : 3]
        assert part.sum() == 9 * glyph.sum()  # nothing of the digit is cut off
        text = tuple("".join("01"[int(v)] for v in row) for row in glyph)
        found.append(scenes._GLYPHS.index(text))
    return found


def faint_on(scene: world.Scene) -> list[int]:
    """How faint each number or bar is, read back from the pixels."""
    pixels, seen = np.asarray(world.render(scene)).astype(int), inked(scene)
    parts = []
    for cell in range(9 if scene.kind == "grid" else 3):
        y, x = (
            (cell // 3 if scene.kind == "grid" else 0) * world.CELL,
            cell % 3 * world.CELL,
        )
        at = np.zeros_like(seen)
        at[y : y + (world.CELL if scene.kind == "grid" else world.SIZE), x : x + 28] = True
        [(_, fade)] = ink_names(scene, pixels[at & seen])
        parts.append(fade)
    return parts


def bars_on(scene: world.Scene) -> dict[str, int]:
    """Heights by colour, read back from the pixels."""
    pixels, seen = np.asarray(world.render(scene)).astype(int), inked(scene)
    heights = {}
    for bar in range(3):
        x = bar * world.CELL
        mine = seen[:, x : x + world.CELL]
        [(name, _)] = ink_names(scene, pixels[:, x : x + world.CELL][mine])
        rows = mine.any(axis=1)
        heights[name] = int((rows & ~np.concatenate([[False], rows[:-1]])).sum())
    return heights


def cell_of(name: str) -> int:
    return "ABC".index(name[0]) + 3 * (int(name[1]) - 1)


def answer_from_pixels(sample: world.WorldSample) -> int:
    """An oracle of its own: question text and pixels, nothing the generator knows."""
    words = sample.question.rstrip("?").replace(":", "").split()
    if sample.family in ("position", "faint"):
        return digits_on(sample.scene)[cell_of(words[-1])]
    if sample.family == "bar":
        return bars_on(sample.scene)[words[4]]
    if sample.family == "compare":
        read = digits_on(sample.scene)
        pair = read[cell_of(words[-3])], read[cell_of(words[-1])]
        return max(pair) if "larger" in words else min(pair)
    if sample.family == "sum":
        read = np.array(digits_on(sample.scene)).reshape(3, 3)
        if words[-2] == "row":
            return int(read[int(words[-1]) - 1].sum())
        return int(read[:, "ABC".index(words[-1])].sum())
    if sample.family == "chart":
        heights = bars_on(sample.scene)
        if "sum" in words:
            return sum(heights.values())
        return heights[words[5]] - heights[words[9]]
    if sample.family == "arithmetic":
        return sum(map(int, words[-1].split("+")))
    believed = {text: n for text, _, n, _, _ in world.BELIEFS}
    return (believed | {text: n for text, _, n in world.FACTS})[sample.question]


def test_answers_follow_from_question_and_pixels(drawn):
    for sample in drawn[:600]:
        right = answer_from_pixels(sample)
        assert right == sample.true_answer
        assert (int(sample.answer) == right) == (sample.cause != "unsolvable")


def test_every_cause_and_family_in_its_share(drawn):
    causes = collections.Counter(sample.cause for sample in drawn)
    for cause, share in world.MIX.items():
        sigma = (share * (1 - share) / N) ** 0.5
        assert abs(causes[cause] / N - share) < 5 * sigma
    assert world.MIX["cognitive"] <= 0.2 and abs(sum(world.MIX.values()) - 1) < 1e-12
    families = {(s.cause, s.family) for s in drawn}
    assert {f for c, f in families if c == "cognitive"} == set(world.COGNITIVE_FAMILIES)
    assert {f for c, f in families if c == "trivial"} == set(world.TRIVIAL_FAMILIES)
    assert {f for c, f in families if c == "unsolvable"} == set(world.PLANTED_FAMILIES)
    assert {f for c, f in families if c == "language_prior"} == set(world.PRIOR_FAMILIES)
    hard = [s.family != "fact" for s in drawn if s.cause == "language_prior"]
    assert 0.65 < np.mean(hard) < 0.85


def test_what_is_planted_is_there(drawn):
    for sample in drawn:
        if sample.cause == "attention_biased":
            loud = [f"{word} {sample.loud}!" for word in world.LOUD]
            assert any(sample.question.count(text) == 3 for text in loud)
            assert str(sample.loud) != sample.answer
        elif sample.cause == "image_misleads":
            assert sample.scene.kind == "sign"
            assert str(sample.loud) != sample.answer
        else:
            assert sample.loud is None and sample.scene.kind != "sign"
    signs = [s for s in drawn if s.cause == "image_misleads"][:20]
    assert all(digits_on(s.scene) == [s.loud] * 9 for s in signs)


@pytest.mark.parametrize("family", world.FAMILIES)
def test_a_slip_is_one_wrong_reading_and_no_reference(family):
    """A slip leads to another answer, and a wrong reference is none of them: no unsolvable
    sample is solved by slipping. Pictures are misread where they are faint, by one number;
    what follows from the readings is right."""
    rng = random.Random(f"slips {family}")
    layout = world.layouts("selection")[0]
    rates = []
    for _ in range(300):
        question = world.ask(family, rng, layout)
        right, wrong = question.answer, world.wrong_answer(rng, question)
        assert abs(wrong - right) > 2 and wrong >= 1
        for text, slipped in question.slips:
            assert slipped not in (right, wrong) and slipped >= 0
            assert text != question.steps and str(slipped) in text
            digits = [re.findall("[0-9]+", x) for x in (text, question.steps)]
            assert len(digits[0]) == len(digits[1])
        rates.append(question.slip_rate)
        assert bool(question.slips) == (question.slip_rate > 0)
    if family in ("position", "fact"):
        assert max(rates) == 0
    else:
        assert 0.25 < min(rates) <= max(rates) < 0.7


@pytest.mark.parametrize("family", world.COGNITIVE_FAMILIES)
def test_what_is_asked_is_faint(family):
    """A cognitive question reads at least one faint number, and how faint says how often
    it is misread; a trivial one reads none."""
    rng = random.Random(f"faint {family}")
    layout = world.layouts("selection")[1]
    for _ in range(60):
        question = world.ask(family, rng, layout)
        faint = faint_on(question.scene)
        assert faint == list(question.scene.fades)
        assert max(faint) > 0
        if family == "faint":
            asked = cell_of(question.text.rstrip("?").split()[-1])
            assert faint[asked] > 0
            assert question.slip_rate == pytest.approx(questions.MISREAD[faint[asked]])
    plain = world.ask("position", rng, layout)
    assert faint_on(plain.scene)[cell_of(plain.text.rstrip("?").split()[-1])] == 0


def test_arithmetic_over_pictures_is_right_whatever_was_read():
    """In every trace over a picture, right or slipped, a+b=c holds: errors are readings.
    Sums in the text slip at the first step."""
    rng, layout = random.Random(8), world.layouts("selection")[0]
    for family in ("sum", "chart", "arithmetic"):
        wrong = 0
        for _ in range(100):
            question = world.ask(family, rng, layout)
            for text in (question.steps, *(t for t, _ in question.slips)):
                steps = re.findall(r"(\d+)([+-])(\d+)=(\d+)", text)
                assert steps
                right = [
                    int(a) + (int(b) if sign == "+" else -int(b)) == int(c)
                    for a, sign, b, c in steps
                ]
                wrong += not all(right)
                assert all(right[1:])
        assert wrong == (100 if family == "arithmetic" else 0)


def test_a_teacher_misreads_as_often_as_it_says():
    rng, layout = random.Random(9), world.layouts("train")[0]
    seen: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for _ in range(400):
        scene = world.any_grid(rng, layout)
        told = world.read(rng, scene)
        for i, (a, b) in enumerate(zip(scene.numbers, told.numbers, strict=True)):
            seen[scene.fade(i)].append(a != b)
            assert b in (a, questions.LOOKALIKE[a])
    for fade, wrong in seen.items():
        rate = questions.MISREAD[fade]
        assert abs(np.mean(wrong) - rate) <= 4 * (rate * (1 - rate) / len(wrong)) ** 0.5
    assert not any(world.clear_grid(rng, layout).fades)


def test_a_world_is_a_pure_function_and_longer_worlds_continue_shorter_ones():
    state = random.getstate()
    assert world.draw(50, seed=4) == world.draw(80, seed=4)[:50]
    assert random.getstate() == state
    assert world.draw(50, seed=4) != world.draw(50, seed=5)
    again = [world.png(s.scene) for s in world.draw(5, seed=4)]
    assert again == [world.png(s.scene) for s in world.draw(5, seed=4)]


def test_splits_share_no_layout_and_no_picture():
    drawable = {split: set(world.layouts(split)) for split in world.SPLITS}
    assert all(drawable.values())
    train, selection, test = drawable.values()
    assert not train & selection and not train & test and not selection & test
    papers = [{layout.paper for layout in some} for some in drawable.values()]
    assert len(set.union(*papers)) == sum(map(len, papers))
    offsets = [{(layout.dx, layout.dy) for layout in some} for some in drawable.values()]
    assert len(set.union(*offsets)) == sum(map(len, offsets))
    pictures = {
        split: {
            np.asarray(world.render(s.scene)).tobytes()
            for s in world.draw(100, split=split)
        }
        for split in world.SPLITS
    }
    assert not pictures["train"] & pictures["test"]
    assert not pictures["selection"] & pictures["test"]


def test_twenty_thousand_samples_can_be_drawn():
    many = world.draw(20_000, seed=1)
    assert len({s.id for s in many}) == 20_000
    # Different samples, not the same few over and over: questions repeat, pictures do not.
    assert len({(s.question, s.scene) for s in many}) > 19_000


def test_reads_as_samples_from_memory_and_from_disk(tmp_path):
    some = world.draw(12, seed=2)
    from_rows = open_samples(world.rows(some))
    from_disk = open_samples(world.write(some, tmp_path / "w"))
    for mine, a, b in zip(some, from_rows, from_disk, strict=True):
        assert not isinstance(a, Bad) and not isinstance(b, Bad)
        assert (a.id, a.question, a.answer) == (mine.id, mine.question, mine.answer)
        assert (b.id, b.question, b.answer) == (mine.id, mine.question, mine.answer)
        assert a.extra["cause"] == b.extra["cause"] == mine.cause
        [picture] = load_images(b, max_pixels=10_000)[0]
        assert np.array_equal(np.asarray(picture), np.asarray(world.render(mine.scene)))
    lines = (tmp_path / "w" / "samples.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["image"] == f"images/{some[0].id}.png"


def test_reads_as_a_hugging_face_data_set():
    pytest.importorskip("datasets")
    some = world.draw(5, seed=2)
    data = world.to_dataset(some)
    assert data["cause"][:] == [s.cause for s in some]
    assert data[0]["image"].size == (world.SIZE, world.SIZE)
    assert open_samples(data)[0].question == some[0].question


@pytest.mark.parametrize("n", [0, -1, world.MAX_SAMPLES + 1, 2.5, True])
def test_sizes_that_make_no_world(n):
    with pytest.raises(RapConfigError, match="n = "):
        world.draw(n)


@pytest.mark.parametrize(
    "wrong", [{"split": "validation"}, {"seed": -1}, {"seed": "a"}, {"seed": True}]
)
def test_settings_that_make_no_world(wrong):
    with pytest.raises(RapConfigError, match=next(iter(wrong))):
        world.draw(1, **wrong)


def test_empty_world_is_not_written(tmp_path):
    for make in (world.rows, lambda w: world.write(w, tmp_path / "w")):
        with pytest.raises(RapConfigError, match="at least one sample"):
            make([])
    assert not (tmp_path / "w").exists()


def test_a_world_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    some = world.draw(100)
    usage = shutil.disk_usage(tmp_path)
    need = 100 * world.BYTES_A_SAMPLE

    def nearly_full(path):
        return usage._replace(free=2 * need - 1)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(RapError, match="half of the disk"):
        world.write(some, tmp_path / "w")
    assert not (tmp_path / "w" / "samples.jsonl").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * need))
    world.write(some, tmp_path / "w")
    taken = sum(max(4096, p.stat().st_size) for p in (tmp_path / "w").rglob("*.png"))
    assert taken < need
