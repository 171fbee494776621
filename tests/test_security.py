"""The threat model of ``.github/docs/security.md``, tried: each claim there names its test.

Every way in (JSON Lines, JSON, CSV, TSV, Parquet, folders of it, data sets saved by
`datasets`, lists,
rollouts, selection folders, stores, models, servers, and the reader of a report) is given
bombs, paths that lead out, links, pipes, and URLs. No test here may reach a network:
`no_network`.
"""

from __future__ import annotations

import base64
import csv
import gzip
import http.server
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engines.fake_server import FakeServer
from PIL import Image
from test_engines_server import engine, requests
from test_report import HOSTILE, hostile  # noqa: F401  (a fixture)

import rap
from rap.engines.wire import error_message
from rap.errors import RapError, RapInputError, RapModelError, RapStoreError
from rap.model.folders import check_weights
from rap.report.page import render
from rap.samples import Bad, open_samples
from rap.scores.files import read_parquet, write_parquet
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / ".github" / "docs" / "security.md"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections and look-ups that were tried; none can be made."""
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_every_claim_names_a_test_that_is_there() -> None:
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", DOCUMENT.read_text())
    assert len(named) > 30
    for file, name in named:
        code = (ROOT / "tests" / f"{file}.py").read_text()
        assert f"def {name}(" in code, (file, name)


# ---------------------------------------------------------------- what a row names


def as_jsonl(rows: list[dict], folder: Path) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_json(rows: list[dict], folder: Path) -> Path:
    (folder / "d.json").write_text(json.dumps(rows))
    return folder / "d.json"


def as_gzip(rows: list[dict], folder: Path) -> Path:
    path = as_jsonl(rows, folder)
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder / "d.jsonl.gz"


def as_csv(rows: list[dict], folder: Path) -> Path:
    with (folder / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "d.csv"


def as_parquet(rows: list[dict], folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
    return folder / "d.parquet"


def as_tsv(rows: list[dict], folder: Path) -> Path:
    with (folder / "d.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "d.tsv"


def as_folder(rows: list[dict], folder: Path) -> Path:
    """Several files; images are told from the folder that they lie in, or from ``root``."""
    (folder / "files").mkdir(exist_ok=True)
    half = (len(rows) + 1) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        if part:
            path = folder / "files" / f"train-{number}.parquet"
            pq.write_table(pa.Table.from_pylist(part), path)
    return folder / "files"


def as_saved(rows: list[dict], folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


WAYS = {
    "JSON Lines": as_jsonl,
    "JSON": as_json,
    "gzip": as_gzip,
    "CSV": as_csv,
    "TSV": as_tsv,
    "Parquet": as_parquet,
    "a folder of Parquet": as_folder,
    "saved by datasets": as_saved,
    "datasets": lambda rows, _: datasets.Dataset.from_list(rows),
    "list": lambda rows, _: rows,
    "Arrow": lambda rows, _: pa.Table.from_pylist(rows),
}


@pytest.fixture
def nest(tmp_path: Path) -> Path:
    """A folder with an image, and links that lead out of it to another image."""
    root = tmp_path / "data"
    (root / "below").mkdir(parents=True)
    for path in (root / "x.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "round").symlink_to("round")
    os.mkfifo(root / "pipe.png")
    return root


REFUSED = {
    "../secret.png": "path_outside_root",
    "below/../../secret.png": "path_outside_root",
    "/etc/hostname": "path_outside_root",
    "link.png": "path_outside_root",
    "up/secret.png": "path_outside_root",
    "/proc/self/environ": "path_outside_root",
    "/dev/zero": "path_outside_root",
    "http://127.0.0.1:9/x.png": "url_refused",
    "https://example.org/x.png": "url_refused",
    "HTTP://example.org/x.png": "url_refused",
    "file:///etc/hostname": "path_outside_root",
    "s3://bucket/x.png": "url_refused",
    "ftp://example.org/x.png": "url_refused",
}
NOT_OPENED = {"pipe.png": "not_regular_file", "below": "not_regular_file",
              "round": "not_regular_file", "gone.png": "image_missing"}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_path_leads_out_of_the_data(way: str, nest: Path, no_network: list) -> None:
    """Whatever a row names: outside of the root it is refused before it is opened, inside
    only a regular file is read; nothing asks a network."""
    names = [*REFUSED, *NOT_OPENED, "x.png"]
    rows = [
        {"id": f"s{i}", "question": "How many?", "answer": "3", "image": name}
        for i, name in enumerate(names)
    ]
    samples = open_samples(WAYS[way](rows, nest), root=nest)
    for name, sample in zip(names, samples, strict=True):
        if name in REFUSED:
            assert isinstance(sample, Bad) and sample.code == REFUSED[name], name
            continue
        if isinstance(sample, Bad):
            assert sample.code == NOT_OPENED[name], name
            continue
        try:
            rap.samples.load_images(sample, max_pixels=1 << 20)
        except rap.samples.BadSample as bad:
            assert bad.code == NOT_OPENED[name], name
        else:
            assert name == "x.png"
    assert not no_network


@pytest.mark.parametrize(
    "source",
    ["http://127.0.0.1:9/d.jsonl", "s3://b/d.parquet", "hf://datasets/a/b", "a-b/c-d"],
)
def test_a_data_set_elsewhere_is_not_fetched(source: str, no_network: list) -> None:
    with pytest.raises(RapInputError, match="fetches nothing unless it is allowed"):
        open_samples(source)
    with pytest.raises(RapInputError, match="no such file"):
        Scores.from_rollouts(source)
    assert not no_network


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path = Path("/dev/zero")
    with pytest.raises(RapInputError, match="not a regular file"):
        open_samples(path)
    with pytest.raises(RapInputError):
        Scores.from_rollouts(path)


@pytest.mark.parametrize("name", ["../d.arrow", "/etc/hostname", "pipe.arrow", "."])
def test_a_saved_data_set_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.arrow")
    files = [{"filename": name}]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    with pytest.raises(RapInputError, match="no file of this folder|not a regular file"):
        open_samples(tmp_path)


# ---------------------------------------------------------------- data sets: bombs, damage


def test_a_gzip_bomb_is_refused_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bomb = tmp_path / "d.jsonl.gz"
    bomb.write_bytes(gzip.compress(bytes(80 << 20)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(RapInputError, match="unpacks to over 67108864 bytes"):
        open_samples(bomb)
    assert os.listdir(tmp_path) == [bomb.name]  # what was unpacked is gone again


BOMB = """
import resource, sys
import pyarrow as pa
from rap.errors import RapError
from rap.samples import open_samples
from rap.scores.scores import Scores
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for call in (open_samples, Scores.from_rollouts):
    try:
        call(sys.argv[1])
    except (RapError, MemoryError) as error:
        print("refused", type(error).__name__)
