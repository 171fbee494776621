"""Texts and numbers as the page shows them: cut to a length, nothing in them that hides."""

from __future__ import annotations

import math
import re
import unicodedata


def visible(text: object, limit: int) -> str:
    """``text`` cut to ``limit`` characters, with nothing in it that hides.

    Direction overrides, zero-width and control characters become ``[U+202E]``, lone
    surrogates U+FFFD. Cut first: a text of 1 MB costs no more than a short one.
    """
    text = str(text)
    cut = text[:limit]
    shown = _NOT_PLAIN.sub(_visible, cut)
    if len(text) > limit:
        shown += f"\u2026 ({grouped(len(text))} characters)"
    return shown


_NOT_PLAIN = re.compile(r"[^\n\t\x20-\x7e]")


def _visible(found: re.Match[str]) -> str:
    c = found[0]
    category = unicodedata.category(c)
    if category == "Cs":
        return "\ufffd"
    return f"[U+{ord(c):04X}]" if category in ("Cc", "Cf") else c


def grouped(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """8.6 %, with a digit more below 1 %."""
    if share and share < 0.01:
        return f"{share:.2%}".replace("%", "\u202f%")
    return f"{share:.1%}".replace("%", "\u202f%")


def number(value: float | None, digits: int = 3) -> str:
    """Short decimal text; an en dash for "not measured"."""
    if value is None:
        return "\u2013"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    return f"{value:.{digits}g}".replace("-", "\u2212")


GLYPHS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u00a0": "\u237d"}
"""What stands for a white-space token: an empty label would say nothing."""


def token_text(text: str, limit: int) -> str:
    """A token of the model, with glyphs for the white space that it begins and ends with;
    an empty one as a word."""
    if not text:
        return "(empty)"
    bare = text.strip()
    at = len(text) - len(text.lstrip()) if bare else len(text)
    head, tail = text[:at], text[at + len(bare) :]
    return visible(_glyphs(head) + bare + _glyphs(tail), limit)


def _glyphs(space: str) -> str:
    return "".join(GLYPHS.get(c, f"[U+{ord(c):04X}]") for c in space)
