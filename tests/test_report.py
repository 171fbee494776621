"""The report page: true, bounded, deterministic, and deaf to what data says."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import time
import tracemalloc
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rap.errors import RapConfigError, RapStoreError
from rap.report import browse
from rap.report.page import (
    grouped,
    number,
    percent,
    render,
    thumbnails,
    visible,
    write_report,
)
from rap.report.text import token_text
from rap.samples.sampleset import open_samples
from rap.scores.scores import Scores
from rap.scores.table import ROLLOUT_SCHEMA, SCORE_SCHEMA, table_from_rows
from rap.selection.choosing import choose

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><style>*{display:none}",
    "</pre></bdi></table><iframe src=//evil.example>",
    "{{7*7}} {% for x in y %} ${7*7}",
    "javascript:alert(1) [x](javascript:alert(1)) https://evil.example/a.png",
    "abc\u202etxt.exe \u2066\u2069 \u200b\u200f end",
    "&lt;b&gt; &amp; &#60;i&#62; ' \" `",
    "x" * 1_000_000,
]
ALLOWED_TAGS = set(
    "html head meta title style body main header h1 h2 h3 p span ul li b div section "
    "table thead tbody tr th td code bdi svg rect g line text figure figcaption input "
    "label img dl dt dd details summary pre footer "
    "script select option button fieldset legend output ol kbd q mark".split()
)


class Page(HTMLParser):
    """What a browser would build: tags with attributes, and all visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {}
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open in ("style", "script", "title"):
            self.raw.setdefault(self._open, []).append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def png(color: tuple[int, int, int], size=(640, 320)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


def rollout_row(i: int, c1: int, c0: int, **more) -> dict:
    return {
        "id": f"s{i}",
        "index": i,
        "status": "scored",
        "evidence": "rollouts",
        "c1": c1,
        "m1": 5,
        "c0": c0,
        "m0": 5,
    } | more


@pytest.fixture
def data(tmp_path):
    """Ten questions with an image each."""
    rows = []
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(png((20 * i, 90, 200)))
        rows.append(
            {
                "id": f"s{i}",
                "question": f"How many dots in picture {i}?",
                "answer": str(i),
                "image": f"{i}.png",
            }
        )
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def selection(data=None, rows=None, **options):
    rows = rows or [
        rollout_row(0, 4, 0),
        rollout_row(1, 3, 0),
        rollout_row(2, 5, 0),
        rollout_row(3, 1, 0),
        rollout_row(4, 5, 5),
        rollout_row(5, 0, 0),
        rollout_row(6, 0, 3),
        rollout_row(7, 3, 3),
        {
            "id": "s8",
            "index": 8,
            "status": "quarantined",
            "stage": "image",
            "code": "image_truncated",
            "message": "8.png ends too early",
        },
        rollout_row(9, 2, 0),
    ]
    samples = None if data is None else open_samples(data)
    scores = Scores(table_from_rows(rows), {}, samples)
    return choose(scores, **({"budget": 0.3} | options))


# ---------------------------------------------------------------- what it says


def test_page_shows_every_count_and_threshold(data):
    chosen = selection(data)
    page = Page(render(chosen))
    for reason, count in chosen.counts().items():
        if count:
            share = percent(count / 10).replace("\u202f", " ")
            assert re.search(rf"{reason}[^0-9]*{count} *{share}", page.text), reason
    assert "3 of 10 samples kept (30.0 %)" in page.text
    assert f"D > {number(chosen.settings['found']['lambda_c'])}" in page.text
    assert "psi" not in chosen.settings["found"]["lambda_a_origin"]
    assert "Not measured." in page.text  # log psi


def test_counts_on_the_page_add_up(data):
    chosen = selection(data)
    body = re.search(r'<table class="reasons">.*?</table>', render(chosen), re.S).group()
    shown = [int(x) for x in re.findall(r'<td class="num">(\d+)</td>', body)]
    assert sum(shown) == len(chosen.table)


def test_fault_44_report_says_how_many_were_replaced():
    rows = [rollout_row(i, 5, 0) for i in range(4)] + [rollout_row(4, 0, 0)]
    chosen = selection(rows=rows, budget=0.6)
    page = Page(render(chosen))
    assert "trivial samples left out; 0 hard ones in their place" in page.text
    assert "0 of 4 trivial samples replaced: no more candidates" in page.text
    published = Page(render(selection(rows=rows, rule="paper", budget=None)))
    assert "0 of 4" in published.text and "trivial samples replaced" in published.text


def test_the_report_of_rule_learn_says_what_it_holds():
    rows = [rollout_row(i, 2, 0) for i in range(20)]
    text = Page(render(selection(rows=rows, rule="learn", budget=0.5))).text
    assert "10 of 20" in text and "samples with mixed outcomes kept" in text
    assert "It pays after" in text


def test_histogram_bars_hold_every_measured_sample(data):
    chosen = selection(data)
    text = render(chosen)
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    tips = [
        sum(int(n) for n in re.findall(r": (\d+) samples, \d+ kept</title>", figure))
        for figure in figures
    ]
    kept = [
        sum(int(n) for n in re.findall(r" samples, (\d+) kept</title>", figure))
        for figure in figures
    ]
    assert tips == [9, 9, 0]  # one is quarantined; psi was not measured
    assert kept == [3, 3, 0]


def test_cost_is_counted_from_the_table(data):
    rows = [
        rollout_row(i, 3, 0, generated_tokens=100 + i, forwards=1, seconds=0.5)
        for i in range(8)
    ]
    page = Page(render(selection(data, rows, budget=0.25), train_group=10))
    # 8 * (5 + 5) completions; 2 kept * 10 and 8 * 10 in training
    assert "The scores behind this selection 80 828 8 4" in page.text
    assert "training on the selection 20" in page.text
    assert "training on everything 80" in page.text
    assert "of these: completions with the image, 8 samples 40" in page.text
    # C = 10.2, t = 0.25: 10.2 / 2.2 / (0.75 * 10)
    assert "It pays after 0.618 epochs: from epoch 1 on" in page.text


def test_answer_evidence_and_attention():
    rows = [
        {
            "id": str(i),
            "index": i,
            "status": "scored",
            "evidence": "answer",
            "p_answer1": 0.9 - i / 100,
            "p_answer0": 0.1,
            "log_psi": -3.0 + i / 50 if i else 9.0,
            "psi_token": "therefore",
        }
        for i in range(40)
    ]
    chosen = selection(rows=rows, budget=0.1, biased="drop")
    assert chosen.counts()["dropped_attention_biased"] == 1
    page = Page(render(chosen))
    assert "most attended token: therefore" in page.text
    assert "needed no completions" in page.text
    limit = number(chosen.settings["found"]["lambda_a"])
    assert f"\u03c8 \u2264 {limit}" in page.text
    page = Page(render(selection(rows=rows, budget=0.1)))  # psi is reported only
    assert "\u03c8 \u2264" not in page.text
    assert f"1 above {limit}, none dropped for it" in page.text


def test_budgets_by_group_are_listed():
    rows = [rollout_row(i, 4, 0, source="ab"[i % 2]) for i in range(20)]
    page = Page(render(selection(rows=rows, budget=0.2, by="source")))
    assert "Budgets by source" in page.text
    assert re.search(r"a 10 2 ", page.text) and re.search(r"b 10 2 ", page.text)


# ---------------------------------------------------------------- images


def test_samples_stand_with_their_images(data):
    page = Page(render(selection(data)))
    images = page.all("img")
    assert len(images) == 10  # the quarantined one too: its file is fine now
    assert "How many dots in picture 3?" in page.text
    for image in images:
        head, _, body = image["src"].partition(",")
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(body))) as thumbnail:
            assert thumbnail.format == "WEBP" and thumbnail.size == (320, 160)


