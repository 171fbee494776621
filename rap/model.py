"""Drive one Hugging Face multimodal model: what goes in, and what is caught inside.

    sample + images --> prepare (host, threads) --> Prepared --> trace (one padded forward)
                                                         \\--> Trace: hidden, q, k, unpadded

Nothing is copied from the model's code. Queries and keys of the last decoder layer are
caught by an attention function registered with ``transformers.AttentionInterface`` that
otherwise is sdpa; hidden states are the output of the text decoder, after its final norm.
``[T, V]`` logits are never made: ``logits_to_keep`` asks for one position, and the input of
the head is cut to it in any case. Attention weights are never built.

``check`` runs one small sample before the first real one and compares what was caught with
what the model did: q and k must give the layer's own attention output, the hidden state
and the head the model's own logits. What a class does differently (attention soft-capping,
sinks, a window, a scaled head) is thereby found and not guessed.

The model is the user's: every call puts back the attention implementation, train/eval
mode, hooks and cached attributes, also when it ends with an exception.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .config import ScoreConfig
from .errors import RapModelError
from .samples import BadSample, Sample, letter

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("rap")

ATTENTION_NAME = "rap_capture"
"""Our attention function in the registries of transformers."""

_REFUSALS = (ValueError, IndexError, KeyError, TypeError, RuntimeError, OSError)
"""What processors raise on an input they cannot use."""

_SEQUENCE_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class Head:
    """The language-model head: ``softcap tanh(scale (hidden W^T + bias) / softcap)``."""

    weight: torch.Tensor
    """[V, E]"""
    bias: torch.Tensor | None
    """[V]"""
    softcap: float | None
    scale: float | None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of hidden [..., E]: for checks, not for whole responses."""
        x = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale is not None:
            x = x * self.scale
        if self.softcap is not None:
            x = torch.tanh(x / self.softcap) * self.softcap
        return x


@dataclass(frozen=True, slots=True)
class Prepared:
    """One sequence, prompt and perhaps response, unpadded and on the host."""

    inputs: Mapping[str, torch.Tensor]
    """What the processor gave for the prompt, batch dimension 1 and all."""
    n_prompt: int
    """P: prompt tokens, image tokens and prefix included."""
    response_ids: torch.Tensor
    """int64 [R]; R = 0 if there is no response (yet)."""
    image_mask: torch.Tensor
    """bool [P + R]: image placeholder tokens."""
    special_mask: torch.Tensor
    """bool [P + R]: special and template tokens, image placeholders among them."""

    def __len__(self) -> int:
        return self.n_prompt + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample's forward, padding cut away. L = P + R tokens.

    ``hidden``, ``q``, ``k`` are on the model's device in its dtype, and views of the
    batch's tensors: drop them to free these. Masks and ids are on the host.
    """

    n_prompt: int
    response_ids: torch.Tensor
    """int64 [R]"""
    hidden: torch.Tensor
    """[R, E]: states that predict the response tokens (positions P - 1 .. P + R - 2),
    after the final norm, before the head."""
    q: torch.Tensor | None
    """[Hq, L, D] of the last decoder layer, after rotary embedding; None if not asked."""
    k: torch.Tensor | None
    """[Hkv, L, D]; query head h reads key head h // (Hq / Hkv)."""
    scaling: float
    """Scale of q . k before the softmax."""
    image_mask: torch.Tensor
    """bool [L]"""
    special_mask: torch.Tensor
    """bool [L]"""

    def nonfinite(self) -> str | None:
        """The first of ``hidden``, ``q``, ``k`` that holds NaN or infinity, by name."""
        for name in ("hidden", "q", "k"):
            x = getattr(self, name)
            if x is not None and not bool(torch.isfinite(x).all()):
                return name
        return None


# ---- catching what happens inside --------------------------------------------


