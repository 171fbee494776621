"""Exports: what the files hold, pictures bit for bit, and what is refused.

That the trainers' own loaders read them is shown by ``make test-trainers``; TRL, which the
other tests need anyway, is here.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_data import CHOICES, IDS, make, pictures, select
from PIL import Image
from test_cli import refused, run

import rap
import rap.export.write
from rap.demo import MATHVISION, published
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.export.formats import TARGETS, VERL_SOURCE
from rap.export.target import MANIFEST
from rap.export.write import export
from rap.rewards.grading import grade
from rap.samples.answers import read_answer
from rap.samples.images import decode
from rap.samples.sample import sample_sha256
from rap.samples.sampleset import load_images, open_samples
from rap.samples.stated import prompt_text
from rap.selection.reselection import pass_counts
from rap.trl.rewardfile import read_visits

PARQUET = ("trl", "verl", "easyr1")
QUESTION = "What is {}?\n  It is \\frac{{1}}{{2}} “so”."


@pytest.fixture(scope="module")
def selection(tmp_path_factory) -> rap.Selection:
    return select(make(tmp_path_factory.mktemp("data")))


PNG = pictures()["plain.png"]


def everything(source: object, **options: object) -> rap.Selection:
    """All samples of a data set, by made-up completions."""
    samples = open_samples(source, **options)
    rows = [
        {"id": name, "with_image": arm, "correct": arm and k < 3}
        for name in samples.ids
        for arm in (True, False)
        for k in range(4)
    ]
    return rap.choose(rap.Scores.from_rollouts(rows, dataset=samples), budget=1.0)


def rows_of(folder: Path) -> list[dict]:
    if (folder / "train.parquet").exists():
        return pq.read_table(folder / "train.parquet").to_pylist()
    text = (folder / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def encoded(row: dict, folder: Path) -> list[bytes]:
    """The pictures of a row as the files hold them."""
    return [
        image["bytes"] if isinstance(image, dict) else (folder / image).read_bytes()
        for image in row["images"]
    ]


def expected_prompt(k: int) -> str:
    more = "".join(f"\n({x}) {choice}" for x, choice in zip("AB", CHOICES, strict=True))
    return QUESTION.format(k) + (more if k == 6 else "")


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("target", TARGETS)
def test_pictures_are_those_that_were_scored(selection, tmp_path, target):
    found = selection.export(target, tmp_path / "out")
    rows = rows_of(found.folder)
    assert len(rows) == found.samples == len(IDS) and found.pictures == 8
    upright = TARGETS[target].upright
    samples = selection.source
    for index, row in zip(selection.indices, rows, strict=True):
        scored, hashes = load_images(samples[int(index)], max_pixels=10**6)
        for want, sha, data in zip(scored, hashes, encoded(row, found.folder), strict=True):
            image = Image.open(io.BytesIO(data))
            if upright:  # as the loader does it
                from PIL import ImageOps

                image = ImageOps.exif_transpose(image)
            assert image.convert("RGB").tobytes() == want.tobytes()
            same = hashlib.sha256(data).hexdigest() == sha
            assert same == (
                samples[int(index)].id not in ("glass", "deep", "stained")
                and (upright or samples[int(index)].id != "turned")
            )
    assert found.encoded == (3 if upright else 4)


@pytest.mark.parametrize("target", TARGETS)
def test_fault_49_ids_reasons_and_order_travel(selection, tmp_path, target):
    found = selection.export(target, tmp_path / "out")
    manifest = json.loads((found.folder / MANIFEST).read_text())
    want = [{"id": name, "reason": "kept_cognitive"} for name in IDS]
    assert manifest["samples"] == want and manifest["target"] == target
    assert set(manifest["files"]) | {MANIFEST} == set(os.listdir(found.folder))
    rows = rows_of(found.folder)
    ids = {"trl": "id", "verl": "extra_info"}.get(target, "rap_id")
    got = [row[ids]["index"] if target == "verl" else row[ids] for row in rows]
    assert got == IDS
    holders = [row["extra_info"] if target == "verl" else row for row in rows]
    assert {row["rap_reason"] for row in holders} == {"kept_cognitive"}


ASKED = "Which colour?"
LISTED = "\n(A) red\n(B) blue\n(C) green"


@pytest.mark.parametrize("target", [*TARGETS, "jsonl"])
@pytest.mark.parametrize(
    "row",
    [
        {"question": ASKED, "choices": ["red", "blue", "green"]},
        {"question": ASKED + LISTED},
        {"question": ASKED + LISTED, "choices": ["A. red", "B. blue", "C. green"]},
    ],
    ids=["a column", "in the question", "both"],
)
def test_what_was_exported_lists_its_options_once_when_it_is_read_again(
    tmp_path, row, target
):
    data = [{**row, "id": f"s{k}", "answer": "B", "image": PNG} for k in range(3)]
    found = everything(data).export(target, tmp_path / "out")
    (file,) = found.folder.glob("train.*")
    for samples in (open_samples(data), open_samples(file)):
        sample = samples[0]
        asked = prompt_text("{question}{choices}", sample.question, sample.choices)
        assert asked == ASKED + LISTED
        given = [grade(sample.reference, sample.options, x) for x in ("B", "blue", "A")]
        assert given == [True, True, False]


def test_other_options_in_the_question_leave_the_choices_listed():
    """In another order, or others, the letters would be those of the question."""
    asked = prompt_text("{question}{choices}", ASKED + LISTED, ("blue", "red", "green"))
    assert asked == ASKED + LISTED + "\n(A) blue\n(B) red\n(C) green"


def prompt_and_answer(target: str, row: dict) -> tuple[str, str]:
    if target == "easyr1":
        return row["problem"], row["answer"]
    if target == "openrlhf":
        return row["prompt"], row["answer"]
    if target == "llamafactory":
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        return user["content"], assistant["content"]
    (message,) = row["messages" if target == "ms-swift" else "prompt"]
    assert message["role"] == "user"
    if target == "verl":
        assert row["data_source"] == VERL_SOURCE
        assert row["reward_model"]["style"] == "rule"
        return message["content"], row["reward_model"]["ground_truth"]
    return message["content"], row["solution"]


@pytest.mark.parametrize("target", TARGETS)
def test_prompts_are_those_that_were_scored_with_the_trainers_tags(
    selection, tmp_path, target
):
    found = selection.export(target, tmp_path / "out")
    for k, row in enumerate(rows_of(found.folder)):
        prompt, answer = prompt_and_answer(target, row)
        tags = "" if target == "trl" else "<image>" * len(row["images"])
        assert prompt == tags + expected_prompt(k)
        letter = "$B$" if target in ("trl", "ms-swift") else "B"  # as math-verify reads it
        assert answer == (letter if k == 6 else str(k))


@pytest.mark.parametrize("target", PARQUET)
def test_datasets_decodes_the_parquet_to_pictures(selection, tmp_path, target):
    from datasets import load_dataset

    found = selection.export(target, tmp_path / "out")
    file = str(found.folder / "train.parquet")
    data = load_dataset(
        "parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache")
    )
    for index, images in zip(selection.indices, data["images"], strict=True):
        scored, _ = load_images(selection.source[int(index)], max_pixels=10**6)
        for want, image in zip(scored, images, strict=True):
            assert image.convert("RGB").tobytes() == want.tobytes()


def test_easyr1_reads_it(selection, tmp_path):
    """EasyR1 is not on PyPI: its reader, said again. Source: hiyouga/EasyR1
    verl/utils/dataset.py, RLHFDataset._build_messages and process_image."""
    found = selection.export("easyr1", tmp_path / "out")
    for k, row in enumerate(rows_of(found.folder)):
        content: list[object] = []
        for i, text in enumerate(row["problem"].split("<image>")):
            if i:
                content.append("image")
            if text:
                content.append(text)
        images = [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
        assert content == ["image"] * len(images) + [expected_prompt(k)]


def test_template_is_the_scored_one_or_the_given(selection, tmp_path):
    template = "{question}{choices}\nThink, then \\boxed{}."
    found = selection.export("verl", tmp_path / "a", prompt_template=template)
    prompts = [row["prompt"][0]["content"] for row in rows_of(found.folder)]
    assert all(p.endswith("\nThink, then \\boxed{}.") for p in prompts)
    settings = {
        **selection.settings,
        "scores": {"config": {"prompt_template": "Q: {question}{choices}"}},
    }
    scored = rap.Selection(selection.table, settings, selection.source)
    found = scored.export("trl", tmp_path / "b")
    assert rows_of(found.folder)[0]["prompt"][0]["content"].startswith("Q: What is 0?")


def test_paths_can_be_those_of_another_machine(selection, tmp_path):
    found = selection.export("ms-swift", tmp_path / "out", media_root="/mnt/there")
    (name,) = rows_of(found.folder)[0]["images"]
    assert name.startswith("/mnt/there/images/")
    assert (found.folder / "images" / Path(name).name).is_file()


def test_a_picture_used_twice_is_one_file(selection, tmp_path):
    found = selection.export("openrlhf", tmp_path / "out")
    assert len(list((found.folder / "images").iterdir())) == len(pictures()) == 7


# ---------------------------------------------------------------- LLaMA-Factory


def completions(*rows: tuple[str, str, bool | None]) -> pa.Table:
    names, texts, correct = zip(*rows, strict=True)
    arms = ["counterfactual" if text == "blind" else "image" for text in texts]
    return pa.table({"id": names, "arm": arms, "text": texts, "correct": correct})


def test_completions_make_dpo_pairs(selection, tmp_path):
    table = completions(
        ("two", "", True),
        ("two", "blind", True),
        ("two", "because 1", True),
        ("two", "wrong", False),
        ("turned", "right only", True),
        ("deep", "not judged", None),
    )
    found = selection.export("llamafactory", tmp_path / "out", completions=table)
    (row,) = rows_of(found.folder)
    assert row["rap_id"] == "two" and len(row["messages"]) == 1
    assert row["chosen"] == {"role": "assistant", "content": "because 1"}
    assert row["rejected"] == {"role": "assistant", "content": "wrong"}
    assert found.left_out == tuple(name for name in IDS if name != "two")
    info = json.loads((found.folder / "dataset_info.json").read_text())["rap"]
    assert info["ranking"] is True and info["columns"]["chosen"] == "chosen"
    assert "6 samples left out" in str(found) and "no GRPO" in str(found)


def test_no_pair_at_all_is_refused(selection, tmp_path):
    table = completions(("two", "right", True))
    with pytest.raises(RapInputError, match="none of 7 samples has a right and a wrong"):
        selection.export("llamafactory", tmp_path / "out", completions=table)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "slime"}, "to = 'slime': expected one of trl, verl"),
        ({"max_images": 0}, "max_images = 0"),
        ({"to": "trl", "data_source": "x"}, "only verl takes one, not trl"),
        ({"to": "trl", "completions": completions(("a", "b", True))}, "only LLaMA-Factory"),
    ],
)
def test_settings_that_make_no_sense(selection, tmp_path, options, message):
    with pytest.raises(RapConfigError, match=message):
        export(selection, path=tmp_path / "out", **{"to": "verl", **options})
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_is_cleared_up(selection, tmp_path):
    """Killed while it wrote, and between its two renames."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    selection.export("trl", tmp_path / "real")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    files = sorted(p.name for p in (tmp_path / "real").iterdir())
    (tmp_path / f".real.{gone.pid}.tmp").mkdir()
    (tmp_path / f".real.{os.getpid()}.tmp").mkdir()  # of a process that runs
    os.replace(tmp_path / "real", tmp_path / f".real.{gone.pid}.old")
    with pytest.raises(RapStoreError, match="is not empty"):  # it is back
        selection.export("trl", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    (tmp_path / f".real.{os.getpid()}.tmp").rmdir()
    selection.export("trl", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["out", "real"]


def test_an_answer_with_a_placeholder_is_refused_where_it_is_counted(tmp_path):
    file = make(tmp_path / "data")
    text = file.read_text()
    assert '"answer": "2"' in text
    file.write_text(text.replace('"answer": "2"', '"answer": "2 <image>"', 1))
    selection = select(file)
    with pytest.raises(RapInputError, match="holds '<image>', which llamafactory takes"):
        selection.export("llamafactory", tmp_path / "out")


def test_what_others_put_into_an_export_is_not_deleted(selection, tmp_path):
    selection.export("trl", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(RapStoreError, match="'notes.txt', which is not of the export"):
        selection.export("verl", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(RapStoreError, match="cannot be read, so it is not replaced"):
        selection.export("verl", tmp_path / "out", overwrite=True)


def test_an_empty_selection_is_refused(selection, tmp_path):
    empty = rap.choose(rap.Scores(selection.table, {}, selection.source), budget=0.01)
    assert len(empty) == 0
    with pytest.raises(RapInputError, match="keeps no sample"):
        empty.export("trl", tmp_path / "out")


def test_several_pictures_are_refused_by_name_where_one_is_taken(selection, tmp_path):
    with pytest.raises(RapInputError, match="'two' cannot be exported: .* 2 images"):
        selection.export("openrlhf", tmp_path / "out", max_images=1)
    assert os.listdir(tmp_path) == []


def test_a_loaded_selection_asks_for_its_data(selection, tmp_path):
    selection.save(tmp_path / "saved")
    loaded = rap.load(tmp_path / "saved")
    assert loaded.export("verl", tmp_path / "verl").samples == 7  # it is where it was
    moved = selection.settings["data"] | {"absolute": "/gone.jsonl", "path": "gone.jsonl"}
    loaded = rap.Selection(loaded.table, {**loaded.settings, "data": moved})
    with pytest.raises(
        RapInputError, match="does not know its data set .*gone.jsonl is not"
    ):
        loaded.export("trl", tmp_path / "out")
    again = loaded.export("trl", tmp_path / "out", data=selection.source)
    assert again.samples == 7


def test_another_data_set_is_refused(selection, tmp_path):
    rows = [dict(selection.source.row(i)) for i in range(len(selection.source))]
    root = selection.source.root
    shorter = open_samples(rows[:5], root=root)
    with pytest.raises(RapInputError, match="row 5 was 'glass' and is not there"):
        selection.export("trl", tmp_path / "out", data=shorter)
    rows[1]["id"] = "renamed"
    with pytest.raises(RapInputError, match="row 1 was 'turned' and is 'renamed'"):
        selection.export("trl", tmp_path / "out", data=open_samples(rows, root=root))


@pytest.mark.parametrize("what", ["text", "picture"])
def test_a_sample_that_changed_since_it_was_scored_is_refused(tmp_path, what):
    file = make(tmp_path / "data")
    selection = select(file)
    samples = selection.source
    hashes = [
        sample_sha256(item, load_images(item, max_pixels=10**6)[1]) for item in samples
    ]
    at = selection.table.schema.get_field_index("sample_sha256")
    table = selection.table.set_column(at, "sample_sha256", pa.array(hashes))
    selection = rap.Selection(table, selection.settings, samples)
    selection.export("trl", tmp_path / "unchanged")
    if what == "text":
        file.write_text(file.read_text().replace("What is 2?", "What was 2?"))
    else:
        (tmp_path / "data" / "glass.png").write_bytes(pictures()["plain.png"])
    says = {
        "text": r"1 of 7 selected .*: 'glass' \(row 5\) changed: its question, answer",
        "picture": "'glass' cannot be exported: changed",
    }
    with pytest.raises(RapInputError, match=says[what]):
        selection.export("trl", tmp_path / "out", data=file)


@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_a_picture_gone_or_damaged_is_refused_and_nothing_is_left(tmp_path, fault):
    file = make(tmp_path / "data")
    selection = select(file)
    selection.export("openrlhf", tmp_path / "out")
    before = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    last = tmp_path / "data" / "palette.gif"
    if fault == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:60])
    with pytest.raises(RapInputError, match="'palette' cannot be exported: image_"):
        selection.export("openrlhf", tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["data", "out"]
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == before


def test_text_that_a_trainer_takes_for_a_film_is_refused(selection, tmp_path):
    template = "{question}{choices} <video>"
    with pytest.raises(RapInputError, match="'turned' .* text holds '<video>'"):
        selection.export("verl", tmp_path / "out", prompt_template=template)
    selection.export("trl", tmp_path / "out", prompt_template=template)


def test_a_folder_in_use_is_refused(selection, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(RapStoreError, match="is not empty"):
        selection.export("trl", tmp_path / "out")
    with pytest.raises(RapStoreError, match="'thesis.tex' .* it is no export"):
        selection.export("trl", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_an_older_export_is_replaced_when_asked(selection, tmp_path):
    (tmp_path / "out").mkdir()  # empty: fine
    selection.export("openrlhf", tmp_path / "out")
    with pytest.raises(RapStoreError, match="--force"):
        selection.export("trl", tmp_path / "out")
    found = selection.export("trl", tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(found.folder)) == [MANIFEST, "train.parquet"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_older_export_stays_where_the_new_one_cannot_be_put(
    selection, tmp_path, monkeypatch
):
    """The rename into place fails after the older folder was moved aside."""
    out = tmp_path / "out"
    selection.export("trl", out)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    replace = os.replace

    def refuse(source: object, target: object) -> None:
        if str(source).endswith(".tmp") and Path(str(target)) == out:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RapStoreError, match="Input/output error"):
        selection.export("trl", out, overwrite=True, system_prompt="another")
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_same_selection_gives_the_same_bytes(selection, tmp_path):
    for target in TARGETS:
        for name in ("a", "b"):
            selection.export(target, tmp_path / name, media_root="/m", overwrite=True)
        for file in (tmp_path / "a").rglob("*.*"):
            other = tmp_path / "b" / file.relative_to(tmp_path / "a")
            assert file.read_bytes() == other.read_bytes(), (target, file.name)


def test_a_disk_that_refuses_is_a_store_error(selection, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RapStoreError, match="out: cannot be written: No space left"):
        selection.export("trl", tmp_path / "out")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- TRL


def test_trl_fills_in_the_pictures(selection, tmp_path):
    """As GRPOTrainer does it; it trains on it in ``make test-trainers``."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    from trl.data_utils import prepare_multimodal_messages

    found = selection.export("trl", tmp_path / "out")
    data = datasets.load_dataset(
        "parquet",
        data_files=str(found.folder / "train.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert trl.__version__.startswith("1.")
    assert data["id"] == IDS
    for k, row in enumerate(data):
        (message,) = prepare_multimodal_messages(row["prompt"], images=row["images"])
        *images, text = message["content"]
        assert [part["image"] for part in images] == row["images"]
        assert text == {"type": "text", "text": expected_prompt(k)}


# ---------------------------------------------------------------- verl's reward, logged


@pytest.fixture
def verl_reward(selection, tmp_path, monkeypatch):
    """``compute_score`` of the exported file, over a stand-in for verl's own."""
    stand_in = types.ModuleType("verl.utils.reward_score")
    stand_in.default_compute_score = lambda source, text, truth, extra_info, **more: (
        {"score": 0.1, "acc": 0} if text == "form only" else float(text == truth)
    )
    for name in ("verl", "verl.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "verl.utils.reward_score", stand_in)
    found = selection.export("verl", tmp_path / "out")
    module = types.ModuleType("rap_reward")
    exec((found.folder / "rap_reward.py").read_text(), module.__dict__)
    return module.compute_score, rows_of(found.folder)


def test_verls_own_rewards_are_passed_on_and_logged_by_id(verl_reward, tmp_path):
    compute_score, rows = verl_reward
    log = tmp_path / "rewards.jsonl"
    compute_score = functools.partial(compute_score, judge="verl")
    for text in ("0", "1", "form only"):
        row = rows[0]
        score = compute_score(
            row["data_source"],
            text,
            row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
            log=str(log),
        )
        assert score == ({"score": 0.1, "acc": 0} if text == "form only" else text == "0")
    compute_score("x", "0", "0", extra_info={"split": "test", "index": 3}, log=str(log))
    compute_score("x", "0", "0", extra_info=rows[1]["extra_info"])  # no log asked for
    assert pass_counts(read_visits([log])) == {"turned": (1.0, 3.0)}


def test_verl_counts_what_rap_counted(verl_reward, tmp_path):
    """The letter and the choice's text, as when scoring; verl's own knows the letter."""
    compute_score, rows = verl_reward
    log = tmp_path / "rewards.jsonl"
    row = rows[6]
    truth = row["reward_model"]["ground_truth"]
    said = ["\\boxed{B}", f"It is {CHOICES[1]}.", "\\boxed{A}", "<think>B", "A or B"]
    scores = [
        compute_score(
            row["data_source"], text, truth, extra_info=row["extra_info"], log=str(log)
        )
        for text in said
    ]
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert pass_counts(read_visits([log])) == {IDS[6]: (2.0, 5.0)}
    own = compute_score("my/rewards", truth, truth, extra_info=row["extra_info"])
    assert own == 1.0  # the stand-in for verl's: a data_source of the user's own


@pytest.mark.parametrize("target", ["trl", "verl", "easyr1", "openrlhf", "ms-swift"])
def test_the_exported_answer_is_what_the_exported_prompt_asks_for(tmp_path, target):
    """Letters where the prompt has letters, and an answer without markup else."""
    data = [
        {"id": str(k), "question": "How long?", "image": PNG, **row}
        for k, row in enumerate(
            [
                {"choices": list(CHOICES), "answer": CHOICES[1]},
                {"choices": list(CHOICES), "answer": "<answer>(B)</answer>"},
                {"choices": None, "answer": "<think>so</think><answer> 3 </answer>"},
                {"choices": None, "answer": "14 and 25"},
                {"choices": None, "answer": "C"},
            ]
        )
    ]
    found = everything(data).export(target, tmp_path / "out")
    latex = target in ("trl", "ms-swift")
    want = ["B", "B", "3", "14 and 25", "C"]
    if latex:
        want = ["$B$", "$B$", "3", "$14, 25$", "$C$"]
    answers = [prompt_and_answer(target, row)[1] for row in rows_of(found.folder)]
    assert answers == want
    for sample, answer in zip(open_samples(data), answers, strict=True):
        right = read_answer(sample.answer, sample.choices)
        assert grade(answer, sample.choices, f"\\boxed{{{right.letter or right.text}}}")
    bare = everything(data).export(target, tmp_path / "bare", prompt_template="{question}")
    assert prompt_and_answer(target, rows_of(bare.folder)[0])[1] == CHOICES[1]


def test_trls_accuracy_reward_reads_the_exported_letter(tmp_path):
    accuracy_reward = pytest.importorskip("trl.rewards").accuracy_reward
    row = {"id": "a", "question": "How long?", "image": PNG}
    data = [row | {"choices": list(CHOICES), "answer": CHOICES[1]}]
    found = everything(data).export("trl", tmp_path / "out")
    (solution,) = [row["solution"] for row in rows_of(found.folder)]
    said = [[{"role": "assistant", "content": f"\\boxed{{{x}}}"}] for x in "BA"]
    assert accuracy_reward(said, [solution] * 2) == [1.0, 0.0]


# ---------------------------------------------------------------- the shell


@pytest.fixture
def saved(tmp_path) -> Path:
    published().save(tmp_path / "selection")
    return tmp_path / "selection"


@pytest.mark.filterwarnings("default:columns of the data set")  # on stderr, as in a shell
@pytest.mark.parametrize("target", TARGETS)
def test_shell_exports_the_demo(saved, tmp_path, target):
    out = tmp_path / "out"
    command = ("export", saved, "--data", MATHVISION, "--to", target, "--out", out)
    text = run(*command).output
    assert "columns left out: answer_kind, level, subject" in text
    assert text.count("answer_kind") == 1 and "(--to parquet or jsonl keeps" in text
    assert f"9 samples for {target} in {out}" in text
    assert "9 images: 9 byte for byte" in text
    assert ("no GRPO" in text) == (target == "llamafactory")
    for row in rows_of(out):
        for data in encoded(row, out):
            decode(data, max_pixels=10**7)
    refused(*command, code=1, says="is not empty; --force")
    report = json.loads(run(*command, "--force", "--json").stdout)
    assert report["samples"] == 9 and report["target"] == target
    dropped = ["answer_kind", "level", "subject"]
    dropped += [] if target in ("verl", "openrlhf") else ["source"]
    assert report["dropped"] == dropped
    assert json.loads((out / MANIFEST).read_text())["dropped"] == dropped


def test_shell_refuses_by_name(saved, tmp_path):
    out = tmp_path / "out"
    there = ("export", saved, "--out", out, "--data", MATHVISION)
    refused(*there, "--to", "slime", code=2, says="'slime' is not one of 'trl'")
    refused(*there, "--to", "trl", "--data-source", "x", code=2, says="only verl takes one")
    refused(
        *there, "--to", "llamafactory", "--store", saved, code=1, says="no score store here"
    )
    refused(
        "export", tmp_path, "--out", out, "--data", MATHVISION, "--to", "trl",
        code=1, says="selection.parquet",
    )  # fmt: skip
    refused(
        "export", saved, "--out", out, "--data", tmp_path / "no", "--to", "trl",
        code=1, says="no such file",
    )  # fmt: skip
    assert not out.exists()


FAKE_VERL = """\
#!{python}
import json, pathlib, sys
import pyarrow.parquet as pq

assert sys.argv[1:3] == ["-m", "verl.trainer.main_ppo"], sys.argv
given = dict(x.lstrip("+").split("=", 1) for x in sys.argv[3:] if "=" in x)
assert given["data.shuffle"] == "False" and given["data.image_key"] == "images"
reward = "reward.custom_reward_function."
assert "def compute_score" in pathlib.Path(given[reward + "path"]).read_text()
rows = pq.read_table(given["data.train_files"])["extra_info"].to_pylist()
step = pathlib.Path("ckpt", "global_step_" + given["trainer.total_training_steps"])
(step / "transfer_queue").mkdir(parents=True)
(step / "data.pt").touch()
(step / "model.pt").touch()
with open(given[reward + "reward_kwargs.log"], "a") as log:
    for i, row in enumerate(rows):  # the first third has become trivial
        for k in range(8):
            right = 1.0 if i < len(rows) // 3 else float(k % 2)
            log.write(json.dumps({{"id": row["index"], "reward": right}}) + chr(10))
"""


def test_the_script_for_verl_runs_as_it_is_written(saved, tmp_path):
    """The phases in the module's docstring, with a stand-in for verl alone."""
    script = rap.export.write.__doc__.split("::\n\n", 1)[1].split("\n\nGiven all")[0]
    assert script.count("rap export $selection") == script.count("rap reselect") == 1
    for name, text in {
        "rap": f'#!/bin/sh\nexec {sys.executable} -m rap "$@"\n',
        "python": FAKE_VERL.format(python=sys.executable),
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = script.replace("data.jsonl", str(MATHVISION)).replace("1 2 3 4", "1 2")
    root = str(Path(rap.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    phases = [rows_of(tmp_path / f"phase{k}") for k in (1, 2)]
    first, second = ([row["extra_info"]["index"] for row in rows] for rows in phases)
    assert len(first) == len(second) == 9 and len(set(first) & set(second)) == 6
    assert os.listdir(tmp_path / "ckpt" / "global_step_50") == ["model.pt"]
    assert rap.load(tmp_path / "selection2").settings["reselect"]["phase"] == 2