def test_fault_10_image_that_changed_since_it_was_scored_is_said(data):
    old = hashlib.sha256((data.parent / "0.png").read_bytes()).hexdigest()
    rows = [rollout_row(0, 4, 0, image_sha256=old), rollout_row(1, 4, 0)]
    assert "changed since" not in render(selection(data, rows, budget=0.5))
    (data.parent / "0.png").write_bytes(png((1, 2, 3)))
    assert render(selection(data, rows, budget=0.5)).count("changed since") == 1


def test_image_that_cannot_be_shown_is_a_note(data):
    whole = (data.parent / "0.png").read_bytes()
    (data.parent / "0.png").write_bytes(whole[:100])
    (data.parent / "1.png").unlink()
    page = Page(render(selection(data)))
    assert "image_truncated" in page.text and "image_missing" in page.text


def test_another_data_set_gives_no_questions(data, tmp_path):
    rows = [rollout_row(i, 4, 0, id=f"other{i}") for i in range(10)]
    page = Page(render(selection(data, rows)))
    assert not page.all("img") and "How many dots" not in page.text
    assert "not available" in page.text


def test_no_data_set_is_said_and_one_can_be_given(data):
    chosen = selection()
    assert "questions and images are missing" in render(chosen)
    assert len(Page(render(chosen, dataset=open_samples(data))).all("img")) == 10


