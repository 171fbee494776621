"""What the driver refuses before the first sample, and what it says."""

from __future__ import annotations

import logging

import pytest
import torch
from model_inputs import NOISE, built, far, five, picture
from tiny_models import build

from rap.config import ScoreConfig
from rap.errors import RapConfigError, RapModelError
from rap.model.capture import ATTENTION_NAME, find_parts
from rap.model.driver import ModelDriver

# ---- fault 20: what cannot be captured is refused before the first sample -------


def own_attention(module):
    """A layer that attends by itself, as code that comes with a model often does."""

    def forward(hidden_states, *args, **kwargs):
        return module.o_proj(module.q_proj(hidden_states)), None

    return forward


def test_fault_20_attention_that_cannot_be_captured(monkeypatch):
    model, processor = build("qwen2_5_vl")
    attention = model.model.language_model.layers[-1].self_attn
    monkeypatch.setattr(attention, "forward", own_attention(attention))
    driver = ModelDriver(model, processor)
    for call in (driver.check, lambda: driver.head, lambda: driver.trace(["unused"])):
        with pytest.raises(RapModelError, match="AttentionInterface") as caught:
            call()
        assert 'attn_implementation="eager"' in str(caught.value)
        assert 'attn_implementation="sdpa"' in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "word"),
    [("softcap", "soft-capping"), ("s_aux", "sinks"), ("position_bias", "bias")],
)
def test_fault_20_attention_that_is_no_plain_softmax(monkeypatch, argument, word):
    model, processor = build("gemma3")
    attention = model.model.language_model.layers[-1].self_attn
    forward = attention.forward
    extra = {argument: torch.ones(4) if argument != "softcap" else 50.0}
    monkeypatch.setattr(attention, "forward", lambda *a, **k: forward(*a, **k, **extra))
    with pytest.raises(RapModelError, match=word):
        ModelDriver(model, processor).check()


