"""No work twice: an image is encoded once a sample, a prompt is read once, little padding.

Counts are compared, never seconds; numbers with those of a forward of the whole sequence.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
import math
import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_models import NAMES, build

from rap import ops
from rap.config import Sampling, ScoreConfig
from rap.demo import world
from rap.demo.model import load_demo_model
from rap.engines.settings import EngineConfig
from rap.engines.transformers import TransformersEngine
from rap.model import decode, kept, vision
from rap.model.batching import FORWARD, Shared, by_length
from rap.model.driver import ModelDriver
from rap.model.rollouts import generate
from rap.model.weights import bytes_on as weights_of
from rap.rewards.checker import make_checker
from rap.samples.sample import Sample
from rap.samples.sampleset import open_samples
from rap.scoring import filling
from rap.scoring.asking import Asking, Floor
from rap.scoring.jobs import Batch, Job
from rap.scoring.prepare import prepare_job
from rap.scoring.scorer import Scorer

SLIDING = "gemma3"
"""The one whose cache forgets tokens: its responses are read with their prompts."""
EIGHT = Sampling(max_new_tokens=8)
TEXTS = ["Which number?", "What is the colour of the missing shape in this row?", "Why?"]


def picture(i: int) -> Image.Image:
    size = (60 + 30 * (i % 3), 50 + 20 * (i % 4))
    return Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50 + i).convert("RGB")


def sample(i: int, text: str) -> Sample:
    return Sample(i, str(i), text, "A", (), (), None, {})


def make(name: str, **settings):
    """(driver, samples, prompts with an image) of a tiny model."""
    driver = ModelDriver(*build(name), ScoreConfig(**settings))
    samples = [sample(i, text) for i, text in enumerate(TEXTS)]
    prompts = [driver.prepare(s, [picture(s.index)]) for s in samples]
    driver.check()
    return driver, samples, prompts


def alone(driver: ModelDriver, prepared):
    """The same sequence, of which nothing was computed yet."""
    shared = Shared(prepared.shared.text, prepared.shared.n_images)
    return dataclasses.replace(prepared, shared=shared)


# ---- the same numbers ----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_responses_go_on_from_the_prompt_that_was_completed(name):
    driver, samples, prompts = make(name)
    drawn = generate(driver, prompts, [[1]] * 3, EIGHT)
    ids = [c.token_ids + (7,) * (i + 1) for i, (c,) in enumerate(drawn)]
    answers = [
        driver.prepare(s, [picture(s.index)], [5, 6], prefix="The answer is", like=p)
        for s, p in zip(samples, prompts, strict=True)
    ]
    whole = [driver.with_response(p, r) for p, r in zip(prompts, ids, strict=True)]
    for batch in (whole, answers):
        counts = driver.counts
        before = (counts.prefilled_tokens, counts.images_encoded)
        found = driver.trace(batch)
        read = counts.prefilled_tokens - before[0]
        assert counts.images_encoded == before[1] == 3
        prompt = sum(p.n_prompt for p in prompts)
        new = sum(map(len, batch)) - prompt
        assert read == (new + prompt if name == SLIDING else new)
        expected = driver.trace([alone(driver, p) for p in batch])
        driver.counts.images_encoded = 3
        assert_same(found, expected)


def assert_same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        near(a.hidden, b.hidden)
        near(a.k, b.k)
        near(a.q[:, a.n_prompt :], b.q[:, b.n_prompt :])
        assert torch.equal(a.response_ids, b.response_ids)
        assert (a.n_prompt, a.scaling, a.key_window) == (
            b.n_prompt,
            b.scaling,
            b.key_window,
        )
        psi = [
            ops.ace(
                t.q,
                t.k,
                response_start=t.n_prompt,
                scale=t.scaling,
                key_window=t.key_window,
                columns="all",
                min_rows=1,
                image_mask=t.image_mask,
            )
            for t in (a, b)
        ]
        for column in ("log_psi", "attention_entropy", "image_mass"):
            x, y = (float(getattr(p, column)) for p in psi)
            assert x == pytest.approx(y, abs=1e-5)


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_goes_on_from_the_prompt_of_a_whole_forward(name):
    """Given solutions: nothing is sampled, the response's forward leaves its prompt."""
    driver, samples, prompts = make(name)
    answers = [
        driver.prepare(s, [picture(s.index)], [5, 6], prefix="The answer is", like=p)
        for s, p in zip(samples, prompts, strict=True)
    ]
    responses = [driver.with_response(p, range(9, 12 + i)) for i, p in enumerate(prompts)]
    driver.trace(responses)
    before = driver.counts.prefilled_tokens
    found = driver.trace(answers, attention=False)
    read = driver.counts.prefilled_tokens - before
    new = sum(map(len, answers)) - sum(p.n_prompt for p in prompts)
    assert read == (sum(map(len, answers)) if name == SLIDING else new)
    expected = driver.trace([alone(driver, p) for p in answers], attention=False)
    for a, b in zip(found, expected, strict=True):
        near(a.hidden, b.hidden)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["The answer is", "\n\nSo", " ", ""])