"""


def test_a_parquet_bomb_ends_at_the_limit_of_memory(tmp_path: Path) -> None:
    """A dictionary of one text of 4 MB, for 10^5 rows: 400 GB out of some kB. How much a
    column takes is not known before it is decoded, so that the limit is the process's."""
    texts = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), ["x" * (4 << 20)])
    columns = {"id": np.arange(100_000), "question": texts, "answer": texts, "image": texts}
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd",
                   dictionary_pagesize_limit=1 << 30)  # fmt: skip
    assert path.stat().st_size < 2_000_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)],
        capture_output=True, text=True, timeout=1500,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("refused") == 2, done.stdout


def test_offsets_of_an_arrow_file_are_not_believed(tmp_path: Path) -> None:
    """Arrow reads where they point; a saved data set is validated before a row is read."""
    path = as_saved([{"id": "a" * 9, "question": "q" * 9, "answer": "3", "image": "x.png"}],
                    tmp_path)  # fmt: skip
    (file,) = path.glob("*.arrow")
    data = file.read_bytes()
    good = np.array([0, 9], np.int32).tobytes()  # where the id and the question end
    at = data.rindex(good)
    far = np.array([0, 1 << 30], np.int32).tobytes()
    file.write_bytes(data[:at] + far + data[at + len(far) :])
    with pytest.raises(RapInputError, match="is damaged"):
        open_samples(path)


