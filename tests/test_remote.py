"""Data sets that are not on this machine: refused unless allowed, fetched once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from rap.cli.commands import main
from rap.errors import RapInputError
from rap.samples import remote
from rap.samples.images import read_bytes
from rap.samples.sample import BadSample, Sample
from rap.samples.sampleset import open_samples
from rap.scores.match import describe, reopen

PNG = b"\x89PNG\r\n\x1a\nabc"
ROWS = [
    {"id": f"s{k}", "question": f"Q{k}?", "answer": "3", "image": PNG} for k in range(9)
]


class Elsewhere(MemoryFileSystem):
    """A file system in memory that looks like one behind a network."""

    protocol = "elsewhere"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("elsewhere://", "memory://"))

    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    fetched: list[str] = []

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        self.fetched.append(rpath)
        super().get_file(rpath, lpath, **options)


@pytest.fixture(autouse=True)
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(Elsewhere, "store", {})
    monkeypatch.setattr(Elsewhere, "fetched", [])
    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)


def put(system: Any, path: str, rows: list[dict[str, Any]]) -> None:
    with system.open(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file)


def test_nothing_is_fetched_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for source in ("s3://bucket/d.parquet", "elsewhere://d.parquet", "org/name:train"):
        with pytest.raises(RapInputError, match="fetches nothing .*--allow-network"):
            open_samples(source)
    assert not Elsewhere.fetched


def test_files_elsewhere_are_named_and_fetched_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    system = Elsewhere()
    put(system, "/b/data/train-00000-of-00002.parquet", ROWS[:4])
    put(system, "/b/data/train-00001-of-00002.parquet", ROWS[4:])
    with caplog.at_level(logging.WARNING, "rap"):
        for source in ("elsewhere://b/data", "elsewhere://b/data/train-*.parquet"):
            samples = open_samples(source, allow_network=True)
            assert samples.ids == [row["id"] for row in ROWS]
            assert samples.path == source
    assert [r.getMessage().partition(" copied")[0] for r in caplog.records] == [
        "network: elsewhere://b/data: 2 files of 0.0 MB in all",
        "network: elsewhere://b/data/train-*.parquet: 2 files of 0.0 MB in all",
    ]
    assert len(Elsewhere.fetched) == 4
    open_samples("elsewhere://b/data", allow_network=True)
    assert len(Elsewhere.fetched) == 4  # the copies are still what is there
    put(system, "/b/data/train-00001-of-00002.parquet", ROWS[4:7])
    assert len(open_samples("elsewhere://b/data", allow_network=True)) == 7
    found = describe(open_samples("elsewhere://b/data", allow_network=True))
    assert found["absolute"] == found["path"] == "elsewhere://b/data"
    assert reopen(found) is None  # nobody allowed the network


def test_here_needs_no_network(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    lines = "".join(json.dumps(row | {"image": "a.png"}) + "\n" for row in ROWS)
    memory.pipe_file("/x/d.jsonl", lines.encode())
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "d.jsonl").write_text(lines)
    for source in ("memory://x/d.jsonl", f"file://{tmp_path}/d.jsonl"):
        samples = open_samples(source, root=tmp_path)
        assert samples.ids == [row["id"] for row in ROWS]
        assert samples[3].images[0].path == str(tmp_path / "a.png")  # type: ignore[union-attr]
    memory.rm("/x", recursive=True)


def test_images_beside_the_file_are_fetched_when_they_are_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "_FOLDERS", {})
    system = Elsewhere()
    names = ("i/0.png", "i/1.png", "i/none.png", "../secret.png")
    rows = [row | {"image": name} for row, name in zip(ROWS, names, strict=False)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    system.pipe_file("/b/set/d.jsonl", lines.encode())
    for name in ("/b/set/i/0.png", "/b/set/i/1.png", "/b/secret.png"):
        system.pipe_file(name, PNG + name.encode())
    with caplog.at_level(logging.WARNING, "rap"):
        samples = open_samples("elsewhere://b/set/d.jsonl", allow_network=True)
        assert Elsewhere.fetched == ["/b/set/d.jsonl"]  # no image yet
        found = [s for s in samples if isinstance(s, Sample)]
        assert [s.id for s in found] == ["s0", "s1", "s2"]  # the last leads out of it
        for _ in range(2):  # once each
            for k in range(2):
                own = PNG + f"/b/set/i/{k}.png".encode()
                assert read_bytes(found[k].images[0]) == own
    assert Elsewhere.fetched[1:] == ["/b/set/i/0.png", "/b/set/i/1.png"]
    told = [r.getMessage() for r in caplog.records if "images are" in r.getMessage()]
    assert told == [
        "network: images are fetched from elsewhere:///b/set when they are read"
    ]
    with pytest.raises(BadSample, match="no such file"):
        read_bytes(found[2].images[0])
    monkeypatch.setattr(Elsewhere, "isfile", lambda self, path: 1 / 0)
    with pytest.raises(BadSample, match="division by zero") as bad:
        read_bytes(found[2].images[0])
    assert bad.value.code == "image_unreadable"
    # another process fetches nothing that nobody allowed it to
    allowed = remote.folders()
    monkeypatch.setattr(remote, "_FOLDERS", {})
    path = found[0].images[0].path
    assert path is not None
    Path(path).unlink()
    with pytest.raises(BadSample, match="no such file"):
        read_bytes(found[0].images[0])
    remote.allow(allowed)
    assert not remote.fetch_image(str(tmp_path / "x.png"))  # of no such folder
    monkeypatch.delattr(Elsewhere, "isfile")
    assert read_bytes(found[0].images[0]).endswith(b"/b/set/i/0.png")


def test_what_is_not_there_is_refused() -> None:
    system = Elsewhere()
    put(system, "/b/one/d.parquet", ROWS)
    put(system, "/b/two/d.parquet", ROWS)
    for source, text in (
        ("elsewhere://b/none.parquet", "no such file"),
        ("elsewhere://b/*/d.parquet", "several folders"),
        ("nosuch://b/d.parquet", "nosuch://b/d.parquet: .*[Pp]rotocol"),
    ):
        with pytest.raises(RapInputError, match=text):
            open_samples(source, allow_network=True)


def test_a_name_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, str | None]] = []

    def load(name: str, split: str | None = None) -> Any:
        asked.append((name, split))
        data = datasets.Dataset.from_list(ROWS)
        return data if split else datasets.DatasetDict({"train": data, "test": data})

    monkeypatch.setattr(datasets, "load_dataset", load)
    samples = open_samples("org/name:train", allow_network=True)
    assert len(samples) == 9 and samples.path == "org/name:train"
    assert "network: org/name:train is fetched from the hub" in caplog.text
    with pytest.raises(RapInputError, match="name one: org/name:train, org/name:test"):
        open_samples("org/name", allow_network=True)
    assert asked == [("org/name", "train"), ("org/name", None)]
    one = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: one)
    assert len(open_samples("org/name", allow_network=True)) == 9

    def unreachable(name: str, split: str | None = None) -> Any:
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RapInputError, match="org/name: the hub cannot be reached"):
        open_samples("org/name", allow_network=True)


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert not remote.is_hub_name("data/train")  # of a folder that is here
    assert not remote.is_hub_name("org/train.jsonl")
    assert remote.is_hub_name("org/name") and not remote.is_hub_name("a/b/c")
    with pytest.raises(RapInputError, match="no such file or folder"):
        open_samples("data/train", allow_network=True)


def test_the_shell_asks_for_the_network(tmp_path: Path) -> None:
    put(Elsewhere(), "/b/d.parquet", ROWS)
    rollouts = tmp_path / "r.jsonl"
    rows = [
        {"id": f"s{k}", "with_image": arm, "correct": arm and k % 3 > 0}
        for k in range(9)
        for arm in (True, False)
    ]
    rollouts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["select", "elsewhere://b/d.parquet", "--rollouts", str(rollouts)]
    command += ["--out", str(tmp_path / "out"), "--budget", "0.3"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1 and "--allow-network" in refused.output
    done = CliRunner().invoke(main, [*command, "--allow-network"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "selection.parquet").exists()
