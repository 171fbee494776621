"""Every way in x (bomb, path that leads out, link, URL), where test_security.py has not
tried it already. N/A: that way has no such thing.

| way in | bomb | path that leads out | link | URL |
|---|---|---|---|---|
| JSON Lines, JSON, CSV | images and gzip below | no_path_leads_out | the same | the same |
| Parquet, Arrow | images, pages below | no_path_leads_out | the same | the same |
| chats, structs, lists of both | images below | in_any_form | the same | the same |
| saved by `datasets` | images, buffers below | names_files_of_its_folder | same | same |
| lists, `datasets` | images below | no_path_leads_out | the same | the same |
| rollouts, reward logs | lines, pages below | N/A: they name none | N/A | below |
| selections | pages below | a_selection_names_... | links below | fetches_no_data_set |
| stores | pages below | numbers, not names | links below | below |
"""
# ruff: noqa: F811  (fixtures are imported, and named again by who asks for them)

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_security import REFUSED, ROLLED, WAYS, chosen, nest, no_network  # noqa: F401
from test_store import fill

import rap
from rap.engines.http import Lost, exchange, make_client
from rap.errors import RapError, RapInputError, RapModelError, RapStoreError
from rap.model.loading import load_model
from rap.samples import Bad, BadSample, load_images, open_samples
from rap.scores.claims import Claims
from rap.scores.files import read_parquet, write_parquet
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore
from rap.trl.rewardfile import read_visits

# ---------------------------------------------------------------- images that are bombs


def chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def png(side: int, *more: bytes, pixels: bytes = b"") -> bytes:
    """A grey picture that says it is ``side`` wide and high."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


HUGE = png(30_000, pixels=bytes(1 << 20))
"""900 million pixels in a kilobyte."""
TEXT = png(8, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9)),
           pixels=bytes(8 * 9))  # fmt: skip
PROFILE = png(8, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(64 << 20), 9)),
              pixels=bytes(8 * 9))  # fmt: skip
"""64 MiB of text, or of a colour profile, beside 64 pixels."""


def forms(folder: Path, data: bytes, way: str) -> dict[str, Any]:
    """How a row of this way can hold an image."""
    (folder / "bomb.png").write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    found: dict[str, Any] = {"file": "bomb.png", "data URI": uri}
    if way in ("CSV", "TSV"):
        found["base64"] = base64.b64encode(data).decode()
    if way in (
        "Parquet",
        "a folder of Parquet",
        "saved by datasets",
        "datasets",
        "list",
        "Arrow",
    ):
        found["bytes"] = {"bytes": data, "path": None}
    return found


def row(image: Any) -> dict[str, Any]:
    return {"id": "a", "question": "How many?", "answer": "3", "image": image}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_bomb_is_refused_in_every_way_in(way: str, nest: Path) -> None:
    for form, image in forms(nest, HUGE, way).items():
        (sample,) = open_samples(WAYS[way]([row(image)], nest), root=nest)
        assert not isinstance(sample, Bad), (form, sample)
        with pytest.raises(BadSample) as refused:
            load_images(sample, max_pixels=1 << 24)
        assert refused.value.code == "image_too_large", form
        for path in nest.glob("d.*"):
            path.unlink()


@pytest.mark.parametrize("data", [TEXT, PROFILE], ids=["text", "profile"])
def test_what_a_picture_holds_beside_its_pixels_is_not_unpacked(
    data: bytes, tmp_path: Path
) -> None:
    """64 MiB out of 64 kB, which the header says nothing of: in little memory, read or
    refused."""
    assert len(data) < 100_000
    (tmp_path / "x.png").write_bytes(data)
    code = """
import resource, sys
from rap.samples import BadSample, open_samples
from rap.samples.images import load_images
(sample,) = open_samples([{"question": "q", "answer": "3", "image": "x.png"}],
                         root=sys.argv[1])