class Planted:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_parquet_file_is_unpickled(tmp_path: Path) -> None:
    """Arrow's extension type of Python objects ran what a file held (CVE-2023-47248)."""
    payload = pickle.dumps(Planted(tmp_path / "ran"))
    more = {b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payload}  # fmt: skip
    fields = [pa.field("id", pa.string()), pa.field("question", pa.string()),
              pa.field("answer", pa.string(), metadata=more),
              pa.field("image", pa.string())]  # fmt: skip
    table = pa.table([["a"], ["q"], ["3"], ["x.png"]], schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "d.parquet")
    try:
        list(open_samples(tmp_path / "d.parquet", root=tmp_path))
    except RapError:
        pass
    assert not (tmp_path / "ran").exists()
    needed = (ROOT / "pyproject.toml").read_text()
    assert int(re.search(r'"pyarrow>=(\d+)', needed)[1]) >= 15  # type: ignore[index]


# ---------------------------------------------------------------- stores, selections

ROLLED = [
    {"id": f"s{i}", "with_image": arm, "correct": k < (3 if arm else i % 2)}
    for i in range(6)
    for arm in (True, False)
    for k in range(4)
]
NOTES: dict[str, Any] = {
    "no object": [],
    "empty": {},
    "of no version": {"kind": "selection", "meta": {}},
    "no settings": {"kind": "selection", "schema_version": 1},
    "settings that are none": {"kind": "selection", "schema_version": 1, "meta": 7},
    "settings without a rule": {"kind": "selection", "schema_version": 1, "meta": {}},
}


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    rap.choose(Scores.from_rollouts(ROLLED), budget=0.5).save(tmp_path / "chosen")
    return tmp_path / "chosen"


@pytest.mark.parametrize("note", NOTES)
def test_a_selection_that_says_odd_things_of_itself(note: str, chosen: Path) -> None:
    """Its checksum is right: whoever writes a file can write that, too."""
    path = chosen / "selection.parquet"
    table, _ = read_parquet(path)
    write_parquet(path, table, NOTES[note])
    with pytest.raises(RapStoreError):
        rap.load(chosen)


def test_nesting_without_end_in_every_json_of_a_folder(
    chosen: Path, tmp_path: Path
) -> None:
    deep = "[" * 200_000
    store = tmp_path / "store"
    with ScoreStore.open(store, {"model": "m"}, 4, 2):
        pass
    (store / "store.json").write_text(deep)
    with pytest.raises(RapStoreError, match="is damaged"):
        ScoreStore.load(store)
    (tmp_path / "r.jsonl").write_text(deep)
    with pytest.raises(RapInputError):
        Scores.from_rollouts(tmp_path / "r.jsonl")
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text(deep)
    with pytest.raises(RapModelError):
        check_weights(tmp_path)


def test_a_selection_fetches_no_data_set(chosen: Path, no_network: list) -> None:
    """It names where its data were; an URL there is no file of this machine."""
    path = chosen / "selection.parquet"
    table, note = read_parquet(path)
    away = {"absolute": "http://127.0.0.1:9/d.jsonl", "path": "org/name", "root": "/"}
    note["meta"]["data"] = {**(note["meta"].get("data") or {}), **away}
    write_parquet(path, table, note)
    found = rap.load(chosen)
    assert found.samples is None and found.dataset is None
    assert not no_network


