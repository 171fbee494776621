"""Scoring a sample end to end (driver and kernels) against the bare two forwards.

The model is Qwen2.5-VL's own class with random weights, wide and deep enough that its
forward dominates as in real use (the tests' tiny models would measure Python): 8 layers of
width 1024, a head of 32,064 tokens. A 3B model has 36 layers, so the kernels' share here
is above what users meet.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

import rap
from benchmarks.common import Row, check, compare, optional, shape_of
from rap import reference

RESPONSE = 256  # tokens
WANT = ("kl", "logp1", "logp0")
STATISTICS = ("log_psi", "attention_entropy", "attention_top", "image_mass")


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


def run(quick: bool) -> list[Row]:
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
