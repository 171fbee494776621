"""Tests what a server supports, before the first sample.

    identify   model, version, context length                        GET
    sampling   eight hot completions of one prompt: are they different?
    n, seeds   how many choices come, and what repeats them
    answers    token ids, log-probabilities, of the prompt too
    prompts    with an image and without: the tokens of the local processor?
    weights    log-probabilities of a completion: those of the local model?

What is missing is made up for (``rap.engines.openai``) or refused by name here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Sampling
from ..errors import RapConfigError, RapModelError
from ..model.prompt import probe_sample
from ..model.rollouts import BLIND_ARM, IMAGE_ARM, Completion, degenerate
from . import wire
from .contract import LocalPrompts, Request, conversation, image_part
from .http import Refused, StillBusy, origin

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

Get = Callable[[str], Awaitable[dict[str, Any] | None]]
"""A path, from the server's root -> its JSON object; None if there is none."""
Post = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""A chat body -> the answer. Raises `Refused`."""

COPIES = 8
HOT = Sampling(temperature=2.0, max_new_tokens=16)
"""At twice the temperature no model repeats itself, unless it is made to."""
PROMPT = "Write the first words that come to your mind."
MAX_DISTANCE = 0.5
"""Mean difference of log-probabilities, nats a token, up to which a server's model counts
as the local one: bfloat16 differs by about 0.01, 4-bit weights by 0.1 to 0.3, another
model by more than 1."""
_LARGE = (1600, 1200)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model answers, as the server reports it."""

    kind: str
    """``vllm``, ``sglang``, ``llamacpp``, ...: who the model list says it is owned by."""
    version: str | None
    model: str
    root: str | None
    """The folder or repository of the weights."""
    parent: str | None
    """The base model of an adapter."""
    weights_sha256: str | None
    """Of the files in ``root``, if that is a folder here too."""

    def provenance(self) -> dict[str, object]:
        """For the fingerprint."""
        return {name: getattr(self, name) for name in type(self).__slots__}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server does with a request."""

    context: int | None
    """Tokens of prompt and completion, at most."""
    refused: frozenset[str]
    """Fields that it does not take."""
    n: bool
    """Whether one request without a seed brings several completions, and not one of them
    several times."""
    seeds: str
    """``each`` (choice i of a request has seed + i), ``single`` (only the seed of a request
    with one choice is known to count) or ``ignored``."""
    distinct: int
    """Of `COPIES` hot completions."""
    token_ids: bool
    logprobs: bool
    prompt_logprobs: bool
    prompts: str = "tokens not compared"
    """What came of comparing prompts with the local processor's."""
    distance: float | None = None
    """Mean difference from the local model's log-probabilities, nats a token."""
    most: int | None = None
    """Choices that its queue takes in one request, if those are fewer than `COPIES`."""


# ---------------------------------------------------------------- who it is


async def identify(
    get: Get, url: str, served: str | None
) -> tuple[Identity, int | None, list[str]]:
    """(identity, context length, models it lists).

    Raises ``RapConfigError`` if no model is named and there is not exactly one.
    """
    listed = await get(f"{_path(url)}/models") or {}
    rows = listed.get("data")
    rows = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    names = [str(row.get("id")) for row in rows]
    if served is None:
        if len(names) != 1:
            what = f"serves {', '.join(names)}" if names else "does not list its models"
            raise RapConfigError(f"{origin(url)} {what}: name one as served_model")
        served = names[0]
    row: dict[str, Any] = next((r for r in rows if r.get("id") == served), {})
    kind = str(row.get("owned_by") or (rows[0].get("owned_by") if rows else "") or "server")
    if not row and kind in ("vllm", "sglang"):  # others list what they could load
        raise RapConfigError(
            f"{origin(url)} serves no model {served!r}; it serves {', '.join(names)}"
        )
    root = row.get("root")
    meta = row.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    context = row.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train")
    identity = Identity(
        kind=kind,
        version=await _version(get, kind),
        model=served,
        root=root if isinstance(root, str) else None,
        parent=row.get("parent") if isinstance(row.get("parent"), str) else None,
        weights_sha256=folder_sha256(root) if isinstance(root, str) else None,
    )
    return identity, context if isinstance(context, int) else None, names