def test_a_link_in_a_selection_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    """What it leads to is not overwritten: files are renamed into place."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("selection.parquet", "settings.json", "indices.npy"):
        (tmp_path / "out" / name).symlink_to(outside)
    rap.choose(Scores.from_rollouts(ROLLED), budget=0.5).save(tmp_path / "out")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "out" / "settings.json").is_symlink()


# ---------------------------------------------------------------- a model's folder


def safetensors(header: bytes, size: int | None = None) -> bytes:
    return (len(header) if size is None else size).to_bytes(8, "little") + header


@pytest.mark.parametrize("header", [b"[" * 100_000, b"[]", b"7", b'{"a": {}}', b"\xff"])
def test_a_header_of_weights_that_is_none(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(header))
    with pytest.raises(RapModelError, match="no safetensors file"):
        check_weights(tmp_path)


def test_a_header_of_weights_without_end_is_not_read(tmp_path: Path) -> None:
    """It says 2^38 bytes, and the file is as long (and empty on disk)."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(b"{}", 1 << 38))
    os.truncate(path, (1 << 38) + 8)
    with pytest.raises(RapModelError, match="no safetensors file"):
        check_weights(tmp_path)


def test_an_index_of_weights_names_files_of_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "other.safetensors", folder / "model-1.safetensors"):
        path.write_bytes(safetensors(b"{}"))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RapModelError, match="no file of the folder"):
        check_weights(folder)


# ---------------------------------------------------------------- a server


def test_an_answer_in_an_encoding_without_a_limit_is_not_unpacked() -> None:
    def brotli(server: Any, number: int, body: Any) -> Any:
        return 200, {"Content-Encoding": "br"}, "x"

    with FakeServer() as server, engine(server) as (made, _):
        server.special = brotli
        with pytest.raises(RapModelError, match="encoding 'br', which was not asked for"):
            list(made.generate(requests(1)))


def test_an_answer_without_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rap.engines.http.MAX_ANSWER_BYTES", 1 << 16)

    def endless(server: Any, number: int, body: Any) -> Any:
        return 200, {}, "x" * (1 << 20)

    with FakeServer() as server, engine(server) as (made, _):
        server.special = endless
        with pytest.raises(RapModelError, match="an answer of over"):
            list(made.generate(requests(1)))


def test_what_a_server_says_moves_no_cursor() -> None:
    said = error_message(
        json.dumps({"error": "no\x1b[2J\x1b]0;x\x07\u202e\u200b \x9b1m" * 99})
    )
    assert said.isprintable() and said.startswith("no?[2J?]0;x???") and len(said) <= 300


