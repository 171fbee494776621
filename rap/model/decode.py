"""Prompts read once: their keys and values serve every completion and every response.

``prefill`` reads a batch of prompts, each once, and keeps the cache (`Prefilled`);
``complete`` samples any number of completions of each from a copy of it, a token a
forward, and lets go of rows that have ended; ``resume`` is the teacher-forced forward of
tokens that follow a prompt. ``unshared`` tries all three on a small sample before the
first real one: a model whose cache does not give the numbers of its plain forward is not
served here.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import pad

from ..errors import RapError, first_line
from . import states
from .batching import Prepared, Trace, by_length
from .capture import Capture, UnsupportedModelError, capturing, keep_hidden, unchanged
from .kept import GROWING, Prefilled, token_bytes
from .probe import close
from .static import Grown, Pool, Tokens, rows_for
from .weights import input_device, is_fsdp2

if TYPE_CHECKING:
    from ..config import ScoreConfig
    from .capture import Parts
    from .counts import Counts
    from .head import Head


class Runner(Protocol):
    """What is asked of a ``ModelDriver`` here."""

    model: Any
    config: ScoreConfig
    counts: Counts
    lock: threading.RLock
    merges: bool
    token_bytes: int
    pool: Pool

    @property
    def parts(self) -> Parts: ...

    @property
    def head(self) -> Head: ...

    def inputs(self, batch: Sequence[Prepared], padding_side: str) -> dict[str, Any]: ...

    def with_response(
        self, prepared: Prepared, response_ids: Sequence[int]
    ) -> Prepared: ...

    def call(
        self, inputs: Mapping[str, Any], *, use_cache: bool, count: bool = True
    ) -> Any: ...

    def step(self, inputs: Mapping[str, Any]) -> Any: ...


class Sampler(Protocol):
    """What is asked of a ``RaceSampler`` here."""

    @property
    def reads_ids(self) -> bool: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def draw(
        self, input_ids: torch.Tensor | None, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


_LAYERS = (*GROWING, "DynamicSlidingWindowLayer")
"""Cache layers whose update makes new tensors, so that a shallow copy is a fork."""

_DROP = 0.75
"""Ended rows are let go of when no more than this share of the rows is alive."""


class NotShared(ValueError):
    """Why the cache of a prompt cannot be kept."""


def place_of(prepared: Prepared) -> tuple[Prefilled, int] | None:
    """The prompt that this sequence goes on from, if its tokens were read already."""
    found = prepared.shared.prompt
    if found is None:
        return None
    state, row = found
    read, ids = state.ids[row], prepared.ids
    if len(read) > len(ids) or not torch.equal(read, ids[: len(read)]):
        return None
    return found


def fork(cache: Any, rows: Sequence[int], n_rows: int) -> Any:
    """A copy of some rows that can grow alone; nothing is copied if all are taken."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    if list(rows) != list(range(n_rows)):
        twin.batch_select_indices(torch.tensor(rows))  # layers may lie on several devices
    return twin


def require_cache(cache: Any) -> Any:
    """The cache, if its rows can be selected. Raises `NotShared`."""
    names = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    if not names or not names <= set(_LAYERS):
        raise NotShared(f"its cache holds {', '.join(sorted(names)) or type(cache)}")
    return cache