def _path(url: str) -> str:
    return url[len(origin(url)) :]


async def _version(get: Get, kind: str) -> str | None:
    places = [("/version", "version")]
    if kind == "sglang":
        places.append(("/get_server_info", "version"))
    if kind == "llamacpp":
        places = [("/props", "build_info")]
    for path, name in places:
        found = (await get(path) or {}).get(name)
        if isinstance(found, str):
            return found
    return None


def folder_sha256(root: str) -> str | None:
    """sha256 over name, size and both ends (64 KiB) of a folder's weight files.

    None if there is no such folder here, or no safetensors in it.
    """
    try:
        files = sorted(Path(root).glob("*.safetensors"))
        digest = hashlib.sha256()
        for path in files:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(1 << 16)
                file.seek(max(0, size - (1 << 16)))
                digest.update(f"{path.name} {size}\n".encode() + head + file.read())
    except (OSError, ValueError):
        return None
    return digest.hexdigest() if files else None


# ---------------------------------------------------------------- what it does


async def probe(
    post: Post,
    identity: Identity,
    context: int | None,
    listed: list[str],
    sampling: Sampling,
    local: LocalPrompts | None,
) -> Abilities:
    """Find out what a server does with text prompts.

    Raises ``RapModelError`` if its completions are all equal, or not completions at all,
    ``RapConfigError`` if it does not serve the model or cannot sample as ``sampling`` says.
    """
    request = Request("probe", BLIND_ARM, (PROMPT,), tuple(range(1, COPIES + 1)), HOT)
    refused: set[str] = set()

    def make(n: int, seed: int | None) -> dict[str, Any]:
        return wire.body(
            request, identity.model, n=n, seed=seed, local=local, refused=refused
        )

    # every field that is ever sent, the seed among them
    await _settle(post, lambda: make(1, 1), refused, identity, listed)
    _require_sampling(refused, sampling, local)
    hot, most = await _several(post, make, local)
    n = len(hot) == most > 1 and not _equal(hot)
    if not n:
        hot = []
    while len(hot) < COPIES:  # SGLang gives all choices of a request one seed
        answer = await post(make(1, 100 + len(hot)))
        hot += wire.completions(answer, [0], local)[:1] or _none()
    _require_variety(hot, identity)
    return Abilities(
        context=context,
        refused=frozenset(refused),
        n=n,
        seeds=await _seeds(post, make, local, refused),
        distinct=len({c.text for c in hot}),
        token_ids=all(c.token_ids is not None for c in hot),
        logprobs=all(c.logp == c.logp for c in hot),
        prompt_logprobs=await _prompt_logprobs(post, make(1, 1) | {"max_tokens": 1}),
        most=most if n and most < COPIES else None,
    )


async def _several(
    post: Post,
    make: Callable[[int, int | None], dict[str, Any]],
    local: LocalPrompts | None,
) -> tuple[list[Completion], int]:
    """Choices of one request, and how many were asked for: half as many where a server is
    too busy for them, whose queue is shorter; ([], 1) if it takes no two."""
    most = COPIES
    while most > 1:
        try:
            answer = await post(make(most, None))
        except StillBusy:
            most //= 2
            continue
        return wire.completions(answer, range(most), local), most
    return [], 1


def _equal(hot: list[Completion]) -> bool:
    return len({c.text for c in hot}) <= 1


def _none() -> list[Completion]:
    raise wire.MalformedAnswer("its answer holds no choice")


async def _settle(
    post: Post,
    make: Callable[[], dict[str, Any]],
    refused: set[str],
    identity: Identity,
    listed: list[str],
) -> dict[str, Any]:
    """The answer to a body without the fields that the server refuses, which are put into
    ``refused``: the ones that its error names, else one after the other, else whole groups.
    """
    singles = [{name} for name in (*wire.OPTIONAL, "n", "seed", "max_tokens")]
    groups = [set(wire.EXTENSIONS), set(wire.OPTIONAL), {*wire.OPTIONAL, "n", "seed"}]
    guesses = iter([*singles, *groups])
    guess: set[str] = set()
    while True:
        try:
            return await post(make())
        except Refused as error:
            said = str(error)
            refused -= guess
            named = _named(said) - refused
            if named:
                refused |= named
                guess = set()
                continue
            guess = next(guesses, set()) - refused
            if not guess:
                raise RapConfigError(
                    f"the server refuses a plain request for model {identity.model!r} "
                    f"({error.status}: {said})"
                    + (f"; it lists {', '.join(listed)}" if listed else "")
                ) from None
            refused |= guess


