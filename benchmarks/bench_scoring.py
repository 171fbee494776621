"""Scoring end to end: what the model is asked for, counted; then the time, against rivals.

Counts are the gate: images encoded a sample, tokens read against the distinct ones, padded
against real tokens (on real data sets, where they are at hand), completions against the
full bill of 5 + 5. The times are ratios of one run on the demo's model and data: against
this project's driver as it was at commit a64b6dc, and against a plain script that only
draws completions (``scoring_rivals``). ``scoring.md`` has both, and the hours that the
counts come to on an H200, estimated (``scoring_estimate``).

The first row is the driver and the kernels against the bare two forwards. The model is
Qwen2.5-VL's own class with random weights, wide and deep enough that its forward dominates
as in real use (the tests' tiny models would measure Python): 8 layers of width 1024, a head
of 32,064 tokens. A 3B model has 36 layers, so the kernels' share here is above what users
meet.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import rap
from benchmarks import scoring_estimate, scoring_rivals
from benchmarks.common import (
    Row,
    WrongResult,
    check,
    compare,
    optional,
    row,
    shape_of,
    table,
)
from benchmarks.scoring_rivals import images_of
from rap import reference
from rap.config import EVIDENCE, Sampling, ScoreConfig
from rap.model.counts import Counts
from rap.samples.sampleset import open_samples
from rap.scores.profile import Profile

RESPONSE = 256  # tokens
WANT = ("kl", "logp1", "logp0")
STATISTICS = ("log_psi", "attention_entropy", "attention_top", "image_mass")

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
SETS = ("mathvision", "tabmwp", "puzzlevqa")
M = 5
BATCH = 8
"""Of the rivals, as it was the default; ours is by tokens."""
IMAGES, TOKENS = "images encoded a sample", "tokens read / distinct"
PADDED, BILL = "padded / real tokens", "completions / 5 + 5"
CALLS = "attention calls a layer of the vision tower"


def wide_model(width: int, layers: int, vocab: int) -> tuple[Any, Any] | None:
    """(model, processor) from the demo's tiny configuration, enlarged; sdpa, float32."""
    tiny = optional("rap.demo.tiny", "tiny_qwen2_5_vl")
    if tiny is None:
        return None
    from rap.demo.tiny import random_model

    model, processor = tiny()
    config = copy.deepcopy(model.config)
    text = config.text_config
    text.vocab_size, text.hidden_size, text.intermediate_size = vocab, width, 2 * width
    text.num_hidden_layers, text.layer_types = layers, ["full_attention"] * layers
    text.num_attention_heads, text.num_key_value_heads = width // 128, max(1, width // 512)
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [16, 24, 24]}
    text.initializer_range = 0.03
    config.vision_config.out_hidden_size = width
    return random_model(type(model), config, 0, attn_implementation="sdpa"), processor


def score_traces(driver: Any, with_image: Any, blind: Any) -> tuple[Any, Any]:
    """What scoring.evidence asks of one sample for "logits": both traces, all divergences,
    and the attention confidence of the response with the image."""
    (one,) = driver.trace([with_image])
    (none,) = driver.trace([blind], attention=False)
    head = driver.head
    cde = rap.linear_cde(
        one.hidden,
        none.hidden,
        head.weight,
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
        targets=one.response_ids,
        want=WANT,
        threads=1,
    )
    ace = rap.ace(
        one.q,
        one.k,
        response_start=one.n_prompt,
        scale=one.scaling,
        column_mask=~one.special_mask,
        image_mask=one.image_mask,
        threads=1,
    )
    return cde, ace


def check_scored(scored: tuple[Any, Any], logits: list[torch.Tensor], trace: Any) -> None:
    """All that is timed, against the reference on the bare forwards' logits and on q, k."""
    cde, ace = scored
    l1, l0 = (x.double() for x in logits)
    truth = reference.cde(l1, l0, targets=trace.response_ids)
    for name in WANT:
        check(f"scoring a sample: {name}", getattr(cde, name), truth[name], 1e-4)
    truth = reference.ace(
        trace.q,
        trace.k,
        response_start=trace.n_prompt,
        scale=trace.scaling,
        column_mask=~trace.special_mask,
        image_mask=trace.image_mask,
    )
    for name in STATISTICS:
        check(f"scoring a sample: {name}", getattr(ace, name), truth[name], 1e-4)


