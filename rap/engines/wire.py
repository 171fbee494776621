"""Requests as JSON bodies of OpenAI's chat API, and its answers as completions.

Pure: no connection, no clock. The servers' own extensions are sent with every request,
because a server that ignores one does no harm, while a field that is left out is filled
from the model's ``generation_config.json``. Fields that a server refuses are found by the
probe (``rap.engines.probe``) and left out from then on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..config import Sampling
from ..model.rollouts import Completion
from .contract import ImagePart, LocalPrompts, Request

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""What decides how tokens are sampled; all are sent, always."""

EXTENSIONS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "return_token_ids",
    "return_prompt_token_ids",
    "separate_reasoning",
    "skip_special_tokens",
)
"""Fields that OpenAI's own API does not have."""

OPTIONAL = (*EXTENSIONS, "presence_penalty", "frequency_penalty", "logit_bias", "logprobs")
"""Fields without which a server can still be used."""

SEED_RANGE = (1 << 31) - 4096
"""Seeds on the wire lie below: llama.cpp takes 32 bits, and a server may add the number
of the choice."""


class MalformedAnswer(Exception):
    """A server's answer that cannot be what was asked for; the text says why."""


# ---------------------------------------------------------------- requests


def messages(request: Request) -> list[dict[str, Any]]:
    """The prompt as chat messages, images as data URIs."""
    said = (*request.earlier, ("user", request.content))
    return [{"role": role, "content": _parts(content)} for role, content in said]


def _parts(content: Sequence[ImagePart | str]) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": part.uri()}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part}
        for part in content
    ]


def wire_seed(seed: int) -> int:
    """A 63-bit seed as the server gets it."""
    return seed % SEED_RANGE


def wire_seeds(seeds: Sequence[int]) -> list[int]:
    """`wire_seed` of each, made distinct: two equal ones would be one completion twice."""
    found: list[int] = []
    for seed in seeds:
        short = wire_seed(seed)
        while short in found:
            short = (short + 1) % SEED_RANGE
        found.append(short)
    return found


def sampling_fields(sampling: Sampling, greedy: bool) -> dict[str, Any]:
    """Every field of `SAMPLING_FIELDS`, none left to the server."""
    return {
        "temperature": 0.0 if greedy else float(sampling.temperature),
        "top_p": 1.0 if greedy else float(sampling.top_p),
        # -1 is "all" for every server; SGLang refuses 0
        "top_k": -1 if greedy or sampling.top_k == 0 else int(sampling.top_k),
        "min_p": 0.0 if greedy else float(sampling.min_p),
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def body(
    request: Request,
    model: str,
    *,
    n: int,
    seed: int | None,
    local: LocalPrompts | None,
    refused: Collection[str] = (),
) -> dict[str, Any]:
    """The JSON body that asks for ``n`` completions of a request.

    seed: None sends none. refused: fields that this server does not take.
    """
    out: dict[str, Any] = {
        "model": model,
        "messages": messages(request),
        "n": n,
        "max_tokens": request.sampling.max_new_tokens,
        **sampling_fields(request.sampling, request.greedy),
        "logprobs": True,
        "stream": False,
        "return_token_ids": True,
        "return_prompt_token_ids": True,
        "separate_reasoning": False,
        "skip_special_tokens": True,
    }
    if seed is not None:
        out["seed"] = seed
    if local is not None:
        out["stop_token_ids"] = list(local.end_ids)
        # A placeholder of an image is no text, and cannot be teacher-forced.
        out["logit_bias"] = {str(i): -100.0 for i in local.image_ids}
    for name in refused:
        out.pop(name, None)
    if "max_tokens" in refused:
        out["max_completion_tokens"] = request.sampling.max_new_tokens
    if (
        "generation_config" not in refused
        and _lacks_sampling(refused)
        and local is not None
    ):
        out["generation_config"] = _generation_config(request, local)
    return out


def _lacks_sampling(refused: Collection[str]) -> bool:
    return any(name in refused for name in ("top_k", "min_p", "repetition_penalty"))


def _generation_config(request: Request, local: LocalPrompts) -> str:
    """``transformers serve`` takes the fields it refuses by themselves in this form."""
    sampling = sampling_fields(request.sampling, request.greedy)
    ends = list(local.end_ids)
    return json.dumps(
        {
            "do_sample": not request.greedy,
            "temperature": sampling["temperature"] or 1.0,
            "top_p": sampling["top_p"],
            "top_k": max(0, sampling["top_k"]),
            "min_p": sampling["min_p"] or None,
            "repetition_penalty": 1.0,
            "max_new_tokens": request.sampling.max_new_tokens,
            "eos_token_id": ends,
            "pad_token_id": ends[0] if ends else 0,
        }
    )


# ---------------------------------------------------------------- answers


def parse(text: str) -> dict[str, Any]:
    """A JSON object. Raises `MalformedAnswer`. NaN is let through: it is looked for."""
    start = text[:200].lstrip().lower()
    if start.startswith(("<!doctype", "<html")):
        raise MalformedAnswer("it answers a web page (HTML), not JSON")
    try:
        answer = json.loads(text)
    except ValueError:
        raise MalformedAnswer(f"its answer is no JSON: {text[:60]!r}") from None
    except RecursionError:
        raise MalformedAnswer("its answer is nested too deeply") from None
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"its answer is no JSON object: {text[:60]!r}")
    return answer