def positions(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """``position_ids`` of padded tokens, and each row's next position less its length."""
    mask = inputs["attention_mask"]
    base = model.base_model
    if "image_grid_thw" in inputs and hasattr(base, "get_rope_index"):
        taken = inspect.signature(base.get_rope_index).parameters
        given = {name: inputs[name] for name in taken if name in inputs}
        ids, delta = base.get_rope_index(**given)
        return ids, delta.reshape(-1)
    return (mask.cumsum(-1) - 1).clamp_(min=0), mask.new_zeros(len(mask))


@contextmanager
def running(driver: Runner, *, watched: bool = True) -> Iterator[SimpleNamespace]:
    """Around forwards: no gradients, evaluation mode, the model left as it was. Its
    ``hidden`` is that of the last forward, if it is ``watched``: by hooks, which a compiled
    forward would have to be compiled with each time."""
    seen = SimpleNamespace(hidden=None, first=None)
    with ExitStack() as stack:
        stack.enter_context(driver.lock)
        stack.enter_context(torch.no_grad())
        stack.enter_context(unchanged(driver.model))
        if watched:
            hook = driver.parts.decoder.register_forward_hook(keep_hidden(seen))
            stack.callback(hook.remove)
            stack.callback(states.watch(driver.parts.first, seen).remove)
        driver.model.eval()
        yield seen


def prefill(driver: Runner, batch: Sequence[Prepared], seen: SimpleNamespace) -> Prefilled:
    """Read prompts in one left-padded batch; call it inside ``running``."""
    inputs = driver.inputs(batch, "left")
    mask = inputs["attention_mask"]
    ids, delta = positions(driver.model, inputs)
    output = driver.call(inputs | {"position_ids": ids}, use_cache=True)
    states.keep(batch, seen, "left")
    state = Prefilled(
        cache=require_cache(output.past_key_values),
        mask=mask,
        input_ids=inputs["input_ids"],
        ids=[prepared.ids for prepared in batch],
        following=mask.sum(1) + delta,
        hidden=seen.hidden[:, -1],
        logits=output.logits[:, -1].float(),
    )
    return state


def merged(states: Sequence[Prefilled]) -> Prefilled:
    """Left-padded batches as one, whose layers are all `Prefilled.whole`."""
    if len(states) == 1:
        return states[0]
    width = max(state.mask.shape[1] for state in states)

    def joined(name: str) -> torch.Tensor:
        tensors = [getattr(state, name) for state in states]
        return torch.cat([pad(x, (width - x.shape[1], 0)) for x in tensors])

    cache = fork(states[0].cache, range(len(states[0].ids)), len(states[0].ids))
    for layer, *others in zip(
        cache.layers, *(state.cache.layers for state in states[1:]), strict=True
    ):
        for name in ("keys", "values"):
            parts = [getattr(x, name) for x in (layer, *others)]
            grown = [pad(x, (0, 0, width - x.shape[2], 0)) for x in parts]
            setattr(layer, name, torch.cat(grown))
    logits = [state.logits for state in states if state.logits is not None]
    return Prefilled(
        cache=cache,
        mask=joined("mask"),
        input_ids=joined("input_ids"),
        ids=[ids for state in states for ids in state.ids],
        following=torch.cat([state.following for state in states]),
        hidden=torch.cat([state.hidden for state in states]),
        logits=torch.cat(logits),
    )


def rows_of(state: Prefilled, rows: Sequence[int]) -> Prefilled:
    """Some rows of a batch, all of whose layers are whole, without the padding that none of
    them needs; the batch itself if these are all of its rows."""
    if list(rows) == list(range(len(state.ids))):
        return state
    width = max(len(state.ids[row]) for row in rows)
    cache = fork(state.cache, rows, len(state.ids))
    for layer in cache.layers:
        layer.keys, layer.values = (
            x[:, :, -width:].contiguous() for x in (layer.keys, layer.values)
        )
    place = torch.tensor(rows, device=state.mask.device)
    there = torch.tensor(rows, device=state.hidden.device)
    return Prefilled(
        cache=cache,
        mask=state.mask[place, -width:],
        input_ids=state.input_ids[place, -width:],
        ids=[state.ids[row] for row in rows],
        following=state.following[place],
        hidden=state.hidden[there],
        logits=None if state.logits is None else state.logits[there],
    )


def keep_only(batch: Sequence[Prepared]) -> None:
    """Of the prompts that were read together with these, keep these alone, in one batch.
    Where one of them was not read it is read with what follows it, and all others stay."""
    found = [prepared.shared.prompt for prepared in batch]
    read = [f for f in found if f is not None]
    if not read or len(read) < len(found) or any(s.logits is None for s, _ in read):
        return
    states = {id(state): state for state, _ in read}
    rows: dict[int, list[int]] = {key: [] for key in states}
    for state, row in read:
        rows[id(state)].append(row)
    kept = merged([rows_of(state, rows[key]) for key, state in states.items()])
    place: dict[tuple[int, int], int] = {}
    for key, mine in rows.items():
        place |= {(key, row): len(place) + n for n, row in enumerate(mine)}
    for prepared, (state, row) in zip(batch, read, strict=True):
        prepared.shared.prompt = (kept, place[id(state), row])


def prompts(
    driver: Runner, batch: Sequence[Prepared], seen: SimpleNamespace
) -> tuple[Prefilled, list[int]]:
    """The prompts of a batch and their rows: read already, or read now, those of like
    length together."""
    found = [place_of(prepared) for prepared in batch]
    states = {id(f[0]) if f is not None else None for f in found}
    first = found[0]
    if len(states) == 1 and first is not None and first[0].logits is not None:
        lengths = [len(state.ids[row]) for state, row in (f for f in found if f)]
        if lengths == [len(prepared) for prepared in batch]:
            return first[0], [f[1] for f in found if f]
    most = driver.config.batch_tokens if driver.merges else None
    parts = by_length([len(prepared) for prepared in batch], most)
    state = merged([prefill(driver, [batch[i] for i in part], seen) for part in parts])
    rows = {i: row for row, i in enumerate(i for part in parts for i in part)}
    for i, prepared in enumerate(batch):
        prepared.shared.prompt = (state, rows[i])
    return state, [rows[i] for i in range(len(batch))]


def complete(
    driver: Runner,
    state: Prefilled,
    rows: Sequence[int],
    sampler: Sampler,
    ends: Sequence[int],
    limit: int,
) -> tuple[list[list[int]], list[list[float]], list[list[bool]]]:
    """Sample one completion for each of ``rows``, which may repeat: tokens, their log p
    and whether the logits were finite, [rows][steps]. What follows an end token means
    nothing. Call it inside ``running``."""
    assert state.logits is not None  # prompts() looked
    device = state.mask.device
    tokens = _begun(driver, state, rows, limit)
    scores = state.logits[torch.tensor(rows, device=state.logits.device)]
    place = torch.tensor(rows, device=device)
    ids = state.input_ids[place] if sampler.reads_ids else None
    held = torch.arange(len(rows), device=device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    stops = torch.tensor(list(ends), dtype=torch.int64, device=device)
    steps: list[tuple[torch.Tensor, ...]] = []
    alive = len(rows)
    for step in range(limit):
        token, logp, finite = (x.to(device) for x in sampler.draw(ids, scores))
        steps.append((held, token, logp, finite))
        driver.counts.decoded_tokens += alive
        ended = ended | torch.isin(token, stops)
        going = [i for i, done in enumerate(ended.tolist()) if not done]
        alive = len(going)
        if not alive or step + 1 == limit:
            break
        if alive <= _DROP * len(held) and tokens.keep(going):
            keep = torch.tensor(going, device=device)
            held, token, ended = held[keep], token[keep], ended[keep]
            ids = None if ids is None else ids[keep]
            sampler.keep(going)
        ids = None if ids is None else torch.cat([ids, token[:, None]], dim=1)
        scores = tokens.advance(driver.step, token)
    return _table(steps, len(rows))


def _begun(driver: Runner, state: Prefilled, rows: Sequence[int], limit: int) -> Tokens:
    """Completions of these rows, of which nothing was sampled yet."""
    fixed = driver.config.compile_decode and state.whole
    wanted = rows_for(rows) if fixed else list(rows)
    place = torch.tensor(wanted, device=state.mask.device)
    cache = fork(state.cache, wanted, len(state.ids))
    mask, following = state.mask[place], state.following[place]
    if fixed:
        return driver.pool.begin(cache, mask, following, len(rows), limit)
    return Grown(cache, mask, following)


def _table(
    steps: Sequence[tuple[torch.Tensor, ...]], n_rows: int
) -> tuple[list[list[int]], list[list[float]], list[list[bool]]]:
    """Rows of tokens, log p and finiteness, from steps that hold fewer and fewer rows."""
    first = steps[0]
    tables = [x.new_zeros(n_rows, len(steps)) for x in first[1:]]
    for step, (held, *values) in enumerate(steps):
        for table, x in zip(tables, values, strict=True):
            table[held, step] = x
    tokens, logp, finite = (table.tolist() for table in tables)
    lengths = torch.zeros(n_rows, dtype=torch.int64, device=first[0].device)
    for held, *_ in steps:
        lengths[held] += 1
    n = lengths.tolist()
    return (
        [row[:k] for row, k in zip(tokens, n, strict=True)],
        [row[:k] for row, k in zip(logp, n, strict=True)],
        [row[:k] for row, k in zip(finite, n, strict=True)],
    )


# ---- responses ---------------------------------------------------------------------


def resume(
    driver: Runner,
    state: Prefilled,
    rows: Sequence[int],
    batch: Sequence[Prepared],
    *,
    attention: bool,
) -> list[Trace]:
    """Teacher-forced forward of what follows the prompts in ``rows``: the traces that a
    forward of the whole sequences would give, but for the queries of the prompt (0).

    Raises `NotShared` if the last layer did not see all tokens before its own.
    """
    model, device = driver.model, state.mask.device
    tails = [p.ids[len(state.ids[r]) :] for r, p in zip(rows, batch, strict=True)]
    sizes = [len(tail) for tail in tails]
    tokens = torch.nn.utils.rnn.pad_sequence(tails, batch_first=True).to(device)
    steps = torch.arange(tokens.shape[1], device=device)
    own = (steps[None] < torch.tensor(sizes, device=device)[:, None]).to(torch.int64)
    place = torch.tensor(rows, device=device)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.cat([state.mask[place], own], dim=1),
        "position_ids": state.following[place][:, None] + steps,
        "past_key_values": fork(state.cache, rows, len(state.ids)),
    }
    capture = Capture(driver.parts.watched)
    with driver.lock, capturing(model, driver.parts, capture):
        driver.call(inputs, use_cache=True, count=False)
    driver.counts.prefilled_tokens += sum(sizes)
    driver.counts.padded_tokens += tokens.numel() - sum(sizes)
    before = state.mask.shape[1]
    if capture.calls != 1 or capture.k.shape[2] != before + tokens.shape[1]:
        raise NotShared("its last layer does not see the whole prompt")
    seen = inputs["attention_mask"].bool()
    if attention:
        _require_causal(capture, seen, own, before)
    return [
        _piece(driver, capture, state, row, i, seen[i], p, attention=attention)
        for i, (row, p) in enumerate(zip(rows, batch, strict=True))
    ]


def _require_causal(
    capture: Capture, seen: torch.Tensor, own: torch.Tensor, before: int
) -> None:
    """Every row sees the prompt and the tokens up to itself, and nothing else."""
    n = own.shape[1]
    if capture.mask is None:
        if n == 1 and bool(seen.all()):
            return
        raise NotShared("its last layer was given no mask")
    mask = capture.mask
    given = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns = torch.arange(before + n, device=seen.device)
    causal = columns[None] <= columns[before:, None]
    wanted = (seen[:, None, :] & causal[None])[:, None]
    rows = own.bool()[:, None, :, None]
    if bool(((given.to(seen.device) != wanted) & rows).any()):
        raise NotShared("its last layer does not see exactly the tokens before a token")


def _piece(
    driver: Runner,
    capture: Capture,
    state: Prefilled,
    row: int,
    i: int,
    seen: torch.Tensor,
    prepared: Prepared,
    *,
    attention: bool,
) -> Trace:
    """The trace of row i of a forward that went on from ``row`` of ``state``."""
    length, n_read = len(prepared), len(state.ids[row])
    n_new, n_response = length - n_read, len(prepared.response_ids)
    hidden = torch.cat([state.hidden[row : row + 1], capture.hidden[i, :n_new]])
    q = k = None
    if attention:
        own = capture.q[i, :, :n_new]
        q = torch.cat([own.new_zeros(own.shape[0], n_read, own.shape[2]), own], dim=1)
        k = capture.k[i][:, seen.to(capture.k.device)]
    start = n_new - n_response  # of hidden: its first row is the last token read
    return Trace(
        n_prompt=prepared.n_prompt,
        response_ids=prepared.response_ids,
        hidden=hidden[start : start + n_response].to(driver.head.weight.dtype),
        q=q,
        k=k,
        scaling=capture.scaling,
        image_mask=prepared.image_mask,
        special_mask=prepared.special_mask,
    )


def kept(
    driver: Runner,
    batch: Sequence[Prepared],
    inputs: dict[str, Any],
    cache: Any,
    hidden: torch.Tensor,
) -> None:
    """Keep the prompts of a right-padded forward of whole sequences, for `resume`."""
    longest = max(prepared.n_prompt for prepared in batch)
    lengths = torch.tensor([prepared.n_prompt for prepared in batch])
    _, delta = positions(driver.model, inputs)
    device = delta.device
    for layer in require_cache(cache).layers:
        if type(layer).__name__ not in GROWING:
            return
        layer.keys, layer.values = (x[..., :longest, :] for x in (layer.keys, layer.values))
    lengths = lengths.to(device)
    mask = torch.arange(longest, device=device)[None] < lengths[:, None]
    last = lengths.to(hidden.device) - 1
    state = Prefilled(
        cache=cache,
        mask=mask.to(torch.int64),
        input_ids=inputs["input_ids"][:, :longest],
        ids=[prepared.ids[: prepared.n_prompt] for prepared in batch],
        following=lengths + delta,
        hidden=hidden[torch.arange(len(batch), device=hidden.device), last],
        logits=None,
    )
    for row, prepared in enumerate(batch):
        prepared.shared.prompt = (state, row)


# ---- the check ---------------------------------------------------------------------


def unshared(driver: Runner, probe: Prepared) -> str:
    """Why prompts are read anew for each completion and response; "" if once is enough.

    Two rows of different length, the probe's prompt and the whole probe, are read with
    padding. The next-token logits after the whole probe must come out the same from the
    plain forward, from the longer row, and token by token from the shorter one.
    ``torch.OutOfMemoryError`` is not caught.
    """
    if is_fsdp2(driver.model):
        return "FSDP2 gathers its weights in forwards that all processes make together"
    try:
        return _compare(driver, probe)
    except torch.OutOfMemoryError:
        raise
    except (NotShared, UnsupportedModelError) as error:
        return str(error)
    except (RapError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    except (RuntimeError, AttributeError, AssertionError, OSError) as error:
        return f"{type(error).__name__}: {first_line(error)}"


def _compare(driver: Runner, probe: Prepared) -> str:
    short = driver.with_response(probe, ())
    device = input_device(driver.model)
    with running(driver) as seen:
        plain = driver.call(driver.inputs([probe], "right"), use_cache=False)
        theirs, hidden = plain.logits[0, -1], seen.hidden[0, -1]
        state = prefill(driver, [short, probe], seen)
        driver.merges = state.whole
        driver.token_bytes = token_bytes(state.cache) if state.whole else 0
        assert state.logits is not None
        rows = [0]
        cache = fork(state.cache, rows, 2)
        mask, following = state.mask[rows], state.following[rows]
        for token in probe.response_ids.tolist():
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
            inputs = {
                "input_ids": torch.tensor([[token]], device=device),
                "attention_mask": mask,
                "position_ids": following[:, None],
                "past_key_values": cache,
            }
            output = driver.call(inputs, use_cache=True)
            following = following + 1
        stepped = (output.logits[0, -1], seen.hidden[0, -1])
    for said, logits, last in (
        ("a padded row", state.logits[1], state.hidden[1]),
        ("token by token", *stepped),
    ):
        if not (close(logits, theirs, theirs) and close(last, hidden, hidden)):
            return f"its cache gives other numbers than its plain forward ({said})"
    return ""
