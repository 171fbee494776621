"""Where the time of scoring goes: the stopwatch, the counts, what is stored and shown."""

from __future__ import annotations

import dataclasses
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from scoring_inputs import FEW, make_rows, stable
from scoring_rewards import by_length
from tiny_models import NAMES, build

import rap
from rap.model.capture import find_parts
from rap.model.driver import ModelDriver
from rap.model.timing import beside_decoder, timed, waiter
from rap.scores.profile import STAGES, Profile, add_profile, read_profile
from rap.scoring import filling
from rap.scoring.profiling import distinct_tokens
from rap.stopwatch import IDLE, Stopwatch


class Clock:
    """A clock that a test turns forward."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# ---- the stopwatch --------------------------------------------------------------


def test_a_span_is_charged_with_its_own_time_only():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.sleep(1)
    with watch.span("outer"):
        clock.sleep(2)
        with watch.span("inner"):
            clock.sleep(4)
            with watch.span("outer"):
                clock.sleep(8)
        clock.sleep(16)
    clock.sleep(32)
    assert watch.seconds == {"outer": 2 + 8 + 16, "inner": 4}
    assert watch.beside == {}
    assert watch.elapsed == 63


def test_a_span_ends_with_an_error_and_closes_what_a_hook_left_open():
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(ZeroDivisionError), watch.span("outer"):
        clock.sleep(1)
        watch.start("hook")  # its stop never comes
        clock.sleep(2)
        raise ZeroDivisionError
    clock.sleep(4)
    with watch.span("next"):
        clock.sleep(8)
    assert watch.seconds == {"outer": 1, "hook": 2, "next": 8}


def test_stop_closes_the_innermost_of_its_name():
    clock = Clock()
    watch = Stopwatch(clock)
    watch.stop("a")  # nothing is open
    with watch.span("a"):
        watch.start("b")
        watch.start("c")
        clock.sleep(1)
        watch.stop("b")  # and c in it
        clock.sleep(2)
        watch.stop("b")
        clock.sleep(4)
    assert watch.seconds == {"c": 1, "a": 6, "b": 0}


def test_other_threads_are_counted_beside():
    clock = Clock()
    watch = Stopwatch(clock)

    def work() -> None:
        with watch.span("prepare"):
            clock.sleep(3)
            watch.count("made", 2)

    with watch.span("wait"):
        for _ in range(2):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert watch.seconds == {"wait": 6}
    assert watch.beside == {"prepare": 6}
    assert watch.counts == {"made": 4}


def test_the_device_is_waited_for_at_each_end_of_a_span_by_its_own_thread():
    clock, waits = Clock(), []

    def wait() -> None:  # the device is one second behind
        waits.append(threading.get_ident())
        clock.sleep(1)

    watch = Stopwatch(clock, wait)
    with watch.span("a"):
        pass
    thread = threading.Thread(target=lambda: watch.start("b"))
    thread.start()
    thread.join()
    assert waits == [threading.get_ident()] * 2
    assert watch.seconds == {"a": 1}


def test_idle_measures_nothing():
    with IDLE.span("a"):
        IDLE.start("b")
        IDLE.count("c")
        IDLE.stop("b")
    assert (IDLE.seconds, IDLE.beside, IDLE.counts) == ({}, {}, {})
    assert not IDLE.on and Stopwatch().on


def test_the_waiter_waits_for_every_cuda_device_but_not_in_a_graph(monkeypatch):
    waited, capturing = [], [False]
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    devices = [torch.device(d) for d in ("cuda:0", "cpu", "cuda:1", "cuda:0")]
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=d) for d in devices])
    wait = waiter(model)
    wait()
    assert sorted(map(str, waited)) == ["cuda:0", "cuda:1"]
    capturing[0] = True
    wait()
    assert len(waited) == 2


# ---- around a model -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_vision_part_is_all_that_stands_beside_the_text_decoder(name):
    model, _ = build(name)
    parts = find_parts(model)
    found = {id(p) for m in beside_decoder(model, parts) for p in m.parameters()}
    text = {id(p) for m in (parts.decoder, parts.head) for p in m.parameters()}
    assert found and not found & text
    loose = {id(p) for p in model.parameters()} - found - text
    named = dict(model.named_parameters())
    # LLaVA-OneVision's newline vector belongs to no module
    assert {n for n, p in named.items() if id(p) in loose} <= {"model.image_newline"}


def test_a_forward_is_split_into_vision_and_prefill_and_leaves_no_hook(tiny):
    model, processor = tiny
    driver = ModelDriver(model, processor)
    driver.check()
    prepared = driver._probe()

    class Steps(Clock):
        """Every reading is one second later than the last."""

        def __call__(self) -> float:
            self.now += 1
            return self.now

    def hooks() -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        )

    before = hooks()
    watch = Stopwatch(Steps())
    with timed(driver, watch):
        driver.trace([prepared])
    # Intervals between readings. copy: before and after the tower, and the tokens;
    # prefill: of the model before and after its text decoder, and that decoder.
    assert watch.seconds == {"copy": 3, "vision": 1, "prefill": 3}
    assert driver.watch is IDLE and hooks() == before


# ---- counts ---------------------------------------------------------------------


def test_distinct_tokens_are_the_nodes_of_a_trie():
    assert distinct_tokens([]) == 0
    assert distinct_tokens([[1, 2, 3]]) == 3
    assert distinct_tokens([[1, 2, 3], [1, 2, 3]]) == 3
    assert distinct_tokens([[1, 2, 3, 4], [1, 2], [1, 2, 5], [7, 2]]) == 4 + 1 + 2
    # 10 is not between 1 and 2, as it would be in an order of texts
    assert distinct_tokens([[1, 5], [10], [2], [1, 6]]) == 3 + 1 + 1


# ---- a profile as data ----------------------------------------------------------

ONE = Profile(
    1,
    10,
    8.0,
    {"decode": 4.0, "vision": 2.0},
    {"prepare": 3.0},
    {
        "images_encoded": 30,
        "images_distinct": 10,
        "prefilled_tokens": 220,
        "distinct_tokens": 200,
        "padded_tokens": 55,
    },
)


def test_stages_add_up_to_the_wall_time_and_ratios_are_against_the_distinct():
    stages = {name: (seconds, share) for name, seconds, share in ONE.stages()}
    assert list(stages) == list(STAGES)
    assert stages["decode"] == (4.0, 0.5) and stages["other"] == (2.0, 0.25)
    assert sum(share for _, share in stages.values()) == 1
    ratios = ONE.ratios()
    assert ratios == {"images_encoded": 3.0, "prefilled_tokens": 1.1, "padded_tokens": 1.25}
    assert set(Profile(1, 0, 0.0).ratios().values()) == {None}
    assert all(share == 0 for _, _, share in Profile(1, 0, 0.0).stages())
    assert "  50.0%  decode" in ONE.text() and "x 3.00" in ONE.text()


def test_profiles_of_several_runs_add_up_in_the_store(tmp_path):
    assert read_profile(tmp_path) is None
    assert add_profile(tmp_path, ONE) == ONE
    other = Profile(1, 5, 2.0, {"decode": 1.0, "copy": 0.5}, {}, {"images_encoded": 5})
    both = add_profile(tmp_path, other)
    assert both == read_profile(tmp_path)
    assert (both.runs, both.samples, both.wall) == (2, 15, 10.0)
    assert both.seconds == {"decode": 5.0, "vision": 2.0, "copy": 0.5}
    assert both.beside == {"prepare": 3.0}
    assert both.counts == {**ONE.counts, "images_encoded": 35}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        json.dumps({**ONE.as_json(), "version": 99}),
        json.dumps({**ONE.as_json(), "wall": -1}),
        json.dumps({**ONE.as_json(), "seconds": {"decode": "long"}}),
        json.dumps({**ONE.as_json(), "counts": [1]}),
    ],
)
def test_a_damaged_profile_is_left_out_with_a_warning(tmp_path, text):
    (tmp_path / "profile.json").write_text(text)
    with pytest.warns(UserWarning, match="cannot be read; left out"):
        assert read_profile(tmp_path) is None


# ---- a run ----------------------------------------------------------------------


def options_of(evidence: str) -> dict:
    rollouts = {"m1": 3, "m0": 2, "reward": by_length} if evidence == "rollouts" else {}
    return {"evidence": evidence, "sampling": FEW, "progress": False, **rollouts}


@pytest.mark.parametrize("evidence", ["logits", "rollouts"])
def test_a_profiled_run_scores_the_same_and_says_where_its_time_went(
    tiny, tmp_path, evidence
):
    options, rows = options_of(evidence), make_rows(10)
    plain = rap.score(*tiny, rows, store=tmp_path / "plain", **options)
    seen = rap.score(*tiny, rows, store=tmp_path / "seen", profile=True, **options)
    assert stable(seen.table).equals(stable(plain.table))
    assert "profile" not in plain.meta
    files = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("plain", "seen")]
    assert files[1] == sorted([*files[0], "profile.json"])

    found = Profile.of(seen.meta["profile"])
    assert found == read_profile(tmp_path / "seen")
    assert (found.runs, found.samples) == (1, 10)
    used = {"prepare", "copy", "vision", "prefill", "kernels", "store"}
    used |= {"decode", "checking"} if evidence == "rollouts" else set()
    assert {name for name, seconds, _ in found.stages() if seconds > 0} == used | {"other"}
    assert found.beside.keys() == {"prepare"}
    assert sum(found.seconds.values()) <= found.wall
    assert found.counts["images_distinct"] == 10


def test_without_threads_preparing_is_part_of_the_wall_time(tiny):
    scores = rap.score(*tiny, make_rows(4), profile=True, workers=0, **options_of("answer"))
    found = Profile.of(scores.meta["profile"])
    assert not found.beside and found.seconds["prepare"] > 0


def test_an_interrupted_run_is_counted_and_the_next_one_added(tiny, tmp_path, monkeypatch):
    options = {**options_of("answer"), "batch_size": 2, "shard_size": 4}
    batches = []

    def score_batch(scorer, jobs, whole=filling.score_batch):
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(len(jobs))
        whole(scorer, jobs)

    with monkeypatch.context() as patch:
        patch.setattr(filling, "score_batch", score_batch)
        with pytest.raises(KeyboardInterrupt):
            rap.score(*tiny, make_rows(10), store=tmp_path, profile=True, **options)
    first = read_profile(tmp_path)
    assert (first.runs, first.samples, first.counts["images_distinct"]) == (1, 6, 6)

    scores = rap.score(*tiny, make_rows(10), store=tmp_path, profile=True, **options)
    both = Profile.of(scores.meta["profile"])
    assert (both.runs, both.samples, both.counts["images_distinct"]) == (2, 10, 10)
    assert all(both.seconds[name] >= first.seconds[name] for name in first.seconds)

    # a run without it measures nothing, and what was measured stays
    scores = rap.score(*tiny, make_rows(10), store=tmp_path, **options)
    assert Profile.of(scores.meta["profile"]) == both


# ---- the shell and the page -----------------------------------------------------


def test_the_report_shows_where_the_time_went(tiny, tmp_path):
    pytest.importorskip("jinja2")
    scores = rap.score(
        *tiny, make_rows(10), store=tmp_path / "store", profile=True, **options_of("answer")
    )
    meta = {**scores.meta, "profile": dataclasses.replace(ONE, runs=2).as_json()}
    chosen = rap.choose(dataclasses.replace(scores, meta=meta), budget=0.3)
    page = chosen.report(tmp_path / "a.html").read_text()
    assert "Where the time went" in page
    assert "8 seconds in 2 profiled runs, which scored 10 samples" in page
    for text in ("<code>decode</code>", "50.0\u202f%", "<code>prefilled_tokens</code>"):
        assert text in page
    assert "other samples were scored without" not in page

    # what is saved holds no clock readings; the store has them
    chosen.save(tmp_path / "chosen")
    assert "profile" not in (tmp_path / "chosen" / "settings.json").read_text()
    saved = rap.load(tmp_path / "chosen")
    assert "Where the time went" not in saved.report(tmp_path / "b.html").read_text()
    from rap.report import write_report

    path = write_report(saved, tmp_path / "c.html", rollouts=tmp_path / "store")
    assert "in 1 profiled run, which scored 10 samples" in path.read_text()


def test_samples_of_other_runs_are_named_in_the_report(tiny, tmp_path):
    pytest.importorskip("jinja2")
    scores = rap.score(*tiny, make_rows(12), **options_of("answer"))
    meta = {**scores.meta, "profile": ONE.as_json()}
    chosen = rap.choose(dataclasses.replace(scores, meta=meta), budget=0.3)
    page = chosen.report(tmp_path / "a.html").read_text()
    assert "2 other samples were scored without" in page
