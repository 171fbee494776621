"""The base install: NumPy, Arrow, click and pydantic, no torch; nothing else is imported
here. ``make test-lowest`` and ``make test-pythons`` run it where there is nothing else."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import rap
from rap import reference
from rap.cli.commands import main

RULES = ("budget", "learn", "paper")


def close(got, want) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_kernels_agree_with_their_specification(rng):
    l1, l0 = rng.normal(size=(2, 6, 50)).astype(np.float32)
    targets = rng.integers(0, 50, 6)
    want = reference.cde(l1, l0, targets=targets)
    for name, values in rap.cde(l1, l0, targets=targets).to_dict().items():
        close(values, want[name])
    head = rng.normal(size=(50, 8)).astype(np.float32)
    h1, h0 = rng.normal(size=(2, 6, 8)).astype(np.float32)
    want = reference.linear_cde(h1, h0, head, softcap=4.0)
    for name, values in rap.linear_cde(h1, h0, head, softcap=4.0).to_dict().items():
        close(values, want[name])
    q, k = rng.normal(size=(4, 30, 8)), rng.normal(size=(2, 30, 8))
    q, k = q.astype(np.float32), k.astype(np.float32)
    want = reference.ace_sample(q, k, response_start=10)
    got = rap.ace(q, k, response_start=10)
    close(got.log_psi[0], want["log_psi"][0])
    close(got.log_psi_columns, want["log_psi_columns"][0])
    assert rap.drm(np.array([0.5, 0.75, 1.0, 0.25]), 2).tolist() == [1, 0]


def rollouts(n: int = 60) -> pa.Table:
    """Eight graded completions a sample; every second needs its image."""
    rows = [
        {"id": f"s{i}", "with_image": image, "correct": (i * 7 + j * 3) % 8 < right}
        for i in range(n)
        for image in (True, False)
        for j in range(4)
        for right in [(2 + i % 5) if image else (2 + i % 5) * (i % 2)]
    ]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("rule", RULES)
def test_a_selection_of_rollouts_is_saved_and_read(rule, tmp_path):
    scores = rap.Scores.from_rollouts(rollouts())
    budget = {} if rule == "paper" else {"budget": 0.1}
    chosen = rap.choose(scores, rule=rule, **budget)
    assert chosen.table.num_rows == 60
    if rule != "paper":
        assert 0 < len(chosen.indices) <= 6
    chosen.save(tmp_path / "selection")
    again = rap.load(tmp_path / "selection")
    assert again.indices.tolist() == chosen.indices.tolist()
    assert again.table.equals(chosen.table) and again.summary() == chosen.summary()


def test_the_shell_chooses_and_says_what_is_missing(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(rollouts(), tmp_path / "rollouts.parquet")
    run = CliRunner().invoke
    words = ["select", "--rollouts", str(tmp_path / "rollouts.parquet"), "--budget", "0.1"]
    found = run(main, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["kept"] == len(rap.load(tmp_path / "out").indices)
    assert run(main, ["info"]).exit_code == 0
    assert rap.__version__ in run(main, ["--version"]).output