def test_thumbnails_for_a_notebook(data):
    chosen = selection(data, order="gain")
    text = thumbnails(chosen, limit=2)
    assert len(Page(text).all("img")) == 2
    assert "picture 0?" in text and "picture 1?" in text  # the largest D of the kept
    assert thumbnails(selection()) == ""
    assert thumbnails(chosen) in chosen._repr_html_()


# ---------------------------------------------------------------- hostile data


@pytest.fixture
def hostile(tmp_path):
    """Every hostile text in every place a text can stand."""
    (tmp_path / "a.png").write_bytes(png((9, 9, 9)))
    data, rows = [], []
    for i, text in enumerate(HOSTILE):
        data.append(
            {
                "id": f"{i}{text}",
                "question": text,
                "answer": text,
                "choices": [text, text + "2"],
                "source": text,
                "image": "a.png",
            }
        )
        rows.append(rollout_row(i, 4, 0, id=f"{i}{text}", source=text, psi_token=text))
    for i, text in enumerate(HOSTILE, len(HOSTILE)):
        data.append({"id": f"{i}{text}", "question": "q", "answer": "a", "image": "a.png"})
        rows.append(
            {
                "id": f"{i}{text}",
                "index": i,
                "source": text,
                "status": "quarantined",
                "stage": text,
                "code": text,
                "message": text,
            }
        )
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in data))
    scores = Scores(table_from_rows(rows), {}, open_samples(path))
    return choose(scores, budget=0.9, by="source")


def test_fault_45_hostile_texts_stay_texts(hostile):
    text = render(hostile, title=HOSTILE[0])
    page = Page(text)
    assert {name for name, _ in page.tags} <= ALLOWED_TAGS
    for name, attrs in page.tags:
        for key, value in attrs.items():
            assert not key.startswith("on"), (name, key)
            assert key not in ("href", "xlink:href", "srcset", "action", "style"), name
            if key == "src":
                assert value.startswith("data:image/webp;base64,")
            assert "javascript:" not in (value or "") or key in ("alt", "aria-label")
    # shown as written, evaluated by nobody
    for shown in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[4], HOSTILE[5]):
        assert shown in page.text
    assert "49 {%" not in page.text
    assert "&lt;b&gt; &amp; &#60;i&#62;" in page.text  # not unescaped on the way
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f]", text)
    assert "abc[U+202E]txt.exe" in page.text


def test_fault_45_one_megabyte_of_text_is_cut(hostile):
    text = render(hostile)
    assert len(text) < 400_000
    assert "x" * 1000 not in text
    assert "(1,000,000 characters)" in text


def test_fault_45_content_security_policy_fits_the_page(hostile):
    page = Page(render(hostile))
    (policy,) = [
        m["content"]
        for m in page.all("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    style = "".join(page.raw["style"])
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert len(page.all("style")) == 1
    *data, script = page.raw["script"]  # the page's own script, and what it reads
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert script == files("rap.report").joinpath("page.js").read_text("utf-8")
    assert len(data) == 2 and all(re.fullmatch("[A-Za-z0-9+/]+=*", one) for one in data)
    kinds = [attrs.get("type") for attrs in page.all("script")]
    assert kinds == ["text/plain", "text/plain", None]
    assert not re.search(r"url\(|@import", style)


def test_fault_45_notebook_thumbnails_escape_too(hostile):
    page = Page(hostile._repr_html_())
    assert {name for name, _ in page.tags} <= ALLOWED_TAGS | {"br"}
    assert all(not k.startswith("on") for _, attrs in page.tags for k in attrs)


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("plain", 10, "plain"),
        ("a\u202eb", 10, "a[U+202E]b"),
        ("a\0b\x1b[31m", 10, "a[U+0000]b[U+001B][31m"),
        ("\ud800", 10, "\ufffd"),
        ("line\nline\ttab", 20, "line\nline\ttab"),
        ("12345", 4, "1234\u2026 (5 characters)"),
        ("\u05d0\u4e2d\u00e9", 9, "\u05d0\u4e2d\u00e9"),
        (None, 9, "None"),
    ],
)
def test_visible(text, limit, shown):
    assert visible(text, limit) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\u2013"),
        (-0.5, "\u22120.5"),
        (float("-inf"), "\u2212\u221e"),
        (2 / 3, "0.667"),
    ],
)
def test_number(value, shown):
    assert number(value) == shown


