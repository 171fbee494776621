"""A store is a cache a sample: what an edited data set has unchanged keeps its scores."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from model_inputs import png
from scoring_inputs import question_row
from tiny_models import build

import rap
from rap.config import Sampling
from rap.errors import RapConfigError
from rap.samples.sampleset import open_samples
from rap.scores.files import read_parquet, write_parquet
from rap.scores.previous import Reuse
from rap.scores.store import ScoreStore
from rap.scores.table import ROLLOUT_SCHEMA, VOLATILE_COLUMNS, table_from_rows
from rap.scoring import filling
from rap.scoring.run import score

N = 22
OPTIONS: dict[str, dict[str, Any]] = {
    "answer": {"evidence": "answer"},
    "logits": {"evidence": "logits", "sampling": Sampling(max_new_tokens=6)},
    "rollouts": {
        "evidence": "rollouts",
        "m1": 3,
        "m0": 2,
        "sampling": Sampling(max_new_tokens=6),
    },
}


def make_rows(start: int = 0, end: int = N) -> list[dict]:
    return [
        question_row(i, png(i))
        | {
            "category": "xyz"[i % 3],
            "solution": f"Let x be the length, then it is {i}, so " + "BCA"[i % 3],
        }
        for i in range(start, end)
    ]


def edited(what: str) -> tuple[list[dict], int]:
    """(the rows after an edit, how many of them have to be scored)"""
    rows = make_rows()
    if what == "appended":
        return rows + make_rows(N, N + 9), 9
    if what == "inserted":
        return make_rows(N, N + 2) + rows, 2
    if what == "one answer":
        rows[5]["answer"] = "A" if rows[5]["answer"] != "A" else "B"
    elif what == "reordered":
        return rows[11:] + rows[:11][::-1], 0
    elif what == "removed":
        return rows[1:4] + rows[7:], 0
    elif what == "all of it":
        rows[20]["question"] += " Really?"
        return [*make_rows(N, N + 3), *rows[14:], *rows[2:9]], 4
    return rows, 1


def scored_ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that a model is asked about from now on."""
    seen: list[str] = []
    real = filling.score_batch

    def watched(scorer: object, jobs: list) -> None:
        seen.extend(job.row["id"] for job in jobs)
        real(scorer, jobs)

    monkeypatch.setattr(filling, "score_batch", watched)
    return seen


def contents(path: Path) -> list[Any]:
    """Every table and note of a store, clocks left out, in a form that compares."""
    found: list[Any] = []
    for file in sorted(path.glob("*.parquet")):
        table, note = read_parquet(file)
        clocks = [name for name in VOLATILE_COLUMNS if name in table.column_names]
        note.pop("rollouts", None)  # the digest of a file that is compared itself
        found.append((file.name, table.drop_columns(clocks).to_pylist(), note))
    return found


EDITS = ("appended", "inserted", "one answer", "reordered", "removed", "all of it")


@pytest.mark.parametrize(
    ("evidence", "what"),
    [("answer", what) for what in EDITS]
    + [(evidence, "all of it") for evidence in ("logits", "rollouts")],
)
def test_case_32_an_edited_data_set_scores_what_is_new(
    tiny, tmp_path, monkeypatch, caplog, evidence, what
):
    options = {"shard_size": 8, "batch_size": 4, "progress": False, **OPTIONS[evidence]}
    score(*tiny, make_rows(), store=tmp_path / "store", **options)
    rows, new = edited(what)
    seen = scored_ids(monkeypatch)
    again = score(*tiny, rows, store=tmp_path / "store", **options)
    assert len(seen) == new
    said = [r.message for r in caplog.records if "the data set changed" in r.message]
    kept = len(rows) - new
    assert len(said) == 1 and f"{kept} of {len(rows)} samples are as they" in said[0]
    fresh = score(*tiny, rows, store=tmp_path / "fresh", **options)
    assert again.table.drop_columns(list(VOLATILE_COLUMNS)).equals(
        fresh.table.drop_columns(list(VOLATILE_COLUMNS))
    )
    if evidence == "rollouts":
        assert again.rollouts.equals(fresh.rollouts)
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")
    assert again.meta["fingerprint"] == fresh.meta["fingerprint"]
    del seen[:]
    score(*tiny, rows, store=tmp_path / "store", **options)
    assert seen == []