def bare_forwards(quick: bool) -> list[Row]:
    """The driver and the kernels on one sample, against the model alone."""
    built = wide_model(512 if quick else 1024, 4 if quick else 8, 32_064)
    if built is None:
        return []
    from PIL import Image

    from rap.model.driver import ModelDriver
    from rap.samples.sample import Sample

    model, processor = built
    driver = ModelDriver(model, processor)
    driver.check()
    sample = Sample(0, "one", "What is in the picture?", "a dog", (), (), None, {})
    response = (torch.arange(RESPONSE) * 37 % 400 + 20).tolist()
    picture = Image.linear_gradient("L").convert("RGB").resize((224, 224))
    with_image = driver.prepare(sample, [picture], response)
    blind = driver.prepare(sample, None, response)
    inputs = [driver.collate([x]) for x in (with_image, blind)]

    def forward(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**given, use_cache=False, logits_to_keep=RESPONSE + 1).logits[0, :-1]

    def both() -> list[torch.Tensor]:
        return [forward(given) for given in inputs]

    def scored() -> tuple[Any, Any]:
        return score_traces(driver, with_image, blind)

    check_scored(scored(), both(), driver.trace([with_image])[0])
    shape = shape_of(
        E=model.config.text_config.hidden_size,
        R=RESPONSE,
        L=inputs[0]["input_ids"].shape[1],
    )
    return [
        compare(
            "scoring",
            "scoring a sample: driver + kernels",
            shape,
            "the bare two forwards, sdpa",
            scored,
            both,
            asked=1.05,
            at_most=True,
            budget=10 if quick else 60,
        )
    ]


# ---- counts ------------------------------------------------------------------------------


def profiled(model: Any, processor: Any, data: Any, **options: Any) -> tuple[Profile, Any]:
    """(profile, scores) of one run."""
    scores = rap.score(
        model,
        processor,
        data,
        progress=False,
        allow_degenerate=True,
        profile=True,
        **options,
    )
    measured = Profile.of(scores.meta["profile"])
    assert measured is not None  # it was asked for
    return measured, scores


def gate(what: str, shape: str, value: float, asked: float) -> Row:
    """A count that must not be larger than ``asked``."""
    return row("scoring", what, shape, "", "x", value, None, asked=asked, at_most=True)


FORESEEN = 256
"""Samples from which on a cascade's bill is held to what was given."""


def counts(model: Any, processor: Any, n: int) -> list[Row]:
    """The gate on the demo's data, for every evidence; of the cascade on four times as
    many samples, since it cannot foresee the bill of a few dozen."""
    found = []
    for evidence in EVIDENCE:
        found += counts_of(
            model, processor, evidence, 4 * n if evidence == "cascade" else n
        )
    return found


def counts_of(model: Any, processor: Any, evidence: str, n: int) -> list[Row]:
    """The gate on one evidence."""
    from rap.demo.world import draw, rows

    data = rows(draw(n, seed=11))
    measured, scores = profiled(model, processor, data, evidence=evidence)
    again = measured.ratios()["prefilled_tokens"]
    if measured.samples != n or again is None:  # none is scored in two passes
        raise WrongResult(f"scoring: {evidence}: {measured.samples} of {n} samples")
    shape = shape_of(evidence=evidence, N=n)
    found = [
        gate(IMAGES, shape, measured.counts["images_encoded"] / n, 1.0),
        gate(TOKENS, shape, again, 1.1),
    ]
    if evidence != "cascade" or n >= FORESEEN:
        drawn = sum(scores.table["n_drawn"].drop_null().to_pylist()) / (2 * M * n)
        found.append(gate(BILL, shape, drawn, 1.0 if evidence == "rollouts" else 0.2))
    return found


def padding(model: Any, processor: Any, n: int | None) -> list[Row]:
    """The gate on the lengths of the real sets: questions and choices as they are, in the
    demo's own tokens, images of at most 64 tokens."""
    found = []
    for name in SETS:
        path = DATA / name / "samples.jsonl"
        if not path.is_file():
            print(f"left out: {name}: {path} is not there", flush=True)
            continue
        data = open_samples(path)
        if n is not None:
            data = open_samples(data.take(range(n)), root=path.parent)
        measured, _ = profiled(model, processor, data, evidence="answer")
        value = measured.ratios()["padded_tokens"]
        assert value is not None
        found.append(gate(PADDED, shape_of(set=name, N=len(data)), value, 1.1))
    return found