def test_percent_and_grouped():
    assert percent(0.0012) == "0.12\u202f%" and percent(0.09) == "9.0\u202f%"
    assert percent(0) == "0.0\u202f%" and grouped(1234567) == "1,234,567"


# ---------------------------------------------------------------- browsing, comparing


def packed_in(text: str) -> tuple[dict, dict]:
    """What the page's script reads: columns, and images by row."""
    found = re.findall(r'<script type="text/plain" id="\w+">([^<]*)</script>', text)
    data, images = (json.loads(gzip.decompress(base64.b64decode(one))) for one in found)
    return data, images


def said_rows() -> pa.Table:
    rows = [
        {"id": "s1", "index": 1, "arm": arm, "number": k, "text": text, "correct": right}
        for arm, k, text, right in (
            ("counterfactual", 0, "blind guess", False),
            ("image", 1, "second try", True),
            ("image", 0, "first try", True),
            ("image", 2, "a slip", False),
            ("image", 3, "another slip", False),
        )
    ]
    return pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)


def test_every_sample_can_be_browsed(data):
    chosen = selection(data)
    found, _ = packed_in(render(chosen, rollouts=said_rows()))
    assert found["row"] == [*range(10)] and found["id"] == [f"s{i}" for i in range(10)]
    reasons = [found["names"][k] for k in found["reason"]]
    assert reasons == chosen.table["reason"].to_pylist()
    assert found["scores"]["D"][:3] == [0.8, 0.6, 1.0]
    assert found["scores"]["D"][8] is None  # quarantined
    assert found["message"][8] == "image: 8.png ends too early"
    assert found["question"][3] == "How many dots in picture 3?"
    assert found["answer"][3] == "3" and found["there"] == []
    # the first right and the first wrong one of each arm, with the image first
    assert found["said"][1] == [
        [1, 1, 0, "first try"],
        [1, 0, 0, "a slip"],
        [0, 0, 0, "blind guess"],
    ]
    assert found["said"][2] == []


def test_completions_stand_beside_their_sample(data):
    text = Page(render(selection(data), rollouts=said_rows())).text
    assert "with image: right first try" in text and "without: wrong blind" in text


def test_images_to_browse_are_those_of_the_strongest_kept_samples(data):
    chosen = selection(data, budget=0.3)
    text = render(chosen, per_reason=1)
    _, images = packed_in(text)
    shown = {int(k) for k in re.findall(r'data-row="(\d+)">\n<td class="image"><img', text)}
    kept = set(np.flatnonzero(chosen.kept).tolist())
    assert {int(k) for k in images} == kept - shown and len(images) == 2
    assert all(uri.startswith("data:image/webp;base64,") for uri in images.values())


def test_kept_samples_are_listed_first(data):
    chosen = selection(data, budget=0.3)
    kept = set(np.flatnonzero(chosen.kept).tolist())
    rows = browse.listed(chosen, 6)
    assert len(rows) == 6 and kept < set(rows.tolist()) and np.all(np.diff(rows) > 0)
    some = set(browse.listed(chosen, 4).tolist())  # half of them are the strongest kept
    assert len(some) == 4 and len(some & kept) == 2
    text = render(chosen, browse=6)
    assert "6 of 10 samples: the kept ones first" in text
    assert "All 10 samples." in render(chosen)
    assert "<script" not in render(chosen, browse=0)


