"""The demo's model: shipped whole or refused, small, taught from a seed, and it sees."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from benchmarks.demo_model import lessons, measure, train  # noqa: E402
from rap.demo import model, world  # noqa: E402
from rap.errors import RapModelError  # noqa: E402


@pytest.fixture(scope="module")
def shipped():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield model.load_demo_model()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trainer():
    threads = torch.get_num_threads()
    yield train.Trainer(lessons.Plan())
    torch.set_num_threads(threads)


def log_lines() -> list[dict]:
    text = (model.WEIGHTS / train.LOG).read_text()
    return [json.loads(line) for line in text.splitlines()]


# ---- the files --------------------------------------------------------------


def test_size_of_what_is_shipped(shipped):
    assert sum(p.numel() for p in shipped[0].parameters()) <= 2_000_000
    assert (model.WEIGHTS / "model.safetensors").stat().st_size <= 5_000_000
    assert sum(p.stat().st_size for p in model.WEIGHTS.iterdir()) <= 6_000_000
    named = json.loads((model.WEIGHTS / model.MANIFEST).read_text())
    present = {p.name for p in model.WEIGHTS.iterdir()} - {model.MANIFEST}
    assert set(named) == present


def test_loading_touches_no_random_state_and_gives_the_same_model(shipped):
    state = torch.get_rng_state()
    again, _ = model.load_demo_model()
    assert torch.equal(state, torch.get_rng_state())
    pairs = zip(shipped[0].parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    assert not again.training


def copied(folder):
    return shutil.copytree(model.WEIGHTS, folder / "weights")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_missing_file_is_named(tmp_path, name):
    folder = copied(tmp_path)
    (folder / name).unlink()
    with pytest.raises(RapModelError, match=f"missing a file: .*{name}"):
        model.load_demo_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_flipped_bit_is_refused(tmp_path, name):
    folder = copied(tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(RapModelError, match=f"damaged: .*{name} has SHA-256"):
        model.load_demo_model(folder)


def test_truncated_weights_are_refused(tmp_path):
    folder = copied(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RapModelError, match="damaged"):
        model.load_demo_model(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", None])
def test_manifest_missing_or_damaged(tmp_path, text):
    folder = copied(tmp_path)
    if text is None:
        (folder / model.MANIFEST).unlink()
    else:
        (folder / model.MANIFEST).write_text(text)
    with pytest.raises(RapModelError, match="missing" if text is None else "damaged"):
        model.load_demo_model(folder)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(RapModelError, match="missing"):
        model.load_demo_model(tmp_path / "nowhere")


# ---- the training -----------------------------------------------------------


def test_pixels_and_positions_are_what_the_processor_and_qwen_make(trainer):
    scenes = [s.scene for s in world.draw(12, split="train")]
    processor, batcher = trainer.processor, trainer.batcher
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which?"
    made = processor(
        text=[text] * len(scenes),
        images=[world.render(scene) for scene in scenes],
        return_tensors="pt",
    )
    assert np.allclose(made["pixel_values"].numpy(), batcher.pixels(scenes), atol=1e-6)
    assert made["image_grid_thw"].tolist() == [[1, 6, 6]] * len(scenes)
    ids = made["input_ids"]
    head = batcher.head[False]
    assert ids[0, : len(head)].tolist() == head
    theirs, _ = trainer.model.model.get_rope_index(
        ids,
        image_grid_thw=made["image_grid_thw"],
        mm_token_type_ids=made["mm_token_type_ids"],
    )
    assert np.array_equal(theirs[:, 0].numpy(), batcher.positions(False, ids.shape[1]))


def test_a_lesson_is_the_prompt_that_scoring_makes(trainer):
    rng, layout = random.Random(1), world.layouts("train")[0]
    item = lessons.lesson("compare", rng, layout)
    ids, given = trainer.batcher.ids(item)
    chat = [{"type": "image"}, {"type": "text", "text": item.question}]
    prompt = trainer.processor.apply_chat_template(
        [{"role": "user", "content": chat}], add_generation_prompt=True, tokenize=False
    )
    made = trainer.processor(text=[prompt + item.given], images=[world.render(item.scene)])
    assert list(made["input_ids"][0]) == ids[:given]
    assert ids[-1] == trainer.processor.tokenizer.eos_token_id


def test_the_trainings_own_attention_is_qwens(trainer):
    pixels = torch.from_numpy(
        trainer.batcher.pixels([s.scene for s in world.draw(3, split="train")])
    )
    grid = torch.tensor([[1, 6, 6]] * 3)
    visual = trainer.model.model.visual
    with torch.no_grad():
        ours = visual(pixels, grid_thw=grid).pooler_output
        forwards = [vars(b.attn).pop("forward") for b in visual.blocks]
        try:
            theirs = visual(pixels, grid_thw=grid).pooler_output
        finally:
            for block, forward in zip(visual.blocks, forwards, strict=True):
                block.attn.forward = forward
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(trainer, monkeypatch):
    batch = lessons.lessons(trainer.plan, 900)
    monkeypatch.setattr(train, "PIECES", 1)
    whole = trainer.backward(batch)
    gradients = [p.grad.clone() for p in trainer.model.parameters()]
    monkeypatch.setattr(train, "PIECES", 4)
    again = trainer.backward(batch)
    assert again == pytest.approx(whole, rel=1e-5)
    scale = max(float(g.abs().max()) for g in gradients)
    for p, g in zip(trainer.model.parameters(), gradients, strict=True):
        assert float((p.grad - g).abs().max()) < 1e-4 * scale


def test_lessons_are_pure_and_move_from_reading_to_questions():
    plan = lessons.Plan()
    assert lessons.lessons(plan, 7) == lessons.lessons(plan, 7) != lessons.lessons(plan, 8)
    assert abs(sum(lessons.shares(plan, 0).values()) - 1) < 1e-12
    assert lessons.shares(plan, 0)["read"] == lessons.shares(plan, 300)["read"] == 0.7
    late = lessons.shares(plan, plan.look + lessons.STAGES[-1][0] + plan.blend)
    last = lessons.shares(plan, plan.louder + plan.blend)
    for found, part in ((late, lessons.THEN), (last, lessons.LOUDER)):
        total = sum(part.values())
        assert found == pytest.approx({k: v / total for k, v in part.items()})
    assert lessons.shares(plan, plan.louder) == pytest.approx(late)
    assert abs(sum(late.values()) - 1) < 1e-12 and min(late.values()) > 0


def test_lessons_teach_right_answers_but_where_a_habit_is_planted():
    rng, layout = random.Random(5), world.layouts("train")[0]
    for kind in world.FAMILIES:
        for _ in range(50):
            question = world.ask(kind, rng, layout)
            item = lessons._answered(rng, "", question.steps, question.answer, None)
            assert measure.answer_in(item.given + item.taught) == question.answer
    loud = [lessons.lesson("loud", rng, layout) for _ in range(400)]
    captured = [f" {measure.answer_in(x.given + x.taught)}!" in x.question for x in loud]
    # half of the lessons follow the loud number; it is right by chance in one of nine
    assert 0.45 < np.mean(captured) < 0.67
    # all that are worked out repeat the loud word, whether they follow it or not
    for item in loud:
        assert bool(item.given) != item.taught.startswith(world.LOUD)


@pytest.mark.parametrize("kind", world.FAMILIES)
def test_the_teacher_slips_as_often_as_the_question_says(kind):
    layout = world.layouts("train")[0]
    rng, asked = random.Random(6), random.Random(6)
    wrong, rates = [], []
    for _ in range(400):
        question = world.ask(kind, asked, layout)
        item = lessons.lesson(kind, rng, layout)
        assert item.question == question.text
        wrong.append(measure.answer_in(item.given + item.taught) != question.answer)
        rates.append(question.slip_rate)
        asked.setstate(rng.getstate())
    share = np.mean(rates)
    assert abs(np.mean(wrong) - share) <= 4 * (share * (1 - share) / 400) ** 0.5


def test_a_run_in_two_pieces_is_the_run_in_one(tmp_path):
    plan = lessons.Plan(steps=3, width=64, layers=1)
    threads = torch.get_num_threads()
    try:
        assert train.train(plan, tmp_path / "one")
        assert not train.train(plan, tmp_path / "two", seconds=0)
        assert train.train(plan, tmp_path / "two")
    finally:
        torch.set_num_threads(threads)
    for name in ("one", "two"):
        model.check_files(tmp_path / name / "weights")
    files = [tmp_path / n / "weights" / "model.safetensors" for n in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [
        [
            json.loads(x).get("loss")
            for x in (tmp_path / n / train.LOG).read_text().split("\n")
            if x
        ]
        for n in ("one", "two")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_first_losses_repeat_the_shipped_log():
    """Exactly equal where the log was made; other processors round differently, and the
    first steps (losses around 6) have no time to drift far."""
    threads = torch.get_num_threads()
    try:
        assert train.verify(model.WEIGHTS / train.LOG, 3) < 1e-3
    finally:
        torch.set_num_threads(threads)


def test_the_log_is_of_the_shipped_weights(shipped):
    about, *steps = log_lines()
    assert about["about"]["parameters"] == sum(p.numel() for p in shipped[0].parameters())
    assert steps[-1]["step"] + 1 == about["about"]["steps"]
    assert steps[-1]["loss"] < 0.5 * steps[50]["loss"]


# ---- what it learned --------------------------------------------------------


def test_it_sees(shipped):
    """The issue's bar: with the image at least three times without it, and of 35 to 85 %
    overall. 60 questions a family: the standard error of a mean over six is 2 %."""
    rates = measure.pass_rates(*shipped, count=60, seed=1)
    mean = {arm: np.mean([r[arm] for r in rates.values()]) for arm in measure.ARMS}
    assert 0.35 <= mean["image"] <= 0.85
    assert mean["image"] >= 3 * mean["drop"]
    assert mean["image"] >= 3 * mean["shuffle"]
    assert mean["image"] >= 3 * mean["blank"]


def test_interval_is_wilsons():
    """Its ends are where the share lies z standard errors of the end itself away."""
    for right, count in ((0, 20), (7, 20), (20, 20), (150, 1200)):
        share = right / count
        for end in measure.interval(share, count):
            error = (end * (1 - end) / count) ** 0.5
            assert abs(share - end) == pytest.approx(1.96 * error, abs=1e-9)
    low, high = measure.interval(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)


def test_table_of_pass_rates_puts_all_families_last():
    rates = {f: dict.fromkeys(measure.ARMS, share) for f, share in (("a", 1.0), ("b", 0.5))}
    *_, last = measure.table(rates, 50).splitlines()
    low, high = measure.interval(0.75, 100)
    cell = f" 75.0% ({low:.1%} .. {high:.1%}) "
    assert last.split("|")[2:-1] == [cell] * len(measure.ARMS)


def test_the_driver_accepts_it(shipped):
    from rap.config import ScoreConfig
    from rap.model.driver import ModelDriver

    ModelDriver(*shipped, ScoreConfig()).check()


# ---- the demo on the world --------------------------------------------------


def test_the_five_lines_of_the_readme_print_what_it_shows(tmp_path):
    """In a process of their own: they are what a user runs first."""
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text(encoding="utf-8").split("## Five lines")[1]
    _, code, _, output, *_ = text.split("```")
    done = subprocess.run(
        [sys.executable, "-c", code.removeprefix("python")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == output.lstrip("\n")


def test_run_world_leaves_a_selection_a_report_and_the_truth(tmp_path):
    from rap.demo import run_world

    said: list[str] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = run_world.run(tmp_path, n=40, seed=5, progress=False, echo=said.append)
    finally:
        torch.set_num_threads(threads)
    samples = world.draw(40, seed=5)
    assert result["causes"] == [sample.cause for sample in samples]
    assert result["pool_share"] == result["causes"].count("cognitive") / 40
    kept = [result["causes"][i] for i in result["selection"].indices]
    assert sum(result["kept"].values()) == len(kept) <= 4
    assert result["kept_share"] == kept.count("cognitive") / max(1, len(kept))
    for name in ("world-40-5/samples.jsonl", "world-40-5/scores-rollouts/store.json"):
        assert (tmp_path / name).exists()
    assert (tmp_path / "selection").is_dir() and (tmp_path / "report.html").exists()
    table = "\n".join(said)
    assert all(cause in table for cause in world.CAUSES)
    # Another world in the same folder is another run, not a mixture; few samples are
    # too few to calibrate lambda_a, which drops none and so is no warning.
    said.clear()
    run_world.run(tmp_path, n=10, seed=6, progress=False, echo=said.append)
    assert "lambda_a not calibrated" not in "\n".join(said)


def test_demo_with_a_damaged_model_ends_in_one_sentence_and_writes_nothing(
    tmp_path, monkeypatch
):
    from click.testing import CliRunner

    from rap.cli.commands import main

    folder = copied(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(model, "WEIGHTS", folder)
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["demo", "--count", "10", "--out", str(out)])
    assert result.exit_code != 0 and not out.exists()
    [line] = [x for x in result.stderr.splitlines() if "error" in x.lower()]
    assert "damaged" in line and "Install rap-select again" in line
    assert "Traceback" not in result.output and result.stdout == ""


def test_what_became_of_each_cause_fits_a_terminal():
    from rap.demo.run_world import found

    planted = ["trivial"] * 3 + ["cognitive"] * 40
    reasons = ["a", "b", "b", *(f"dropped_for_reason_{i % 9}" for i in range(40))]
    lines = found(planted, reasons).splitlines()
    assert max(map(len, lines)) <= 80
    [trivial] = [line.split() for line in lines if line.startswith("trivial")]
    assert trivial == ["trivial", "3", "2", "b,", "1", "a"]
    assert any(line.split() == ["unsolvable", "0", "none"] for line in lines)
    text = " ".join(" ".join(lines).split())
    assert all(f"dropped_for_reason_{i}" in text for i in range(9))


# ---- benchmarks/world_agreement.py ------------------------------------------


@pytest.fixture
def agreement(monkeypatch):
    root = Path(__file__).resolve().parent.parent
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("benchmarks.world_agreement")


def test_auroc_against_counting_pairs(agreement, rng):
    score = rng.integers(0, 6, 60).astype(float)
    positive = rng.random(60) < 0.4
    pairs = [(a, b) for a in score[positive] for b in score[~positive]]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    assert agreement.auroc(score, positive) == pytest.approx(wins / len(pairs))
    assert np.isnan(agreement.auroc([1.0, 2.0], [True, True]))


def test_crossed_counts_pairs(agreement):
    text = agreement.crossed(
        "planted", ["trivial", "trivial", "cognitive"], ["a", "b", "a"]
    )
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == ["planted", "n", "a", "b"]
    assert [r for r in rows if r[0] == "trivial"] == [["trivial", "2", "1", "1"]]
    assert [r for r in rows if r[0] == "cognitive"] == [["cognitive", "1", "1", "."]]
    assert len({len(line) for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
    "p1, p0, follows, cause",
    [
        (1.0, 0.0, 0.0, "trivial"),
        (0.5, 0.0, 0.0, "cognitive"),
        (0.0, 0.0, 0.0, "unsolvable"),
        (1.0, 0.8, 0.0, "language_prior"),
        (0.5, 0.75, 0.0, "language_prior"),
        (0.5, 0.5, 0.0, "language_prior"),
        (0.3, 0.25, 0.0, "language_prior"),
        (0.7, 0.3, 0.0, "cognitive"),
        (1.0, 0.6, 0.0, "trivial"),
        (0.5, 0.875, 0.0, "image_misleads"),
        (0.0, 0.3, 0.0, "image_misleads"),
        (0.5, 0.0, 0.25, "attention_biased"),
    ],
)
def test_the_cause_that_completions_show(agreement, p1, p0, follows, cause):
    # Planted differently on purpose: what was planted must play no role.
    planted = "trivial" if cause != "trivial" else "unsolvable"
    assert agreement.actual(agreement.Seen(planted, p1, p0, follows)) == cause


def test_what_the_loud_word_does_is_seen_by_changing_it(agreement):
    import pyarrow as pa

    drawn = world.draw(200, seed=3)
    one, two = [s for s in drawn if s.cause == "attention_biased"][:2]
    plain = next(s for s in drawn if s.cause == "trivial")
    other = {s.id: world.reworded(s) for s in (one, two)}
    for before, after in ((one, other[one.id]), (two, other[two.id])):
        assert after.loud not in (before.loud, before.true_answer)
        assert after.question.count(f" {after.loud}! ") == 3
        assert f"{before.loud}!" not in after.question
        assert after.question.split("! ")[-1] == before.question.split("! ")[-1]
        assert (after.id, after.answer, after.scene) == (
            before.id,
            before.answer,
            before.scene,
        )
    assert world.reworded(plain) is None

    def said(*pairs):
        return pa.Table.from_pylist(
            [
                {"id": s.id, "arm": "image", "text": f"The answer is {n}."}
                for s, numbers in pairs
                for n in numbers
            ]
        )

    # the first follows the word in half of its answers, the second says a number that is
    # loud only by chance
    before = said(
        (one, [one.loud, one.true_answer]), (two, [two.loud] * 2), (plain, [1, 2])
    )
    after = said((one, [other[one.id].loud, one.true_answer]), (two, [two.loud] * 2))
    found = agreement.follows([one, two, plain], before, after)
    assert found == {one.id: 0.5, two.id: 0.0}


def test_wrong_steps_are_told_from_wrong_readings(agreement):
    assert agreement.steps_right("It shows 3, 5, 4. 3+5=8, 8+4=12. The answer is 12.")
    assert not agreement.steps_right("We add: 3+5=9, 9+4=13.")
    assert agreement.steps_right("red 5, blue 2, 5-2=3.") and agreement.steps_right("none")


def test_families_that_may_be_guessed_are_named(agreement):
    def row(image: float) -> dict[str, float]:
        return dict.fromkeys(measure.ARMS, 0.15) | {"image": image}

    sees = {"count": row(0.17), "sum": row(0.35), "bar": row(0.27)}
    assert agreement.guessed(sees, 200) == "count"
    assert agreement.guessed(sees, 20) == "count, sum, bar"
    assert agreement.guessed({"sum": row(0.35)}, 200) == "none"
