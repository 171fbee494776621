"""Sampling: exact, repeatable, independent of the batch and of the model's own config."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from tiny_models import NAMES, build

from rap.config import Sampling, ScoreConfig
from rap.model.driver import ModelDriver
from rap.model.rollouts import (
    BLIND_ARM,
    IMAGE_ARM,
    Completion,
    RaceSampler,
    degenerate,
    generate,
    mix64,
    race_times,
    row_seed,
)
from rap.samples.sample import Sample

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, 0.5, -math.inf])


def draw(
    scores: torch.Tensor, seeds: list[int], steps: int = 1, warpers=()
) -> torch.Tensor:
    """Tokens [B, steps] drawn from fixed scores [B, V] or [V]."""
    if scores.dim() == 1:
        scores = scores.expand(len(seeds), -1)
    sampler = RaceSampler(list(warpers), seeds)
    ids = torch.zeros(len(seeds), 1, dtype=torch.int64)
    return torch.stack([sampler(ids, scores).argmax(dim=-1) for _ in range(steps)], dim=1)


def chi_square(tokens: torch.Tensor, p: torch.Tensor) -> float:
    counts = torch.bincount(tokens.flatten(), minlength=len(p)).double()
    expected = p.double() * tokens.numel()
    live = expected > 0
    assert counts[~live].sum() == 0
    return float(((counts - expected)[live] ** 2 / expected[live]).sum())


# Upper 1e-4 points of the chi-square distribution. The seeds are fixed, so these tests
# either always pass or always fail.
CHI2 = {2: 18.42, 5: 25.74, 35: 75.8}


def test_mix64_is_splitmix64():
    # First outputs of the published generator from state 0.
    steps = torch.arange(1, 4, dtype=torch.int64) * -7046029254386353131
    got = [int(x) & (2**64 - 1) for x in mix64(steps)]
    assert got == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_race_times_are_standard_exponentials():
    times = race_times(torch.arange(200_000, dtype=torch.int64)).double()
    assert float(times.min()) > 0 and math.isfinite(float(times.max()))
    # mean 1, variance 1: five standard errors
    assert abs(float(times.mean()) - 1) < 5 / math.sqrt(200_000)
    for x in (1e-3, 0.1, 1.0, 3.0):
        p = 1 - math.exp(-x)
        got = float((times < x).double().mean())
        assert abs(got - p) < 5 * math.sqrt(p * (1 - p) / 200_000)


@pytest.mark.parametrize("steps", [1, 8])
def test_draws_follow_the_softmax(steps):
    tokens = draw(LOGITS, list(range(40_000 // steps)), steps)
    assert chi_square(tokens, torch.softmax(LOGITS, 0)) < CHI2[5]


def test_steps_of_one_row_are_independent():
    p = torch.softmax(LOGITS[:6], 0)
    tokens = draw(LOGITS[:6], list(range(40_000)), 2)
    pairs = tokens[:, 0] * 6 + tokens[:, 1]
    assert chi_square(pairs, torch.outer(p, p).flatten()) < CHI2[35]


def test_neighbouring_seeds_are_independent():
    p = torch.softmax(LOGITS[:6], 0)
    tokens = draw(LOGITS[:6], list(range(80_000)))[:, 0]
    pairs = tokens[0::2] * 6 + tokens[1::2]
    assert chi_square(pairs, torch.outer(p, p).flatten()) < CHI2[35]


def test_warpers_shape_the_distribution():
    from transformers.generation import logits_process as lp

    warpers = [lp.TemperatureLogitsWarper(0.5), lp.TopKLogitsWarper(3)]
    tokens = draw(LOGITS, list(range(20_000)), warpers=warpers)
    kept = torch.full_like(LOGITS, -math.inf)
    kept[[0, 1, 5]] = LOGITS[[0, 1, 5]] / 0.5
    assert chi_square(tokens, torch.softmax(kept, 0)) < CHI2[2]


def test_a_row_does_not_see_its_neighbours(rng):
    scores = torch.from_numpy(rng.normal(size=(9, 500)).astype("float32"))
    seeds = [row_seed(0, f"s{i}", IMAGE_ARM, i) for i in range(9)]
    whole = draw(scores, seeds, 4)
    for r in (0, 4, 8):
        alone = draw(scores[r : r + 1], seeds[r : r + 1], 4)
        assert torch.equal(alone[0], whole[r])
    order = torch.tensor([5, 0, 8, 2])
    assert torch.equal(draw(scores[order], [seeds[i] for i in order], 4), whole[order])


def test_blocks_of_rows_give_the_same_tokens(rng, monkeypatch):
    scores = torch.from_numpy(rng.normal(size=(7, 64)).astype("float32"))
    whole = draw(scores, list(range(7)), 3)
    monkeypatch.setattr(RaceSampler, "BLOCK", 128)
    assert torch.equal(draw(scores, list(range(7)), 3), whole)


def test_rounding_noise_hardly_ever_changes_a_token(rng):
    """The reason for the race: noise of 1e-6 in 20,000 nearly equal logits.

    The total variation distance is about 4e-7, so of 2,000 draws none should differ; the
    inverse of the distribution function, where the shifts of all borders add up, differs
    in about one draw in 1,500 (measured, float64).
    """
    scores = torch.from_numpy(rng.normal(size=20_000).astype("float32"))
    noise = torch.from_numpy(rng.normal(size=20_000).astype("float32")) * 1e-6
    seeds = list(range(2000))
    changed = 0
    for start in range(0, 2000, 100):
        part = seeds[start : start + 100]
        changed += int((draw(scores, part) != draw(scores + noise, part)).sum())
    assert changed == 0


def test_fault_21_rows_with_bad_logits_are_flagged_and_alone():
    good = torch.tensor([1.0, 0.0, -1.0])
    scores = torch.stack([good, torch.tensor([0.0, math.nan, 0.0]), good, good])
    scores[2, 0] = math.inf
    scores[3, :] = -math.inf
    sampler = RaceSampler([], [1, 2, 3, 4], fallback=2)
    out = sampler(torch.zeros(4, 1, dtype=torch.int64), scores)
    assert out.argmax(dim=-1)[1:].tolist() == [2, 2, 2]
    assert torch.equal(out[0].argmax(), draw(good, [1])[0, 0])
    logp, finite = sampler.results()
    assert finite == [[True], [False], [False], [False]]
    assert logp[0][0] == pytest.approx(
        float(torch.log_softmax(good, 0)[out[0].argmax()]), abs=1e-6
    )


def test_forbidden_tokens_are_never_drawn():
    sampler = RaceSampler([], list(range(500)), forbidden=[0, 99])
    out = sampler(torch.zeros(500, 1, dtype=torch.int64), LOGITS.expand(500, -1))
    assert 0 not in out.argmax(dim=-1).tolist()
    assert torch.equal(LOGITS[0], torch.tensor(2.0))  # the caller's scores are untouched


def test_row_seeds_are_named_and_stable():
    seeds = {
        row_seed(s, i, arm, n)
        for s in (0, 1)
        for i in ("a", "b", "a\n", "")
        for arm in (IMAGE_ARM, BLIND_ARM)
        for n in range(5)
    }
    assert len(seeds) == 2 * 4 * 2 * 5
    assert all(0 <= s < 2**63 for s in seeds)
    # A stored run must be repeatable by a later version and on another machine.
    assert row_seed(0, "mathv-708", IMAGE_ARM, 3) == ROW_SEED


ROW_SEED = 2482391817316454447


def completion(ids: tuple[int, ...], logp: float) -> Completion:
    return Completion(ids, "", "stop", 0, len(ids) + 1, logp)


def test_degenerate_only_if_the_model_did_not_mean_it():
    unlikely, likely = math.log(0.2), math.log(0.9)
    assert degenerate([completion((1, 2), unlikely)] * 5)
    assert not degenerate([completion((1, 2), likely)] * 5)
    assert not degenerate([completion((1, 2), unlikely)])
    assert not degenerate([])
    assert not degenerate([completion((), -9.0)] * 5)
    assert not degenerate([completion((1, 2), -9.0), completion((1, 3), -9.0)])
    assert not degenerate([completion((1,), math.nan)] * 5)


# ---- with real model classes -------------------------------------------------------


def make(name: str, texts: list[str], **settings):
    """(driver, prompts with an image) of a tiny model."""
    model, processor = build(name)
    driver = ModelDriver(model, processor, ScoreConfig(**settings))
    prompts = []
    for i, text in enumerate(texts):
        size = (60 + 30 * (i % 3), 50 + 20 * (i % 4))
        image = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50 + i).convert("RGB")
        sample = Sample(i, str(i), text, "A", (), (), None, {})
        prompts.append(driver.prepare(sample, [image]))
    return driver, prompts


TEXTS = [
    "Which number?",
    "What is the colour of the missing shape in this long row of shapes?",
    "Why?",
]
TWELVE = Sampling(max_new_tokens=12)


@pytest.mark.parametrize("name", NAMES)
def test_completions_do_not_depend_on_batch_or_padding(name):
    driver, prompts = make(name, TEXTS)
    seeds = [[row_seed(0, str(i), IMAGE_ARM, n) for n in range(2)] for i in range(3)]
    together = generate(driver, prompts, seeds, TWELVE)
    alone = [
        generate(driver, [p], [s], TWELVE)[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    assert_same(together, alone)
    turned = generate(driver, prompts[::-1], seeds[::-1], TWELVE)[::-1]
    assert_same(together, turned)
    one_by_one = [
        [generate(driver, [p], [[s]], TWELVE)[0][0] for s in group]
        for p, group in zip(prompts, seeds, strict=True)
    ]
    assert_same(together, one_by_one)
    texts = {c.token_ids for group in together for c in group}
    assert len(texts) == 6  # random weights: no two rows alike


def assert_same(a, b) -> None:
    """Equal completions; log p within float32 rounding."""
    for x, y in zip((c for g in a for c in g), (c for g in b for c in g), strict=True):
        assert (x.token_ids, x.text, x.seed) == (y.token_ids, y.text, y.seed)
        assert (x.finish_reason, x.n_sampled) == (y.finish_reason, y.n_sampled)
        assert x.logp == pytest.approx(y.logp, abs=1e-3)


def test_the_models_own_generation_config_does_not_leak():
    """The trap of Qwen2.5-VL's generation_config.json: top_k = 1, temperature = 0.1."""
    driver, prompts = make("qwen2_5_vl", TEXTS[:1])
    seeds = [list(range(6))]
    clean = generate(driver, prompts, seeds, TWELVE)
    theirs = driver.model.generation_config
    theirs.update(
        do_sample=True,
        temperature=0.1,
        top_k=1,
        top_p=0.001,
        repetition_penalty=1.5,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(100)),
        bad_words_ids=[[7]],
        min_new_tokens=3,
        num_beams=2,
        num_return_sequences=2,
        max_length=5,
    )
    before = theirs.to_dict()
    assert_same(clean, generate(driver, prompts, seeds, TWELVE))
    assert driver.model.generation_config is theirs and theirs.to_dict() == before
    assert len({c.token_ids for c in clean[0]}) == 6


