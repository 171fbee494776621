"""Drive one Hugging Face multimodal model: prompts in, hidden states, queries, keys out.

    sample + images --> prepare (host, threads) --> Prepared --> trace (one padded forward)
                                                         \\--> Trace: hidden, q, k, unpadded

Queries and keys of the last decoder layer are captured while sdpa runs everywhere, hidden
states after the final norm (see ``rap.model.capture``). ``[T, V]`` logits are never made,
attention weights are never built, and padding never leaves `trace`.

``check`` runs one small sample before the first real one and compares what was captured
with what the model did: q and k must give the layer's own attention output, the hidden
state and the head the model's own logits. What a class does differently (attention
soft-capping, sinks, a window, a scaled head) is found by that and not guessed.

The model is the user's: every call leaves it as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from ..config import ScoreConfig
from ..errors import RapModelError, first_line, is_device_fault, is_out_of_memory
from ..samples.sample import BadSample
from ..stopwatch import IDLE, Stopwatch
from . import decode, kept, packing, states, static, vision
from .batching import (
    Prepared,
    Trace,
    by_length,
    collate,
    collate_images,
    collate_tokens,
    cut,
)
from .capture import (
    Capture,
    Parts,
    UnsupportedModelError,
    capturing,
    find_parts,
    require_attention,
    unsupported,
)
from .counts import Counts
from .head import Head
from .identity import processor_sha256, weights_sha256
from .kept import Prefilled
from .preparing import Preparer
from .probe import (
    ModelDescription,
    check_attention,
    check_head,
    close,
    describe,
    facts,
)
from .prompt import (
    PROBE_RESPONSE,
    PROBE_SIZE,
    REFUSALS,
    other_family,
    pad_token_id,
    placeholder_texts,
    probe_sample,
    require_model,
    require_pair,
)
from .staging import Cuda, Stage
from .weights import (
    bytes_on,
    class_name,
    input_device,
    input_dtype,
    plain,
    require_weights,
    underlying,
)

log = logging.getLogger("rap")


class ModelDriver(Preparer):
    """One model and its processor, as scoring needs them.

    ``prepare`` and ``encode_response`` may be called from several threads; ``check``,
    ``trace`` and ``head`` run the model and take turns.

    Raises ``RapModelError`` if ``model`` is no loaded model, ``processor`` no processor,
    or neither says which token stands for an image.
    """

    def __init__(self, model: Any, processor: Any, config: ScoreConfig | None = None):
        model = underlying(model)
        require_model(model)
        super().__init__(model, processor, config or ScoreConfig())
        self.lock = threading.RLock()
        self.counts = Counts()
        self.watch: Stopwatch = IDLE
        self.merges = False
        """Whether prompts that were read in several batches can be one: found out by
        ``unshared``."""
        self.token_bytes = 0
        """Bytes of a prompt's token in the cache, found out there, too."""
        self._unshared: str | None = None
        self._pixels: str | None = None
        self._towers: tuple[Any, ...] = ()
        """Configs of vision towers that attend to all windows and images at once."""
        self.stage: Stage | None = None
        """Where pixels are sent ahead of their forward; None: nowhere."""
        self.pool = static.Pool()
        """Caches of ``step`` where it is compiled."""
        self._compiled: Any = None
        """The forward of ``step``; False: it cannot be compiled."""
        self._forward_known: tuple[Any, frozenset[str]] | None = None
        """The model's forward, and the names of what it takes."""
        self._parts: Parts | None = None
        self._head: Head | None = None

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
        pad_id = pad_token_id(self.tokenizer, self.image_token_id)
        with self.watch.span("copy"):
            return self._placed(collate(batch, pad_id, padding_side))

    def inputs(self, batch: Sequence[Prepared], padding_side: str) -> dict[str, Any]:
        """What the model takes for a batch: tokens, and the images' features in place of
        pixels where the model can take them; those not encoded yet are encoded now. Runs
        the vision tower: call it inside ``capturing`` or ``decode.running``."""
        features = self._features(batch)
        if features is None:
            self.counts.images_encoded += sum(p.shared.n_images for p in batch)
            return dict(self.collate(batch, padding_side=padding_side))
        pad_id = pad_token_id(self.tokenizer, self.image_token_id)
        more = {"mm_encoder_outputs": features} if features else {}
        with self.watch.span("copy"):
            tokens = collate_tokens(batch, pad_id, padding_side)
            others = collate_images(batch, without="pixel")
            return self._placed(tokens | others) | more

    def _placed(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device, dtype = input_device(self.model), input_dtype(self.model)
        return {
            name: x.to(device, dtype if x.is_floating_point() else None)
            for name, x in inputs.items()
        }

    def send_ahead(self, prepared: Prepared) -> None:
        """Begin to copy the pixels of a sample to a CUDA device, while it computes; from
        any thread. Elsewhere nothing happens."""
        shared, stage = prepared.shared, self.stage
        if stage is None or not shared.n_images or self._pixels:
            return
        if shared.features is None and shared.sent is None:
            shared.sent = stage.send(prepared.inputs)

    def _features(self, batch: Sequence[Prepared]) -> dict[str, Any] | None:
        """``mm_encoder_outputs`` of a batch; None if its forward is to take pixels."""
        if self._pixels is None:
            self._pixels = vision.why_not(self.model)
        if self._pixels:
            return None
        try:
            # the tower itself is charged to "vision"
            with self.watch.span("copy"), packing.packed(self._towers):
                vision.encode(self.model, batch, self.counts)
        except vision.NotOnce as error:
            self._take_pixels(str(error))
            return None
        return vision.joined([prepared.shared for prepared in batch])

    def _take_pixels(self, reason: str) -> None:
        self._pixels = reason
        log.info("images are encoded in every forward: %s", reason)

    # -- the model

    def call(
        self, inputs: Mapping[str, Any], *, use_cache: bool, count: bool = True
    ) -> Any:
        """One forward, logits of the last position only where the class can do that."""
        options: dict[str, Any] = {"use_cache": use_cache, "return_dict": True}
        if self._keeps_logits:
            options["logits_to_keep"] = 1
        self.counts.forwards += 1
        if count and "past_key_values" not in inputs:
            mask = inputs["attention_mask"]
            real = int(mask.sum())
            self.counts.prefilled_tokens += real
            self.counts.padded_tokens += mask.numel() - real
        with vision.given(self.model, inputs) as taken:
            return self.model(**taken, **options)

    def step(self, inputs: Mapping[str, Any]) -> Any:
        """One decoding step, compiled where ``compile_decode`` is set. What cannot be
        compiled steps as it is from then on, and the log says why."""
        if not self.config.compile_decode or self._compiled is False:
            return self.call(inputs, use_cache=True)
        if self._compiled is None:
            self._compiled = static.COMPILER(self.model.forward)
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        try:
            output = self._compiled(**inputs, use_cache=True, return_dict=True, **options)
        except (TorchDynamoException, BackendCompilerFailed) as error:
            log.warning("completions are sampled uncompiled: %s", first_line(error))
            self._compiled = False
            return self.call(inputs, use_cache=True)
        self.counts.forwards += 1
        return output

    @property
    def _keeps_logits(self) -> bool:
        forward = self.model.forward
        function = getattr(forward, "__func__", forward)
        if self._forward_known is None or self._forward_known[0] is not function:
            names = frozenset(inspect.signature(forward).parameters)
            self._forward_known = function, names  # asked at every step of a completion
        return "logits_to_keep" in self._forward_known[1]

    @property
    def unshared(self) -> str:
        """Why each completion reads its own prompt; "" if a prompt is read once. Found
        out with a small sample at the first call."""
        if self._unshared is None:
            with self._uncounted():
                try:
                    probe = self._probe()
                    if self._pixels is None:
                        self._proven(probe)
                    self._unshared = decode.unshared(self, probe)
                except torch.OutOfMemoryError:
                    raise
                except (RapModelError, AttributeError, *REFUSALS) as error:
                    self._unshared = first_line(error)
            if self._unshared:
                log.info("every completion reads its own prompt: %s", self._unshared)
        return self._unshared

    @property
    def goes_on(self) -> bool:
        """Whether responses go on from any prompt that was read once."""
        return not self.unshared and self.merges

    @property
    def room(self) -> int:
        """Prompt tokens, padding included, that may be kept at once for what goes on from
        them; 0 where nothing does."""
        if not self.goes_on:
            return 0
        device = input_device(self.model)
        memory = kept.room(device, bytes_on(self.model, device))
        return memory // max(1, self.token_bytes)

    def read(self, batch: Sequence[Prepared]) -> None:
        """Read these prompts and keep them, for completions and responses that follow. What
        does not fit into memory, or fails, is read with what follows it."""
        try:
            with decode.running(self) as seen:
                decode.prompts(self, batch, seen)
        except (torch.OutOfMemoryError, RuntimeError, ValueError, IndexError) as error:
            if is_device_fault(error):
                raise
            log.info("prompts are not read beforehand: %s", first_line(error))

    def keep_only(self, batch: Sequence[Prepared]) -> None:
        """See ``decode.keep_only``. What does not fit into memory stays where it is."""
        try:
            with self.lock, torch.no_grad():
                decode.keep_only(batch)
        except RuntimeError as error:  # torch's, or a library's on the device
            if not is_out_of_memory(error):
                raise
            log.info("prompts stay as they were read: %s", first_line(error))

    @contextlib.contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Checks leave the counts as they were."""
        before = dataclasses.replace(self.counts)
        try:
            yield
        finally:
            for field in dataclasses.fields(before):
                setattr(self.counts, field.name, getattr(before, field.name))

    def count_generated(
        self,
        rows: Sequence[Prepared],
        inputs: Mapping[str, torch.Tensor],
        tokens: Sequence[Sequence[int]],
        ends: Sequence[int],
    ) -> None:
        """Count what the model's own ``generate`` did for these rows."""
        counts, real = self.counts, sum(len(p) for p in rows)
        counts.images_encoded += sum(p.shared.n_images for p in rows)
        counts.prefilled_tokens += real
        counts.padded_tokens += inputs["input_ids"].numel() - real
        for ids in tokens:
            stop = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
            counts.decoded_tokens += stop + 1
        counts.forwards += max(map(len, tokens))

    def trace(
        self,
        batch: Sequence[Prepared],
        *,
        attention: bool = True,
        padding_side: str = "right",
    ) -> list[Trace]:
        """Padded forwards without gradients, sample by sample: one, or several of samples
        of like length where ``batch_tokens`` is set. What goes on from a prompt that was
        read already is read from there.

        attention: keep q and k of the last decoder layer. padding_side: on the right no
        token's position changes, so nothing has to be told to the model; the left is for
        comparisons.

        Raises ``RapModelError`` if the model is not supported (``check`` runs first if it
        has not), ``ValueError`` if a sample's response sees neither all tokens before it in
        the last layer nor the latest ones of a sliding window: q and k alone do not define
        psi there. ``torch.OutOfMemoryError`` is not caught.
        """
        if not batch:
            return []
        if self._head is None:
            self.check()
        traces: list[Trace | None] = [None] * len(batch)
        if padding_side == "right":
            self._resume(batch, traces, attention)
        rest = [i for i, trace in enumerate(traces) if trace is None]
        most = self.config.batch_tokens
        for part in by_length([len(batch[i]) for i in rest], most):
            which = [rest[j] for j in part]
            found = self._whole([batch[i] for i in which], attention, padding_side)
            for i, trace in zip(which, found, strict=True):
                traces[i] = trace
        return [trace for trace in traces if trace is not None]

    def _resume(
        self, batch: Sequence[Prepared], traces: list[Trace | None], attention: bool
    ) -> None:
        """Fill in the traces of those that go on from a prompt that was read before."""
        groups: dict[int, list[tuple[int, Prefilled, int]]] = {}
        for i, prepared in enumerate(batch):
            place = decode.place_of(prepared)
            if place is None or not place[0].whole:
                continue
            state, row = place
            n_read = len(state.ids[row])
            if n_read <= prepared.n_prompt and n_read < len(prepared):
                groups.setdefault(id(state), []).append((i, state, row))
        for going in groups.values():
            tails = [len(batch[i]) - len(state.ids[row]) for i, state, row in going]
            for part in by_length(tails, self.config.batch_tokens):
                which, state = [going[j] for j in part], going[0][1]
                rows, given = [row for *_, row in which], [batch[i] for i, *_ in which]
                try:
                    found = decode.resume(self, state, rows, given, attention=attention)
                except decode.NotShared as error:
                    log.info("a prompt is read again: %s", error)
                    continue
                for (i, *_), trace in zip(which, found, strict=True):
                    traces[i] = trace

    def _whole(
        self, batch: Sequence[Prepared], attention: bool, padding_side: str
    ) -> list[Trace]:
        capture = self._forward(batch, padding_side, keep_values=False)
        longest, dtype = capture.hidden.shape[1], self.head.weight.dtype
        starts = [longest - len(p) if padding_side == "left" else 0 for p in batch]
        return [
            cut(capture, row, start, p, attention=attention, dtype=dtype)
            for row, (start, p) in enumerate(zip(starts, batch, strict=True))
        ]

    @property
    def head(self) -> Head:
        """The language-model head as it stands (``check`` runs first if it has not)."""
        if self._head is None:
            self.describe()
        return self._head  # type: ignore[return-value]  # set by describe

    def check(self) -> None:
        """Run one small sample and compare what was captured with what the model did.

        Raises ``RapModelError``, naming the reason and what to do, if the processor cannot
        make a prompt with an image, if q and k of the last decoder layer do not give its
        attention output, or if the hidden states and the head do not give the logits
        (checked before the first sample). ``torch.OutOfMemoryError`` is not caught.
        """
        self.describe()

    def describe(self) -> ModelDescription:
        """``check``, and what it found out: classes, sizes, the form of the head, image
        tokens, and how far the rebuilt numbers are from the model's own."""
        parts = self.parts
        require_weights(self.model)
        theirs = getattr(self.model.config, "_attn_implementation", None)
        if theirs not in ("sdpa", "eager", None):
            log.warning(
                "the model was loaded with attn_implementation=%r; its text decoder runs "
                "with sdpa while rap scores",
                theirs,
            )
        remark = other_family(self.model, self.processor)
        if remark:
            log.warning(remark)
        probe = self._probe(remark)
        try:
            with self._uncounted():
                capture = self._proven(probe)
            attention = check_attention(capture, probe)
            head, difference, largest = check_head(self.model, parts, capture)
        except torch.OutOfMemoryError:
            raise
        except UnsupportedModelError as error:
            raise unsupported(self.model, error) from error
        except (*REFUSALS, AttributeError, AssertionError) as error:
            said = f"its forward failed ({type(error).__name__}: {first_line(error)})"
            advised = UnsupportedModelError(f"{said}; {remark}", advised=True)
            raise unsupported(self.model, advised if remark else said) from error
        self._head = head
        device = input_device(self.model)
        if device.type == "cuda" and self.stage is None:
            self.stage = Stage(Cuda(device), input_dtype(self.model))
        return describe(
            self.model,
            parts,
            capture,
            probe,
            head,
            **self.facts(),
            image_token=self.tokenizer.convert_ids_to_tokens(self.image_token_id),
            image_token_id=self.image_token_id,
            logit_difference=difference,
            largest_logit=largest,
            attention_difference=attention[0],
            largest_attention=attention[1],
        )

    def facts(self) -> dict[str, Any]:
        """Fields of `ModelDescription` that are known before the model runs."""
        return facts(self.model, self.processor, self._placeholders)

    def _proven(self, probe: Prepared) -> Capture:
        """A forward of the probe. Its features must give what its pixels give, or the
        model is given pixels from now on."""
        if self._pixels is None:
            self._pixels = "not tried yet"
            plain = self._forward([probe], "right", keep_values=True)
            self._pixels = vision.why_not(self.model)
            if self._pixels:
                return plain
            try:
                capture = self._forward([probe], "right", keep_values=True)
            except torch.OutOfMemoryError:
                raise
            except (*REFUSALS, AttributeError, AssertionError) as error:
                self._take_pixels(f"{type(error).__name__}: {first_line(error)}")
                return plain
            if not self._pixels and not close(capture.hidden, plain.hidden, plain.hidden):
                self._take_pixels("features give other hidden states than pixels")
            if self._pixels:
                return plain
            self._towers = self._packed_towers()
            return capture
        return self._forward([probe], "right", keep_values=True)

    def _packed_towers(self) -> tuple[Any, ...]:
        """What ``_towers`` is to be, from one image that is encoded both ways."""
        configs = packing.towers(self.model, self.parts.configs)
        if not configs:
            return ()
        try:
            probe = self.prepare(probe_sample(), [packing.probe_image()])
            with decode.running(self):
                reason = packing.why_not(
                    lambda: vision.features(self.model, probe), configs
                )
        except torch.OutOfMemoryError:
            raise
        except (BadSample, *REFUSALS, AttributeError) as error:
            reason = first_line(error)
        if reason:
            log.info("the vision tower attends piece by piece: %s", reason)
        return () if reason else configs

    @property
    def parts(self) -> Parts:
        """The parts of the model. Raises ``RapModelError`` if they cannot be found."""
        if self._parts is None:
            self._parts = find_parts(self.model)
        return self._parts

    def _forward(
        self, batch: Sequence[Prepared], padding_side: str, *, keep_values: bool
    ) -> Capture:
        parts = self.parts
        capture = Capture(parts.watched, keep_values)
        keep = padding_side == "right" and any(p.shared.serves for p in batch)
        keep = keep and not self.unshared
        with self.lock, capturing(self.model, parts, capture):
            inputs = self.inputs(batch, padding_side)
            if padding_side == "left" and not hasattr(
                self.model.base_model, "get_rope_index"
            ):
                # Qwen-VL's classes count positions from the attention mask, the others
                # do not.
                positions = inputs["attention_mask"].cumsum(-1) - 1
                inputs["position_ids"] = positions.clamp_(min=0)
            output = self.call(inputs, use_cache=keep)
            states.keep(batch, capture, padding_side)
            if keep and hasattr(capture, "hidden"):
                decode.kept(self, batch, inputs, output.past_key_values, capture.hidden)
        if not hasattr(capture, "hidden"):
            raise UnsupportedModelError("its text decoder gave no hidden states")
        require_attention(capture)
        capture.hidden = _gathered(capture.hidden)
        if keep_values:
            capture.logits = _gathered(output.logits)
        return capture

    # -- the probe

    def _probe(self, remark: str = "") -> Prepared:
        """A grey image, a short question and a short answer, through the processor."""
        from PIL import Image

        image = Image.new("RGB", PROBE_SIZE, (120, 130, 140))
        require_pair(self.model, self.processor, self.image_token_id)
        pair = f"{type(self.processor).__name__} and {type(self.model).__name__}"
        try:
            response = self.encode_response(PROBE_RESPONSE)
            return self.prepare(probe_sample(), [image], response)
        except BadSample as bad:
            said = f"{pair}: no prompt can be made: {bad.message}"
            raise RapModelError(f"{said}; {remark}" if remark else said) from bad
        except (*REFUSALS, AttributeError) as error:
            raise RapModelError(
                f"{pair}: no prompt can be made: {first_line(error)}. The model's own "
                "AutoProcessor with a chat template is needed (processor.chat_template)"
            ) from error

    # -- who it is

    def identity(self) -> dict[str, object]:
        """Model and processor for the fingerprint: JSON values, equal in every process.

        ``weights_sha256`` covers name, shape and dtype of every parameter and persistent
        buffer and all its bytes: as they are up to 64 KiB; of larger ones 64 KiB (the
        first and last 16 KiB and 32 KiB of elements evenly spread between them) and two
        exact checksums of each 32 MiB, computed where the tensor lies. One changed
        weight always changes it; it is no protection against forgery. Weights that are
        not in memory (device "meta") count with name, shape and dtype.
        ``processor_sha256`` covers the settings of every part, the chat template and the
        tokenizer (vocabulary, merges, added tokens). Where the model was loaded from is no
        part of it: ``./model`` and ``model`` are one.
        """
        return {
            "class": class_name(self.model),
            "weights_sha256": weights_sha256(self.model),
            "processor": type(self.processor).__name__,
            "processor_sha256": processor_sha256(self.processor),
        }


def _gathered(tensor: Any) -> Any:
    """A tensor of the forward as an ordinary one."""
    values = plain(tensor) if isinstance(tensor, torch.Tensor) else tensor
    if values is None:
        raise UnsupportedModelError(f"its forward gives a {type(tensor).__name__}")
    return values


__all__ = [
    "Head",
    "ModelDescription",
    "ModelDriver",
    "Prepared",
    "Trace",
    "placeholder_texts",
]