def _named(said: str) -> set[str]:
    """Fields that a refusal speaks of; short names only in quotes."""
    names = (*wire.OPTIONAL, "max_tokens", "temperature", "top_p", "generation_config")
    found = {name for name in names if re.search(rf"\b{name}\b", said)}
    quoted = {name for name in ("n", "seed") if re.search(rf"['\"`]{name}['\"`]", said)}
    return found | quoted


def _require_sampling(
    refused: set[str], sampling: Sampling, local: LocalPrompts | None
) -> None:
    """Nothing that the user has set may stay with the server."""
    fields: list[str] = [f for f in ("temperature", "top_p") if f in refused]
    if local is None or "generation_config" in refused:
        asked = {"top_k": sampling.top_k != 0, "min_p": sampling.min_p != 0}
        fields += [name for name, used in asked.items() if used and name in refused]
    if fields:
        raise RapConfigError(
            f"sampling: the server does not take {', '.join(fields)}; leave it at its "
            "default, or use a server that does (vLLM, SGLang)"
        )


def _require_variety(hot: list[Completion], identity: Identity) -> None:
    """All hot completions equal: the server does not sample as it is told."""
    known = all(c.logp == c.logp for c in hot) and hot[0].token_ids
    if not _equal(hot) or (known and not degenerate(hot)):
        return
    raise RapModelError(
        f"{identity.kind}: {len(hot)} completions of one prompt at temperature "
        f"{HOT.temperature:g} are all equal ({hot[0].text[:40]!r}): it samples by its own "
        "generation_config (top_k = 1?), not as it is told. Start vLLM with "
        "--generation-config vllm, SGLang with --sampling-defaults openai"
    )


async def _seeds(
    post: Post,
    make: Callable[[int, int | None], dict[str, Any]],
    local: LocalPrompts | None,
    refused: set[str],
) -> str:
    """What a seed does: two equal ones, another one, and two choices with one."""
    if "seed" in refused:
        return "ignored"

    async def texts(n: int, seed: int) -> list[str]:
        answer = await post(make(n, seed))
        return [c.text for c in wire.completions(answer, range(n), local)]

    one, again, other = await texts(1, 7), await texts(1, 7), await texts(1, 8)
    if one != again or one == other or not one:
        return "ignored"
    try:
        both = await texts(2, 7)
    except StillBusy:  # a queue of one
        return "single"
    return "each" if both == one + other else "single"


async def _prompt_logprobs(post: Post, body: dict[str, Any]) -> bool:
    """Whether the prompt's log-probabilities come too: what likelihoods would need."""
    try:
        answer = await post(body | {"prompt_logprobs": 0})
    except Refused:
        return False
    choices = answer.get("choices") or [{}]
    found = answer.get("prompt_logprobs") or choices[0].get("prompt_logprobs")
    return isinstance(found, list) and len(found) > 1


# ---------------------------------------------------------------- against the local model


def probe_requests(driver: ModelDriver, context: int | None) -> list[Request]:
    """A small image, a large one (pixel limits differ where images are large), none."""
    from PIL import Image

    small = Image.new("RGB", (84, 84), (120, 130, 140))
    large = Image.new("RGB", _LARGE, (120, 130, 140))
    sample, found = probe_sample(), []
    for arm, images in ((IMAGE_ARM, [small]), (IMAGE_ARM, [large]), (BLIND_ARM, None)):
        prepared = driver.prepare(sample, images)
        ids = tuple(prepared.inputs["input_ids"][0].tolist())
        if context is not None and len(ids) + COPIES > context:
            continue
        config, parts = driver.config, [image_part(image) for image in images or ()]
        *earlier, (_, content) = conversation(
            sample, config.prompt_template, parts, config.system_prompt
        )
        found.append(
            Request(
                sample_id="probe",
                arm=arm,
                content=content,
                seeds=(1,),
                sampling=Sampling(max_new_tokens=COPIES),
                earlier=tuple(earlier),
                prompt_ids=ids,
                prepared=prepared,
            )
        )
    return found