@dataclass(slots=True)
class _Catch:
    """Filled during one forward."""

    watched: frozenset[int]
    """``id`` of every module inside the last decoder layer. By identity: the layers of a
    vision tower have the same layer_idx."""
    keep_values: bool = False
    calls: int = 0
    q: torch.Tensor | None = None
    k: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    causal: bool = True
    scaling: float | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    v: torch.Tensor | None = None
    out: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


_catching: ContextVar[_Catch | None] = ContextVar("rap_catching", default=None)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa; of the watched layer, query and key are kept."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    out = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, **kwargs
    )
    catch = _catching.get()
    if catch is not None and id(module) in catch.watched:
        is_causal = kwargs.get("is_causal")
        catch.calls += 1
        catch.q, catch.k, catch.mask = query, key, attention_mask
        catch.causal = (
            getattr(module, "is_causal", True) if is_causal is None else is_causal
        )
        catch.scaling = kwargs.get("scaling")
        catch.extras = {name: x for name, x in kwargs.items() if x is not None}
        if catch.keep_values:
            catch.v, catch.out = value, out[0]
    return out


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(ATTENTION_NAME, _attention)
    # A name without a mask function gets no masks at all, not even for padding.
    AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def _unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Put back what a forward leaves in the modules: mode, hooks, buffers, attributes.

    Qwen-VL keeps ``rope_deltas``, long-context rotary embeddings change their buffers,
    transformers installs its own hooks at the first call and remembers it in an attribute
    (hence hooks and attributes together or not at all). Weights and submodules are left
    alone: offloading moves them.
    """
    saved = [
        [(name, x, dict(x) if isinstance(x, dict) else None) for name, x in vars(m).items()]
        for m in model.modules()
    ]
    modules = list(model.modules())
    try:
        yield
    finally:
        for module, attributes in zip(modules, saved, strict=True):
            _restore(vars(module), attributes)


def _restore(now: dict[str, Any], before: list[tuple[str, Any, dict | None]]) -> None:
    names = {name for name, _, _ in before}
    for name in [name for name in now if name not in names]:
        del now[name]
    for name, value, content in before:
        if name in ("_parameters", "_modules"):
            continue
        now[name] = value
        if content is not None and not _same(value, content):
            value.clear()
            value.update(content)


def _same(a: dict, b: dict) -> bool:
    return len(a) == len(b) and all(k in b and b[k] is x for k, x in a.items())


@contextmanager
def _attention_replaced(configs: Sequence[Any]) -> Iterator[None]:
    # The public setter also writes to every sub-config, the vision tower's among them,
    # which may hold other implementations; the field behind it is restored exactly.
    saved = [(c, c._attn_implementation_internal) for c in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = ATTENTION_NAME
        yield
    finally:
        for config, implementation in saved:
            config._attn_implementation_internal = implementation


def _hook_decoder(catch: _Catch) -> Any:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None and isinstance(output, tuple) and output:
            hidden = output[0]
        catch.hidden = hidden

    return hook


def _last_position(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pre-hook of the head: one position, whatever the class makes of logits_to_keep."""
    return (args[0][:, -1:], *args[1:]) if args and args[0].dim() == 3 else args


# ---- the parts of a model ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    decoder: torch.nn.Module
    head: torch.nn.Module
    watched: frozenset[int]
    configs: tuple[Any, ...]