def test_prompts_that_share_an_image_have_the_tokens_of_their_own(name, prefix):
    driver, samples, prompts = make(name)
    for s, p in zip(samples, prompts, strict=True):
        taken = driver.prepare(s, [picture(s.index)], [3], prefix=prefix, like=p)
        own = driver.prepare(s, [picture(s.index)], [3], prefix=prefix)
        assert taken.inputs.keys() == own.inputs.keys()
        for key, x in own.inputs.items():
            assert torch.equal(taken.inputs[key], x), key
        assert taken.n_prompt == own.n_prompt
        assert torch.equal(taken.image_mask, own.image_mask)
        assert torch.equal(taken.special_mask, own.special_mask)
        assert taken.shared is p.shared  # so the pixels were not processed again


@pytest.mark.parametrize("name", NAMES)
def test_batches_cut_by_length_give_the_same_completions(name):
    _, _, prompts = make(name)
    seeds = [[3, 4], [5], [6, 7]]
    found = []
    for most in (None, 10_000, 40):
        driver, _, prompts = make(name, batch_tokens=most)
        found.append(generate(driver, prompts, seeds, EIGHT))
    for other in found[1:]:
        for a, b in zip(itertools.chain(*found[0]), itertools.chain(*other), strict=True):
            assert a.token_ids == b.token_ids and a.text == b.text
            assert a.logp == pytest.approx(b.logp, abs=1e-4)


# ---- where it cannot be done ---------------------------------------------------------


def test_images_of_an_unknown_family_are_encoded_in_every_forward(monkeypatch):
    driver, _, prompts = make("qwen2_5_vl")
    expected = driver.trace([driver.with_response(p, [5, 6]) for p in prompts])
    monkeypatch.setattr(vision, "why_not", lambda model: "it is a test")
    driver, _, prompts = make("qwen2_5_vl")
    batch = [driver.with_response(p, [5, 6]) for p in prompts]
    assert_same(driver.trace(batch), expected)
    driver.trace(batch, attention=False)
    assert driver.counts.images_encoded == 6


@pytest.mark.parametrize("name", NAMES)
def test_features_reach_a_forward_that_has_no_argument_for_them(name, monkeypatch):
    """As in the earlier releases of transformers 5."""
    driver, _, prompts = make(name)
    expected = driver.trace([driver.with_response(p, [5, 6]) for p in prompts])
    monkeypatch.setattr(vision, "takes_features", lambda model: False)
    driver, _, prompts = make(name)
    batch = [driver.with_response(p, [5, 6]) for p in prompts]
    assert_same(driver.trace(batch), expected)
    driver.trace(batch, attention=False)
    assert driver.counts.images_encoded == 3
    assert "get_image_features" not in vars(driver.model.base_model)


@pytest.mark.parametrize("fault", ["other numbers", "too few", "an error"])
def test_features_that_do_not_fit_are_not_used(monkeypatch, fault, caplog):
    driver, _, prompts = make("qwen2_5_vl")
    expected = driver.trace([driver.with_response(p, [5, 6]) for p in prompts])
    encoded = vision._call

    def broken(model, batch):
        if fault == "an error":
            raise TypeError("no such argument")
        output = encoded(model, batch)
        parts = output.pooler_output
        output.pooler_output = [
            part[:-1] if fault == "too few" else part + 1 for part in parts
        ]
        return output

    monkeypatch.setattr(vision, "_call", broken)
    with caplog.at_level(logging.INFO, logger="rap"):
        driver, _, prompts = make("qwen2_5_vl")
        found = driver.trace([driver.with_response(p, [5, 6]) for p in prompts])
    assert_same(found, expected)
    said = [r.message for r in caplog.records if "encoded in every" in r.message]
    assert len(said) == 1