async def compare(
    post: Post,
    identity: Identity,
    abilities: Abilities,
    requests: Iterable[Request],
    local: LocalPrompts,
    driver: ModelDriver,
) -> Abilities:
    """Hold a server's prompts and log-probabilities against the local model's.

    Raises ``RapModelError`` where they differ, or where images are refused.
    """
    compared, distances = 0, []
    exactly = True
    for request in requests:
        try:
            answer = await post(
                wire.body(
                    request,
                    identity.model,
                    n=1,
                    seed=1,
                    local=local,
                    refused=abilities.refused,
                )
            )
        except Refused as error:
            what = "an image" if request.arm == IMAGE_ARM else "a text"
            raise RapModelError(
                f"model {identity.model!r} on the server refuses {what}: {error}"
            ) from None
        assert request.prompt_ids is not None
        difference = wire.prompt_difference(answer, request.prompt_ids, local)
        if difference is not None:
            raise RapModelError(prompt_error(request, difference))
        whole = wire.prompt_ids(answer) is not None
        compared += whole or wire.prompt_tokens(answer) is not None
        exactly = exactly and whole
        distances += _distances(answer, request, local, driver)
    distance = sum(distances) / len(distances) if distances else None
    if distance is not None and distance > MAX_DISTANCE:
        raise RapModelError(
            f"model {identity.model!r} on the server is not the local one: its "
            f"log-probabilities differ by {distance:.2g} nats a token. Serve the weights "
            "that score, or score with those that are served"
        )
    if compared:
        said = "tokens as here" if exactly else "lengths as here"
        abilities = replace(abilities, prompts=said)
    return replace(abilities, distance=distance)


def prompt_error(request: Request, difference: str) -> str:
    """The sentence for a prompt that the server sees differently."""
    return (
        f"the server's prompt of {request.name} is not the local processor's: "
        f"{difference}. Serve the same model folder, without a chat template or "
        "mm-processor-kwargs of its own"
    )


def _distances(
    answer: dict[str, Any], request: Request, local: LocalPrompts, driver: ModelDriver
) -> list[float]:
    """|log p there - log p here| of each sampled token, without end tokens."""
    import torch

    theirs = wire.token_logps(answer)
    (completion,) = wire.completions(answer, [1], local)[:1] or _none()
    if not theirs or not completion.token_ids or request.prepared is None:
        return []
    ids = torch.tensor(completion.token_ids)
    prepared = driver.with_response(request.prepared, completion.token_ids)
    (trace,) = driver.trace([prepared], attention=False)
    with torch.inference_mode():
        logits = driver.head.logits(trace.hidden).double().cpu()
        ours = torch.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0].tolist()
    return [abs(a - b) for a, b in zip(theirs[0], ours, strict=False)]


# ---------------------------------------------------------------- the line


def describe(url: str, identity: Identity, abilities: Abilities) -> str:
    """One server in one line."""
    a = abilities
    version = f" {identity.version}" if identity.version else ""
    root = f" ({identity.root})" if identity.root not in (None, identity.model) else ""
    has = {
        "n": a.n,
        "token ids": a.token_ids,
        "logprobs": a.logprobs,
        "prompt logprobs": a.prompt_logprobs,
    }
    said = [
        f"engine openai: {identity.kind}{version} at {url}, model {identity.model}{root}",
        "context unknown" if a.context is None else f"{a.context} tokens of context",
        "has " + (", ".join(k for k, v in has.items() if v) or "none of n and token ids"),
        f"seeds {a.seeds}",
        f"{a.distinct} of {COPIES} samples distinct",
        f"prompt {a.prompts}",
    ]
    if a.most is not None:
        said.append(f"queues at most {a.most} choices of a request")
    missing = [name for name, there in has.items() if not there]
    if missing:
        said.append("lacks " + ", ".join(missing))
    left = [name for name in wire.SAMPLING_FIELDS if name in a.refused]
    if left:
        said.append(f"takes no {', '.join(left)}")
    if a.distance is not None:
        said.append(f"log p within {a.distance:.1g} nats a token of the local model")
    return "; ".join(said)