def test_fault_20_attention_that_is_something_else(monkeypatch):
    """A wrong scale is not seen by name, but by comparing with the layer's own output."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, processor = build("llava")
    driver = ModelDriver(model, processor)
    driver.check()
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    last = model.model.language_model.layers[-1].self_attn

    def scaled(module, q, k, v, mask, **kwargs):
        return sdpa(module, q * 1.05 if module is last else q, k, v, mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", scaled)
    with pytest.raises(RapModelError, match="do not give that layer's attention"):
        driver.check()


def test_fault_20_two_attentions_in_the_last_layer(monkeypatch):
    model, processor = build("llava")
    attention = model.model.language_model.layers[-1].self_attn
    forward = attention.forward
    monkeypatch.setattr(
        attention, "forward", lambda *a, **k: (forward(*a, **k), forward(*a, **k))[1]
    )
    with pytest.raises(RapModelError, match="more than once"):
        ModelDriver(model, processor).check()


def break_decoder(model):
    model.get_decoder = lambda: model


def break_name(model):
    def fail():
        raise NotImplementedError("no decoder here")

    model.get_decoder = fail


def break_head(model):
    model.get_output_embeddings = lambda: None


def break_quantised(model):
    head = torch.nn.Module()
    head.weight = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), False)
    model.get_output_embeddings = lambda: head


def break_layers(model):
    model.model.language_model.layers = torch.nn.ModuleList(
        [model.model.language_model.layers[0]]
    )


def break_sdpa(model):
    model.model.language_model._supports_sdpa = False


def break_encoder(model):
    model.config.is_encoder_decoder = True


def break_forward(model):
    def fail(*args, **kwargs):
        raise AssertionError("only with flash attention")

    model.model.forward = fail


def break_logits(model):
    forward = type(model).forward

    def shifted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1])
        return output

    model.__class__ = type("Shifted", (type(model),), {"forward": shifted})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (break_decoder, "text decoder"),
        (break_name, "no decoder here"),
        (break_head, "no floating-point weight"),
        (break_quantised, "no floating-point weight"),
        (break_layers, "no list of 2 layers"),
        (break_sdpa, "does not support sdpa"),
        (break_encoder, "encoder-decoder"),
        (break_forward, "only with flash attention"),
        (break_logits, "do not give its logits"),
    ],
)
def test_fault_20_parts_that_cannot_be_used(damage, word):
    model, processor = build("qwen2_5_vl")
    damage(model)
    with pytest.raises(RapModelError, match=word) as caught:
        ModelDriver(model, processor).check()
    assert 'attn_implementation="sdpa"' in str(caught.value)


def test_fault_20_a_processor_that_makes_no_prompt():
    model, processor = build("qwen2_5_vl")
    processor.chat_template = None
    with pytest.raises(RapModelError, match="chat_template"):
        ModelDriver(model, processor).check()
    _, other = built("llava")
    with pytest.raises(
        RapModelError, match="do not belong together: the tokenizer has tokens up to"
    ):
        ModelDriver(model, other).check()
    with pytest.raises(RapModelError, match="max_prompt_tokens"):
        ModelDriver(*built("llava"), ScoreConfig(max_prompt_tokens=4)).check()


def test_describe_says_what_was_found():
    text = {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 64,
        "final_logit_softcapping": 30.0,
    }
    model, processor = build("gemma3", text=text)
    found = ModelDriver(model, processor).describe()
    assert found.model_class == "Gemma3ForConditionalGeneration"
    assert found.processor_class == "Gemma3Processor"
    assert (found.dtype, found.device) == ("float32", "cpu")
    assert (found.layers, found.heads, found.key_heads) == (2, 4, 2)
    assert (found.hidden_size, found.window) == (64, 64)
    assert (found.head_class, found.head_dtype) == ("Linear", "float32")
    assert found.head_tied and not found.head_bias and found.head_scale is None
    assert found.head_softcap is None  # in the config, but the class does not apply it
    assert found.vocabulary == model.lm_head.weight.shape[0]
    assert found.attention_scale == model.config.text_config.query_pre_attn_scalar**-0.5
    assert found.image_token_id == model.config.image_token_index
    assert found.image_token == "<image_soft_token>"
    assert found.probe_image_size == (56, 56)
    assert found.probe_image_tokens == processor.image_seq_length
    assert 0 <= found.logit_difference < NOISE * found.largest_logit
    assert 0 <= found.attention_difference < NOISE * found.largest_attention
    assert not ModelDriver(*built("internvl")).describe().head_tied


def test_what_is_no_model_or_no_processor_is_refused_in_a_sentence():
    import rap

    model, processor = built("qwen2_5_vl")
    rows = [{"question": "q", "answer": "a", "image": picture(8, 8, 0)}]
    for given, word in (
        (("path/to/model", processor), "model path/to/model: .*: no such folder"),
        ((torch.nn.Linear(2, 2), processor), "model = a Linear: expected"),
        ((processor, model), "model = a Qwen2_5_VLProcessor: expected"),
        ((model, None), r"processor = None: expected the model's processor"),
        ((model, "./path"), "processor ./path: cannot be loaded: no such folder"),
        ((model, 7), r"processor = 7: expected the model's processor"),
    ):
        with pytest.raises(RapModelError, match=word):
            rap.score(*given, rows, progress=False)
    with pytest.raises(RapConfigError, match="None: .* a loaded Hugging Face model"):
        rap.score(None, processor, rows, progress=False)


def test_other_implementations_are_named_and_replaced(caplog):
    model, processor = build("gemma3", attn_implementation="eager")
    driver = ModelDriver(model, processor)
    with caplog.at_level(logging.WARNING, logger="rap"):
        driver.check()
    assert not caplog.records
    mine = driver.trace([five(driver)[0]])[0]
    theirs = ModelDriver(*built("gemma3")).trace([five(driver)[0]])[0]
    assert far(mine.q, theirs.q) < NOISE and far(mine.hidden, theirs.hidden) < NOISE
    for config in find_parts(model).configs:
        assert config._attn_implementation_internal == "eager"
        config._attn_implementation_internal = "flex_attention"
    with caplog.at_level(logging.WARNING, logger="rap"):
        driver.check()
    assert "flex_attention" in caplog.text
    assert model.config._attn_implementation == "flex_attention" != ATTENTION_NAME


# ---- processors that are none, or another model's -----------------------------


def parts_of(processor):
    return {
        "tokenizer": processor.tokenizer,
        "image processor": processor.image_processor,
        "video processor": processor.video_processor,
    }


@pytest.mark.parametrize("kind", ["tokenizer", "image processor", "video processor"])
def test_case_21_a_part_of_a_processor_is_no_processor(kind):
    """A tokenizer renders chat prompts and tokenises: all but the images."""
    import rap

    model, processor = built("qwen2_5_vl")
    part = parts_of(processor)[kind]
    rows = [{"question": "q", "answer": "a", "image": picture(8, 8, 0)}]
    said = f"processor = a {type(part).__name__}: an? .*AutoProcessor"
    for call in (
        lambda: ModelDriver(model, part),
        lambda: rap.score(model, part, rows, progress=False),
        lambda: rap.select(model, part, rows, budget=0.5, progress=False),
    ):
        with pytest.raises(RapModelError, match=said):
            call()


def test_a_feature_extractor_and_a_processor_without_images_are_refused():
    from transformers import WhisperFeatureExtractor

    model, _ = built("qwen2_5_vl")
    with pytest.raises(RapModelError, match="a feature extractor makes no prompts"):
        ModelDriver(model, WhisperFeatureExtractor())
    for part in ("image_processor", "tokenizer"):
        _, processor = build("qwen2_5_vl")
        setattr(processor, part, None)
        with pytest.raises(RapModelError, match=f"it has no {part}"):
            ModelDriver(model, processor)


def test_a_tokenizer_trains_no_model_of_images(tmp_path):
    pytest.importorskip("trl")
    from pathlib import Path

    from rap.samples.sampleset import open_samples
    from rap.trl import prepare
    from rap.trl.run import TrainConfig, train
    from rap.trl.trainer import GRPOTrainer

    model, processor = built("qwen2_5_vl")
    rows = [{"id": "a", "question": "q", "answer": "a", "image": picture(8, 8, 0)}]
    samples = open_samples(rows)
    with pytest.raises(RapModelError, match="processor = a Qwen2Tokenizer"):
        train(model, processor.tokenizer, samples, Path(tmp_path), TrainConfig())
    with pytest.raises(RapModelError, match="processor = a Qwen2Tokenizer"):
        GRPOTrainer(
            model,
            len,
            train_dataset=prepare(samples),
            processing_class=processor.tokenizer,
        )


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("llava", "the tokenizer has tokens up to 538, the model knows 463"),
        ("internvl", "1 images became 0 image tokens; the processor of qwen2_5_vl models"),
        ("smolvlm", "the processor of qwen2_5_vl models is Qwen2_5_VLProcessor, and this"),
    ],
)
def test_a_processor_of_another_family_is_named(name, word):
    model, _ = built("qwen2_5_vl")
    _, other = built(name)
    with pytest.raises(RapModelError, match=word) as caught:
        ModelDriver(model, other).check()
    assert type(other).__name__ in str(caught.value)
    assert "attn_implementation" not in str(caught.value)


def test_an_image_token_that_the_tokenizer_does_not_have():
    model, _ = built("llava")
    _, other = built("qwen2_5_vl")
    with pytest.raises(RapModelError, match="the model's image token is 540"):
        ModelDriver(model, other).check()


def test_a_missing_chat_template_says_what_to_do():
    model, processor = build("qwen2_5_vl")
    template, processor.chat_template = processor.chat_template, None
    with pytest.raises(RapModelError, match="has no chat template.*instruct model"):
        ModelDriver(model, processor).check()
    processor.tokenizer.chat_template = template
    with pytest.raises(RapModelError, match="processor.tokenizer.chat_template"):
        ModelDriver(model, processor).check()


# ---- weights that cannot be right ----------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lm_head.weight", torch.nan),
        ("model.language_model.layers.0.mlp.down_proj.weight", torch.inf),
        ("model.visual.merger.ln_q.weight", -torch.inf),
    ],
)
def test_weights_that_are_not_finite_are_named(name, value):
    model, processor = build("qwen2_5_vl")
    with torch.no_grad():
        model.get_parameter(name)[5] = value
    with pytest.raises(RapModelError, match=f"not finite .*: {name}") as caught:
        ModelDriver(model, processor).check()
    assert ("rows [5] of" in str(caught.value)) == (model.get_parameter(name).dim() == 2)
    assert "attn_implementation" not in str(caught.value)


@pytest.mark.parametrize("end", ["lm_head", "model.language_model.embed_tokens"])
def test_weights_that_are_all_zero_are_named(end):
    model, processor = build("qwen2_5_vl")
    model.get_submodule(end).weight.data.zero_()
    with pytest.raises(RapModelError, match=f"{end}.weight is all zero"):
        ModelDriver(model, processor).check()


def test_weights_without_values_are_named():
    model, processor = build("qwen2_5_vl")
    model.model.language_model.layers[1].to("meta")
    first = "model.language_model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(RapModelError, match=rf"device meta\): {first}.* and \d+ more"):
        ModelDriver(model, processor).check()


def freed(model):
    model.lm_head.weight.untyped_storage().resize_(0)


def cut(model):
    model.lm_head.weight.untyped_storage().resize_(1000)


def lazy(model):
    model.lm_head = torch.nn.LazyLinear(463, bias=False)


def functional(model):
    inner = torch._to_functional_tensor(model.lm_head.weight.detach())
    model.lm_head.weight = torch.nn.Parameter(inner, requires_grad=False)


@pytest.mark.parametrize("change", [freed, cut, lazy, functional])
def test_weights_whose_memory_is_not_theirs_are_named(change):
    model, processor = build("qwen2_5_vl")
    change(model)
    with pytest.raises(RapModelError, match=r"without values \(freed.*: lm_head.weight"):
        ModelDriver(model, processor).check()


def test_a_matrix_that_is_all_zero_is_named():
    """A download that was cut and padded leaves zeros, which attend and answer."""
    model, processor = build("qwen2_5_vl")
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    model.get_parameter(name).data.zero_()
    with pytest.raises(RapModelError, match=f"matrices that are all zero: {name}"):
        ModelDriver(model, processor).check()