load_images(sample.images[:0], max_pixels=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_images(sample.images, max_pixels=1 << 20)
    print("read")
except BadSample as bad:
    print(bad.code)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
"""
    done = run(code, tmp_path)
    assert done.stdout.strip() in ("read", "image_unreadable", "image_truncated")


# ---------------------------------------------------------------- files that are bombs


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.json.gz", "d.csv.gz", "d.tsv.gz"])
@pytest.mark.parametrize("start", [b"", b"[", b'{"id": "', b"id,question,answer\n"])
def test_a_gzip_bomb_of_every_kind(
    name: str, start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rap.samples.opening._UNPACKED_BYTES", 1 << 16)
    path = tmp_path / name
    path.write_bytes(gzip.compress(start + b" " * (4 << 20)))
    with pytest.raises(RapInputError, match="unpacks to over"):
        open_samples(path)


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True, text=True, timeout=1500,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


LIMITED = """
import resource, sys
import rap
from rap.errors import RapError
from rap.samples import open_samples
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore
from rap.trl.rewardfile import read_visits
readers = {
    "rows of Arrow": lambda path: [x.question for x in open_samples(path)],
    "rewards": lambda path: read_visits([path]),
    "selection": lambda path: rap.load(path).table,
    "scores": lambda path: Scores.load(path).table,
    "shard": lambda path: ScoreStore.load(path).read_shard(0),
}
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    readers[sys.argv[1]](sys.argv[2])
    print("read")
except (RapError, MemoryError) as error:
    print("refused", type(error).__name__)
"""
ROWS = 100_000


def bomb() -> pa.DictionaryArray:
    """90 GB of texts, of which a file holds one."""
    return pa.DictionaryArray.from_arrays(np.zeros(ROWS, np.int32), ["x" * 900_000])


def packed(path: Path, column: str) -> Path:
    """A file of ours with such a column, its checksum right."""
    table, note = read_parquet(path)
    at = table.schema.get_field_index(column)
    some = table.take(pa.array(np.zeros(ROWS, np.int64))).set_column(at, column, bomb())
    write_parquet(path, some, note)
    return path


def rows_of_arrow(folder: Path) -> Path:
    """Buffers that unpack to 3 GiB."""
    schema = pa.schema([(name, pa.string()) for name in ("question", "answer", "image")])
    batch = pa.record_batch([["x" * (1 << 28)], ["3"], ["x.png"]], schema=schema)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path = folder / "d.arrow"
    with path.open("wb") as file, pa.ipc.new_stream(file, schema, options=options) as out:
        for _ in range(12):
            out.write_batch(batch)
    return path


def rewards(folder: Path) -> Path:
    path = folder / "r.parquet"
    table = pa.table({"id": bomb(), "reward": np.zeros(ROWS)})
    pq.write_table(table, path, compression="zstd")
    return path


def selection(folder: Path) -> Path:
    rap.choose(Scores.from_rollouts(ROLLED), budget=0.5).save(folder)
    packed(folder / "selection.parquet", "id")
    return folder


def scores(folder: Path) -> Path:
    Scores.from_rollouts(ROLLED).save(folder / "scores.parquet")
    return packed(folder / "scores.parquet", "id")


def shard(folder: Path) -> Path:
    fill(folder / "store")
    packed(folder / "store" / "scores-00000.parquet", "id")
    return folder / "store"


BOMBS = {"rows of Arrow": rows_of_arrow, "rewards": rewards, "selection": selection,
         "scores": scores, "shard": shard}  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_of_pages_ends_at_the_limit_of_memory(kind: str, tmp_path: Path) -> None:
    path = BOMBS[kind](tmp_path)
    files = [path] if path.is_file() else list(path.iterdir())
    assert max(file.stat().st_size for file in files) < 2_000_000
    end = run(LIMITED, kind, path).stdout.split()[0]
    # what a selection's table repeats is read as a dictionary, which is as small as it was
    assert end == ("read" if kind == "selection" else "refused")


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.json.gz", "r.parquet.gz"])
def test_what_is_packed_is_no_rollouts_and_no_log(name: str, tmp_path: Path) -> None:
    """Nothing is unpacked there, so that nothing can unpack to more."""
    rows = "".join(json.dumps(one) + "\n" for one in ROLLED)
    (tmp_path / name).write_bytes(gzip.compress(rows.encode()))
    with pytest.raises(RapInputError):
        Scores.from_rollouts(tmp_path / name)
    with pytest.raises(RapInputError):
        read_visits([tmp_path / name])


# ---------------------------------------------------------------- paths in every form


FORMS: dict[str, Callable[[str], dict[str, Any]]] = {
    "struct": lambda name: {"image": {"bytes": None, "path": name}},
    "list": lambda name: {"images": ["x.png", name]},
    "structs in a list": lambda name: {"images": [{"path": name, "bytes": None}]},
    "text of a list": lambda name: {"images": json.dumps([name])},
    "part of a chat": lambda name: chat({"type": "image", "image": name}),
    "part of a chat, as of a server": lambda name: chat(
        {"type": "image_url", "image_url": {"url": name}}
    ),
}


def chat(part: dict[str, Any]) -> dict[str, Any]:
    parts, answer = (
        [part, {"type": "text", "text": "How many?"}],
        {"type": "text", "text": "3"},
    )
    return {"messages": [{"role": "user", "content": parts},
                         {"role": "assistant", "content": [answer]}]}  # fmt: skip


@pytest.mark.parametrize("way", ["JSON Lines", "Parquet", "datasets", "list"])
@pytest.mark.parametrize("form", FORMS)
def test_no_path_leads_out_in_any_form(
    form: str, way: str, nest: Path, no_network: list
) -> None:
    """As ``test_no_path_leads_out_of_the_data``, whatever holds the name."""
    names = [*REFUSED, "x.png"]
    given = [FORMS[form](name) for name in names]
    if "chat" not in form:
        given = [{"question": "How many?", "answer": "3"} | one for one in given]
    samples = open_samples(WAYS[way](given, nest), root=nest)
    for name, sample in zip(names, samples, strict=True):
        if name in REFUSED:
            assert isinstance(sample, Bad) and sample.code == REFUSED[name], name
        else:
            assert not isinstance(sample, Bad), sample
            assert load_images(sample, max_pixels=1 << 20)
    assert not no_network


# ---------------------------------------------------------------- links, pipes


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store of four samples, all scored."""
    scores = Scores.from_rollouts(ROLLED)
    scores.save(tmp_path / "scores")
    with ScoreStore.open(tmp_path / "store", {"model": "m"}, 4, 2):
        pass
    return tmp_path / "store"


LINKS: dict[str, Callable[[Path], Path]] = {
    "lock": lambda there: there / "mine.txt",
    "a lock that is not there": lambda there: there / "new.txt",
    "claims": lambda there: there,
    "previous": lambda there: there,
    "index": lambda there: there,
    "ray": lambda there: there,
    "ray/claims": lambda there: there,
    "previous/0": lambda there: there,
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_store_leads_nowhere(name: str, filled: Path, tmp_path: Path) -> None:
    """To what is not the store's: nothing there is written, emptied or cleared away."""
    there = tmp_path / "mine"
    there.mkdir()
    for file in ("mine.txt", "store.json", "7", ".x.tmp"):
        (there / file).write_text("mine")
    before = {p.name: p.read_bytes() for p in there.iterdir()}
    link = filled / ("lock" if "lock" in name else name)
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(LINKS[name](there))
    with pytest.raises(RapStoreError, match="is a link to"):
        ScoreStore.open(filled, {"model": "m"}, 4, 2)
    with pytest.raises(RapStoreError, match="is a link to"):
        Claims(filled)
    assert {p.name: p.read_bytes() for p in there.iterdir()} == before


def test_a_store_may_be_a_link_itself(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(filled)
    with ScoreStore.open(tmp_path / "here", {"model": "m"}, 4, 2) as store:
        assert len(store.missing()) == 2


@pytest.mark.parametrize("name", ["store.json", "plan.json", "scores-00000.parquet"])
def test_a_pipe_in_a_store_is_not_waited_for(name: str, filled: Path) -> None:
    (filled / name).unlink(missing_ok=True)
    os.mkfifo(filled / name)
    if name == "plan.json":
        from rap.scores.shardplan import read_plan

        with pytest.raises(RapStoreError, match="not a regular file"):
            read_plan(filled)
    elif name == "store.json":
        with pytest.raises(RapStoreError, match="not a regular file"):
            ScoreStore.load(filled)
    else:
        with pytest.warns(UserWarning, match="not a regular file.*set aside"):
            ScoreStore.open(filled, {"model": "m"}, 4, 2).close()


def test_a_pipe_in_a_selection_is_not_waited_for(chosen: Path) -> None:
    (chosen / "selection.parquet").unlink()
    os.mkfifo(chosen / "selection.parquet")
    with pytest.raises(RapStoreError, match="not a regular file"):
        rap.load(chosen)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "more.json",
                                  "model.safetensors", "tokenizer.json"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_in_a_model_folder_is_not_waited_for(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Nor is a device read without end."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in {"config.json", name} - {name}:
        (folder / file).write_text('{"model_type": "qwen2_5_vl"}')
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(RapModelError, match=f"{name} is not a regular file"):
        load_model(str(folder))


def test_a_pipe_is_no_log_of_rewards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.jsonl")
    with pytest.raises(RapInputError, match="no such file"):
        read_visits([tmp_path / "r.jsonl"])


# ---------------------------------------------------------------- a server that drips


@pytest.fixture
def dripping() -> Iterator[Callable[[bytes], str]]:
    """The address of a server that answers with what it is given, and then a byte in 50 ms
    for 20 s."""
    over = threading.Event()

    def answer(listener: socket.socket, head: bytes) -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(head)
            for _ in range(400):
                if over.wait(0.05):
                    break
                connection.sendall(b"x")

    with contextlib.ExitStack() as stack:

        def start(head: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            thread = threading.Thread(target=answer, args=(listener, head))
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
            return f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models"

        yield start


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n",
                                  b"HTTP/1.1 200 OK\r\nServer: "],
                         ids=["body", "header"])  # fmt: skip
def test_a_server_that_drips_has_no_more_time_than_one_that_is_silent(
    head: bytes, dripping: Callable[[bytes], str]
) -> None:
    """httpx2's own time begins anew with every byte."""
    url = dripping(head)

    async def asked() -> None:
        async with make_client([url], 1, 0.5) as client:
            await exchange(client, "GET", url)

    with pytest.raises(Lost, match="no answer in time") as lost:
        asyncio.run(asked())
    assert lost.value.timed_out


# ---------------------------------------------------------------- URLs, paths


@pytest.mark.parametrize("url", ["https://me:hidden@host/d.jsonl", "s3://key:hidden@b/d",
                                 "http://me:hidden@127.0.0.1:9/d.jsonl",
                                 "zip://d.jsonl::ftp://me:hidden@host/a.zip"])  # fmt: skip
@pytest.mark.parametrize("allowed", [False, True])
def test_a_password_in_the_address_of_data_is_refused_and_not_repeated(
    url: str, allowed: bool, no_network: list
) -> None:
    with pytest.raises(RapInputError, match="holds a password") as refused:
        open_samples(url, allow_network=allowed)
    assert "hidden" not in str(refused.value) and not no_network


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/r.jsonl", "s3://b/r", "hf://a/b"])
def test_logs_of_rewards_are_not_fetched(url: str, no_network: list) -> None:
    with pytest.raises(RapInputError, match="no such file"):
        read_visits([url])
    assert not no_network


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/d.jsonl", "org/name", "hf://a/b"])
def test_a_store_fetches_no_data_set(path: str, tmp_path: Path, no_network: list) -> None:
    """It says where its data were, as a selection does."""
    data = {"absolute": path, "path": path, "root": "/", "columns": {"id": "id"}}
    with ScoreStore.open(tmp_path / "store", {"model": "m"}, 4, 2, data=data):
        pass
    with pytest.raises(RapError):
        rap.load(tmp_path / "store")
    scores = Scores.from_rollouts(ROLLED)
    scores.meta["data"] = data
    with pytest.raises(RapError):
        rap.choose(scores, budget=0.5, by="category")
    assert not no_network


@pytest.mark.parametrize("name", ["../secret.jsonl", "pipe.jsonl", "/dev/zero"])
def test_a_selection_names_a_data_set_that_is_none(
    name: str,
    chosen: Path,
    nest: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is no data set, or not the one: an error, and nothing of it is shown."""
    (nest.parent / "secret.jsonl").write_text(
        "".join(json.dumps(row("x.png") | {"id": f"s{i}"}) + "\n" for i in range(6))
    )
    os.mkfifo(nest / "pipe.jsonl")
    monkeypatch.chdir(nest)
    path = chosen / "selection.parquet"
    table, note = read_parquet(path)
    about = {"absolute": None, "path": name, "columns": {"id": "id"}, "rows": 6}
    note["meta"]["data"] = {**(note["meta"].get("data") or {}), **about}
    write_parquet(path, table, note)
    selection = rap.load(chosen)
    try:
        shown = selection.samples
    except RapInputError:
        return
    assert name == "../secret.jsonl" and shown is not None  # a data set of this machine
