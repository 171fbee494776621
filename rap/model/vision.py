"""Images encoded once: features of a sample's images, kept for all of its forwards.

``encode`` runs the model's own ``get_image_features`` on the images that have no features
yet, all in one call, and splits what it gives sample by sample; ``joined`` puts them
together again for a batch, in the form that the model's forward takes as
``mm_encoder_outputs``. What cannot be split is encoded one sample at a time. A model whose
features do not fit its image tokens is not served here (`NotOnce`): its forwards encode
their own images, as they would anyway.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .batching import Prepared, Shared, collate_images
from .kept import Features
from .weights import input_device, input_dtype, is_fsdp2

if TYPE_CHECKING:
    from .counts import Counts

_DEEP = "deepstack_features"
"""Field of what Qwen3-VL's tower gives for each of the decoder's first layers."""


class NotOnce(ValueError):
    """Why features cannot be kept for this model."""


def why_not(model: Any) -> str:
    """Why images are encoded in every forward; "" if once is enough."""
    if is_fsdp2(model):
        return "its weights are gathered by FSDP2 in its own forward only"
    if not callable(getattr(model.base_model, "get_image_features", None)):
        return "it has no get_image_features"
    return ""


def takes_features(model: Any) -> bool:
    """Whether the forward takes what the tower gave (transformers 5.23 does,
    5.17 does not)."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


@contextmanager
def given(model: Any, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs for one forward, features among them in the form that the model takes: as an
    argument, or as what its ``get_image_features`` gives in there."""
    inputs = dict(inputs)
    if "mm_encoder_outputs" not in inputs or takes_features(model):
        yield inputs
        return
    features, base = inputs.pop("mm_encoder_outputs")["image"], model.base_model
    # There must be pixels for features to be asked for; nothing reads them.
    inputs["pixel_values"] = inputs["input_ids"].new_zeros(1, dtype=input_dtype(model))
    base.get_image_features = lambda *args, **options: features
    try:
        yield inputs
    finally:
        del base.get_image_features


def encode(model: Any, batch: Sequence[Prepared], counts: Counts) -> None:
    """Fill in ``shared.features`` of those that hold images and have none yet.

    Raises `NotOnce` if what comes out does not fit the image tokens.
    """
    todo: dict[int, Prepared] = {}
    for prepared in batch:
        if prepared.shared.n_images and prepared.shared.features is None:
            todo.setdefault(id(prepared.shared), prepared)
    if not todo:
        return
    found = _encoded(model, list(todo.values()))
    for prepared, features in zip(todo.values(), found, strict=True):
        n = int(prepared.image_mask.sum())
        if features.tokens != n:
            raise NotOnce(f"{features.tokens} features for {n} image tokens")
        prepared.shared.features, prepared.shared.sent = features, None
        counts.images_encoded += prepared.shared.n_images


def features(model: Any, prepared: Prepared) -> list[torch.Tensor]:
    """All features of the images of one sample, computed anew. Raises `NotOnce`."""
    (found,) = _encoded(model, [prepared])
    return [*found.parts, *(part for layer in found.deep for part in layer)]


def joined(shared: Sequence[Shared]) -> dict[str, Any]:
    """``mm_encoder_outputs`` of a batch; {} if it holds no images."""
    found = [s.features for s in shared if s.features is not None]
    if not found:
        return {}
    parts = [part for features in found for part in features.parts]
    fields: dict[str, Any] = {
        "pooler_output": parts if found[0].stacked else torch.cat(parts)
    }
    if found[0].deep:
        fields[_DEEP] = [
            [part for layer in layers for part in layer]
            for layers in zip(*(features.deep for features in found), strict=True)
        ]
        if not found[0].split:
            fields[_DEEP] = [torch.cat(layer) for layer in fields[_DEEP]]
    return {"image": _output(found[0].kind, fields)}


def _output(kind: type, fields: Mapping[str, Any]) -> Any:
    """What ``get_image_features`` gives. Older models set an attribute that the class of
    their output has no field for (SmolVLM's in transformers 5.0)."""
    known = {field.name for field in dataclasses.fields(kind)}
    output = kind(**{name: fields[name] for name in known & fields.keys()})
    for name in fields.keys() - known:
        setattr(output, name, fields[name])
    return output


def _encoded(model: Any, batch: Sequence[Prepared]) -> list[Features]:
    output = _call(model, batch)
    units = [_units(prepared) for prepared in batch]
    pooled = output.pooler_output
    if len(batch) > 1 and (None in units or len(pooled) != sum(u or 0 for u in units)):
        return [_encoded(model, [prepared])[0] for prepared in batch]
    stacked = not isinstance(pooled, torch.Tensor)
    layers = getattr(output, _DEEP, None) or ()
    split = not (layers and isinstance(layers[0], torch.Tensor))
    if not split:
        tokens = [len(part) for part in pooled]
        layers = [torch.split(layer, tokens) for layer in layers]
    if any(len(layer) != len(pooled) for layer in layers):
        raise NotOnce(f"its {_DEEP} are not split by image")
    sizes = [len(pooled)] if len(batch) == 1 else [u or 0 for u in units]
    found, start = [], 0
    for size in sizes:
        span = slice(start, start + size)
        deep = tuple(tuple(layer[span]) for layer in layers)
        parts = tuple(pooled[span]) if stacked else (pooled[span],)
        found.append(Features(type(output), parts, stacked, deep, split))
        start += size
    return found


def _units(prepared: Prepared) -> int | None:
    """Into how many entries the images of one sample are encoded."""
    for name in ("image_grid_thw", "image_sizes", "pixel_values"):
        if name in prepared.inputs:
            return len(prepared.inputs[name])
    return None


def _call(model: Any, batch: Sequence[Prepared]) -> Any:
    function = model.base_model.get_image_features
    device, dtype = input_device(model), input_dtype(model)
    taken = inspect.signature(function).parameters
    images = {
        name: x.to(device, dtype if x.is_floating_point() else None)
        for name, x in collate_images(batch).items()
        if name in taken
    }
    output = function(**images, return_dict=True)
    if getattr(output, "pooler_output", None) is None:
        raise NotOnce("its get_image_features gives no pooler_output")
    return output
