"""The report page in a real browser: filters, order, search, pages, keyboard; what data
says is never run, and nothing is asked of the network."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from chromium import CHROMIUM, Browser, Refused
from test_report import HOSTILE, png, rollout_row

from rap.report.page import render
from rap.samples.sampleset import open_samples
from rap.scores.scores import Scores
from rap.scores.table import ROLLOUT_SCHEMA, table_from_rows
from rap.selection.choosing import choose

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

N = 60
READY = "!window.old && document.documentElement?.dataset.ready !== undefined"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """60 samples, hostile texts among them, compared with a larger selection."""
    root = tmp_path_factory.mktemp("report")
    (root / "a.png").write_bytes(png((20, 90, 200)))
    texts = [HOSTILE[i] if i < len(HOSTILE) else f"How many dots, {i}?" for i in range(N)]
    lines = [
        {
            "id": f"s{i}",
            "question": t,
            "answer": str(i),
            "image": "a.png",
            "source": "ab"[i % 2],
        }
        for i, t in enumerate(texts)
    ]
    path = root / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        rollout_row(i, i % 6, 0, source="ab"[i % 2], log_psi=-3.0 - i / 100, psi_token=" ")
        for i in range(N)
    ]
    said = [
        {"id": f"s{i}", "index": i, "arm": "image", "number": 0, "text": t, "correct": True}
        for i, t in enumerate(texts)
    ]
    rollouts = pa.Table.from_pylist(said, schema=ROLLOUT_SCHEMA)
    scores = Scores(table_from_rows(rows), {}, open_samples(path), rollouts)
    chosen, other = choose(scores, budget=0.2), choose(scores, budget=0.4)
    file = root / "report.html"
    file.write_text(render(chosen, compare=other), encoding="utf-8")
    with Browser(file) as opened:
        opened.chosen, opened.other = chosen, other
        yield opened


@pytest.fixture(autouse=True)
def ready(page):
    """Every test begins with the filters of a page just opened."""
    page.until(READY)
    page.js("document.getElementById('reset').click()")


def count(page) -> int:
    return int(page.js("document.getElementById('count').textContent").split()[0])


def ids(page) -> list[str]:
    return page.js(
        "[...document.querySelectorAll('#list li')]"
        ".map(x => x.querySelector('.id').textContent)"
    )


def fill(page, id: str, value: str) -> None:
    """As a user does, and wait until the page has followed."""
    page.js(
        f"(() => {{ const x = document.getElementById({id!r}); x.value = {value!r};"
        "x.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    page.js("new Promise(done => setTimeout(done, 250))")


def pick(page, reason: str) -> None:
    page.js(
        "[...document.querySelectorAll('#browse .chips label')]"
        f".find(x => x.textContent === {reason!r}).querySelector('input').click()"
    )
    page.js("new Promise(done => setTimeout(done, 50))")


def test_the_page_lists_every_sample_on_pages(page):
    assert count(page) == N
    assert ids(page) == [f"s{i}" for i in range(25)]
    assert page.js("document.getElementById('pages').textContent") == "of 3"
    page.js("document.getElementById('last').click()")
    assert ids(page) == [f"s{i}" for i in range(50, N)]
    assert page.js("document.getElementById('next').disabled")
    assert not page.js("document.getElementById('picked').checkVisibility()")


def test_filters_by_reason_source_score_and_the_other_selection(page):
    reasons = page.chosen.counts()
    pick(page, "kept_cognitive")
    assert count(page) == reasons["kept_cognitive"]
    pick(page, "dropped_unsolved")  # or
    assert count(page) == reasons["kept_cognitive"] + reasons["dropped_unsolved"]
    page.js("document.getElementById('reset').click()")
    fill(page, "source", "1")
    assert count(page) == N / 2 and ids(page)[0] == "s1"
    page.js("document.getElementById('reset').click()")
    page.js("document.querySelector('input[data-score=D][data-end=\"0\"]').id = 'least'")
    fill(page, "least", "0.8")
    assert count(page) == sum(i % 6 >= 4 for i in range(N))
    page.js("document.getElementById('reset').click()")
    assert count(page) == N
    fill(page, "other", "there")
    assert count(page) == len(set(page.other.ids) - set(page.chosen.ids)) > 0
    fill(page, "other", "both")
    assert count(page) == len(set(page.other.ids) & set(page.chosen.ids)) > 0


def test_sorts_and_searches(page):
    fill(page, "sort", "log \u03c8")
    assert ids(page)[:3] == ["s0", "s1", "s2"]
    fill(page, "down", "0")
    assert ids(page)[:3] == [f"s{i}" for i in (N - 1, N - 2, N - 3)]
    fill(page, "search", "DOTS 41")  # words, in any order and case
    assert ids(page) == ["s41"]
    fill(page, "search", "no such words")
    assert count(page) == 0 and ids(page) == []


def test_what_is_filtered_is_in_the_address(page):
    fill(page, "search", "dots")
    fill(page, "sort", "D")
    pick(page, "kept_cognitive")
    hash = page.js("location.hash")
    assert "search=dots" in hash and "sort=D" in hash and "reason=" in hash
    shown = ids(page)
    page.js(f"history.replaceState(null, '', '#'), location.hash = {hash!r}")
    page.js("window.old = true, location.reload()")
    page.until(READY)
    assert ids(page) == shown
    assert page.js("document.getElementById('search').value") == "dots"


def test_waiting_outlives_a_page_that_loads_anew_while_it_is_asked(page):
    page.until(
        "window.name === 'anew' ? document.readyState === 'complete'"
        " : (window.name = 'anew', location.reload(), new Promise(() => {}))"
    )
    assert page.js("window.name") == "anew"
    with pytest.raises(Refused):  # any other refusal is told
        page.loop.run_until_complete(page._send("No.such"))


def test_a_keyboard_is_enough(page):
    page.js("document.getElementById('list').focus()")
    page.key("j")
    page.key("j")
    assert page.js("document.activeElement.querySelector('.id').textContent") == "s1"
    page.key("k")
    page.key("Enter")
    assert page.js("document.activeElement.querySelector('details').open")
    page.key("ArrowRight")
    assert page.js("document.getElementById('page').value") == "2"
    assert page.js("document.activeElement.querySelector('.id').textContent") == "s25"
    page.js("document.getElementById('search').focus()")
    reached = set()
    for _ in range(60):
        page.key("Tab")
        reached.add(page.js("document.activeElement.id || document.activeElement.name"))
    assert {"sort", "source", "other", "reason", "page", "next", "size", "list"} <= reached


def test_hostile_texts_are_shown_and_never_run(page):
    first = page.js("document.querySelector('#list li .question p').textContent")
    assert first == HOSTILE[0]
    said = page.js("document.querySelector('#list li blockquote').textContent")
    assert said == HOSTILE[0]
    assert page.js("document.querySelectorAll('#list script, #list iframe').length") == 0
    assert page.js("[...document.querySelectorAll('#list img')].every(x => x.naturalWidth)")


def test_nothing_is_asked_of_the_network_and_nothing_violates_the_policy(page):
    outside = [r for r in page.requests if not r.startswith("data:image/webp;base64,")]
    assert {r.partition("#")[0] for r in outside} == {page.address}
    assert page.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_hangs_over_the_edge(page, width, tmp_path):
    with Browser(tmp_path.parent / "missing", width=width, dark=True) as other:
        other.loop.run_until_complete(other._send("Page.navigate", url=page.address))
        other.until(READY)
        assert other.js("innerWidth") == width
        assert other.js("document.documentElement.scrollWidth") <= width
        hidden = "[...document.querySelectorAll('#cost ~ .scroll *')].filter(cut).length"
        edge = "x.closest('.scroll').getBoundingClientRect().right"
        cut = f"x => x.getBoundingClientRect().right > {edge} + 1"
        assert other.js(f"(cut => {hidden})({cut})") == 0  # nothing to be scrolled to
        dark = other.js("getComputedStyle(document.body).backgroundColor")
        assert max(int(x) for x in dark[4:-1].split(",")) < 60