def tower_calls(images: int) -> tuple[int, int, int]:
    """Attention calls of Qwen2.5-VL-7B's vision tower for images of 800 x 600: piece by
    piece, packed on this CPU, and with a variable-length kernel. Its layers and windows at
    a small width."""
    from unittest import mock

    from torch.nn import functional
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as family
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
        Qwen2_5_VLVisionConfig,
    )

    from rap.model import packing

    small = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    config = Qwen2_5_VLVisionConfig(**small, out_hidden_size=32)
    tower = family.Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    grid = torch.tensor([[1, 42, 58]]).expand(images, 3)
    pixels = torch.randn(images * 42 * 58, 3 * 2 * 14 * 14)
    sdpa = mock.Mock(side_effect=functional.scaled_dot_product_attention)
    varlen = mock.Mock(side_effect=lambda q, *args, **options: q)  # only counted
    found = []
    for together, kernel in (False, None), (True, None), (True, varlen):
        packs = packing.towers(tower, ()) if together else ()
        with (
            torch.no_grad(),
            packing.packed(packs),
            mock.patch.object(functional, "scaled_dot_product_attention", sdpa),
            mock.patch.object(packing, "varlen_kernel", return_value=kernel),
        ):
            tower(pixels, grid)
        found.append(sdpa.call_count + varlen.call_count - sum(found))
    looped, grouped, whole = found
    return looped, grouped, whole


