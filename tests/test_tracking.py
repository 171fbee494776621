"""``report_to``: what a run tells TensorBoard, W&B, trackio while it goes on."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from model_inputs import built, picture
from test_train_command import FEW, shell
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from trl_inputs import selection_of

import rap
from rap.demo import world
from rap.errors import RapConfigError
from rap.samples.sampleset import open_samples
from rap.scoring.tracking import trackers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")

ROWS = [
    {"id": f"s{i}", "question": "How many?", "answer": "3", "image": picture(60, 60, i)}
    for i in range(5)
]
ROWS[3]["image"] = b"no image"
OPTIONS = {
    "evidence": "answer",
    "progress": False,
    "shard_size": 2,
    "max_bad_fraction": 1.0,
}


class Noted(TrainerCallback):
    """A tracker that keeps what it is told."""

    made: list[Noted] = []
    fails = ""

    def __init__(self):
        Noted.made.append(self)
        self.events = []

    def _note(self, event, args, state, logs=None):
        if event == self.fails:
            raise OSError("no network")
        self.events.append((event, state.global_step, dict(logs or {})))
        self.args = args

    def on_train_begin(self, args, state, control, **more):
        self.model = more["model"]
        self._note("begin", args, state)

    def on_log(self, args, state, control, logs=None, **more):
        self._note("log", args, state, logs)

    def on_train_end(self, args, state, control, **more):
        self._note("end", args, state)


@pytest.fixture
def noted(monkeypatch):
    """The class of a tracker that is called "noted", installed."""
    monkeypatch.setattr(Noted, "made", [])
    monkeypatch.setattr(Noted, "fails", "")
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "noted", Noted)
    monkeypatch.setattr(
        integration_utils, "get_available_reporting_integrations", lambda: ["noted"]
    )
    return Noted


def test_scoring_reports_after_every_shard(noted, tmp_path):
    model, processor = built("qwen2_5_vl")
    given = model, processor, ROWS
    scores = rap.score(*given, report_to="noted", store=tmp_path / "scores", **OPTIONS)
    (tracker,) = noted.made
    kinds = [kind for kind, _, _ in tracker.events]
    assert kinds == ["begin", "log", "log", "log", "end"] and tracker.model is model
    logs = [values for kind, _, values in tracker.events if kind == "log"]
    assert [step for kind, step, _ in tracker.events if kind == "log"] == [2, 4, 5]
    assert [v["samples"] for v in logs] == [2, 4, 5]
    assert [v["quarantined"] for v in logs] == [0, 1, 1]
    assert all(v["samples_per_second"] > 0 for v in logs)
    table = scores.table
    for values, rows in zip(logs, ([0, 1], [2], [4]), strict=True):  # row 3 has no image
        for name in ("kl", "js", "p_answer1"):
            mean = np.mean(table.column(name).take(rows).to_numpy())
            assert values[name] == pytest.approx(mean, rel=1e-6)
    assert tracker.args.to_dict()["evidence"] == "answer"
    assert tracker.args.run_name == "scores"
    again = rap.score(*given, report_to=["noted"], store=tmp_path / "scores", **OPTIONS)
    assert [e[0] for e in noted.made[1].events] == ["begin", "end"]  # nothing to score
    plain = rap.score(*given, **OPTIONS).table.drop_columns(["seconds"])
    assert table.drop_columns(["seconds"]).equals(plain)
    assert again.table.equals(table)


def test_a_tracker_that_fails_does_not_end_the_run(noted, monkeypatch):
    monkeypatch.setattr(Noted, "fails", "log")
    with pytest.warns(RuntimeWarning, match="'noted' failed and is left out.*no network"):
        scores = rap.score(*built("qwen2_5_vl"), ROWS, report_to="noted", **OPTIONS)
    assert scores.table.num_rows == 5
    monkeypatch.setattr(Noted, "fails", "begin")
    with pytest.raises(RapConfigError, match="'noted': it cannot begin: no network"):
        rap.score(*built("qwen2_5_vl"), ROWS, report_to="noted", **OPTIONS)


def test_names_that_cannot_be_reported_to(noted):
    assert trackers(None) == trackers([]) == trackers("none") == ()
    assert trackers("all") == trackers(["noted"]) == ("noted",)
    for name, words in {
        "wandb": "report_to = 'wandb' needs wandb: pip install wandb",
        "tensorboard": "needs tensorboard: pip install tensorboard",
        "trackio": "needs trackio: pip install trackio",
        "comet_ml": "needs comet-ml: pip install comet-ml",
        "wandbb": "expected none, all or some of .*wandb",
    }.items():
        with pytest.raises(RapConfigError, match=words):
            trackers([name])
    with pytest.raises(RapConfigError, match="one process reports, and executor 'env'"):
        rap.score("m", data=ROWS, report_to="noted", executor="env", store="s")


def test_reporting_needs_accelerate(monkeypatch):
    monkeypatch.setattr("rap.errors._installed", lambda name: name != "accelerate")
    with pytest.raises(RapConfigError, match="report_to needs accelerate: pip install acc"):
        trackers("tensorboard")


def test_tensorboard_files_need_a_store(monkeypatch):
    monkeypatch.setattr(
        integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    with pytest.raises(RapConfigError, match=r"pass store=\.\.\."):
        rap.score("m", data=ROWS, report_to="tensorboard")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob("runs/*/events.*")
    found = EventAccumulator(str(file))
    found.Reload()
    return {
        tag: [(e.step, e.value) for e in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_shows_what_was_scored(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own
        scores = rap.score(
            *(*built("qwen2_5_vl"), ROWS),
            report_to="tensorboard",
            store=tmp_path / "scores",
            **OPTIONS,
        )
        found = curves(tmp_path / "scores")
    assert found["train/quarantined"] == [(2, 0), (4, 1), (5, 1)]
    last = scores.table.column("kl")[4].as_py()
    assert found["train/kl"][-1] == (5, pytest.approx(last, rel=1e-5))
    assert rap.Scores.load(tmp_path / "scores").table.num_rows == 5


# ---------------------------------------------------------------- training


@pytest.fixture
def data(tmp_path):
    path = world.write(world.draw(24, seed=2), tmp_path / "data")
    selection_of(open_samples(path), [1, 5, 6, 9]).save(tmp_path / "selection")
    return path, tmp_path / "selection"


def test_training_reports(noted, data, tmp_path):
    pytest.importorskip("trl", reason="training needs trl")
    path, selection = data
    words = path, "--selection", selection, "--out", tmp_path / "run", *FEW
    shell(*words, "--report-to", "noted")
    (tracker,) = noted.made
    rewards = [(step, v["reward"]) for kind, step, v in tracker.events if "reward" in v]
    assert [step for step, _ in rewards] == [1, 2]


def test_training_says_what_a_tracker_needs(noted, data, tmp_path):
    pytest.importorskip("trl", reason="training needs trl")
    path, selection = data
    words = path, "--selection", selection, "--out", tmp_path / "run", *FEW
    (tmp_path / "c.yaml").write_text("report_to: wandb\n")
    for more in (
        ("--report-to", "wandb"),
        ("--set", 'report_to=["wandb"]'),
        ("--set", "report_to=wandb"),
        ("--config", tmp_path / "c.yaml"),
    ):
        said = " ".join(shell(*words, *more, code=2).split())
        assert "report_to = 'wandb' needs wandb: pip install wandb" in said
    assert not (tmp_path / "run" / "model").exists()