def test_what_was_taken_out_of_the_data_set_may_come_back(tiny, tmp_path, monkeypatch):
    options = {"store": tmp_path / "s", "shard_size": 8, "progress": False}
    options |= OPTIONS["answer"]
    first = score(*tiny, make_rows(), **options)
    score(*tiny, make_rows()[3:], **options)
    assert (tmp_path / "s" / "previous").is_dir()
    seen = scored_ids(monkeypatch)
    again = score(*tiny, make_rows(), **options)
    assert seen == [] and again.table.equals(first.table)
    assert not (tmp_path / "s" / "previous").exists()  # nothing is left in it


def test_case_32_the_group_is_no_part_of_a_score(tiny, tmp_path, monkeypatch):
    options = {"store": tmp_path, "shard_size": 8, "progress": False, **OPTIONS["answer"]}
    score(*tiny, make_rows(), **options)
    seen = scored_ids(monkeypatch)
    again = score(*tiny, make_rows(), columns={"source": "category"}, **options)
    wanted = [row["category"] for row in make_rows()]
    assert seen == [] and again.table["source"].to_pylist() == wanted
    assert rap.Scores.load(tmp_path).table["source"].to_pylist() == wanted
    rows = make_rows()
    rows[3]["source"] = None
    again = score(*tiny, rows[:20], **options)
    assert seen == [] and again.table["source"].to_pylist()[:5] == [
        "a",
        "b",
        "a",
        None,
        "a",
    ]


def test_case_32_a_model_is_its_weights_not_its_path(tiny, tmp_path, monkeypatch):
    model, processor = tiny
    options = {"store": tmp_path, "progress": False, **OPTIONS["answer"]}
    monkeypatch.setattr(model.config, "_name_or_path", "model", raising=False)
    first = score(*tiny, make_rows(0, 5), **options)
    monkeypatch.setattr(model.config, "_name_or_path", "./model")
    seen = scored_ids(monkeypatch)
    again = score(*tiny, make_rows(0, 5), **options)
    assert seen == [] and again.table.equals(first.table)
    assert "name_or_path" not in again.meta["fingerprint"]["model"]
    with pytest.raises(RapConfigError, match="model.weights_sha256: the model's weights a"):
        score(*build("qwen2_5_vl", seed=5), make_rows(0, 5), **options)


def test_what_else_differs_is_refused_as_ever(tiny, tmp_path):
    options = {"store": tmp_path, "progress": False, **OPTIONS["answer"]}
    score(*tiny, make_rows(0, 6), **options)
    before = contents(tmp_path)
    with pytest.raises(RapConfigError, match="answer_prefix: 'So'|answer_prefix: \"So\""):
        score(*tiny, make_rows(0, 8), answer_prefix="So", **options)
    with pytest.raises(RapConfigError, match="dataset: the data set is another; n_samples"):
        score(*tiny, make_rows(10, 14), **options)  # no sample in common
    assert contents(tmp_path) == before and not (tmp_path / "previous").exists()


def test_under_shuffle_a_score_depends_on_the_other_samples(tiny, tmp_path):
    options = {"store": tmp_path, "progress": False, "counterfactual": "shuffle"}
    options |= OPTIONS["answer"]
    score(*tiny, make_rows(0, 5), **options)
    with pytest.raises(RapConfigError, match="dataset"):
        score(*tiny, make_rows(0, 6), **options)


def test_a_solution_that_changed_is_scored_again(tiny, tmp_path, monkeypatch):
    options = {"store": tmp_path, "shard_size": 4, "progress": False, **OPTIONS["logits"]}
    score(*tiny, make_rows(0, 9), **options)
    rows = make_rows(0, 9)
    rows[2]["solution"] += ", as is seen in the picture"
    seen = scored_ids(monkeypatch)
    score(*tiny, rows, **options)
    assert seen == ["s2"]


