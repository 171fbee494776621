"""Scores and selections as a notebook, a DataFrame, a log and the hub show them."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_report import png, rollout_row

import rap
from rap.errors import RapConfigError, RapInputError
from rap.samples.sampleset import open_samples
from rap.scores.scores import Scores
from rap.scores.table import table_from_rows
from rap.scoring import filling, plan
from rap.selection.choosing import choose


@pytest.fixture
def chosen(tmp_path):
    """Three of six samples, each with an image in a file."""
    lines = []
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png((40 * i, 90, 200), (8, 4)))
        lines.append(
            {"id": f"s{i}", "question": f"Dots in {i}?", "answer": str(i), "topic": "dots"}
            | {"image": f"{i}.png"}
        )
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [rollout_row(i, c1, 0) for i, c1 in enumerate((4, 3, 2, 5, 0))]
    rows.append({"id": "s5", "index": 5, "status": "quarantined", "code": "image_missing"})
    scores = Scores(table_from_rows(rows), {}, open_samples(path))
    return choose(scores, budget=0.5)


# ---------------------------------------------------------------- notebooks


def test_a_selection_shows_its_counts(chosen):
    text = chosen._repr_html_()
    assert "3 of 6 samples kept (50.00%)" in text and "rule budget" in text
    for reason, count in chosen.counts().items():
        shown = re.search(rf"<code>{reason}</code></td><td [^>]*>(\d+)</td>", text)
        assert (shown is not None) == (count > 0), reason
        assert shown is None or int(shown[1]) == count
    assert text.count("<img") == 3
    # neither a colour of text nor a ground: those are the notebook's, light or dark
    bare = re.sub(r"<img[^>]*>|<div style='background:#\w+;height[^>]*>", "", text)
    assert not re.search(r"[^-]color:|background:#", bare)


def test_scores_show_what_was_scored_and_what_was_set_aside():
    rows = [rollout_row(0, 4, 0), rollout_row(1, 4, 0)]
    evil = "<b>x"
    rows.append({"id": "q", "index": 2, "status": "quarantined", "code": evil})
    scores = Scores(table_from_rows(rows), {})
    text = scores._repr_html_()
    assert "2 of 3 samples scored" in text and "evidence rollouts" in text
    assert "quarantined_&lt;b&gt;x" in text and evil not in text
    assert repr(scores) == "<rap.Scores: 3 samples, evidence rollouts>"


@pytest.fixture
def figure(chosen):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of matplotlib's own imports
        yield chosen.plot()


def test_case_38_a_plot_shows_itself_whatever_the_backend(figure):
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        assert picture.size[0] > 800
        pixels = np.asarray(picture.convert("RGBA"))
    assert pixels[0, 0, 3] == 0  # the notebook's ground, light or dark
    assert (pixels[..., 3] > 0).mean() > 0.02


def test_a_plot_holds_every_sample_that_was_measured(figure, chosen):
    every, kept = figure.axes[0].containers[:2]
    assert sum(bar.get_height() for bar in every) == 5
    assert sum(bar.get_height() for bar in kept) == len(chosen) == 3
    assert "not measured" in [t.get_text() for t in figure.axes[2].texts]


def test_no_legend_of_a_plot_lies_over_its_bars(figure):
    figure.draw_without_rendering()
    (legend,) = figure.legends
    text = [t.get_text() for t in legend.get_texts()]
    assert text == ["all", "kept", "threshold"]
    assert all(axes.get_legend() is None for axes in figure.axes)
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_tables_become_data_frames(chosen):
    pytest.importorskip("pandas")
    frame = chosen.to_pandas()
    assert list(frame.index) == [*range(6)] and frame.index.name == "index"
    assert frame["reason"].tolist() == chosen.table["reason"].to_pylist()
    assert chosen.to_pandas(kept=True)["id"].tolist() == chosen.ids


# ---------------------------------------------------------------- progress


def test_case_37_a_job_log_gets_a_line_every_half_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(filling.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # no terminal under pytest
    with filling.Bar(10_000, 1000, True) as bar:
        for _ in range(8):
            now[0] += 10.0
            bar.advance(100, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "scoring: 1,300 of 10,000 samples, 10 a second, 0:14:30 left, 2 quarantined",
        "scoring: 1,600 of 10,000 samples, 10 a second, 0:14:00 left, 2 quarantined",
    ]


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (1, ["scoring"]),
        (2, ["scoring the pilot, round 1 of 2", "scoring the rest, round 2 of 2"]),
        (
            3,
            [
                "scoring the pilot, round 1 of 3",
                "scoring, round 2 of 3",
                "scoring the rest, round 3 of 3",
            ],
        ),
    ],
)
def test_each_pass_has_a_name_of_its_own_in_the_bar_and_in_the_log(
    monkeypatch, capsys, of, names
):
    assert [plan.name_of(k, of) for k in range(of)] == names
    now = [0.0]
    monkeypatch.setattr(filling.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # no terminal under pytest
    with filling.Bar(10, 0, True, name=names[-1]) as bar:
        now[0] += 40.0
        bar.advance(5, 0)
    assert capsys.readouterr().err.startswith(f"{names[-1]}: 5 of 10 samples")


@pytest.mark.parametrize("progress", [False, "force"])
def test_no_lines_where_they_are_not_asked_for(monkeypatch, capsys, progress):
    now = [0.0]
    with filling.Bar(10, 0, progress) as bar:
        monkeypatch.setattr(filling.time, "monotonic", lambda: now[0])
        now[0] += 100.0
        bar.advance(5, 0)
    assert "a second" not in capsys.readouterr().err


# ---------------------------------------------------------------- the hub


class Hub:
    """In place of huggingface_hub.HfApi: keeps what it is told."""

    calls: list = []
    error: Exception | None = None

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, **options):
        if self.error is not None:
            raise self.error
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, *, folder_path, **options):
        files = {
            str(p.relative_to(folder_path)): p.read_bytes()
            for p in sorted(folder_path.rglob("*"))
            if p.is_file()
        }
        self.calls.append(("upload", files, options))


@pytest.fixture
def hub(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    return Hub


def test_a_selection_goes_to_the_hub_with_images_scores_and_a_card(chosen, hub, tmp_path):
    import pyarrow.parquet as pq

    found = chosen.push_to_hub("me/dots", license="mit", token="t")
    assert found == "https://huggingface.co/datasets/me/dots"
    create, upload = hub.calls
    assert create == (
        "create",
        "me/dots",
        {"repo_type": "dataset", "private": True, "exist_ok": True},
    )
    _, files, options = upload
    assert options["repo_id"] == "me/dots" and options["repo_type"] == "dataset"
    assert list(files) == ["README.md", "data/train-00000-of-00001.parquet"]
    table = pq.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"]))
    rows = table.to_pylist()
    assert [r["id"] for r in rows] == chosen.ids
    assert [r["topic"] for r in rows] == ["dots"] * 3  # rows as they came in
    for row in rows:  # images were paths, which nobody else has
        original = (tmp_path / f"{row['id'][1:]}.png").read_bytes()
        assert [image["bytes"] for image in row["images"]] == [original]
        assert row["rap_reason"].startswith("kept_") and row["rap_D"] > 0
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"]["feature"]["_type"] == "Image"
    card = files["README.md"].decode()
    assert card.startswith("---\n") and 'license: "mit"' in card
    assert "3 of 6 samples (50.00%)" in card and "| `kept_cognitive` | 3 |" in card
    assert str(tmp_path) not in card  # no path of this machine
    assert all(str(tmp_path).encode() not in data for data in files.values())


def test_the_card_is_metadata_that_the_hub_reads(chosen):
    yaml = pytest.importorskip("yaml")
    from rap.export.hub import card

    text = card(chosen, "me/dots: a 'name'")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["pretty_name"] == "dots: a 'name'"
    (config,) = head["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


def test_without_a_network_the_hub_is_refused_by_a_sentence(chosen, hub, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RapConfigError, match=r"HF_HUB_OFFLINE is set.*sel.export\('parq"):
        chosen.push_to_hub("me/dots")
    assert hub.calls == []


def test_what_the_hub_refuses_is_said(chosen, hub, monkeypatch):
    monkeypatch.setattr(hub, "error", OSError("401 not logged in"))
    with pytest.raises(RapConfigError, match="401 not logged in .*hf auth login"):
        chosen.push_to_hub("me/dots")


def test_a_network_that_is_not_there_is_said(chosen, hub, monkeypatch):
    """httpx's errors, which the hub's library lets through, are no OSErrors."""
    httpx = pytest.importorskip("httpx2")
    monkeypatch.setattr(hub, "error", httpx.ConnectError("Name or service not known"))
    with pytest.raises(RapConfigError, match="me/dots: Name or service not known"):
        chosen.push_to_hub("me/dots")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dots", {}, "owner/name"),
        ("me/dots", {"add": ["colour"]}, "no column 'colour'; it has id"),
    ],
)
def test_a_wrong_upload_is_refused_before_it_is_sent(chosen, hub, name, options, said):
    with pytest.raises(RapConfigError, match=said):
        chosen.push_to_hub(name, **options)
    assert hub.calls == []


def test_an_image_that_changed_is_not_uploaded(chosen, hub):
    table = chosen.table
    at = table.schema.get_field_index("image_sha256")
    wrong = table.set_column(at, "image_sha256", pa.array(["0" * 64] * 6))
    other = rap.Selection(wrong, chosen.settings, chosen.samples)
    with pytest.raises(RapInputError, match="its image is another"):
        other.push_to_hub("me/dots")
    assert hub.calls == []