def test_a_cache_that_cannot_be_shared_is_said_once(monkeypatch, caplog):
    seeds = [[3, 4], [5], [6, 7]]
    driver, _, prompts = make("qwen2_5_vl")
    expected = generate(driver, prompts, seeds, EIGHT)
    monkeypatch.setattr(decode, "_LAYERS", ())
    driver, _, prompts = make("qwen2_5_vl")
    with caplog.at_level(logging.INFO, logger="rap"):
        found = [generate(driver, prompts, seeds, EIGHT) for _ in range(2)]
    for other in found:
        for a, b in zip(itertools.chain(*expected), itertools.chain(*other), strict=True):
            assert a.token_ids == b.token_ids
    assert sum("reads its own prompt" in r.message for r in caplog.records) == 1
    rows = [p for p, s in zip(prompts, seeds, strict=True) for _ in s]
    assert driver.counts.images_encoded == 2 * len(rows)
    assert driver.counts.prefilled_tokens == 2 * sum(map(len, rows))


def test_a_cache_with_wrong_positions_is_found_out(monkeypatch):
    true = decode.positions

    def shifted(model, inputs):
        ids, delta = true(model, inputs)
        return ids, delta + 3

    monkeypatch.setattr(decode, "positions", shifted)
    driver, _, _ = make("qwen2_5_vl")
    assert "token by token" in driver.unshared


# ---- what is kept of several batches -------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != SLIDING])
def test_prompts_of_several_batches_are_kept_in_one_without_the_others(name):
    driver, samples, first = make(name)
    longer = [sample(s.index, s.question + " Look again." * s.index) for s in samples]
    second = [driver.prepare(s, [picture(s.index)]) for s in longer]
    driver.read(first)
    driver.read(second)
    chosen = [second[2], first[0], second[0]]
    for prepared in (first[1], first[2], second[1]):
        prepared.shared.let_go()
    before = dataclasses.replace(driver.counts)
    driver.keep_only(chosen)
    (state,) = {id(p.shared.prompt[0]): p.shared.prompt[0] for p in chosen}.values()
    assert sorted(map(len, state.ids)) == sorted(p.n_prompt for p in chosen)
    width = max(p.n_prompt for p in chosen)
    for x in (*(x for y in state.cache.layers for x in (y.keys, y.values)), state.mask):
        assert len(x) == 3 and width in x.shape  # rows and padding of the others are gone
    seeds = [[1, 2], [3], [4]]
    drawn = generate(driver, chosen, seeds, EIGHT)
    assert driver.counts.prefilled_tokens == before.prefilled_tokens
    assert driver.counts.images_encoded == before.images_encoded
    fresh = generate(driver, [alone(driver, p) for p in chosen], seeds, EIGHT)
    assert [[c.token_ids for c in group] for group in drawn] == [
        [c.token_ids for c in group] for group in fresh
    ]
    whole = [driver.with_response(p, (5, 6)) for p in chosen]
    assert_same(driver.trace(whole), driver.trace([alone(driver, p) for p in whole]))


