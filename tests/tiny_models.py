"""The eight model classes that rap is shown on, small, with random weights, built offline.

``build(name, seed=0) -> (model, processor)``: the real classes of transformers with two
decoder layers of width 64, four query heads on two key heads, the class's own processor and
image processor at small sizes, a tokenizer trained on a built-in text, and a chat template
in the form of the real one. float32, on the CPU, in evaluation mode. ``options`` go to
the model (``attn_implementation="eager"``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rap.demo.tiny import (
    N_MERGES,
    QWEN_CHAT_TEMPLATE,
    TEXT,
    byte_level_bpe,
    qwen_tokenizer,
    random_model,
    tiny_qwen2_5_vl,
)

NAMES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "llava",
    "llava_onevision",
    "smolvlm",
    "gemma3",
)

TILE = {"height": 56, "width": 56}  # 4 x 4 patches of 14 pixels


def build(name: str, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """(model, processor) of one of `NAMES`; the same weights for the same seed."""
    return _BUILDERS[name](seed, **options)


def text_settings(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # Wide enough that attention and answers are far from uniform.
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def vision_settings(**more: Any) -> dict[str, Any]:
    """Of CLIP, SigLIP and their relatives."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "initializer_range": 0.1,
        **more,
    }


def finished(cls: Any, config: Any, tokenizer: Any, seed: int, **options: Any) -> Any:
    model = random_model(cls, config, seed, **options)
    # Some towers start at zero (position embeddings, layer scale): nothing to see there.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def chatml(image: str, video: str, **token_names: str) -> Any:
    """A ``Qwen2Tokenizer`` with named special tokens, as InternVL's files have them."""
    from transformers import Qwen2Tokenizer

    vocab, merges = byte_level_bpe()
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", image, video, *token_names.values()],
        model_specific_special_tokens=token_names,
    )


@cache
def _sentencepiece_bpe(
    special: tuple[str, ...],
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A BPE over characters with byte fallback, as Llama 2 and Gemma have."""
    import json

    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + 80 + N_MERGES,
        special_tokens=[*special, *byte_tokens],
        initial_alphabet=sorted(set(TEXT) - {"\n"} | {"\u2581"}),
        show_progress=False,
    )
    words = [f" {word}" for word in TEXT.split()]
    tokenizer.train_from_iterator(words, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


# ---- Qwen --------------------------------------------------------------------


def qwen_parts(tokenizer: Any) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def _qwen2_vl(seed: int, **options: Any) -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=QWEN_CHAT_TEMPLATE,
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config=text_settings(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "initializer_range": 0.1,
        },
        **qwen_parts(tokenizer),
    )
    cls = Qwen2VLForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


def _qwen3_vl(seed: int, **options: Any) -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size=size, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size),
        # The real template writes no system turn of its own.
        chat_template=QWEN_CHAT_TEMPLATE.replace(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", ""
        ),
    )
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        text_config=text_settings(tokenizer, head_dim=16, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.1,
        },
        **qwen_parts(tokenizer),
    )
    cls = Qwen3VLForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


# ---- InternVL ----------------------------------------------------------------

INTERNVL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif content['type'] == 'video' %}<video>\n"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _internvl(seed: int, **options: Any) -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = chatml(
        "<IMG_CONTEXT>",
        "<video>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=TILE, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=TILE),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        vision_config=vision_settings(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    cls = InternVLForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


# ---- LLaVA -------------------------------------------------------------------

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _llava(seed: int, **options: Any) -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        LlamaTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    vocab, merges = _sentencepiece_bpe(("<unk>", "<s>", "</s>"))
    tokenizer = LlamaTokenizer(
        vocab=dict(vocab),
        merges=list(merges),
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=TILE),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **vision_settings()},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    cls = LlavaForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


LLAVA_ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _llava_onevision(seed: int, **options: Any) -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = chatml("<image>", "<video>")
    grid = [[56, 56], [56, 112], [112, 56], [112, 112]]
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=TILE, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=TILE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_TEMPLATE,
    )
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **vision_settings(),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    cls = LlavaOnevisionForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


# ---- SmolVLM -----------------------------------------------------------------

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _smolvlm(seed: int, **options: Any) -> tuple[Any, Any]:
    from transformers import (
        GPT2Tokenizer,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    vocab, merges = byte_level_bpe()
    grid = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    tokenizer = GPT2Tokenizer(
        vocab=vocab,
        merges=merges,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        additional_special_tokens=[
            "<fake_token_around_image>",
            "<image>",
            "<global-img>",
            *grid,
        ],
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
        ),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 56}
        ),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        vision_config=vision_settings(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    cls = SmolVLMForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


# ---- Gemma 3 -----------------------------------------------------------------

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _gemma3(
    seed: int, *, text: dict[str, Any] | None = None, **options: Any
) -> tuple[Any, Any]:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        GemmaTokenizer,
    )

    vocab, merges = _sentencepiece_bpe(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = GemmaTokenizer(
        vocab=dict(vocab),
        merges=list(merges),
        additional_special_tokens=[*turns, *names.values()],
        model_specific_special_tokens=names,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=TILE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )
    settings = {
        "head_dim": 16,
        "query_pre_attn_scalar": 32,  # the softmax scale is not head_dim ** -0.5
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config=text_settings(tokenizer, **(settings | (text or {}))),
        vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **vision_settings(),
        },
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    cls = Gemma3ForConditionalGeneration
    return finished(cls, config, tokenizer, seed, **options), processor


def _qwen2_5_vl(seed: int, **options: Any) -> tuple[Any, Any]:
    return tiny_qwen2_5_vl(seed, **options)


_BUILDERS = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
}
