"""Whatever a file holds: it is read right, or refused by one of rap's own errors, or the
row is quarantined. Bytes are damaged, rows and answers are drawn.

Bytes that were once read wrongly lie in ``tests/data/fuzz`` and are tried in every run.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import KEPT, damaged, fuzz, kept, seconds
from hypothesis import strategies as st
from PIL import Image
from test_store import FINGERPRINT, SIZE, N, files, fill

import rap
from rap.engines import http, wire
from rap.errors import RapError
from rap.samples import Bad, BadSample, ImageRef, Sample, open_samples
from rap.samples.images import decode, image_size, load_images
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore

TESTS = 8
SHARE = seconds(2 * TESTS)
PIXELS = 1 << 20


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of its own, and no warning an error: they are about what is set aside."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(name)


# ---------------------------------------------------------------- data sets


def image_bytes(kind: str = "PNG", mode: str = "RGB", size: int = 24) -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(values).convert(mode).save(out, kind)
    return out.getvalue()


ROWS = [
    {"id": "a", "question": "How many?", "answer": "3", "choices": None, "image": "x.png"},
    {"id": "b", "question": "Which?", "answer": "B", "choices": ["1", "2"],
     "image": "x.png"},
    {"id": "c", "question": "\u00e9\ud83d\ude00".encode("utf-16", "surrogatepass").decode(
        "utf-16"), "answer": "1.5", "choices": [], "image": ["x.png"]},
]  # fmt: skip
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = b"id\tquestion\tanswer\timage\n" + b"a\tHow many?\t3\tx.png\n" * 3


def parquet_bytes(**options: Any) -> bytes:
    rows = [{**row, "image": {"bytes": image_bytes(), "path": None}} for row in ROWS]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


DATA_SETS = [
    LINES,
    LINES.replace(b"\n", b"\r\n"),
    json.dumps(ROWS).encode(),
    json.dumps({"train": ROWS}).encode(),
    json.dumps({row["id"]: row for row in ROWS}).encode(),
    gzip.compress(LINES, mtime=0),
    TABLE,
    parquet_bytes(),
    parquet_bytes(compression="zstd", write_page_checksum=True, row_group_size=1),
    parquet_bytes(compression="none", use_dictionary=False),
]


def read_data_set(data: bytes, name: str) -> None:
    with folder() as path:
        (path / "x.png").write_bytes(image_bytes())
        (path / name).write_bytes(data)
        try:
            samples = open_samples(path / name, root=path)
        except RapError:
            return
        require_samples(samples, str(path.resolve()))


def require_samples(samples: Any, root: str) -> None:
    """Each is one or the other; an image is inside the root, or refused."""
    ids = samples.ids
    assert len(ids) == len(samples) == len(set(ids))
    for at, sample in enumerate(samples):
        assert sample.index == at and sample.id == ids[at]
        if isinstance(sample, Bad):
            assert sample.stage and sample.code and sample.message.encode() is not None
            continue
        assert isinstance(sample, Sample) and sample.question.strip() and sample.answer
        pa.array([sample.question, sample.answer, *sample.choices]).validate(full=True)
        for ref in sample.images:
            assert ref.path is None or ref.path.startswith(root)
        try:
            load_images(sample.images, max_pixels=PIXELS)
        except BadSample as bad:
            assert bad.stage == "image"


def check_data_set(data: bytes) -> None:
    for name in ("d.jsonl", "d.tsv"):
        read_data_set(data, name)


def test_any_damaged_data_set() -> None:
    fuzz(kept("data_set", check_data_set), share=SHARE, data=damaged(DATA_SETS))


def test_a_seed_gives_the_same_examples_and_what_fails_fails(monkeypatch) -> None:
    def drawn(seed: str) -> list[int]:
        found: list[int] = []

        def keep(x: int) -> None:
            found.append(x)

        monkeypatch.setenv("RAP_FUZZ_SEED", seed)
        fuzz(keep, share=1e-9, x=st.integers())  # one seed, 200 examples
        return found

    first = drawn("7")
    assert len(set(first)) > 50
    assert drawn("7") == first
    assert drawn("8") != first
    assert len(drawn("")) > 50  # empty, as the Makefile passes it on: any

    def never_large(x: int) -> None:
        assert x < 1000

    with pytest.raises(AssertionError):
        fuzz(never_large, share=1e-9, x=st.integers())


def test_nothing_that_the_gate_runs_may_fail() -> None:
    run = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    lines = [line for line in run.splitlines() if re.search(r"\bmake [a-z-]+\b", line)]
    ran = [line for line in lines if not line.lstrip().startswith(("#", "if ", "echo"))]
    assert len(ran) >= 6
    assert all(line.rstrip().endswith("|| status=1") for line in ran), ran


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["A", "(B)", "x.png", "../x.png", "/dev/zero", "http://x/y.png",
                       "file:///etc/passwd", "data:image/png;base64,AAAA", "<image>", "[1]",
                       "2020-01-01", "\ud800", "\0", "{", "1e999", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "bytes", "path", "image", "url",
                         "label", "from", "value", "image_url", ""]),
        inner,
        max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip
NAMES = ["id", "question", "answer", "choices", "image", "images", "messages", "options",
         "conversations", "solution", "problem", "source", "a.b", "extra"]  # fmt: skip
drawn_rows = st.lists(
    st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5), min_size=1, max_size=6
)


def seen(source: Any, root: Path) -> list[Any] | str:
    """Samples as plain values; the word "refused" for a data set that is."""
    try:
        samples = open_samples(source, root=root)
    except RapError:
        return "refused"
    require_samples(samples, str(root.resolve()))
    found = []
    for s in samples:
        if isinstance(s, Bad):
            found.append((s.stage, s.code))
        else:
            found.append((s.question, s.answer, s.choices, s.images, s.source, s.turns))
    return found


def test_any_rows_are_the_same_from_memory_and_from_json_lines() -> None:
    def check(rows: list[dict]) -> None:
        whole = [{**ROWS[0], "id": f"whole {i}"} for i in range(2)]
        rows = [*whole, *({**ROWS[1], "id": f"r{i}", **r} for i, r in enumerate(rows))]
        with folder() as path:
            (path / "x.png").write_bytes(image_bytes())
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (path / "d.jsonl").write_text(lines)
            assert seen(rows, path) == seen(path / "d.jsonl", path)

    fuzz(check, share=SHARE, rows=drawn_rows)


ARROW = [
    pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.uint64(), pa.float16(),
    pa.float64(), pa.bool_(), pa.null(), pa.timestamp("us"), pa.date32(),
    pa.decimal128(10, 2), pa.list_(pa.string()), pa.large_list(pa.int32()),
    pa.list_(pa.list_(pa.string())),
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    pa.dictionary(pa.int32(), pa.string()), pa.map_(pa.string(), pa.int32()),
    pa.struct([("role", pa.string()), ("content", pa.string())]), pa.duration("s"),
    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    pa.list_(pa.uint8(), 4), pa.time64("us"),
]  # fmt: skip


def of_type(rng: np.random.Generator, kind: pa.DataType, n: int) -> pa.Array:
    """n values of a type, some of them null."""
    if pa.types.is_dictionary(kind):
        return of_type(rng, kind.value_type, n).dictionary_encode()
    missing = rng.random(n) < 0.2
    if pa.types.is_struct(kind):
        parts = [of_type(rng, kind[i].type, n) for i in range(kind.num_fields)]
        fields = [kind[i] for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=pa.array(missing))
    if pa.types.is_map(kind):
        return pa.array([None if m else [("k", 1)] for m in missing], kind)
    if pa.types.is_nested(kind):
        fixed = pa.types.is_fixed_size_list(kind)
        inner = [
            None if m else of_type(rng, kind.value_type, 4 if fixed else 2).to_pylist()
            for m in missing
        ]
        return pa.array(inner, kind)
    if pa.types.is_null(kind):
        return pa.nulls(n)
    words = ["A", "x.png", "3", "", "../x", "http://x", "\u202e", "[1, 2]", "12 cm"]
    texts = [words[i] for i in rng.integers(0, len(words), n)]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array(
            [None if m else t for m, t in zip(missing, texts, strict=True)], kind
        )
    if pa.types.is_binary(kind):
        some = [image_bytes(), b"", b"\xff\xd8\xff", b"text"]
        found = [some[i] for i in rng.integers(0, len(some), n)]
        return pa.array(
            [None if m else b for m, b in zip(missing, found, strict=True)], kind
        )
    small = pa.array(rng.integers(0, 3, n), mask=missing)
    if pa.types.is_float16(kind):
        return pa.array(rng.integers(0, 3, n).astype(np.float16), mask=missing)
    if pa.types.is_date32(kind):
        return small.cast(pa.int32()).cast(kind)
    if pa.types.is_decimal(kind):
        return small.cast(pa.decimal128(20, 0)).cast(kind)
    return small.cast(kind)


def test_any_parquet_types_in_any_column() -> None:
    def check(seed: int, types: Mapping[str, pa.DataType], n: int) -> None:
        rng = np.random.default_rng(seed)
        columns = {
            "id": pa.array([f"i{i}" for i in range(n)]),
            "question": pa.array(["How many?"] * n),
            "answer": pa.array(["3"] * n),
            "image": pa.array(["x.png"] * n),
        }
        columns |= {name: of_type(rng, kind, n) for name, kind in types.items()}
        with folder() as path:
            (path / "x.png").write_bytes(image_bytes())
            table = pa.table(columns)
            pq.write_table(table, path / "d.parquet", row_group_size=max(1, n // 2))
            assert seen(table, path) == seen(path / "d.parquet", path)

    fuzz(
        check,
        share=SHARE,
        seed=st.integers(0, 2**32 - 1),
        types=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ARROW), max_size=4),
        n=st.integers(1, 6),
    )


# ---------------------------------------------------------------- images

IMAGES = [
    *(image_bytes(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")),
    *(image_bytes("PNG", mode) for mode in ("P", "1", "LA", "RGBA", "I;16")),
    *(image_bytes("JPEG", mode) for mode in ("L", "CMYK")),
    image_bytes("PNG", size=1),
    b"",
    b"<svg/>",
]


def check_image(data: bytes) -> None:
    try:
        image = decode(data, max_pixels=PIXELS)
    except BadSample as bad:
        assert bad.stage == "image" and bad.code.startswith("image_")
    else:
        assert image.mode == "RGB" and 2 <= min(image.size)
        assert image.size[0] * image.size[1] <= PIXELS
        image.tobytes()
    try:
        size = image_size(ImageRef(data, None))
    except BadSample as bad:
        assert bad.stage == "image"
    else:
        assert len(size) == 2


def test_any_damaged_image() -> None:
    fuzz(kept("image", check_image), share=SHARE, data=damaged(IMAGES))


# ---------------------------------------------------------------- rollouts of others


ROLLOUTS = [
    {"id": i % 3, "with_image": k % 2 == 0, "correct": (i + k) % 3 == 0, "source": "s"}
    for i in range(3)
    for k in range(6)
]
ROLLOUT_LINES = "".join(json.dumps(row) + "\n" for row in ROLLOUTS).encode()


def rollout_parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROLLOUTS), out)
    return out.getvalue()


def check_rollouts(data: bytes) -> None:
    with folder() as path:
        (path / "r").write_bytes(data)
        try:
            scores = Scores.from_rollouts(path / "r")
            selection = rap.choose(scores, budget=0.5)
        except RapError:
            return
        table = scores.table.to_pylist()
        for row in table:
            for arm in "10":
                right, asked = row[f"c{arm}"], row[f"m{arm}"]
                assert asked is None or 0 <= (right or 0) <= asked
        assert len(selection) <= math.ceil(len(table) / 2)


def test_any_damaged_rollouts() -> None:
    whole = [ROLLOUT_LINES, rollout_parquet()]
    fuzz(kept("rollouts", check_rollouts), share=SHARE, data=damaged(whole))


# ---------------------------------------------------------------- stores, selections


def packed_folder(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.name != "lock"}


@pytest.fixture(scope="module")
def store_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "store"
    fill(path)
    return packed_folder(path)


def unpack(path: Path, whole: Mapping[str, bytes], name: str, data: bytes) -> None:
    path.mkdir()
    for other, good in whole.items():
        (path / other).write_bytes(data if other == name else good)


def test_any_damaged_store(store_files: dict[str, bytes]) -> None:
    """It is refused, or the damaged shard is set aside and scored again: the same bytes."""
    shown = [n for n in store_files if n.endswith(("0.parquet", "1.parquet", ".json"))]

    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(shown))
        bytes_ = data.draw(damaged([store_files[name]]))
        with folder() as path:
            unpack(path / "s", store_files, name, bytes_)
            with_read_only(path / "s")
            try:
                fill(path / "s")
            except RapError:
                assert name == "store.json"  # another run's, by what it says
                return
            found = files(path / "s")
            aside = {n for n in found if n.endswith(".corrupt")}
            kept_ = {n: b for n, b in found.items() if n not in aside}
            if name != "store.json":
                assert kept_ == store_files
                assert bool(aside) == (bytes_ != store_files[name])

    def with_read_only(path: Path) -> None:
        try:
            table = Scores.load(path).table
            ScoreStore.load(path).read_rollouts()
        except RapError:
            return
        assert table.num_rows <= N

    assert FINGERPRINT and SIZE  # what ``fill`` opens it with
    fuzz(check, share=SHARE, data=st.data())


def test_any_damaged_selection(tmp_path: Path) -> None:
    scores = Scores.from_rollouts([*ROLLOUTS])
    rap.choose(scores, budget=0.5).save(tmp_path / "whole")
    whole = packed_folder(tmp_path / "whole")
    good = rap.load(tmp_path / "whole")

    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(whole)))
        bytes_ = data.draw(damaged([whole[name]]))
        with folder() as path:
            unpack(path / "s", whole, name, bytes_)
            try:
                found = rap.load(path / "s")
                same = found.table.equals(good.table)
            except RapError:
                assert bytes_ != whole[name]
                return
            assert same and found.settings == good.settings

    fuzz(check, share=SHARE, data=st.data())


# ---------------------------------------------------------------- answers of a server

ANSWER = {
    "id": "x",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "3", "reasoning": None},
            "logprobs": {"content": [{"token": "3", "id": 7, "logprob": -0.5}]},
            "token_ids": [7],
        }
    ],
    "prompt_token_ids": [1, 2],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1},
}
REPLACED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["content", "logprob", "id", "index"]), inner,
                      max_size=2),
    max_leaves=4,
)  # fmt: skip


def check_answer(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert 0 < len(wire.error_message(text)) <= 300
    for status in (200, 204, 307, 400, 401, 404, 429, 500):
        try:
            answer = http.read(http.Reply(status, text), "http://h/v1/chat/completions")
        except (http.Trouble, http.Refused, RapError):
            continue
        calls = (wire.token_logps, wire.prompt_ids, wire.prompt_tokens, sane_completions)
        for call in calls:
            try:
                call(answer)
            except wire.MalformedAnswer as bad:
                assert str(bad)


def sane_completions(answer: Mapping[str, Any]) -> None:
    for one in wire.completions(answer, [1, 2], None):
        assert isinstance(one.text, str) and one.finish_reason in ("stop", "length")
        assert one.token_ids is None or all(type(i) is int for i in one.token_ids)
        assert math.isnan(one.logp) or one.logp <= 1e-3 * max(1, one.n_sampled)


def paths_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths_of(value[key], (*path, key))


def replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_any_answer_of_a_server() -> None:
    places = list(paths_of(ANSWER))
    checked = kept("answer", check_answer)

    def check(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            checked(data.draw(damaged([json.dumps(ANSWER).encode()])))
            return
        changed: Any = ANSWER
        for path in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
            try:
                changed = replaced(changed, path, data.draw(REPLACED))
            except (KeyError, IndexError, TypeError, ValueError):
                pass  # what was replaced before is no place any more
        checked(json.dumps(changed).encode())

    fuzz(check, share=SHARE, data=st.data())


# ---------------------------------------------------------------- found once

CHECKS: dict[str, Callable[[bytes], None]] = {
    "data_set": check_data_set,
    "image": check_image,
    "rollouts": check_rollouts,
    "answer": check_answer,
}


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.bin")), ids=lambda p: p.name)
def test_bytes_that_were_once_read_wrongly(path: Path) -> None:
    CHECKS[path.name.rpartition("-")[0]](path.read_bytes())