def test_a_changed_image_file_is_not_taken_over(tiny, tmp_path, monkeypatch):
    rows = make_rows(0, 6)
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"{i}.png"
    options = {"store": tmp_path / "s", "root": tmp_path, "progress": False}
    options |= OPTIONS["answer"]
    score(*tiny, rows, **options)
    (tmp_path / "2.png").write_bytes(png(77))
    seen = scored_ids(monkeypatch)
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        score(*tiny, rows, **options)
    assert "s2" in seen  # the shard that holds it
    (tmp_path / "3.png").write_bytes(png(78))
    del seen[:]
    score(*tiny, rows[1:], **options)
    assert seen == ["s3"]


def test_a_store_of_an_older_version_goes_on_and_is_taken_over(tiny, tmp_path, monkeypatch):
    """Its hash of the data set counts the groups, and it notes nothing of a row."""
    options = {"store": tmp_path, "shard_size": 8, "progress": False, **OPTIONS["answer"]}
    first = score(*tiny, make_rows(), **options)
    header = json.loads((tmp_path / "store.json").read_text())
    header.pop("data")
    header["fingerprint"]["dataset"] = open_samples(make_rows()).content_hash(source=True)
    (tmp_path / "store.json").write_text(json.dumps(header))
    for file in tmp_path.glob("*.parquet"):
        table, note = read_parquet(file)
        note["fingerprint"] = header["fingerprint"]
        note.pop("rows", None)
        write_parquet(file, table, note)
    seen = scored_ids(monkeypatch)
    again = score(*tiny, make_rows(), **options)
    assert seen == [] and again.table.equals(first.table)
    assert not (tmp_path / "previous").exists()
    score(*tiny, make_rows(0, N + 1), **options)
    assert seen == [f"s{N}"]


def test_a_store_knows_its_data_set(tiny, tmp_path):
    lines = []
    for i, row in enumerate(make_rows(0, 6)):
        (tmp_path / f"{i}.png").write_bytes(row["image"]["bytes"])
        lines.append(json.dumps(row | {"image": f"{i}.png"}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    options = {"store": tmp_path / "s", "progress": False, **OPTIONS["answer"]}
    score(*tiny, tmp_path / "data.jsonl", **options)
    chosen = rap.choose(rap.Scores.load(tmp_path / "s"), budget=0.5, lambda_c=-1.0)
    assert chosen.samples.path == str(tmp_path / "data.jsonl")
    chosen.save(tmp_path / "selection")
    assert rap.load(tmp_path / "selection").dataset["id"] == chosen.ids


# ---------------------------------------------------------------- kill -9 in the middle

ROWS, SIZE = 23, 5


def sha(name: str) -> str:
    return f"{abs(hash(name)):064x}"[-64:]


def made(names: Sequence[str], first: int) -> tuple[pa.Table, pa.Table]:
    """Scores and rollouts that depend on the id alone."""
    scores, rollouts = [], []
    for i, name in enumerate(names, first):
        n = int(name[1:])
        row = {"id": name, "index": i, "status": "scored", "evidence": "rollouts"}
        row |= {"sample_sha256": sha(name), "image_sha256": sha("i" + name)}
        scores.append(row | {"c1": n % 4, "m1": 3, "c0": 0, "m0": 3})
        for k in range(n % 3):
            text = {"text": f"{name}:{k}", "token_ids": [n, k], "arm": "image"}
            rollouts.append({"id": name, "index": i, "number": k, **text})
    return table_from_rows(scores), table_from_rows(rollouts, ROLLOUT_SCHEMA)


def reuse_of(names: Sequence[str]) -> Reuse:
    place = {name: i for i, name in enumerate(names)}

    def find(rows: Sequence[Mapping[str, Any]], inputs: object) -> list[int]:
        return [place.get(row["id"], -1) for row in rows]

    return Reuse(find, lambda digest: False)


def fill(path: Path, names: Sequence[str], dataset: str) -> int:
    """Score ``names`` into a store as ``rap.score`` does; how many were not taken over."""
    fresh = 0
    fingerprint = {"model": "m", "dataset": dataset}
    reuse = reuse_of(names)
    with ScoreStore.open(path, fingerprint, len(names), SIZE, reuse=reuse) as store:
        store.look_back(reuse)
        for k in store.missing():
            rows = store.shard_range(k)
            kept = store.reused(rows)
            for i in rows:
                if i not in kept:
                    fresh += 1
                else:
                    assert kept[i].row["id"] == names[i]
                    texts = [rollout["text"] for rollout in kept[i].rollouts]
                    assert texts == [
                        f"{names[i]}:{n}" for n in range(int(names[i][1:]) % 3)
                    ]
            part = made([names[i] for i in rows], rows[0])
            if k % 2 and len(rows) > 2:
                store.write_partial(k, *(made([names[i] for i in rows[:2]], rows[0])))
            store.write(k, *part)
        store.clear_previous()
    return fresh


def killed_at(step: int, call: Callable[[], object]) -> bool:
    """``call`` in a child that dies before its ``step``-th change of a name; whether it
    died."""
    pid = os.fork()
    if pid == 0:
        left = [step]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **options: Any) -> Any:
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return real(*args, **options)

            return wrapper

        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "link"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            call()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), code
    return code == 9


