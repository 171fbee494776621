"""The benchmarks on tiny shapes: they check before they time, and keep what they find."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rap
from benchmarks import (
    bench_ace,
    bench_call,
    bench_cde,
    bench_drm,
    bench_limits,
    bench_linear,
    bench_scoring,
    common,
    plots,
    run,
    scoring_estimate,
)
from benchmarks.shapes import MODELS, Shape
from rap import _C
from rap.model.counts import Counts

SMALL = Shape("small", 1003, 64, 4, 2, 16)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every piece on small shapes, one run each, no compiler, no gradients."""
    for module in (bench_cde, bench_linear, bench_ace):
        monkeypatch.setattr(module, "QWEN", SMALL)
        monkeypatch.setattr(module, "MODELS", (SMALL,) * 6)
    monkeypatch.setattr(bench_limits, "fastest_reader", lambda: "torch.sum")

    def no_compiler(function):
        raise RuntimeError("no compiler in this test")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with torch.no_grad():
        yield


def made(**change) -> common.Row:
    row = common.Row("cde", "kl", "T=1", "torch", "ms", 1.0, 30.0, 30.0, asked=30.0)
    return dataclasses.replace(row, **change)


def test_a_row_knows_whether_what_is_asked_is_reached():
    assert made().met is True
    assert made(ratio=29.9).met is False
    assert made(at_most=True, ratio=1.3, asked=1.25).met is False
    assert made(at_most=True, ratio=1.2, asked=1.25).met is True
    assert made(asked=None).met is None
    alone = made(rival="", theirs=None, ratio=None, at_most=True, asked=3.0, unit="us")
    assert alone.met is True and dataclasses.replace(alone, ours=3.1).met is False


def test_ratios_point_the_right_way():
    assert common.row("cde", "w", "s", "r", "ms", 2.0, 6.0).ratio == 3.0
    assert common.row("cde", "w", "s", "r", "ms", 6.0, 4.0, at_most=True).ratio == 1.5


@pytest.mark.parametrize("wrong", [1.1, np.nan, np.inf])
def test_a_wrong_result_is_refused(wrong):
    common.check("same", [1.0, -np.inf], [1.0 + 1e-7, -np.inf], 1e-6)
    with pytest.raises(common.WrongResult):
        common.check("wrong", [wrong], [1.0], 1e-6)


def test_a_wrong_kernel_is_never_timed(monkeypatch, tmp_path, capsys):
    right = rap.cde

    def wrong(*args, **options):
        answer = right(*args, **options)
        return answer._replace(kl=None if answer.kl is None else answer.kl * 1.01)

    monkeypatch.setattr(rap, "cde", wrong)
    monkeypatch.setattr(common, "in_turn", None)  # calling it would be a TypeError
    assert run.measure("cde", True, tmp_path) == 2
    assert "wrong result, not timed: cde kl" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_peak_memory_is_that_of_the_call():
    if common.peak_mb(lambda: None) is None:
        pytest.skip("/proc/self/clear_refs is not writable here")
    kept = np.ones(4 << 20)  # 32 MiB: not part of the call
    assert 100 < common.peak_mb(lambda: np.ones(16 << 20)) < 160  # 128 MiB
    assert common.peak_mb(lambda: kept.sum()) < 8


def test_rows_survive_the_file(tmp_path):
    rows = [
        made(),
        made(ratio=None, theirs=None, axis="T", x=4.0, at_most=True, ours_mb=0.5),
    ]
    common.save(rows, tmp_path / "cde.csv")
    assert common.read(tmp_path / "cde.csv") == rows


def test_the_table_names_what_is_missed():
    text = common.table([made(), made(ratio=12.0), made(asked=None)])
    first, second = text.splitlines()[2:]
    assert "30x | >= 30x | met" in first and "12x | >= 30x | MISSED" in second


def test_a_rival_that_is_not_installed_is_named(capsys):
    assert common.optional("no_such_module", "thing") is None
    assert common.optional("math", "no_such_name") is None
    assert "left out: no_such_module.thing" in capsys.readouterr().out


