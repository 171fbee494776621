"""Rows are cheap: what is read, how often, and how much of it is held."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import rap
from rap.errors import RapInputError, RapStoreError
from rap.samples import text
from rap.samples.text import as_strings, flat, hash64, repeated, taken
from rap.scores import files, reader, scores
from rap.scores.drawn import Drawn, Sampled
from rap.scores.files import ROW_GROUP, read_parquet, write_parquet
from rap.scores.reader import FileReader, TableReader, sized
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore
from rap.scores.table import ROLLOUT_SCHEMA, SCORE_SCHEMA, table_from_rows
from rap.selection.attention import fence

RULES = [
    {},
    {"by": "source", "budget": 0.2},
    {"rule": "paper", "lambda_c": 0.1},
    {"order": "learnable", "replace": False},
    {"rule": "learn", "coverage_by": "source"},
]


def world(n: int, seed: int = 0, m: int = 5) -> pa.Table:
    random = np.random.default_rng(seed)
    bad = random.random(n) < 0.05
    c1, c0 = random.binomial(m, random.random(n)), random.binomial(m, 0.5 * np.ones(n))
    columns = {
        "id": pa.array([f"picture-{i:07d}" for i in range(n)]),
        "index": pa.array(np.arange(n)),
        "source": pa.array(np.array(["a", "b", "c"])[random.integers(0, 3, n)]),
        "status": pa.array(np.where(bad, "quarantined", "scored")),
        "code": pa.array(np.where(bad, "image_missing", None).tolist(), pa.string()),
        "evidence": pa.array(["rollouts"] * n),
        "log_psi": pa.array(random.normal(-3, 1, n), pa.float32(), mask=bad),
    }
    for name, values in (("c1", c1), ("m1", [m] * n), ("c0", c0), ("m0", [m] * n)):
        columns[name] = pa.array(np.asarray(values), pa.int16(), mask=bad)
    full = {f.name: columns.get(f.name, pa.nulls(n, f.type)) for f in SCORE_SCHEMA}
    return pa.table(full, schema=SCORE_SCHEMA)


def saved(selection: rap.Selection, folder: Path) -> dict[str, bytes]:
    selection.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_store(path: Path, n: int = 60, size: int = 8, words: int = 1) -> Path:
    table = world(n)
    with ScoreStore.open(path, {"model": "m"}, n, size) as store:
        for k in store.missing():
            rows = [
                {"id": f"picture-{i:07d}", "index": i, "arm": arm, "number": number}
                | {"text": "word " * words, "token_ids": [i] * (1 + i % 3)}
                for i in store.shard_range(k)
                for arm in ("image", "counterfactual")
                for number in range(2)
            ]
            part = table.slice(k * size, len(store.shard_range(k)))
            store.write(k, part, table_from_rows(rows, ROLLOUT_SCHEMA))
    return path


# ---------------------------------------------------------------- completions


def test_choose_and_save_read_no_completion(tmp_path: Path) -> None:
    """They are as good as gone, and nothing asks for them."""
    whole, bare = make_store(tmp_path / "a"), make_store(tmp_path / "b")
    for path in bare.glob("rollouts-*"):
        path.unlink()
    for number, options in enumerate(RULES):
        made = [rap.choose(Scores.load(path), **options) for path in (whole, bare)]
        first, second = (
            saved(one, tmp_path / f"{number}-{i}") for i, one in enumerate(made)
        )
        assert first == second
    with pytest.raises(RapStoreError, match=r"rollouts-00000.*cannot be read"):
        _ = made[1].rollouts
    with pytest.raises(RapStoreError):
        Scores.load(bare, verify=True)


def test_completions_come_a_shard_at_a_time(tmp_path: Path) -> None:
    path = make_store(tmp_path, n=20, size=8)
    found = Scores.load(path).completions
    assert found is not None
    assert [table.num_rows for table in found.tables()] == [32, 32, 16]
    assert found.read().equals(ScoreStore.load(path).read_rollouts())


def test_completions_scored_anew_are_not_taken_for_the_old(tmp_path: Path) -> None:
    make_store(tmp_path)
    before = Scores.load(tmp_path)
    with ScoreStore.open(tmp_path, {"model": "m"}, 60, 8) as store:
        other = store.rollouts_of(1, store.rollouts_digest(1) or "").slice(0, 5)
        store.write(1, store.read_shard(1), other)
    with pytest.raises(RapStoreError, match="is not what scores-00001.parquet was made"):
        _ = before.rollouts
    with pytest.raises(RapStoreError, match="shard 1 changed since it was loaded"):
        _ = before.table


CHOOSING = """
import sys, tracemalloc
import pyarrow as pa
import rap
tracemalloc.start()
rap.choose(rap.Scores.load(sys.argv[1])).save(sys.argv[2])
print(pa.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1])
"""


def test_fault_54_memory_does_not_follow_the_completions(tmp_path: Path) -> None:
    """32 times the text, and no more at any time than a sample of it."""
    peaks = []
    for words in (1000, 32000):
        path = make_store(tmp_path / str(words), words=words)
        command = [
            sys.executable,
            "-c",
            CHOOSING,
            str(path),
            str(tmp_path / f"out-{words}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    of_a_sample = 4 * 5 * 31000
    assert peaks[1] - peaks[0] < of_a_sample


# ---------------------------------------------------------------- how often


def test_a_resume_reads_every_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    counted: Counter[str] = Counter()
    read = files.read_regular

    def counting(path: Path) -> bytes:
        data = read(path)
        counted[path.name] += len(data)
        return data

    monkeypatch.setattr(files, "read_regular", counting)
    with ScoreStore.open(tmp_path, {"model": "m"}, 60, 8) as store:
        for k in store.finished():
            store.read_shard(k)
            store.tally(k)
        table = store.read()
        drawn = store.drawn()
        completions = store.completions()
    assert table.equals(world(60)) and completions is not None
    tokens = sum(2 * (1 + i % 3) for i in range(60))
    assert drawn == Drawn(Sampled(60, 120, 120, tokens), Sampled(60, 120, 120, tokens))
    sizes = {p.name: p.stat().st_size for p in tmp_path.glob("*.parquet")}
    assert {name: counted[name] for name in sizes} == sizes


def test_choose_reads_only_columns_that_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scores(world(500)).save(tmp_path / "scores")
    loaded = Scores.load(tmp_path / "scores")
    asked: set[str] = set()
    batches = FileReader._batches

    def noting(self: FileReader, names: list[str], size: int) -> object:
        asked.update(names)
        return batches(self, names, size)

    monkeypatch.setattr(FileReader, "_batches", noting)
    selection = rap.choose(loaded)
    assert not asked & {"id", "message", "psi_token", "sample_sha256", "image_sha256"}
    assert {"c1", "m1", "c0", "m0", "log_psi"} <= asked
    asked.clear()
    assert len(selection) == 45 and asked == {"index"}


# ---------------------------------------------------------------- how much


@pytest.mark.parametrize("options", RULES)
def test_no_python_object_a_row(options: dict, tmp_path: Path) -> None:
    """From file to selection: what is traced grows by array bytes, not by objects."""
    blocks, sizes = [], (20_000, 60_000)
    for n in sizes:
        path = tmp_path / str(n)
        Scores(world(n)).save(path)
        rap.choose(Scores.load(path), **options).save(tmp_path / "warm")
        tracemalloc.start()
        selection = rap.choose(Scores.load(path), **options)
        selection.save(tmp_path / f"out-{n}")
        found = tracemalloc.take_snapshot().statistics("filename")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        blocks.append((sum(one.count for one in found), peak))
    rows = sizes[1] - sizes[0]
    assert (blocks[1][0] - blocks[0][0]) / rows < 0.01
    assert (blocks[1][1] - blocks[0][1]) / rows < 300  # NumPy's, of a batch that is read


def test_batches_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for m in (5, 700):  # exact ranks from 406 completions on
        for number, options in enumerate(RULES):
            table = world(997, m=m)
            whole = saved(rap.choose(Scores(table), **options), tmp_path / f"{m}-{number}")
            with monkeypatch.context() as patch:
                for module in ("reader", "readings"):
                    patch.setattr(f"rap.scores.{module}.BATCH", 64)
                patch.setattr(reader.Reader.batches, "__defaults__", (None, 64))
                scores = Scores(table)
                scores.save(tmp_path / "file")
                made = rap.choose(Scores.load(tmp_path / "file"), **options)
                assert saved(made, tmp_path / f"{m}-{number}-b") == whole


def test_a_row_group_is_written_the_same_from_any_batches(tmp_path: Path) -> None:
    n = ROW_GROUP + 1000
    table = pa.table({"a": np.arange(n) % 977, "b": pa.nulls(n, pa.float64())})
    cut = pa.concat_tables([table.slice(0, 12345), table.slice(12345)])
    digests = {
        write_parquet(tmp_path / "a", one, {"schema_version": 2}) for one in (table, cut)
    }
    assert len(digests) == 1
    assert read_parquet(tmp_path / "a")[0].equals(table)
    assert [t.num_rows for t in sized([table.slice(0, 7), table.slice(7, 9)], 5)] == [
        *(5, 5, 5, 1)
    ]


def test_a_file_that_changes_under_its_scores_is_refused(tmp_path: Path) -> None:
    Scores(world(50)).save(tmp_path / "scores")
    loaded = Scores.load(tmp_path / "scores")
    Scores(world(51)).save(tmp_path / "scores")
    with pytest.raises(RapStoreError, match="changed since it was loaded"):
        rap.choose(loaded)


# ---------------------------------------------------------------- long columns of text


def test_hashes_tell_texts_apart() -> None:
    texts = ["", "a", "a\0", "\0", "b" * 8, "b" * 9, "b" * 64, "é" * 9, "b" * 65]
    texts += [f"{i:04d}" for i in range(3000)]
    long = 8 * text._STEPS  # what is longer is not read by steps of all texts
    texts += ["c" * n for n in (long - 1, long, long + 1, 2_000_000)]
    texts += ["c" * long + end for end in ("d", "e", "de")]
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(texts, kind)
        hashes = hash64(array)
        assert len(set(hashes.tolist())) == len(texts)
        assert (hash64(array.slice(3)) == hashes[3:]).all()
        chunked = pa.chunked_array([array.slice(0, 5), array.slice(5, 0), array.slice(5)])
        assert (hash64(chunked) == hashes).all()


def test_equal_hashes_are_looked_at_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    table = world(300)
    weak = lambda column: hash64(column) % np.uint64(7)  # noqa: E731
    monkeypatch.setattr(scores, "hash64", weak)
    monkeypatch.setattr(text, "hash64", weak)
    assert len(Scores(table)) == 300
    ids = table["id"].to_pylist()
    twice = table.set_column(0, "id", pa.array([*ids[:-2], ids[9], ids[4]]))
    with pytest.raises(RapInputError, match="the id 'picture-0000004' appears twice"):
        Scores(twice)


def test_text_past_the_limit_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GiB an array, made small: choosing and saving go on as before."""
    table = world(1000)
    expected = rap.choose(Scores(table), by="id", budget=0.5).table
    monkeypatch.setattr(text, "TEXT_LIMIT", 4096)
    cut = pa.concat_tables([table.slice(0, 400), table.slice(400)])
    assert flat(cut["id"]).type == pa.large_string()
    order = np.random.default_rng(1).permutation(1000)
    assert taken(cut["id"], order).to_pylist() == table["id"].take(order).to_pylist()
    parts = as_strings(cut["id"].cast(pa.large_string()))
    assert parts.num_chunks > 3 and parts.to_pylist() == table["id"].to_pylist()
    shuffled = TableReader(cut).take(order)
    wide = shuffled.set_column(0, "id", shuffled["id"].cast(pa.large_string()))
    for given in (cut, shuffled, wide):
        assert Scores(given).table.equals(table)
    by_id = rap.choose(Scores(wide), by="id", budget=0.5)
    assert by_id.table.equals(expected)
    same = rap.choose(Scores(wide)).compare(rap.choose(Scores(table)))
    assert same.jaccard == 1.0 and not same.moved