def test_texts_to_browse_are_bounded_whatever_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(browse, "TEXT_BYTES", 300_000)
    monkeypatch.setattr(browse, "ROWS", 300)
    rng = np.random.default_rng(0)
    (tmp_path / "a.png").write_bytes(png((9, 9, 9)))
    noise = ["".join(map(chr, rng.integers(0x4E00, 0x9FFF, 3000))) for _ in range(300)]
    lines = [
        {"id": f"s{i}", "question": t, "answer": t, "choices": [t, "b"], "image": "a.png"}
        for i, t in enumerate(noise)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in lines))
    rows = [rollout_row(i, 4, 0, psi_token="x", psi_before=t) for i, t in enumerate(noise)]
    said = [
        {"id": f"s{i}", "index": i, "arm": arm, "number": k, "text": t, "correct": bool(k)}
        for i, t in enumerate(noise)
        for arm in ("image", "counterfactual")
        for k in range(2)
    ]
    chosen = choose(Scores(table_from_rows(rows), {}, open_samples(path)), budget=0.1)
    rollouts = pa.Table.from_pylist(said, schema=ROLLOUT_SCHEMA)
    found, _ = packed_in(render(chosen, rollouts=rollouts))
    texts = [found[k] for k in ("question", "answer", "message", "token", "before")]
    together = sum(len(t.encode()) for column in texts for t in column)
    together += sum(len(s[3].encode()) for one in found["said"] for s in one)
    # 3 bytes more for the sign of each that is cut
    assert 250_000 < together <= 300_000 + 3 * 300 * 8
    assert found["before"][0].endswith(noise[0][-10:])  # next to the token
    assert found["question"][0].startswith(noise[0][:10])


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("it is 12", 8, "it is 12"),
        ("it is 12\u2026", 11, "it is 12\u2026"),  # its own sign, nothing is cut
        ("abcdefghijkl", 9, "abc\u2026ghijkl"),
        ("\u4e00" * 9, 9, "\u4e00\u2026\u4e00\u4e00"),  # 3 bytes each
        ("abcdefghijkl", 1, "\u2026l"),
    ],
)
def test_a_completion_is_cut_in_its_middle(text, most, shown):
    """Its last words hold the answer."""
    assert browse.both_ends(text, most) == shown


def test_whole_completions_are_browsed_where_there_is_room(data):
    long = "so " * 300 + "the answer is 7"
    said = [{"id": "s0", "index": 0, "arm": "image", "number": 0, "text": long}]
    rollouts = pa.Table.from_pylist(said, schema=ROLLOUT_SCHEMA)
    found, _ = packed_in(render(selection(data), rollouts=rollouts))
    assert found["said"][0][0][3] == long


def test_hostile_texts_to_browse_hide_nothing(hostile):
    found, _ = packed_in(render(hostile))
    text = json.dumps(found, ensure_ascii=False)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f]", text)
    assert found["question"][0] == HOSTILE[0] + f"\nA) {HOSTILE[0]}\nB) {HOSTILE[0]}2"


def test_two_selections_are_compared(data):
    here, there = selection(data, budget=0.3), selection(data, budget=0.5)
    text = render(here, compare=there)
    page = Page(text)
    assert "kept by both; 3 here, 5 there" in page.text
    moved = here.compare(there).moved
    assert sum(moved.values()) >= 2
    for (a, b), count in moved.items():
        assert f"{a} {b} {count}" in page.text
    found, _ = packed_in(text)
    reasons = [found["names"][k] for k in found["there"]]
    assert reasons == there.table["reason"].to_pylist()
    same = Page(render(here, compare=here)).text
    assert "Every sample that both know has the same reason." in same
    assert "Compared with" not in Page(render(here)).text


def test_compared_samples_that_the_other_does_not_know(data):
    other = selection(rows=[rollout_row(i, 4, 0) for i in range(3)], budget=1.0)
    found, _ = packed_in(render(selection(data), compare=other))
    assert found["there"][3:] == [-1] * 7 and found["there"][0] >= 0


