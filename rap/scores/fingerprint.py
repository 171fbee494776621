"""What a store was made with, as JSON, and where two of them differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import RapConfigError

_ABSENT = object()

SAID_ONLY = {"model": ("name_or_path", "revision")}
"""Fields of a fingerprint that no score depends on: a model is its weights and processor,
wherever they lie."""

GONE = ("adaptive", "screen_lambda_c")
"""Settings of earlier versions: null in a store of one is as if they were absent."""

_IN_WORDS = {
    "model.weights_sha256": "the model's weights are others",
    "model.processor_sha256": "the processor (tokenizer, chat template, image settings) is "
    "another",
    "dataset": "the data set is another",
}
_HASH = re.compile(r"[0-9a-f]{64}")
_EVIDENCE = re.compile(r'"([a-z]+)" in the store$')


def differences(ours: object, theirs: object, prefix: str = "") -> list[str]:
    """One line a field that differs, e.g. ``config.sampling.temperature: 1.0 here, 0.7
    in the store``. Both are JSON values; a key that one side lacks reads "absent"."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        lines = []
        for key in sorted({*ours, *theirs}):
            name = f"{prefix}.{key}" if prefix else key
            lines += differences(ours.get(key, _ABSENT), theirs.get(key, _ABSENT), name)
        return lines
    # 1 and 1.0 and True are equal in Python, but only the first two mean the same.
    if ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool):
        return []
    return [f"{prefix}: {_show(ours)} here, {_show(theirs)} in the store"]


def other_run(ours: Mapping[str, Any], theirs: Any, prefix: str = "") -> list[str]:
    """``differences``, but for the schema version (a run of an older version may go on,
    since its columns are all here: ``table.filled``) and what is only said of the run:
    ``SAID_ONLY``, and the ``data`` of a store's header."""

    def plain(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        kept = {k: v for k, v in tree.items() if k not in ("schema_version", "data")}
        for name, fields in SAID_ONLY.items():
            if isinstance(part := kept.get(name), Mapping):
                kept[name] = {k: v for k, v in part.items() if k not in fields}
        if isinstance(part := kept.get("config"), Mapping):
            kept["config"] = {
                k: v for k, v in part.items() if k not in GONE or v is not None
            }
        return {k: plain(v) if k == "fingerprint" else v for k, v in kept.items()}

    lines = differences(plain(ours), plain(theirs), prefix)
    names = [line.partition(":")[0].removeprefix("fingerprint.") for line in lines]
    if "config.evidence" not in names:
        return lines
    # settings that one kind of evidence alone has are no news beside another kind
    return [
        line
        for line, name in zip(lines, names, strict=True)
        if not name.startswith("config.cascade")
    ]


def in_words(line: str) -> str:
    """A line of ``differences`` for people: two hashes say nothing to them."""
    line = line.removeprefix("fingerprint.")
    name, _, rest = line.partition(": ")
    if name == "config.cascade":
        return (
            "evidence: cascade scores every sample in one round now, and "
            "in two passes over the pool in the store"
        )
    if name == "config.evidence" and (there := _EVIDENCE.search(rest)):
        return f"{line} (evidence={there[1]!r} goes on with it)"
    if name == "engine":  # one of them has none: the model that scores
        return line.replace("absent", '"transformers"')
    return (
        f"{name}: {_IN_WORDS[name]}" if name in _IN_WORDS and _HASH.search(rest) else line
    )


def _show(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else text[:197] + "..."


def as_json(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples are lists, keys text."""
    try:
        return json.loads(json.dumps(fingerprint, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RapConfigError(f"fingerprint: cannot be written as JSON: {error}") from error