def tower(images: int) -> list[Row]:
    """The gate on them, a layer: one with a kernel, one for each size of window without."""
    looped, grouped, whole = tower_calls(images)
    layers = scoring_estimate.PACKED
    if (looped, whole) != (images * scoring_estimate.LOOPED // BATCH, layers):
        raise WrongResult(f"scoring: {looped} and {whole} attention calls in the tower")
    return [
        gate(CALLS, shape_of(images=images, kernel="varlen"), whole / layers, 1.0),
        gate(CALLS, shape_of(images=images, kernel="sdpa"), grouped / layers, 3.0),
    ]


# ---- times -------------------------------------------------------------------------------


def made_driver(model: Any, processor: Any, config: ScoreConfig) -> Any:
    """A driver that has checked the model."""
    from rap.model.driver import ModelDriver

    driver = ModelDriver(model, processor, config)
    driver.check()
    return driver


def score_samples(driver: Any, samples: Any, checker: Any) -> int:
    """Everything `rap.score` does with these samples but for the store and the worker
    threads; the number of completions."""
    from rap.engines import EngineConfig, TransformersEngine
    from rap.scoring.filling import score_batch
    from rap.scoring.jobs import Batch
    from rap.scoring.prepare import prepare_job
    from rap.scoring.scorer import Scorer

    config, batch, done = driver.config, Batch(), 0
    engine = TransformersEngine(EngineConfig(), driver)
    scorer = Scorer(driver, config, checker, True, engine)
    for i in range(len(samples)):
        batch.add(prepare_job(samples, driver, config, i))
        full = config.batch_is_full(len(batch), batch.tokens)
        if full or i + 1 == len(samples):
            score_batch(scorer, batch.jobs)
            done += sum(job.row.get("n_drawn", 0) for job in batch.jobs)
            batch = Batch()
    return done


def check_completions(driver: Any, plain: scoring_rivals.Plain, samples: Any) -> None:
    """The log-probabilities of sampled tokens, against the model's plain forward."""
    from rap.model.rollouts import generate

    prompts = [driver.prepare(s, images_of(s, plain.config)) for s in samples]
    seeds = [[10 * i, 10 * i + 1] for i in range(len(prompts))]
    drawn = generate(driver, prompts, seeds, plain.config.sampling)
    ends = plain.model.generation_config.eos_token_id
    for prepared, group in zip(prompts, drawn, strict=True):
        for completion in group:
            ids = list(completion.token_ids)
            if completion.n_sampled > len(ids):  # the end token was sampled, too
                ids.append(ends if isinstance(ends, int) else ends[0])
            inputs = driver.collate([driver.with_response(prepared, ids)])
            logits = plain.forward(inputs, len(ids) + 1)[0, :-1].double()
            logits[:, driver.image_token_id] = -torch.inf  # never sampled
            truth = logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum()
            check("scoring: log p of a completion", completion.logp, float(truth), 1e-4)


def check_before(driver: Any, before: Any, evidence: str, n: int) -> None:
    """That the driver of a64b6dc is what it is called, and that ours is not: by the counts
    of one run of ``n`` samples each."""
    # logits: sampling, response, answer; rollouts: M completions (psi is read for some)
    least = 3 * n if evidence == "logits" else M * n
    if not (driver.counts.images_encoded == n and before.counts.images_encoded >= least):
        raise WrongResult(f"scoring: {driver.counts} against {before.counts}")


def against_rivals(model: Any, processor: Any, n: int, budget: float) -> list[Row]:
    """Samples a second, against the driver of a64b6dc and against plain scripts."""
    from rap.demo.world import draw, rows
    from rap.rewards.checker import make_checker

    samples = open_samples(rows(draw(n, seed=12)))
    listed = [samples[i] for i in range(n)]
    scripts = {
        "logits": {"plain: separate forwards": scoring_rivals.separate_forwards},
        "rollouts": {
            "plain: prompts repeated": scoring_rivals.expanded_prompts,
            "plain: num_return_sequences": scoring_rivals.returned_sequences,
        },
    }
    found = []
    with make_checker(None) as checker:
        for evidence, plain_scripts in scripts.items():
            config = ScoreConfig(evidence=evidence, sampling=Sampling(max_new_tokens=32))
            eight = dataclasses.replace(config, batch_size=BATCH, batch_tokens=None)
            driver = made_driver(model, processor, config)
            before = scoring_rivals.as_before(made_driver(model, processor, eight))
            plain = scoring_rivals.Plain(model, processor, eight, BATCH)
            check_completions(driver, plain, listed[:2])
            rivals = {"driver of a64b6dc": partial(score_samples, before, samples, checker)}
            for name, script in plain_scripts.items():
                rivals[name] = partial(script, plain, listed)
            ours = partial(score_samples, driver, samples, checker)
            driver.counts, before.counts = Counts(), Counts()
            check("scoring: completions", ours(), rivals["driver of a64b6dc"](), 0.0)
            check_before(driver, before, evidence, n)
            for name, theirs in rivals.items():
                found.append(
                    compare(
                        "scoring",
                        f"scoring samples: {evidence}",
                        shape_of(N=n, batch=BATCH),
                        name,
                        ours,
                        theirs,
                        budget=budget,
                        memory=False,
                        asked=2.0 if name.startswith("driver") else None,
                    )
                )
    return found


def run(quick: bool) -> list[Row]:
    load = optional("rap.demo.model", "load_demo_model")
    found = bare_forwards(quick)
    if load is None:
        return found
    model, processor = load()
    found += counts(model, processor, 16 if quick else 64)
    found += padding(model, processor, 40 if quick else None)
    found += tower(1 if quick else BATCH)
    # Rivals take batches of 8, ours are by tokens: 24 samples are one, 96 are two.
    for n in (8,) if quick else (24, 96):
        found += against_rivals(model, processor, n, 10 if quick else 20)
    return found


# ---- what is written beside the numbers --------------------------------------------------


def largest(rows: Sequence[Row], what: str, unless: float = 1.0) -> float:
    """The largest value of a count; ``unless`` there is none."""
    return max(
        (r.ours for r in rows if r.what == what and r.ours is not None), default=unless
    )


def write(rows: list[Row], folder: Path) -> None:
    """``scoring.md``: every row, and the estimate from its counts."""
    shares = [r.ours or 0.0 for r in rows if r.what == BILL and "cascade" in r.shape]
    works = scoring_estimate.works(
        largest(rows, IMAGES),
        largest(rows, TOKENS),
        largest(rows, PADDED),
        *(shares or [0.2]),
    )
    busy = os.getloadavg()[0]
    lines = [
        "# Scoring: counts, times, and the hours they come to",
        "",
        "`python -m benchmarks.run --only scoring`; the demo's model and data, one thread.",
        f"Load of the machine at the end: {busy:.1f} on {os.cpu_count()} cores (above 1: "
        "it was shared, and only the counts are exact).",
        "",
        table(rows),
        "",
        "| measured, nothing asked | shape | against | ratio |",
        "|---|---|---|---|",
        *(
            f"| {r.what} | {r.shape} | {r.rival} | {r.ratio:.3g}x |"
            for r in rows
            if r.asked is None and r.ratio is not None
        ),
        "",
        scoring_estimate.text(works),
    ]
    if not shares:
        lines += ["", "The cascade's share of completions is its goal, not a count."]
    (folder / "scoring.md").write_text("\n".join(lines) + "\n")
