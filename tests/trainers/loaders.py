"""Every export, read by the trainer's own loader: ``make test-trainers``.

Not part of the ordinary suite (its name is no test's): each trainer lives in an overlay
folder of its own, because no one environment can hold them. What was loaded when, and in
which version, is in RESULTS.md here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from export_data import IDS, make, select  # noqa: E402

import rap  # noqa: E402
from rap.samples.answers import answer_to_train  # noqa: E402
from rap.samples.sampleset import load_images  # noqa: E402
from rap.samples.stated import prompt_text  # noqa: E402
from rap.selection.reselection import pass_counts  # noqa: E402
from rap.trl.rewardfile import read_visits  # noqa: E402

OVERLAYS = Path(os.environ.get("RAP_TRAINERS", HERE.parents[1] / ".venv-trainers"))


@pytest.fixture(scope="module")
def selection(tmp_path_factory) -> rap.Selection:
    return select(make(tmp_path_factory.mktemp("data")))


def read(trainer: str, folder: Path) -> list[dict]:
    """What ``readers.py`` gets out of ``folder`` where ``trainer`` is installed."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env["HF_HOME"] = env["MODELSCOPE_CACHE"] = str(folder.parent / "cache")
    if trainer != "trl":  # the test environment has it
        env["PYTHONPATH"] = str(OVERLAYS / trainer)
        assert (OVERLAYS / trainer).is_dir(), f"no {OVERLAYS / trainer}: make test-trainers"
    command = [sys.executable, str(HERE / "readers.py"), trainer, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected(
    selection: rap.Selection, *, ids: bool = True, latex: bool = False
) -> list[dict]:
    rows = []
    for index in selection.indices:
        sample = selection.source[int(index)]
        images, _ = load_images(sample, max_pixels=10**6)
        prompt = prompt_text("{question}{choices}", sample.question, sample.choices)
        rows.append(
            {
                "id": sample.id if ids else None,
                "reason": "kept_cognitive" if ids else None,
                "text": "<image>" * len(images) + prompt,
                "answer": answer_to_train(sample.answer, sample.choices, True, latex=latex),
                "images": [
                    [*x.size, hashlib.sha256(x.tobytes()).hexdigest()] for x in images
                ],
            }
        )
    return rows


@pytest.mark.parametrize("trainer", ["verl", "openrlhf", "ms-swift", "llamafactory"])
def test_the_trainers_loader_reads_what_was_scored(selection, tmp_path, trainer):
    """Rows, order, ids where it keeps them, prompts, answers, pixels."""
    found = selection.export(trainer, tmp_path / "out")
    rows = read(trainer, found.folder)
    latex = trainer == "ms-swift"
    assert rows == expected(selection, ids=trainer in ("verl", "ms-swift"), latex=latex)
    if trainer == "verl":  # each was judged once right, once wrong
        passes = pass_counts(read_visits([found.folder / "rewards.jsonl"]))
        assert passes == dict.fromkeys(IDS, (1.0, 2.0))


def test_trl_trains_on_it(selection, tmp_path):
    found = selection.export("trl", tmp_path / "out")
    rows = read("trl", found.folder)
    assert [row["id"] for row in rows] == IDS
    assert rows == expected(selection, latex=True)


def test_llamafactory_reads_dpo_pairs(selection, tmp_path):
    texts = [
        (name, f"{x} {name}", x == "right") for name in IDS for x in ("right", "wrong")
    ]
    names, said, correct = zip(*texts, strict=True)
    arms = ["image"] * len(texts)
    table = pa.table({"id": names, "arm": arms, "text": said, "correct": correct})
    found = selection.export("llamafactory", tmp_path / "out", completions=table)
    rows = read("llamafactory", found.folder)
    assert [row["answer"] for row in rows] == [[f"right {x}", f"wrong {x}"] for x in IDS]
    want = expected(selection, ids=False)
    assert [row["images"] for row in rows] == [row["images"] for row in want]


@pytest.mark.parametrize("target", ["trl", "verl", "easyr1"])
def test_an_old_datasets_decodes_the_parquet(selection, tmp_path, target):
    found = selection.export(target, tmp_path / "out")
    rows = read("datasets-3.6", found.folder)
    want = expected(selection)
    assert [row["id"] for row in rows] == IDS
    assert [row["images"] for row in rows] == [row["images"] for row in want]
    tagged = [
        r["text"].replace("<image>", "") if target == "trl" else r["text"] for r in want
    ]
    assert [row["text"] for row in rows] == tagged