def test_the_attended_token_stands_in_its_text(data):
    around = {"psi_before": "so the angle", "psi_after": "is half of"}
    rows = [
        rollout_row(0, 4, 0, log_psi=-3.0, psi_token=" \n", **around),
        rollout_row(1, 4, 0, log_psi=-3.0, psi_token=" circle"),
    ]
    text = render(selection(data, rows, budget=1.0, lambda_a=9.0))
    mark = "<mark><bdi>\u2423\u21b5</bdi></mark>"
    assert f"<bdi>so the angle</bdi>{mark}<bdi>is half of</bdi>" in text
    assert "most attended token: <code><bdi>\u2423circle</bdi></code>" in text
    found, _ = packed_in(text)
    assert found["token"] == ["\u2423\u21b5", "\u2423circle"]
    assert found["before"] == ["so the angle", ""]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("", "(empty)"),
        (" ", "\u2423"),
        ("\n\t", "\u21b5\u21e5"),
        (" the", "\u2423the"),
        ("end\r", "end\u240d"),
        ("a b", "a b"),
        ("\u2003", "[U+2003]"),
    ],
)
def test_case_25_white_space_of_a_token_is_visible(token, shown):
    assert token_text(token, 40) == shown


# ---------------------------------------------------------------- size, errors


def big_selection(n: int):
    rng = np.random.default_rng(1)
    values = {
        "id": pa.array(np.arange(n).astype("U8")),
        "index": np.arange(n),
        "source": pa.array(np.arange(n).astype("U8")),  # as many groups as rows
        "status": pa.array(["scored"] * n),
        "evidence": pa.array(["answer"] * n),
        "p_answer1": rng.random(n),
        "p_answer0": rng.random(n),
        "log_psi": rng.normal(size=n).astype(np.float32),
    }
    columns = [
        pa.array(values[f.name], f.type) if f.name in values else pa.nulls(n, f.type)
        for f in SCORE_SCHEMA
    ]
    return choose(Scores(pa.Table.from_arrays(columns, schema=SCORE_SCHEMA)), budget=0.05)


def test_fault_46_a_million_rows_give_a_page_of_the_same_size():
    small, big = big_selection(1_000), big_selection(1_000_000)
    start = time.process_time()
    tracemalloc.start()
    try:
        text = render(big)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(text) < 3_000_000  # 50,000 of them can be browsed
    assert len(render(big, browse=0)) < 1.2 * len(render(small, browse=0)) < 200_000
    assert peak < 250e6  # some arrays of 10^6 numbers, no object per row
    assert time.process_time() - start < 30
    assert "50,000 of 1,000,000 samples kept" in text


def test_fault_46_many_reasons_and_groups_are_bounded():
    rows = [rollout_row(i, 4, 0, source=f"group {i}") for i in range(300)]
    rows += [
        {"id": f"q{i}", "index": i, "status": "quarantined", "code": f"code_{i}"}
        for i in range(300, 600)
    ]
    text = render(selection(rows=rows, budget=1.0, by="source"))
    assert "and 251 more groups" in text  # 300 and "no source", less 50 shown
    assert text.count('<tr class="r') <= 40 * 12
    assert len(text) < 400_000


def test_same_selection_same_page(data):
    assert render(selection(data)) == render(selection(data))


def test_written_whole_with_its_path(data, tmp_path):
    path = selection(data).report(tmp_path / "out.html")
    assert path.read_text(encoding="utf-8") == render(selection(data))
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_unwritable_place_is_a_store_error(data, tmp_path):
    with pytest.raises(RapStoreError):
        selection(data).report(tmp_path / "data.jsonl" / "out.html")


@pytest.mark.parametrize(
    "options", [{"per_reason": 101}, {"per_reason": -1}, {"browse": -1}, {"browse": 10**6}]
)
def test_nonsense_options_are_refused(options, tmp_path):
    (name,) = options
    with pytest.raises(RapConfigError, match=name):
        write_report(selection(), tmp_path / "x.html", **options)


def test_tiny_probabilities_are_looked_at_closely_and_short_responses_named():
    rows = [
        {
            "id": str(i),
            "index": i,
            "status": "scored",
            "evidence": "answer",
            "p_answer1": (10 + i) * 1e-7,
            "p_answer0": 1e-7,
            "log_psi": float("-inf"),
        }
        for i in range(30)
    ]
    text = render(selection(rows=rows, budget=0.1))
    first = re.search("<figure>.*?</figure>", text, re.S).group()
    assert first.count('<rect class="all"') > 20  # spread out, not one bar at zero
    assert "30 responses are too short to judge." in text and "too short</dd>" in text