def error_message(text: str) -> str:
    """What a server's error says, one line of at most 300 characters."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = text
    for name in ("error", "detail", "message", "error"):
        if isinstance(answer, dict) and name in answer:
            answer = answer[name]
    said = answer if isinstance(answer, str) else json.dumps(answer)
    line = " ".join(said[:1000].split())[:300]
    # it is printed: no sequence of a terminal, nothing that turns the text around
    return "".join(c if c.isprintable() else "?" for c in line) or "no reason given"


def completions(
    answer: Mapping[str, Any], seeds: Sequence[int], local: LocalPrompts | None
) -> list[Completion]:
    """The choices of an answer, at most ``len(seeds)``; the i-th gets ``seeds[i]``.

    Fewer than asked are no fault here: the caller asks again. Raises `MalformedAnswer`.
    """
    choices = _choices(answer)
    numbered = sorted(enumerate(choices), key=lambda pair: _index(pair[1], pair[0]))
    counted = _usage(answer, "completion_tokens") if len(choices) == 1 else None
    return [
        _completion(choice, seed, local, counted)
        for (_, choice), seed in zip(numbered, seeds, strict=False)
    ]


def _choices(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise MalformedAnswer("its answer holds no list of choices")
    return choices


def _index(choice: Mapping[str, Any], place: int) -> int:
    index = choice.get("index", place)
    return index if isinstance(index, int) else place


def _completion(
    choice: Mapping[str, Any], seed: int, local: LocalPrompts | None, counted: int | None
) -> Completion:
    """``counted``: tokens of a choice whose token ids are not returned, if known."""
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise MalformedAnswer(f"a choice ended by {reason!r}, not by stop or length")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise MalformedAnswer("a choice holds no message")
    content = _text(message, "content")
    thought = _text(message, "reasoning_content") or _text(message, "reasoning")
    logps = _logps(choice)
    ids = _token_ids(choice)
    if ids is None:
        if thought:
            raise MalformedAnswer(
                "it takes the reasoning out of the text and returns no token ids: start it "
                "without a reasoning parser"
            )
        text, kept, n_sampled = content, None, counted or len(logps or ())
    else:
        kept, n_sampled = without_end(ids, reason, local)
        text = content if local is None else local.decode(kept)
        if local is not None and not thought and not _same_text(text, content):
            raise MalformedAnswer(
                f"its text {content[:60]!r} is not what its token ids decode to here, "
                f"{text[:60]!r}: another tokenizer?"
            )
        if logps is not None and len(logps) not in (len(ids), n_sampled, len(kept)):
            raise MalformedAnswer(f"{len(logps)} log-probabilities of {len(ids)} tokens")
    failed = next((i for i, x in enumerate(logps or ()) if not _is_logp(x)), None)
    return Completion(
        token_ids=kept,
        text=text,
        finish_reason=reason,
        seed=seed,
        n_sampled=n_sampled,
        logp=math.nan if logps is None or failed is not None else math.fsum(logps),
        failed_step=failed,
    )


def token_logps(answer: Mapping[str, Any]) -> list[list[float]]:
    """The log-probabilities of every choice that has them all, token by token. Raises
    `MalformedAnswer`."""
    found = [_logps(choice) for choice in _choices(answer)]
    return [f for f in found if f and all(_is_logp(x) for x in f)]


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedAnswer(f"{name} is no text")
    return value


def without_end(
    ids: tuple[int, ...], reason: str, local: LocalPrompts | None
) -> tuple[tuple[int, ...], int]:
    """(tokens without the end token, tokens sampled).

    No stop text is ever sent, so a completion that stopped has sampled an end token,
    whether the server returns it or not.
    """
    if reason != "stop":
        return ids, len(ids)
    if local is None:
        return ids[:-1], len(ids)
    stop = next((i for i, token in enumerate(ids) if token in local.end_ids), len(ids))
    return ids[:stop], stop + 1


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Token ids as vLLM and SGLang give them, or llama.cpp beside its probabilities."""
    ids = choice.get("token_ids")
    if ids is None:
        entries = _logprob_entries(choice) or []
        ids = [entry.get("id") for entry in entries]
        if not ids or any(i is None for i in ids):
            return None
    if not isinstance(ids, list) or not all(_is_id(i) for i in ids):
        raise MalformedAnswer("token ids that are no token ids")
    return tuple(ids)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _logprob_entries(choice: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    found = choice.get("logprobs")
    if not isinstance(found, Mapping) or not isinstance(found.get("content"), list):
        return None
    entries = found["content"]
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise MalformedAnswer("log-probabilities that are no objects")
    return entries


def _logps(choice: Mapping[str, Any]) -> list[Any] | None:
    """What stands where log-probabilities should; None if the server gives none."""
    entries = _logprob_entries(choice)
    if not entries:
        return None
    return [entry.get("logprob") for entry in entries]


def _is_logp(value: object) -> bool:
    """-9999 is how vLLM writes a masked token; null is how some write NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value <= 1e-3


def _same_text(ours: str, theirs: str) -> bool:
    """Equal but for white space, and for bytes that a cut character leaves over."""

    def bare(text: str) -> str:
        return "".join(text.replace("\ufffd", "").split())

    return bare(ours) == bare(theirs)


def prompt_ids(answer: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The prompt's token ids where the server returns them (vLLM: in the answer; SGLang:
    in each choice)."""
    ids = answer.get("prompt_token_ids")
    if ids is None:
        choices = answer.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        ids = first.get("prompt_token_ids") if isinstance(first, dict) else None
    if not isinstance(ids, list) or not ids or not all(_is_id(i) for i in ids):
        return None
    return tuple(ids)


def prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    """The number of prompt tokens that the server counted."""
    return _usage(answer, "prompt_tokens")


def _usage(answer: Mapping[str, Any], name: str) -> int | None:
    usage = answer.get("usage")
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if _is_id(count) else None


def prompt_difference(
    answer: Mapping[str, Any], ours: Sequence[int], local: LocalPrompts
) -> str | None:
    """How the server's prompt differs from the local processor's; None if it does not.

    Compared token by token where the server returns them, else by their number. Image
    placeholders may have other ids on the server (SGLang writes hashes there).
    """
    theirs = prompt_ids(answer)
    count = prompt_tokens(answer) if theirs is None else len(theirs)
    if count is None:
        return None
    images = sum(token in local.image_ids for token in ours)
    if count != len(ours):
        text = len(ours) - images
        hint = (
            f" ({images} of ours are image tokens; with the same text theirs has "
            f"{count - text}: other pixel limits, another image processor or template?)"
            if images
            else " (another chat template or tokenizer?)"
        )
        return f"{count} tokens there, {len(ours)} here{hint}"
    for place, (a, b) in enumerate(zip(theirs or ours, ours, strict=True)):
        if a != b and b not in local.image_ids:
            return (
                f"token {place} is {a} there and {b} ({local.decode([b])!r}) here: another "
                "chat template or tokenizer"
            )
    return None