def _find_parts(model: Any) -> _Parts:
    """Text decoder, its last layer, the head, and the configs that say which attention."""
    try:
        decoder, head = model.get_decoder(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise _undrivable(model, f"it does not name its parts ({error})") from error
    if not isinstance(decoder, torch.nn.Module) or decoder is model:
        raise _undrivable(model, "get_decoder() does not give its text decoder")
    if getattr(head, "weight", None) is None or not head.weight.is_floating_point():
        raise _undrivable(model, "its language-model head has no floating-point weight")
    if not getattr(decoder, "_supports_sdpa", False):
        raise _undrivable(model, f"{type(decoder).__name__} does not support sdpa")
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        raise _undrivable(model, f"{type(decoder).__name__} has no list of layers")
    path = next(name for name, module in model.named_modules() if module is decoder)
    steps = path.split(".")
    above = [model.get_submodule(".".join(steps[:i])) for i in range(len(steps))]
    configs = {id(c): c for m in (*above, *decoder.modules()) for c in _config_of(m)}
    watched = frozenset(id(module) for module in layers[-1].modules())
    return _Parts(decoder, head, watched, tuple(configs.values()))


def _config_of(module: torch.nn.Module) -> list[Any]:
    config = getattr(module, "config", None)
    return [config] if hasattr(config, "_attn_implementation_internal") else []


def _undrivable(model: Any, reason: str) -> RapModelError:
    """Fault 20: says what is missing and what to do."""
    return RapModelError(
        f"{type(model).__name__} cannot be driven: {reason}. Load a class that comes with "
        'transformers (no trust_remote_code) with attn_implementation="sdpa" or '
        'attn_implementation="eager", for example through AutoModelForImageTextToText; '
        "with rollouts made elsewhere (--rollouts) no model is needed"
    )


# ---- the driver --------------------------------------------------------------


class ModelDriver:
    """One model and its processor, as scoring needs them.

    ``prepare`` and ``encode_response`` may be called from several threads; ``check``,
    ``trace`` and ``head`` run the model and take turns.
    """

    def __init__(self, model: Any, processor: Any, config: ScoreConfig | None = None):
        self.model = model
        self.processor = processor
        self.config = config or ScoreConfig()
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_token_id = _image_token_id(model, processor)
        self._special_ids = torch.tensor(
            sorted(_special_ids(processor, self.image_token_id)), dtype=torch.int64
        )
        self._placeholders = _placeholder_texts(processor, self.image_token_id)
        self._lock = threading.RLock()
        self._parts: _Parts | None = None
        self._head: Head | None = None

    # -- on the host

    def prepare(
        self,
        sample: Sample,
        images: Sequence[Image] | None,
        response_ids: Sequence[int] | None = None,
        *,
        prefix: str = "",
    ) -> Prepared:
        """Chat template and processor: one sample to one sequence. Thread-safe.

        images: RGB; None or [] is the prompt without images. response_ids: tokens that
        follow the prompt. prefix: text that opens the assistant's turn, part of the prompt.

        Raises ``BadSample``, stage ``prompt``: ``image_count`` (placeholders and images do
        not match, or a text holds a placeholder token), ``prompt_too_long``; stage
        ``image``: ``image_unreadable`` (the processor refuses the image).
        """
        text = self._user_text(sample)
        for part in (text, prefix):
            self._refuse_placeholders(part)
        prompt = self._render(text, len(images or ())) + prefix
        inputs = self._process(prompt, images)
        ids = inputs["input_ids"][0]
        if len(ids) > self.config.max_prompt_tokens:
            raise BadSample(
                "prompt",
                "prompt_too_long",
                f"{len(ids)} tokens, max_prompt_tokens is {self.config.max_prompt_tokens}; "
                "nothing is cut, because image tokens would be",
            )
        n_image = int((ids == self.image_token_id).sum())
        if bool(n_image) != bool(images):
            raise BadSample(
                "prompt",
                "image_count",
                f"{len(images or ())} images became {n_image} image tokens",
            )
        return self._prepared(inputs, response_ids if response_ids is not None else ())

    def with_response(self, prepared: Prepared, response_ids: Sequence[int]) -> Prepared:
        """The same prompt with another response; nothing is processed again."""
        return self._prepared(prepared.inputs, response_ids)

    def encode_response(self, text: str) -> list[int]:
        """Tokens of ``text`` as they stand, no special tokens added. Thread-safe."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prepared(
        self, inputs: Mapping[str, torch.Tensor], response_ids: Sequence[int]
    ) -> Prepared:
        response = torch.as_tensor(response_ids, dtype=torch.int64).reshape(-1)
        if bool((response == self.image_token_id).any()):
            raise BadSample(
                "prompt", "image_count", "the response holds an image placeholder token"
            )
        ids = torch.cat([inputs["input_ids"][0], response])
        return Prepared(
            inputs=inputs,
            n_prompt=len(ids) - len(response),
            response_ids=response,
            image_mask=ids == self.image_token_id,
            special_mask=torch.isin(ids, self._special_ids),
        )

    def _user_text(self, sample: Sample) -> str:
        choices = "".join(
            f"\n({letter(i)}) {choice}" for i, choice in enumerate(sample.choices)
        )
        values = {"{question}": sample.question, "{choices}": choices}
        # In one pass: a question may hold braces, and the template \boxed{}.
        return re.sub(
            r"\{question\}|\{choices\}",
            lambda match: values[match[0]],
            self.config.prompt_template,
        )

    def _refuse_placeholders(self, text: str) -> None:
        for token in self._placeholders:
            if token in text:
                raise BadSample(
                    "prompt", "image_count", f"the text holds the placeholder {token!r}"
                )

    def _render(self, text: str, n_images: int) -> str:
        content = [{"type": "image"} for _ in range(n_images)]
        content.append({"type": "text", "text": text})
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
        )

    def _process(
        self, prompt: str, images: Sequence[Image] | None
    ) -> dict[str, torch.Tensor]:
        # What apply_chat_template(tokenize=True) does: most templates write the beginning
        # token themselves.
        bos = self.tokenizer.bos_token
        starts = bos is not None and prompt.startswith(bos)
        try:
            # No padding and no truncation, ever: besides cutting image tokens, another
            # setting would be written into the tokenizer that all threads share.
            encoded = self.processor(
                text=[prompt],
                images=[list(images)] if images else None,
                return_tensors="pt",
                padding=False,
                truncation=False,
                **({"add_special_tokens": False} if starts else {}),
            )
        except _REFUSALS as error:
            raise BadSample(
                "image" if images else "prompt",
                "image_unreadable" if images else "bad_text",
                f"the processor refuses it: {_first_line(error)}",
            ) from error
        return {k: v for k, v in encoded.items() if isinstance(v, torch.Tensor)}

    # -- batches

    def collate(
        self, batch: Sequence[Prepared], *, padding_side: str = "right"
    ) -> dict[str, torch.Tensor]:
        """Model inputs of a batch: prompt and response, padded, on the model's device.

        Tokens are padded to the longest sequence on ``padding_side`` (``attention_mask``
        is 0 there). All other tensors are joined along their first dimension, as the
        processors themselves do; where sizes differ (tiles an image, pixels a tile) they
        are filled up with zeros at the end. Floating-point inputs take the model's dtype.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side = {padding_side!r}: expected 'left' or 'right'")
        longest = max(len(prepared) for prepared in batch)
        pad_id = _pad_token_id(self.tokenizer, self.image_token_id)
        names = {name: None for prepared in batch for name in prepared.inputs}
        out: dict[str, torch.Tensor] = {}
        for name in names:
            if _is_sequence(name, batch):
                rows = [_sequence_row(name, p) for p in batch]
                fill = pad_id if name == "input_ids" else 0
                out[name] = torch.stack(
                    [_pad(r, longest, fill, padding_side) for r in rows]
                )
            else:
                out[name] = _join([p.inputs[name] for p in batch if name in p.inputs])
        dtype = self.model.dtype
        return {
            name: x.to(self.model.device, dtype if x.is_floating_point() else None)
            for name, x in out.items()
        }

    # -- the model

    def trace(
        self,
        batch: Sequence[Prepared],
        *,
        attention: bool = True,
        padding_side: str = "right",
    ) -> list[Trace]:
        """One padded forward without gradients; what it caught, sample by sample.

        attention: keep q and k of the last decoder layer. padding_side: on the right no
        token's position changes, so nothing has to be told to the model; the left is for
        comparisons.

        Raises ``RapModelError`` if the model cannot be driven, ``ValueError`` if a sample's
        response does not see all tokens before it in the last layer (a sliding window
        shorter than the sample): psi is not defined by q and k alone there. Passes
        ``torch.OutOfMemoryError``.
        """
        if not batch:
            return []
        catch = self._forward(batch, padding_side, keep_values=False)
        hidden = self._caught_hidden(catch)
        if attention:
            self._require_attention(catch)
        longest = hidden.shape[1]
        traces = []
        for row, prepared in enumerate(batch):
            length, prompt = len(prepared), prepared.n_prompt
            start = longest - length if padding_side == "left" else 0
            span = slice(start, start + length)
            if attention:
                _require_causal(catch, row, start, prompt, length)
            traces.append(
                Trace(
                    n_prompt=prompt,
                    response_ids=prepared.response_ids,
                    hidden=hidden[row, start + prompt - 1 : start + length - 1],
                    q=catch.q[row, :, span] if attention else None,
                    k=catch.k[row, :, span] if attention else None,
                    scaling=_scaling(catch),
                    image_mask=prepared.image_mask,
                    special_mask=prepared.special_mask,
                )
            )
        return traces

    @property
    def head(self) -> Head:
        """The language-model head as it stands (``check`` runs first if it has not)."""
        if self._head is None:
            self.check()
        return self._head

    def check(self) -> None:
        """Run one small sample and compare what was caught with what the model did.

        Raises ``RapModelError``, naming the reason and what to do, if the processor cannot
        make a prompt with an image, if q and k of the last decoder layer do not give its
        attention output, or if the hidden states and the head do not give the logits
        (fault 20: before the first sample).
        """
        with self._lock:
            parts = self._model_parts()
            theirs = getattr(self.model.config, "_attn_implementation", None)
            if theirs not in ("sdpa", None):
                log.warning(
                    "the model was loaded with attn_implementation=%r; its text decoder "
                    "runs with sdpa while rap scores",
                    theirs,
                )
            probe = self._probe()
            try:
                catch = self._forward([probe], "right", keep_values=True)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
                raise _undrivable(
                    self.model, f"its forward failed: {_first_line(error)}"
                ) from error
            self._check_attention(catch, probe)
            self._head = self._check_head(catch, parts)

    def _model_parts(self) -> _Parts:
        if self._parts is None:
            self._parts = _find_parts(self.model)
        return self._parts

    @contextmanager
    def _driven(self, catch: _Catch) -> Iterator[None]:
        parts = self._model_parts()
        _register()
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(torch.no_grad())
            stack.enter_context(_unchanged(self.model))
            stack.enter_context(_attention_replaced(parts.configs))
            hooks = [
                parts.decoder.register_forward_hook(_hook_decoder(catch), with_kwargs=True),
                parts.head.register_forward_pre_hook(_last_position),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
            stack.callback(_catching.reset, _catching.set(catch))
            self.model.eval()
            yield

    def _forward(
        self, batch: Sequence[Prepared], padding_side: str, *, keep_values: bool
    ) -> _Catch:
        catch = _Catch(self._model_parts().watched, keep_values)
        inputs = self.collate(batch, padding_side=padding_side)
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        parameters = inspect.signature(self.model.forward).parameters
        if "logits_to_keep" in parameters:
            options["logits_to_keep"] = 1
        if padding_side == "left" and not hasattr(self.model.base_model, "get_rope_index"):
            # Qwen-VL's classes count positions from the attention mask, the others do not.
            positions = inputs["attention_mask"].cumsum(-1) - 1
            options["position_ids"] = positions.clamp_(min=0)
        with self._driven(catch):
            output = self.model(**inputs, **options)
        if keep_values:
            catch.extras["logits"] = output.logits
        return catch

    def _caught_hidden(self, catch: _Catch) -> torch.Tensor:
        if not isinstance(catch.hidden, torch.Tensor) or catch.hidden.dim() != 3:
            raise _undrivable(self.model, "its text decoder gave no hidden states")
        return catch.hidden

    def _require_attention(self, catch: _Catch) -> None:
        if catch.calls == 0:
            raise _undrivable(
                self.model,
                "its last decoder layer does not use transformers.AttentionInterface, so "
                "its queries and keys cannot be caught",
            )
        if catch.calls > 1:
            raise _undrivable(self.model, "its last decoder layer attends more than once")
        q, k = catch.q, catch.k
        if q.shape[2:] != k.shape[2:] or q.shape[1] % k.shape[1]:
            raise _undrivable(
                self.model,
                f"queries {list(q.shape)} and keys {list(k.shape)} of its last decoder "
                "layer do not match",
            )

    # -- the probe

    def _probe(self) -> Prepared:
        """A grey image, a short question and a short answer, through the processor."""
        from PIL import Image

        sample = Sample(
            index=0,
            id="probe",
            question="What is in the picture?",
            answer="grey",
            choices=(),
            images=(),
            source=None,
            extra={},
        )
        image = Image.new("RGB", (56, 56), (120, 130, 140))
        try:
            response = self.encode_response("The answer is grey.")
            return self.prepare(sample, [image], response)
        except BadSample as bad:
            raise RapModelError(
                f"{type(self.processor).__name__} makes no prompt for {_name(self.model)}: "
                f"{bad.message}"
            ) from bad
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise RapModelError(
                f"{type(self.processor).__name__} makes no prompt for {_name(self.model)}: "
                f"{_first_line(error)}. A processor with a chat template is needed "
                "(processor.chat_template)"
            ) from error

    def _check_attention(self, catch: _Catch, probe: Prepared) -> None:
        self._require_attention(catch)
        known = {
            "softcap": "it caps attention logits (soft-capping)",
            "s_aux": "it has attention sinks",
            "sinks": "it has attention sinks",
            "position_bias": "it adds a bias to attention logits",
        }
        for name, reason in known.items():
            if name in catch.extras:
                raise _undrivable(self.model, f"its last decoder layer: {reason}")
        try:
            _require_causal(catch, 0, 0, probe.n_prompt, len(probe))
        except ValueError as error:
            raise _undrivable(self.model, str(error)) from error
        rows = slice(probe.n_prompt, len(probe))
        rebuilt = _attend(catch.q[0], catch.k[0], catch.v[0], _scaling(catch), rows)
        theirs = catch.out[0, rows].transpose(0, 1).double()
        if not _close(rebuilt, theirs, catch.q.dtype):
            raise _undrivable(
                self.model,
                "queries and keys of its last decoder layer do not give that layer's "
                "attention",
            )

    def _check_head(self, catch: _Catch, parts: _Parts) -> Head:
        hidden = self._caught_hidden(catch)
        logits = catch.extras["logits"]
        if not isinstance(logits, torch.Tensor) or logits.shape[:2] != (1, 1):
            raise _undrivable(self.model, "it makes more logits than were asked for")
        last = hidden[0, -1].to(parts.head.weight.device)
        theirs = logits[0, -1].double()
        bias = getattr(parts.head, "bias", None)
        heads = [
            Head(parts.head.weight.detach(), _detached(bias), softcap, scale)
            for softcap, scale in _head_options(self.model)
        ]
        # Some classes have a cap or a scale in their config and do not use it.
        errors = [float((h.logits(last).double() - theirs).abs().max()) for h in heads]
        best = heads[min(range(len(heads)), key=errors.__getitem__)]
        if not _close(best.logits(last).double(), theirs, logits.dtype):
            raise _undrivable(
                self.model, "its hidden states and its head do not give its logits"
            )
        return best

    # -- who it is

    def identity(self) -> dict[str, object]:
        """Model and processor for the fingerprint: JSON values, equal in every process.

        ``weights_sha256`` covers name, shape and dtype of every parameter and persistent
        buffer, all bytes of those up to 64 KiB, and of larger ones 64 KiB: the first and
        last 16 KiB and 32 KiB of elements evenly spread between them. Weights that are
        not in memory (device "meta") count with name, shape and dtype.
        ``processor_sha256`` covers the settings of every part, the chat template and the
        tokenizer (vocabulary, merges, added tokens).
        """
        config = self.model.config
        return {
            "class": type(self.model).__name__,
            "name_or_path": str(getattr(config, "_name_or_path", "") or ""),
            "revision": getattr(config, "_commit_hash", None),
            "weights_sha256": weights_sha256(self.model),
            "processor": type(self.processor).__name__,
            "processor_sha256": processor_sha256(self.processor),
        }


# ---- small parts -------------------------------------------------------------


def _name(model: Any) -> str:
    return type(model).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _detached(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.detach()


def _scaling(catch: _Catch) -> float:
    if catch.scaling is not None:
        return float(catch.scaling)
    return 1.0 if catch.q is None else float(catch.q.shape[-1]) ** -0.5


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, rows: slice
) -> torch.Tensor:
    """Causal attention [Hq, rows, D], float64, from q [Hq, L, D] and k, v [Hkv, L, D]."""
    length, repeat = q.shape[1], q.shape[0] // k.shape[0]
    k, v = (x.double().repeat_interleave(repeat, dim=0) for x in (k, v))
    scores = scaling * q[:, rows].double() @ k.transpose(1, 2)
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future[rows], float("-inf")).softmax(-1) @ v


def _close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of a short computation in ``dtype``: 2^8 units in the last
    place of the largest value. NaN is never close."""
    limit = 256 * torch.finfo(dtype).eps * float(b.abs().max())
    return bool((a - b).abs().max() <= max(limit, 1e-30))


def _require_causal(
    catch: _Catch, row: int, start: int, n_prompt: int, length: int
) -> None:
    """Response rows see exactly the tokens up to themselves, padding left out.

    ``ValueError`` otherwise. The rows of the prompt are not asked (Gemma 3 lets image
    tokens see each other): psi reads response rows only.
    """
    if n_prompt == length:
        return
    if catch.mask is None:
        if not catch.causal:
            raise ValueError("attention of its last layer is not causal")
        if start:
            raise ValueError("padding is not masked in its last layer")
        return
    rows = slice(start + n_prompt, start + length)
    mask = catch.mask[row if catch.mask.shape[0] > 1 else 0, :, rows]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns = torch.arange(seen.shape[-1], device=seen.device)
    own = torch.arange(rows.start, rows.stop, device=seen.device)[:, None]
    wanted = (columns >= start) & (columns <= own)
    if not bool((seen == wanted).all()):
        window = catch.extras.get("sliding_window")
        why = f" (sliding_window = {window})" if window else ""
        raise ValueError(
            f"its last layer does not let the response see all {length} tokens before "
            f"it{why}: psi needs full attention"
        )


def _head_options(model: Any) -> list[tuple[float | None, float | None]]:
    """(softcap, scale) that the configs speak of, in every combination, all first."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(text, "final_logit_softcapping", None)
    scale = getattr(text, "logit_scale", None)  # Cohere
    if getattr(text, "logits_scaling", None):  # Granite
        scale = 1.0 / text.logits_scaling
    softcaps = [float(softcap), None] if softcap else [None]
    scales = [float(scale), None] if isinstance(scale, (int, float)) and scale else [None]
    return [(a, b) for a in softcaps for b in scales]


def _image_token_id(model: Any, processor: Any) -> int:
    for owner in (model.config, processor):
        for name in ("image_token_id", "image_token_index"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    raise RapModelError(
        f"{type(model).__name__} with {type(processor).__name__}: no image_token_id, so "
        "image tokens cannot be told from text. Pass the model's own AutoProcessor"
    )


def _placeholder_texts(processor: Any, image_token_id: int) -> tuple[str, ...]:
    """Texts that the processor would take for an image or a video."""
    tokenizer = getattr(processor, "tokenizer", processor)
    names = ("image_token", "video_token", "boi_token")
    found = [getattr(processor, name, None) for name in names]
    found.append(tokenizer.convert_ids_to_tokens(image_token_id))
    return tuple(dict.fromkeys(t for t in found if isinstance(t, str) and t))


def _special_ids(processor: Any, image_token_id: int) -> set[int]:
    """Special tokens, and added tokens that the chat template writes (<think>).

    Not every added token: Gemma adds runs of white space and HTML tags, which are text.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(
        tokenizer, "chat_template", None
    )
    template = template if isinstance(template, str) else json.dumps(template or "")
    ids = {int(i) for i in tokenizer.all_special_ids} | {image_token_id}
    for i, token in tokenizer.added_tokens_decoder.items():
        content = token.content.strip()
        if token.special or (content and content in template):
            ids.add(int(i))
    return ids


def _pad_token_id(tokenizer: Any, image_token_id: int) -> int:
    """Any id but a placeholder's: padded positions are masked and cut away."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None and int(value) != image_token_id:
            return int(value)
    return 0 if image_token_id != 0 else 1


def _is_sequence(name: str, batch: Sequence[Prepared]) -> bool:
    """Whether an input has one number a token."""
    if name in _SEQUENCE_KEYS:
        return True
    if name.startswith(("pixel", "image", "video")):
        return False
    return all(
        p.inputs[name].shape == p.inputs["input_ids"].shape
        for p in batch
        if name in p.inputs
    )


def _sequence_row(name: str, prepared: Prepared) -> torch.Tensor:
    """One input [L] of prompt and response. Token types of a response are text: 0."""
    n = len(prepared.response_ids)
    if name == "attention_mask":
        return torch.ones(len(prepared), dtype=torch.int64)
    row = prepared.inputs.get(name)
    row = torch.zeros(prepared.n_prompt, dtype=torch.int64) if row is None else row[0]
    tail = prepared.response_ids if name == "input_ids" else row.new_zeros(n)
    return torch.cat([row, tail])


def _pad(row: torch.Tensor, length: int, fill: int, side: str) -> torch.Tensor:
    padding = row.new_full((length - len(row),), fill)
    return torch.cat([padding, row] if side == "left" else [row, padding])


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joined along dimension 0, the others filled up with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    if all(list(t.shape[1:]) == shape for t in tensors):
        return torch.cat(list(tensors))
    filled = []
    for t in tensors:
        full = t.new_zeros((t.shape[0], *shape))
        full[tuple(slice(0, n) for n in t.shape)] = t
        filled.append(full)
    return torch.cat(filled)


_HASHED_BYTES = 1 << 16


def weights_sha256(model: torch.nn.Module) -> str:
    """See `ModelDriver.identity`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor!r}\n".encode())
            continue
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.device.type != "meta":
            digest.update(_some_bytes(tensor))
    return digest.hexdigest()


def _some_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    limit = max(4, _HASHED_BYTES // flat.element_size())
    if flat.numel() > limit:
        quarter = limit // 4
        step = max(1, (flat.numel() - 2 * quarter) // (2 * quarter))
        middle = flat[quarter : flat.numel() - quarter : step][: 2 * quarter]
        flat = torch.cat([flat[:quarter], middle, flat[-quarter:]])
    return flat.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def processor_sha256(processor: Any) -> str:
    """See `ModelDriver.identity`."""
    tokenizer = getattr(processor, "tokenizer", processor)
    parts: dict[str, Any] = {"class": type(processor).__name__}
    for name in ("image_processor", "video_processor"):
        part = getattr(processor, name, None)
        if part is not None:
            parts[name] = [type(part).__name__, part.to_json_string()]
    for name, value in sorted(vars(processor).items()):
        if isinstance(value, (str, int, float, bool, type(None), dict)):
            parts[f"processor.{name}"] = value
    parts["tokenizer"] = _tokenizer_text(tokenizer)
    parts["template"] = getattr(tokenizer, "chat_template", None)
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_text(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    settings = json.loads(backend.to_str())
    # State of the last call, not of the tokenizer.
    settings.pop("padding", None)
    settings.pop("truncation", None)
    return settings


__all__ = ["Head", "ModelDriver", "Prepared", "Trace"]