def test_the_generation_config_comes_back_after_an_error(monkeypatch):
    driver, prompts = make("qwen2_5_vl", TEXTS[:1])
    theirs = driver.model.generation_config

    def broken(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(driver.model.lm_head, "forward", broken)
    with pytest.raises(torch.OutOfMemoryError):
        generate(driver, prompts, [[1]], TWELVE)
    assert driver.model.generation_config is theirs


def test_completions_agree_with_the_models_own_logits():
    """Each token is the winner of its race against teacher-forced logits, step by step."""
    driver, prompts = make("qwen2_5_vl", TEXTS)
    done = generate(driver, prompts, [[5], [6], [7]], TWELVE)
    for prompt, (completion,) in zip(prompts, done, strict=True):
        ids = list(completion.token_ids)
        inputs = driver.collate([driver.with_response(prompt, ids)])
        with torch.no_grad():
            logits = driver.model(**inputs).logits[0, prompt.n_prompt - 1 :]
        config = driver.model.config
        logits[:, [config.image_token_id, config.video_token_id]] = -math.inf  # never drawn
        sampler = RaceSampler([], [completion.seed])
        drawn = [
            int(sampler(inputs["input_ids"], row[None].float()).argmax())
            for row in logits[: len(ids)]
        ]
        assert drawn == ids
        steps = torch.log_softmax(logits.double(), -1)[range(len(ids)), ids]
        assert completion.logp == pytest.approx(float(steps.sum()), abs=1e-3)


def test_end_tokens_stop_and_are_left_out():
    driver, prompts = make("qwen2_5_vl", TEXTS[:1])
    tokenizer = driver.tokenizer
    # every token whose id is a multiple of 7 ends the turn
    driver.model.generation_config.eos_token_id = list(range(0, len(tokenizer), 7))
    (done,) = generate(driver, prompts, [list(range(12))], TWELVE)
    assert {c.finish_reason for c in done} == {"stop", "length"}
    for c in done:
        assert all(t % 7 and t != tokenizer.eos_token_id for t in c.token_ids)
        assert c.text == tokenizer.decode(c.token_ids, skip_special_tokens=True)
        stopped = c.finish_reason == "stop"
        assert c.n_sampled == len(c.token_ids) + stopped
        assert stopped or len(c.token_ids) == 12
    driver.model.generation_config.eos_token_id = list(range(len(tokenizer)))
    (empty,) = generate(driver, prompts, [[1, 2]], TWELVE)
    for c in empty:
        assert (c.token_ids, c.text, c.finish_reason, c.n_sampled) == ((), "", "stop", 1)


def test_greedy_takes_the_most_probable_token():
    driver, prompts = make("qwen2_5_vl", TEXTS[:2])
    done = generate(driver, prompts, [[0], [0]], TWELVE, greedy=True)
    again = generate(
        driver,
        prompts,
        [[8], [9]],
        Sampling(temperature=3.0, max_new_tokens=12),
        greedy=True,
    )
    assert_same(done, again)
    for prompt, (completion,) in zip(prompts, done, strict=True):
        inputs = driver.collate([driver.with_response(prompt, completion.token_ids)])
        with torch.no_grad():
            logits = driver.model(**inputs).logits[0, prompt.n_prompt - 1 : -1]
        assert logits.argmax(-1).tolist() == list(completion.token_ids)


def test_sampling_draws_no_number_from_torch():
    driver, prompts = make("qwen2_5_vl", TEXTS[:1])
    before = torch.random.get_rng_state()
    generate(driver, prompts, [[1, 2]], TWELVE)
    assert torch.equal(before, torch.random.get_rng_state())


def test_repetition_penalty_does_not_see_padding():
    driver, prompts = make("qwen2_5_vl", TEXTS)
    sampling = Sampling(
        max_new_tokens=12, repetition_penalty=1.3, top_k=40, top_p=0.9, min_p=0.01
    )
    together = generate(driver, prompts, [[1], [2], [3]], sampling)
    alone = [generate(driver, [p], [[i + 1]], sampling)[0] for i, p in enumerate(prompts)]
    assert_same(together, alone)


def test_no_prompts_and_no_seeds():
    driver, prompts = make("qwen2_5_vl", TEXTS[:2])
    assert generate(driver, [], [], TWELVE) == []
    none, one = generate(driver, prompts, [[], [4]], TWELVE)
    assert none == [] and len(one) == 1
