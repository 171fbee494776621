"""A list that a cell holds as text, in JSON or in Python's spelling."""

from __future__ import annotations

import re
from typing import Any

from .strictjson import strict_json


def list_in_text(text: str) -> Any:
    """A list written as text, in JSON or Python's spelling (``['a', "b"]``)."""
    if not text.strip():
        return None
    try:
        return strict_json(text.encode())
    except ValueError:
        return _python_list(text)


_ITEM = re.compile(
    r"""\s*(?:'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)"|([^\s,'"\[\]]+))\s*(,|$)"""
)


def _python_list(text: str) -> Any:
    """A flat Python list. Not ``ast.literal_eval``: deep nesting can crash it."""
    body = text.strip()
    if not (body.startswith("[") and body.endswith("]")):
        return text
    body, at, items = body[1:-1].strip(), 0, []
    while at < len(body):
        match = _ITEM.match(body, at)
        if match is None:
            return text
        single, double, bare, _ = match.groups()
        quoted = single if single is not None else double
        items.append(bare if quoted is None else re.sub(r"\\(.)", _unescape, quoted))
        at = match.end()
    return items


def _unescape(match: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t"}.get(
        match[1], match[1] if match[1] in "\\'\"" else match[0]
    )
