"""Engines without a connection: settings, images, JSON bodies and what answers become."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from engines.fake_server import END, FIRST, IMAGE, decode, local_prompts
from PIL import Image

from rap.config import Sampling
from rap.engines import ENGINES, EngineConfig, Request, image_part, make_engine, wire
from rap.engines.http import Reply as HttpReply
from rap.engines.http import authorization, read
from rap.engines.wire import MalformedAnswer
from rap.errors import RapConfigError
from rap.model.rollouts import Completion, degenerate
from rap.samples.images import decode as decode_image

# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://node:8000", "http://node:8000/v1"),
        ("http://node:8000/", "http://node:8000/v1"),
        ("https://node/api/v1/", "https://node/api/v1"),
        ("http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_brought_into_one_form(given, url):
    assert EngineConfig(engine="openai", base_url=given).base_url == (url,)


@pytest.mark.parametrize(
    "url",
    ["node:8000", "ftp://node/v1", "http://", "http://node:99999/v1", "", "http://n?a"],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(RapConfigError, match="base_url"):
        EngineConfig(engine="openai", base_url=url)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(RapConfigError, match="RAP_API_KEY") as error:
        EngineConfig(engine="openai", base_url="https://me:secret@node/v1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine", "sglang"),
        ("concurrency", 0),
        ("concurrency", True),
        ("timeout", math.inf),
        ("patience", 0),
        ("served_model", ""),
        ("seeded", 1),
        ("base_url", 8000),
    ],
)
def test_a_setting_that_is_nonsense_is_named(field, value):
    settings = {"engine": "openai", "base_url": "http://node"} | {field: value}
    with pytest.raises(RapConfigError, match=field):
        EngineConfig(**settings)


def test_a_setting_that_the_engine_would_ignore_is_refused():
    for more in ({"base_url": "http://node"}, {"served_model": "x"}):
        with pytest.raises(RapConfigError, match="transformers"):
            EngineConfig(**more)
    with pytest.raises(RapConfigError, match="base_url"):
        EngineConfig(engine="openai")
    with pytest.raises(RapConfigError, match="once"):
        EngineConfig(engine="openai", base_url=("http://node", "http://node/v1/"))


def test_every_engine_is_registered():
    assert list(ENGINES) == ["transformers", "vllm", "openai"]
    with pytest.raises(RapConfigError, match="needs one"):
        make_engine(EngineConfig(), None)


# ---------------------------------------------------------------- images


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> Image.Image:
    bands = len(mode)
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels)


def test_plain_files_are_sent_as_they_are():
    for kind, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg")):
        data = encoded(noise(), kind)
        part = image_part(decode_image(data, max_pixels=1000), data)
        assert (part.data, part.media_type) == (data, media_type)
        assert part.uri().startswith(f"data:{media_type};base64,")


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(), "JPEG", exif=exif)


def _sixteen_bits() -> bytes:
    pixels = np.random.default_rng(1).integers(0, 65536, (5, 6)).astype(np.uint16)
    return encoded(Image.fromarray(pixels), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        _rotated(),
        _sixteen_bits(),
        encoded(noise("RGBA"), "PNG"),
        encoded(noise("L"), "PNG"),
        encoded(noise().convert("P"), "PNG"),
        encoded(noise(), "PNG", transparency=(1, 2, 3)),
        encoded(noise("L"), "JPEG"),
        encoded(noise(), "BMP"),
        encoded(noise(), "WEBP", lossless=True),
    ],
    ids="rotated 16bit rgba grey palette colourkey greyjpeg bmp webp".split(),
)
def test_files_that_were_converted_are_sent_as_the_pixels_that_are_scored(data):
    scored = decode_image(data, max_pixels=1000)
    part = image_part(scored, data)
    assert part.media_type == "image/png" and part.data != data
    with Image.open(io.BytesIO(part.data)) as sent:
        assert sent.mode == "RGB" and sent.tobytes() == scored.tobytes()


def test_an_image_without_a_file_is_sent_as_its_pixels():
    part = image_part(noise())
    with Image.open(io.BytesIO(part.data)) as sent:
        assert sent.tobytes() == noise().tobytes()


# ---------------------------------------------------------------- bodies


def request(n: int = 2, **more) -> Request:
    sampling = more.pop("sampling", Sampling(max_new_tokens=12))
    return Request("q", "image", ("what?",), tuple(range(n)), sampling, **more)


def test_every_sampling_field_is_sent():
    sampling = Sampling(temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, max_new_tokens=3)
    body = wire.body(request(sampling=sampling), "m", n=2, seed=4, local=local_prompts())
    got = {name: body[name] for name in (*wire.SAMPLING_FIELDS, "max_tokens", "seed", "n")}
    assert got == {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 3,
        "seed": 4,
        "n": 2,
    }
    assert body["logit_bias"] == {str(IMAGE): -100.0}
    assert body["stop_token_ids"] == [END]
    # 0 keeps all here; SGLang refuses it, -1 means the same to all servers
    assert wire.body(request(), "m", n=1, seed=None, local=None)["top_k"] == -1


def test_greedy_is_asked_for_by_temperature_zero():
    body = wire.body(request(1, greedy=True), "m", n=1, seed=None, local=None)
    assert body["temperature"] == 0 and "seed" not in body


def test_fields_that_a_server_refuses_are_left_out():
    refused = {"top_k", "min_p", "max_tokens", "n"}
    body = wire.body(request(), "m", n=2, seed=1, local=local_prompts(), refused=refused)
    assert not refused & body.keys()
    assert body["max_completion_tokens"] == 12
    # transformers serve takes them in a configuration of its own
    config = json.loads(body["generation_config"])
    assert config["do_sample"] and config["top_k"] == 0 and config["eos_token_id"] == [END]


def test_seeds_fit_every_server_and_stay_distinct():
    seeds = [2**63 - 1, 5, 5 + wire.SEED_RANGE, 5 + 2 * wire.SEED_RANGE]
    sent = wire.wire_seeds(seeds)
    assert sent[1:] == [5, 6, 7] and all(0 <= seed < 2**31 for seed in sent)


# ---------------------------------------------------------------- answers


def choice(ids: list[int], text: str | None = None, reason: str = "stop", **more):
    found = {
        "index": 0,
        "message": {"content": decode(ids) if text is None else text},
        "finish_reason": reason,
        "token_ids": ids,
        "logprobs": {"content": [{"logprob": -0.5} for _ in ids]},
    }
    return found | more


def parsed(*choices, seeds=(7, 8), local=True):
    found = local_prompts() if local else None
    return wire.completions({"choices": list(choices)}, seeds, found)


def test_a_completion_without_its_end_token():
    (found,) = parsed(choice([FIRST, FIRST + 1, END]))
    assert found == Completion((FIRST, FIRST + 1), "red green", "stop", 7, 3, -1.5)
    (found,) = parsed(choice([FIRST, FIRST + 1], reason="length"))
    assert (found.token_ids, found.n_sampled) == ((FIRST, FIRST + 1), 2)
    # without a tokenizer, too: no stop text is sent, so what stopped it was an end token
    (found,) = parsed(choice([FIRST, END]), local=False)
    assert (found.token_ids, found.n_sampled) == ((FIRST,), 2)


def test_an_empty_completion():
    (found,) = parsed(choice([END]))
    assert (found.token_ids, found.text, found.n_sampled) == ((), "", 1)
    (found,) = parsed(choice([END], message={"content": None}))
    assert found.text == ""


def test_choices_come_in_the_order_of_their_index():
    one, two = choice([FIRST, END], index=1), choice([FIRST + 1, END], index=0)
    assert [(c.text, c.seed) for c in parsed(one, two)] == [("green", 7), ("red", 8)]


def test_more_choices_than_asked_are_dropped():
    assert len(parsed(*[choice([FIRST, END])] * 5)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "-1", 3.0, True])
def test_log_probabilities_that_are_none_count_as_not_finite(value):
    entries = {"content": [{"logprob": -0.5}, {"logprob": value}, {"logprob": -1.0}]}
    (found,) = parsed(choice([FIRST, FIRST, END], logprobs=entries))
    assert found.failed_step == 1 and math.isnan(found.logp)


def test_nan_in_the_json_is_read():
    answer = wire.parse('{"choices": [], "x": NaN}')
    assert math.isnan(answer["x"])


def test_without_log_probabilities_nothing_failed():
    (found,) = parsed(choice([FIRST, END], logprobs=None))
    assert found.failed_step is None and math.isnan(found.logp)


def test_token_ids_beside_the_log_probabilities():
    entries = {"content": [{"id": FIRST, "logprob": -0.5}, {"id": END, "logprob": -1.0}]}
    (found,) = parsed(choice([], "red", token_ids=None, logprobs=entries))
    assert (found.token_ids, found.logp) == ((FIRST,), -1.5)


def test_without_token_ids_the_text_counts():
    (found,) = parsed(choice([], "red", token_ids=None, logprobs=None))
    assert (found.token_ids, found.text) == (None, "red")


def test_a_text_is_what_its_token_ids_decode_to():
    with pytest.raises(MalformedAnswer, match="another tokenizer"):
        parsed(choice([FIRST, END], "blue"))
    # a server may cut a character that is not whole yet, or strip white space
    (found,) = parsed(choice([FIRST, FIRST + 1, END], " red green\ufffd"))
    assert found.text == "red green"


def test_reasoning_is_put_back_from_the_token_ids():
    message = {"content": "green", "reasoning_content": "red"}
    (found,) = parsed(choice([FIRST, FIRST + 1, END], message=message))
    assert found.text == "red green"
    with pytest.raises(MalformedAnswer, match="reasoning parser"):
        parsed(choice([], message=message, token_ids=None, logprobs=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"finish_reason": "abort"},
        {"finish_reason": None},
        {"message": "red"},
        {"message": {"content": 5}},
        {"token_ids": [FIRST, -1]},
        {"token_ids": "1 2"},
        {"logprobs": {"content": [{"logprob": -0.5}] * 9}},
        {"logprobs": {"content": [-0.5]}},
    ],
)
def test_an_answer_that_cannot_be_is_malformed(wrong):
    with pytest.raises(MalformedAnswer):
        parsed(choice([FIRST, END]) | wrong)


@pytest.mark.parametrize(
    "answer", [{}, {"choices": None}, {"choices": "x"}, {"choices": [1]}]
)
def test_an_answer_without_choices_is_malformed(answer):
    with pytest.raises(MalformedAnswer, match="choices"):
        wire.completions(answer, [1], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!DOCTYPE html><html>", "HTML"),
        ("", "no JSON"),
        ('{"choices": [', "no JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "nested|no JSON"),
    ],
)
def test_a_text_that_is_no_answer_is_malformed(text, said):
    with pytest.raises(MalformedAnswer, match=said):
        wire.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"error": {"message": "no such\\n model", "code": 404}}', "no such model"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"detail": [{"loc": "x"}]}', '[{"loc": "x"}]'),
        ("plain", "plain"),
        ("", "no reason given"),
    ],
)
def test_what_an_error_says(text, said):
    assert wire.error_message(text) == said


# ---------------------------------------------------------------- prompts


def test_prompts_are_compared_token_by_token():
    ours = [5, IMAGE, IMAGE, FIRST]
    same = {"prompt_token_ids": [5, 900, 901, FIRST]}  # SGLang writes hashes there
    assert wire.prompt_difference(same, ours, local_prompts()) is None
    other = {"prompt_token_ids": [5, IMAGE, IMAGE, FIRST + 1]}
    assert "token 3 is 11 there" in wire.prompt_difference(other, ours, local_prompts())


def test_prompts_are_compared_by_their_length_where_that_is_all():
    ours = [5, IMAGE, IMAGE, FIRST]
    same = {"usage": {"prompt_tokens": 4}, "choices": [{}]}
    assert wire.prompt_difference(same, ours, local_prompts()) is None
    more = {"usage": {"prompt_tokens": 6}}
    said = wire.prompt_difference(more, ours, local_prompts())
    assert "6 tokens there, 4 here" in said and "theirs has 4" in said
    assert wire.prompt_difference({}, ours, local_prompts()) is None


# ---------------------------------------------------------------- keys


def test_the_key_comes_from_the_environment():
    url = "https://node/v1"
    assert authorization(url, {}) == {}
    assert authorization(url, {"OPENAI_API_KEY": "b"}) == {"Authorization": "Bearer b"}
    both = {"RAP_API_KEY": " a\n", "OPENAI_API_KEY": "b"}
    assert authorization(url, both) == {"Authorization": "Bearer a"}


def test_openais_key_is_not_sent_in_the_clear_to_another_machine():
    key = {"OPENAI_API_KEY": "b"}
    assert authorization("http://node:8000/v1", key) == {}
    assert authorization("http://127.0.0.1:8000/v1", key) != {}
    assert authorization("http://node:8000/v1", {"RAP_API_KEY": "a"}) != {}


def test_a_key_that_no_header_carries_is_refused_without_printing_it():
    with pytest.raises(RapConfigError, match="RAP_API_KEY") as error:
        authorization("https://node/v1", {"RAP_API_KEY": "gehe\u00efm\nx"})
    assert "gehe" not in str(error.value)


def test_access_refused_names_the_variables():
    with pytest.raises(RapConfigError, match="RAP_API_KEY or OPENAI_API_KEY"):
        read(HttpReply(401, '{"error": "Unauthorized"}'), "http://node/v1/models")


# ---------------------------------------------------------------- degenerate


def test_completions_without_token_ids_are_degenerate_by_their_text():
    def one(text: str, logp: float = -5.0) -> Completion:
        return Completion(None, text, "stop", 1, 4, logp)

    assert degenerate([one("a"), one("a")])
    assert not degenerate([one("a"), one("b")])
    assert not degenerate([one(""), one("")])
    # without log-probabilities nothing can be said
    assert not degenerate([one("a", math.nan), one("a", math.nan)])