# ---------------------------------------------------------------- the reader of a report


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address of this machine and what was asked there."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def browsed(page: Path, folder: Path) -> str:
    """The page as Chromium has it after its scripts, styles and requests."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium, no google-chrome here")
    done = subprocess.run(
        [found, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--disable-background-networking", "--no-first-run", "--disable-dev-shm-usage",
         "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}",
         page.as_uri()],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and "<html" in done.stdout, done.stderr[-2000:]
    return done.stdout


def attacks(url: str) -> list[str]:
    """Texts that ask for ``url`` or change the title where one of them is not escaped."""
    run = f"document.title='PWNED';fetch('{url}/fetch')"
    return [
        f"<script>{run}</script>",
        f"</script><script>{run}</script>",
        f"<img src='{url}/img' onerror=\"{run}\">",
        f'"><svg onload="{run}"><image href="{url}/svg"/></svg>',
        f"</style><link rel=stylesheet href='{url}/css'>",
        f"<style>@import url('{url}/import');body{{background:url('{url}/back')}}</style>",
        f"<iframe src='{url}/frame'></iframe><object data='{url}/object'></object>",
        f"<meta http-equiv=refresh content='0;url={url}/refresh'>",
        f"<base href='{url}/'><form action='{url}/form'>"
        f'<input autofocus onfocus="{run}">',
        f"{{{{ ''.__class__ }}}} {{% include '{url}' %}} javascript:{run}",
    ]


def test_fault_45_a_browser_asks_for_nothing_and_runs_nothing_of_the_rows(
    tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    """Hostile rows in a report, in Chromium; and that the same texts do harm where they are
    not escaped, so that the test would see it."""
    url, asked = listener
    bare = tmp_path / "bare.html"
    bare.write_text(f"<html><body>{attacks(url)[0]}{attacks(url)[2]}</body></html>")
    assert "PWNED" in browsed(bare, tmp_path).split("<body")[0]
    assert "/img" in asked and "/fetch" in asked
    asked.clear()

    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    texts = attacks(url)
    data = [
        {"id": f"{i} {text}", "question": text, "answer": text, "source": text,
         "choices": [text, "other"], "image": "x.png"}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    said = [
        {
            "id": row["id"],
            "with_image": arm,
            "correct": arm and k < 3,
            "source": row["source"],
        }
        for row in data
        for arm in (True, False)
        for k in range(4)
    ]
    samples = open_samples(as_jsonl(data, tmp_path))
    scores = Scores.from_rollouts(said, dataset=samples)
    page = tmp_path / "report.html"
    selection = rap.choose(scores, budget=0.5, by="source")
    page.write_text(render(selection, title=texts[0], note=texts[1]))
    seen = browsed(page, tmp_path)
    assert not asked
    title = re.search(r"<title>(.*?)</title>", seen, re.DOTALL)
    assert title is not None and title[1].startswith("&lt;script&gt;")
    for tag in ("<iframe", "<object", "<link", "<base", "<form"):
        assert tag not in seen
    # what it shows, twice as text, and its own script, which the policy names by its hash
    assert re.findall(r"<script[^>]*>", seen) == [
        '<script type="text/plain" id="data">',
        '<script type="text/plain" id="images">',
        "<script>",
    ]
    assert texts[2].split("'")[0].replace("<", "&lt;") in seen  # shown as it is written


@pytest.mark.usefixtures("no_network")
def test_a_report_of_hostile_rows_needs_no_network(hostile: Any) -> None:  # noqa: F811
    text = render(hostile, title=HOSTILE[1])
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []


def test_an_image_in_a_report_is_encoded_anew(tmp_path: Path) -> None:
    """What an image file holds beside its pixels (a script after its end, its EXIF) does
    not reach the page."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    more = b"<script>alert(1)</script>" * 9
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes() + more)
    rows = [
        {"id": f"s{i}", "question": "q", "answer": "3", "image": "x.png"} for i in range(6)
    ]
    scores = Scores.from_rollouts(ROLLED, dataset=open_samples(as_jsonl(rows, tmp_path)))
    text = render(rap.choose(scores, budget=0.5))
    shown = re.findall(r"data:image/webp;base64,([^\"']+)", text)
    assert shown
    for image in shown:
        assert b"script" not in base64.b64decode(image)


# ---------------------------------------------------------------- secrets


def test_no_secret_of_the_environment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scores, selection, report, export: nothing holds what the environment does."""
    names = ("RAP_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
    for name in names:
        monkeypatch.setenv(name, f"very-secret-{name}")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    rows = [
        {"id": f"s{i}", "question": "q", "answer": "3", "image": "x.png"} for i in range(6)
    ]
    scores = Scores.from_rollouts(ROLLED, dataset=open_samples(as_jsonl(rows, tmp_path)))
    out = tmp_path / "out"
    out.mkdir()
    scores.save(out / "scores")
    selection = rap.choose(scores, budget=0.5)
    selection.save(out / "chosen")
    selection.report(out / "report.html")
    selection.export("trl", out / "trl")
    written = [p for p in out.rglob("*") if p.is_file()]
    assert len(written) >= 5
    said = capfd.readouterr()
    texts = [*(p.read_bytes() for p in written), said.out.encode(), said.err.encode()]
    assert not [t for t in texts if b"very-secret" in t]
