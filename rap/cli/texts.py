"""What the texts of options mean: pairs, column maps, filters, JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click


def pair(text: str, option: str) -> tuple[str, str]:
    """``NAME=VALUE`` in two; a usage error that names ``option`` for anything else."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text!r}: expected NAME=VALUE")
    return name.strip(), value


def to_columns(values: Sequence[str], option: str = "--columns") -> dict[str, str] | None:
    """``question=problem,answer=solution`` as a dict; None for nothing given."""
    parts = [part for value in values for part in value.split(",") if part]
    return dict(pair(part, option) for part in parts) or None


def json_value(text: str) -> Any:
    """A JSON value where it is one, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def filters(values: Sequence[str], option: str) -> dict[str, list[Any]] | None:
    """``augment=none`` several times -> {"augment": ["none", ...]}; ``null`` is null."""
    found: dict[str, list[Any]] = {}
    for value in values:
        name, text = pair(value, option)
        found.setdefault(name, []).append(text)
    return found or None


def typed(
    filters: Mapping[str, list[Any]] | None, types: Mapping[str, Any]
) -> dict[str, list[Any]] | None:
    """Filter texts as the column's own type: 5 is a number only in a number column."""
    import pyarrow as pa

    def value(name: str, text: str) -> Any:
        if text == "null":
            return None
        kind = types.get(name)
        textual = kind is None or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return text if textual else json_value(text)

    if filters is None:
        return None
    return {name: [value(name, t) for t in texts] for name, texts in filters.items()}