def test_prompts_that_do_not_fit_in_one_batch_stay_as_they_were_read(monkeypatch):
    driver, _, prompts = make("qwen2_5_vl")
    driver.read(prompts)
    state, _ = prompts[0].shared.prompt

    def failing(error):
        def merged(states):
            raise error

        return merged

    for error in (torch.OutOfMemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")):
        monkeypatch.setattr(decode, "merged", failing(error))
        driver.keep_only(prompts[:2])
        assert [p.shared.prompt for p in prompts] == [(state, 0), (state, 1), (state, 2)]
    monkeypatch.setattr(decode, "merged", failing(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        driver.keep_only(prompts[:2])


def test_a_prompt_that_was_not_read_leaves_all_as_they_were():
    driver, _, prompts = make("qwen2_5_vl")
    driver.read(prompts[:2])
    state = prompts[0].shared.prompt[0]
    driver.keep_only([prompts[0], prompts[2]])
    assert prompts[0].shared.prompt == (state, 0) and prompts[2].shared.prompt is None
    driver.keep_only([])


# ---- counts --------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2500, 10**9])
def test_prompts_of_samples_that_are_not_asked_are_let_go_of(monkeypatch, room):
    """About half are asked. However small the room is, what they say stays the same."""
    held: list[int] = []
    sizes: list[tuple[int, int]] = []
    generated, parts = Scorer.generate, Scorer.parts

    def noted(scorer, jobs):
        sizes.extend((job.image.n_prompt, job.blind.n_prompt) for job in jobs)
        return parts(scorer, jobs)

    def seen(scorer, jobs, arm, numbers):
        gc.collect()
        found = [x for x in gc.get_objects() if type(x) is kept.Prefilled]
        held.append(sum(x.mask.numel() for x in found))
        return generated(scorer, jobs, arm, numbers)

    monkeypatch.setattr(ModelDriver, "room", property(lambda driver: room))
    monkeypatch.setattr(Scorer, "parts", noted)
    monkeypatch.setattr(Scorer, "generate", seen)
    driver, jobs, distinct = scored("cascade", 48, half=True, m1=3, m0=2, batch_size=4)
    assert driver.counts.images_encoded == len(jobs)
    assert driver.counts.prefilled_tokens <= 1.1 * distinct
    asked = [job for job in jobs if job.rollouts]
    assert 12 < len(asked) < 36
    told = [(r["id"], r["arm"], r["token_ids"]) for job in jobs for r in job.rollouts]
    assert told == _told.setdefault("cascade", told)
    longest = sum(map(max, zip(*sizes, strict=True)))
    assert max(held) <= len(asked) * longest  # of the others nothing
    if room < 10**9:  # what waits, and what was read since: a batch at least
        assert max(held) <= max(room, 12 * longest) + max(room, 4 * longest)


_told: dict[str, list] = {}


def scored(evidence: str, n: int = 24, half: bool = False, **settings):
    """(driver, jobs before they are let go of, their distinct tokens) on the demo world."""
    model, processor = load_demo_model()
    config = ScoreConfig(evidence=evidence, **settings)
    driver = ModelDriver(model, processor, config)
    driver.check()
    assert driver.unshared == ""
    checker = (
        make_checker(None, timeout=5.0) if evidence in ("rollouts", "cascade") else None
    )
    samples = open_samples(world.to_dataset(world.draw(n, seed=5)))
    engine = TransformersEngine(EngineConfig(), driver)
    scorer = Scorer(driver, config, checker, True, engine)
    jobs = [prepare_job(samples, driver, config, i) for i in range(n)]
    for job in jobs if evidence == "cascade" else ():  # all are asked
        job.asking = Asking(config, Floor(0.0, 1.1, 0.5 if half else 1.0))
    prompts = sum(j.image.n_prompt + j.blind.n_prompt for j in jobs)
    answers = sum(len(j.answer) - j.image.n_prompt for j in jobs if j.answer)
    lengths: list[int] = []
    respond = scorer.respond

    def noted(job, arms, ids):
        lengths.append(len(ids) * len(arms))
        respond(job, arms, ids)

    scorer.respond = noted  # type: ignore[method-assign]
    known = sum(len(j.image.response_ids) + len(j.blind.response_ids) for j in jobs)
    filling.score_batch(scorer, jobs)
    assert all(job.alive for job in jobs)
    return driver, jobs, prompts + answers + known + sum(lengths)


@pytest.mark.parametrize("evidence", ["logits", "answer", "rollouts"])
def test_images_and_prompts_are_read_once(evidence):
    driver, jobs, distinct = scored(evidence, 64, m1=4, m0=4)
    counts = driver.counts
    assert counts.images_encoded == len(jobs)
    assert counts.prefilled_tokens <= 1.1 * distinct
    if evidence != "answer":
        drawn = sum(job.row["generated_tokens"] for job in jobs)
        assert counts.decoded_tokens == drawn
    real = counts.prefilled_tokens
    assert (real + counts.padded_tokens) / real <= 1.1


def test_completions_one_by_one_read_no_prompt_again():
    """The cascade reads an answer, then asks for one completion at a time."""
    driver, jobs, distinct = scored("cascade", m1=6, m0=6)
    assert len({job.row["m1"] for job in jobs}) > 1
    assert driver.counts.images_encoded == len(jobs)
    assert driver.counts.prefilled_tokens <= 1.1 * distinct


def test_what_was_computed_goes_with_the_batch():
    def held() -> int:
        gc.collect()
        kinds = (kept.Prefilled, kept.Features)
        return sum(type(x) in kinds for x in gc.get_objects())

    before = held()
    driver, jobs, _ = scored("logits", 6)
    assert driver.counts.images_encoded == len(jobs) == 6
    assert held() == before


# ---- batches -------------------------------------------------------------------------


def cost(parts, lengths) -> int:
    return sum(len(p) * max(lengths[i] for i in p) + FORWARD for p in parts)


def test_sequences_share_a_forward_where_that_costs_least():
    rng = random.Random(0)
    for _ in range(40):
        lengths = [rng.randint(1, 900) for _ in range(rng.randint(1, 6))]
        parts = by_length(lengths, 2000)
        assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
        for part in parts:
            assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 2000
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        every = []
        for cuts in itertools.product((0, 1), repeat=len(lengths) - 1):
            groups, last = [], 0
            for i, cut in enumerate((*cuts, 1), start=1):
                if cut:
                    groups.append(order[last:i])
                    last = i
            fits = all(
                len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 2000 for g in groups
            )
            if fits:
                every.append(cost(groups, lengths))
        assert cost(parts, lengths) == min(every)


def test_no_budget_is_one_batch_in_order():
    assert by_length([3, 900, 1], None) == [[0, 1, 2]]
    assert by_length([], None) == by_length([], 8192) == []


@pytest.mark.parametrize("spread", [0.2, 0.5, 0.9])
def test_little_is_padded_whatever_the_lengths(spread):
    """Log-normal lengths around 300 tokens; spread 0.9 pads 3.6x at 8 in the order of the
    data, as MATH-V does."""
    rng = random.Random(1)
    lengths = [max(20, round(300 * math.exp(rng.gauss(0, spread)))) for _ in range(600)]
    real = padded = start = 0
    while start < len(lengths):
        end = start
        while end < len(lengths) and sum(lengths[start:end]) < 8192:
            end += 1
        batch = lengths[start:end]
        for part in by_length(batch, 8192):
            real += sum(batch[i] for i in part)
            padded += len(part) * max(batch[i] for i in part)
        start = end
    assert padded / real <= 1.1


@pytest.mark.parametrize("name", NAMES)
def test_the_room_for_prompts_is_told_by_their_keys_and_values(name):
    driver, *_ = make(name)
    if name == SLIDING:  # its prompts are not kept
        assert driver.room == 0
        return
    text = driver.model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    assert driver.room == kept.HOST_BYTES // (4 * numbers)


def test_what_is_kept_of_a_device_depends_on_its_memory_and_the_weights(monkeypatch):
    memory = SimpleNamespace(total_memory=32 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    for weights, room in ((2 << 30, 5 << 30), (0, (32 << 30) // 6), (40 << 30, 0)):
        assert kept.room(torch.device("cuda"), weights) == room
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).double())
    assert weights_of(model, torch.device("cpu")) == 4 * (12 + 4) + 8 * (8 + 2)
    assert weights_of(model, torch.device("cuda", 0)) == 0


def test_prompts_are_padded_to_the_longest_of_each_arm():
    batch = Batch()
    assert (len(batch), batch.tokens, batch.padded_tokens) == (0, 0, 0)
    for lengths in ((7, 3), (5, 4), (0, 0)):
        image, blind = ([0] * n if n else None for n in lengths)
        batch.add(Job({}, image=image, blind=blind))
    assert (len(batch), batch.tokens) == (3, 7 + 5)
    assert batch.padded_tokens == 3 * (7 + 4)


def test_a_job_is_counted_once_however_many_are_scored_together():
    class Prompt(list):
        counted = 0

        def __len__(self):
            Prompt.counted += 1
            return 5

    scorer, batch, prompt = scorer_with(room=10**9), Batch(), Prompt()
    for _ in range(500):
        batch.add(Job({}, image=prompt, blind=prompt))
        assert not scorer.is_full(batch)
    assert batch.padded_tokens == 500 * 10 and Prompt.counted == 2 * 500


def scorer_with(room: int) -> Scorer:
    """Of the cascade, without a model."""
    scorer = object.__new__(Scorer)
    vars(scorer).update(together=3, engine=SimpleNamespace(window=1), _room=room)
    scorer.config = ScoreConfig(batch_size=8)
    return scorer


@pytest.mark.parametrize(("room", "many"), [(0, 24), (100, 24), (200, 40)])
def test_a_group_of_the_cascade_is_twice_what_memory_holds(room, many):
    """Of samples of 7 and 3 tokens, three batches of 8 at least."""
    scorer, batch = scorer_with(room), Batch()
    for _ in range(many - 1):
        batch.add(Job({}, image=[0] * 7, blind=[0] * 3))
        assert not scorer.is_full(batch)
    batch.add(Job({}, image=[0] * 7, blind=[0] * 3))
    assert scorer.is_full(batch)
    parts = [len(part) for part in scorer.parts(batch.jobs)]
    assert parts == {0: [24], 100: [10, 10, 4], 200: [20, 20]}[room]
    assert scorer.fit(batch.jobs[:23])  # few, whatever the room is
    assert scorer.fit(batch.jobs[:24]) == (room == 0)


def test_a_batch_is_full_by_tokens_or_by_samples():
    full = ScoreConfig().batch_is_full
    assert not full(100, 8191) and full(1, 8192)
    full = ScoreConfig(batch_size=3).batch_is_full
    assert full(3, 10) and full(1, 8192) and not full(2, 10)
    full = ScoreConfig(batch_size=3, batch_tokens=None).batch_is_full
    assert full(3, 10) and not full(2, 10**6)
    full = ScoreConfig(batch_tokens=None).batch_is_full
    assert full(8, 1) and not full(7, 10**6)