OLD = [f"s{n}" for n in range(ROWS)]
NEW = ["s40", *OLD[12:], "s41", *OLD[1:9][::-1]]


def files(path: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in path.glob("*") if p.is_file() and p.name != "lock"
    }


@pytest.mark.proof
def test_fault_31_killed_while_the_data_set_is_taken_over(tmp_path):
    """At every change of a name: the same data set again, and every row is there."""
    old = OLD[:13]
    new = ["s40", *OLD[7:13], "s41", *OLD[1:5][::-1]]
    fill(tmp_path / "old", old, "a")
    fill(tmp_path / "fresh", new, "b")
    wanted, step = files(tmp_path / "fresh"), 0
    while True:
        path = tmp_path / f"at{step}"
        shutil.copytree(tmp_path / "old", path)
        died = killed_at(step, lambda path=path: fill(path, new, "b"))
        again = fill(path, new, "b")
        # a row that was scored is scored no more: at most the two new ones are left
        assert again <= (2 if died else 0)
        assert files(path) == wanted, step
        leftovers = [p.name for p in path.rglob("*.parquet") if p.parent != path]
        assert all(name.startswith(("scores", "rollouts")) for name in leftovers)
        assert not [p for p in path.rglob("*") if p.name.endswith((".corrupt", ".tmp"))]
        shutil.rmtree(path)
        if not died:
            break
        step += 1
    assert step > 20


@pytest.mark.proof
def test_fault_31_the_old_data_set_again_after_a_kill(tmp_path):
    fill(tmp_path / "old", OLD, "a")
    wanted = files(tmp_path / "old")
    for step in range(0, 54, 3):
        path = tmp_path / f"at{step}"
        shutil.copytree(tmp_path / "old", path)
        assert killed_at(step, lambda path=path: fill(path, NEW, "b")), step
        assert fill(path, OLD, "a") == 0
        assert files(path) == wanted
        assert fill(path, NEW, "b") <= 2


def test_a_damaged_older_shard_is_scored_again(tmp_path):
    fill(tmp_path, OLD, "a")
    with ScoreStore.open(
        tmp_path, {"model": "m", "dataset": "b"}, len(NEW), SIZE, reuse=reuse_of(NEW)
    ) as store:
        assert store.missing() == list(range(5))
    damaged = tmp_path / "previous" / "0" / "scores-00001.parquet"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 4
    damaged.write_bytes(data)
    assert fill(tmp_path, NEW, "b") == 2 + len(set(OLD[5:10]) & set(NEW))
    assert ScoreStore.load(tmp_path).read().equals(made(NEW, 0)[0])
    assert damaged.exists()  # someone may want to look


def test_a_disk_without_hard_links_is_served(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fill(tmp_path, OLD, "a")
    assert fill(tmp_path, NEW, "b") == 2