def test_repeated_finds_the_first() -> None:
    column = pa.chunked_array([["q", "b", "a"], ["b", "q", "q"]])
    assert repeated(hash64(column), lambda: iter([column])) == "q"
    assert repeated(hash64(column.slice(1, 2)), lambda: iter(())) is None


# ---------------------------------------------------------------- the fence


def test_the_fence_of_float32_is_that_of_float64() -> None:
    random = np.random.default_rng(3)
    for n in (20, 21, 22, 23, 1000, 200_003):
        psi = random.normal(-3, 1, n).astype(np.float32)
        psi[: n // 7] += 8
        ordered = np.sort(psi.astype(np.float64))
        steps = np.diff(ordered[n // 2 :])
        widest = int(steps.argmax())
        q1, q3 = np.percentile(ordered[: n // 2 + widest + 1], [25, 75])
        wanted = ordered[n // 2 + widest] + steps[widest] / 2
        if not 0 < (q3 - q1) / 2 < steps[widest]:
            q1, q3 = np.percentile(ordered, [25, 75])
            wanted = q3 + 1.5 * (q3 - q1)
        assert fence(psi) == fence(psi.astype(np.float64)) == wanted


def test_what_was_checked_when_it_was_saved_is_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Scores(world(300))
    made.save(tmp_path / "s.parquet")
    table = made.table.set_column(0, "id", pa.array(["twice"] * 300))
    scores.write_saved(tmp_path / "old.parquet", table, {}, "scores")
    with pytest.raises(RapInputError, match="'twice' appears twice"):
        Scores.load(tmp_path / "old.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(scores, "hash64", None)
        again = Scores.load(tmp_path / "s.parquet")
    assert again.table.equals(made.table)


def test_a_column_that_is_the_same_throughout_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file's statistics, a row group at a time; floats have none that tell."""
    monkeypatch.setattr("rap.scores.files.ROW_GROUP", 4)
    columns = {
        "n": pa.array([5] * 4 + [5, 5, 5, 6] + [None] * 4, pa.int16()),
        "t": pa.array(["scored"] * 4 + ["scored", None, "scored", "scored"] + ["x"] * 4),
        "f": pa.array([0.0, -0.0, 0.0, -0.0, 1, 1, np.nan, 1, 2, 2, 2, 2], pa.float32()),
        "long": pa.array(["l" * 100] * 12),
    }
    table = pa.table(columns)
    write_parquet(tmp_path / "t.parquet", table, {"schema_version": 1})
    reader = FileReader(tmp_path / "t.parquet", lambda t: t)
    read: list[list[str]] = []
    own = FileReader._batches_of

    def noted(self, file, group, names, size):  # type: ignore[no-untyped-def]
        read.append(names)
        return own(self, file, group, names, size)

    monkeypatch.setattr(FileReader, "_batches_of", noted)
    assert str(reader.read().to_pylist()) == str(table.to_pylist())  # NaN, -0.0 too
    assert read == [["f", "long"], ["n", "t", "f", "long"], ["f", "long"]]
    read.clear()
    rows = np.array([9, 8, 9])
    assert reader.take(rows, ["n", "t", "f"]).equals(
        table.select(["n", "t", "f"]).take(rows)
    )
    assert read == [["f"]]  # of the one row group that has them
    found = pa.concat_tables(reader.different(["n", "t"]))
    assert (
        found.to_pylist() == table.select(["n", "t"]).take([0, 4, 5, 6, 7, 8]).to_pylist()
    )


def test_a_store_takes_rows_of_their_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Scores.load(make_store(tmp_path / "store"))
    table = made.table
    opened: list[str] = []
    own = reader.ShardReader._shard

    def noted(self, k, names):  # type: ignore[no-untyped-def]
        opened.append(k)
        return own(self, k, names)

    monkeypatch.setattr(reader.ShardReader, "_shard", noted)
    monkeypatch.setattr("rap.scores.shards.verified", None)  # every byte was, once
    rows = np.array([41, 3, 40])
    assert made.reader.take(rows, ["id", "c1"]).equals(
        table.select(["id", "c1"]).take(rows)
    )
    assert opened == [0, 5]
    k = tmp_path / "store" / "scores-00005.parquet"
    monkeypatch.undo()
    k.write_bytes(k.read_bytes())  # another time: verified anew
    assert made.reader.take(rows).num_rows == 3
    ScoreStore.load(tmp_path / "store")
    k.write_bytes((tmp_path / "store" / "scores-00004.parquet").read_bytes())
    with pytest.raises(RapStoreError, match=r"holds score shard 4|changed since"):
        made.reader.take(rows)