@pytest.mark.proof
def test_pieces_measure_something_and_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_call, "microseconds", lambda call, windows: (call(), 1.0)[1])
    monkeypatch.setattr(bench_ace, "run_matrix", lambda n, f=bench_ace.run_matrix: f(96))
    monkeypatch.setattr(bench_ace, "run_sdpa", lambda n, f=bench_ace.run_sdpa: f(96))
    monkeypatch.setattr(bench_ace, "run_layer", lambda n, f=bench_ace.run_layer: f(96))
    monkeypatch.setattr(bench_drm, "run_large", lambda n, f=bench_drm.run_large: f(50_000))
    monkeypatch.setattr(bench_drm, "run_ties", lambda n, f=bench_drm.run_ties: f(50_000))
    monkeypatch.setattr(
        bench_drm, "run_kinds", lambda n, counts, f=bench_drm.run_kinds: f(20_000, (300,))
    )
    monkeypatch.setattr(
        bench_drm, "run_growth", lambda n, f=bench_drm.run_growth: f(100_000)
    )
    monkeypatch.setattr(
        bench_linear,
        "against_products",
        lambda *a, f=bench_linear.against_products, **k: f(8, 32, 3000, "s", 0.1, True),
    )
    monkeypatch.setattr(
        bench_scoring, "wide_model", lambda *a, f=bench_scoring.wide_model: f(128, 1, 1003)
    )
    for name in ("counts", "padding"):
        whole = getattr(bench_scoring, name)
        monkeypatch.setattr(bench_scoring, name, lambda m, p, n, f=whole: f(m, p, 4))
    monkeypatch.setattr(
        bench_scoring,
        "against_rivals",
        lambda m, p, n, budget, f=bench_scoring.against_rivals: f(m, p, 2, budget),
    )
    monkeypatch.setattr(common, "in_turn", lambda a, b, budget: (b(), a(), (1e-3, 2e-3))[2])
    for piece in run.PIECES[1:]:
        assert run.measure(piece, True, tmp_path) == 0, piece
        assert common.read(tmp_path / f"{piece}.csv")
    said = capsys.readouterr().out
    assert "left out: torch.compile: no compiler in this test" in said
    assert run.main(["--table", "--out", str(tmp_path)]) == 1  # ratios of 2 miss 30
    shown = capsys.readouterr().out
    for name in (
        "cde KL both ways",
        "linear_cde KL",
        "ace head mean",
        "drm top 9 %",
        "scoring",
    ):
        assert f"| {name}" in shown
    assert (tmp_path / "table.md").is_file()
    said = (tmp_path / "scoring.md").read_text()
    assert (
        "| images encoded a sample | evidence=logits N=4 | - | 1 x | <= 1 x | met" in said
    )
    assert "| scoring samples: rollouts | N=2 batch=8 | driver of a64b6dc | 2x |" in said
    assert "estimated, not measured" in said
    for axis in "TVLN":
        assert (tmp_path / f"growth_{axis}.png").stat().st_size > 10_000


def test_the_estimate_of_hours_is_its_formula():
    work = scoring_estimate.Work("w", 2, 1000, 3, 0.001, padded=1.5, image=0.055)
    token = 2 * 7.6e9 / (0.4 * 790e12)
    expected = 2 * 0.055 + 1000 * 1.5 * token + 3 * 256 * 0.001
    assert work.seconds == pytest.approx(expected, rel=1e-12)
    assert work.hours == pytest.approx(expected * 50_000 / 3600, rel=1e-12)
    # what the reading of the code at a64b6dc came to: 15 and 29 h
    logits, rollouts = (work.hours for work in scoring_estimate.TODAY)
    assert 13 < logits < 17 and 26 < rollouts < 32
    ours = scoring_estimate.works(images=1.0, again=1.0, padded=1.0, share=0.2)
    assert all(w.hours < logits for w in ours if w.name.startswith("logits"))
    assert [w.completions for w in ours] == [1, 1, 10, 10, 2, 2, 2]
    assert [w.images for w in ours] == [1, 1, 1, 2, 1, 2, 2]
    # one call a layer: 37 us for each of 1,257 launches, but no faster than its FLOP
    assert scoring_estimate.image_seconds(10_784, 8) == pytest.approx(0.055)
    assert scoring_estimate.image_seconds(32, 8) == pytest.approx(3.3e12 / (0.4 * 790e12))
    one = 0.055 * 8 / (10_784 + 1_225)
    assert scoring_estimate.image_seconds(32, 1) == pytest.approx(1_257 * one)
    # twice the padding costs the tokens read again, and nothing else
    more = scoring_estimate.works(images=1.0, again=1.0, padded=2.0, share=0.2)
    gain = more[0].seconds - ours[0].seconds
    assert gain == pytest.approx((709 + 256 + 6 + 100 + 256) * token, rel=1e-9)


def test_the_driver_of_before_must_do_more():
    ours = SimpleNamespace(counts=Counts(images_encoded=4))
    before = SimpleNamespace(counts=Counts(images_encoded=12))
    bench_scoring.check_before(ours, before, "logits", 4)
    for a, b, evidence in ((before, before, "logits"), (ours, before, "rollouts")):
        with pytest.raises(common.WrongResult):
            bench_scoring.check_before(a, b, evidence, 4)


def test_growth_is_drawn_per_rival():
    rows = [made(axis="T", x=x, ours=x, theirs=9 * x) for x in (4.0, 1.0)]
    assert plots.series(rows, "T") == {
        "rap": [(1.0, 1.0, None), (4.0, 4.0, None)],
        "torch": [(1.0, 9.0, None), (4.0, 36.0, None)],
    }


def test_missing_runs_only_what_has_no_results(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(run, "start", lambda piece, *rest: started.append(piece) or True)
    for piece in run.PIECES[:-1]:
        common.save([made()], tmp_path / f"{piece}.csv")
    assert run.main(["--missing", "--out", str(tmp_path)]) == 0
    assert started == [run.PIECES[-1]]


def test_isa_holds_for_both_sides_and_is_told(tmp_path):
    """A process of its own, as a piece is: the libraries read their limits when loaded."""
    if "avx2" not in _C.isa_names():
        pytest.skip("this processor has no AVX2")
    code = (
        "import torch; from rap import _C; from benchmarks import common;"
        "r = common.row('cde', 'w', 's', 'r', 'ms', 1.0, 2.0);"
        "assert r.isa == 'avx2' and r.rival_isa == 'ATen AVX2, oneDNN AVX2', r"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        env={**os.environ, **run.AVX2}, cwd=run.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_piece_that_fails_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "start", lambda piece, *rest: piece != "ace")
    assert run.main(["--out", str(tmp_path)]) == 2
    assert "failed: ace" in capsys.readouterr().err


def test_shapes_can_be_attended_with():
    assert all(m.heads % m.kv_heads == 0 for m in MODELS)
    assert len({m.name for m in MODELS}) == len(MODELS)
