"""The rules of ``choose``, one module each: evidence in, reasons out.

``RULES`` has every name of ``config.RULES``, read from the module of that name here: a new
rule is its name there and one new module with a ``RULE``, which is a ``rule.Rule``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ... import config
from .rule import Ranking, Rule

__all__ = ["RULES", "Ranking", "Rule", "check", "describe"]

RULES: Mapping[str, Rule] = {
    name: import_module(f"{__name__}.{name}").RULE for name in config.RULES
}
"""Name -> rule: ``budget``, ``learn`` and ``paper``."""


def check(choice: config.ChooseConfig, evidence: str) -> None:
    """Raises ``RapConfigError`` for settings that their rule has no use for, or that mean
    nothing for this evidence: before a model runs."""
    RULES[choice.rule].check(choice, evidence)


def describe() -> str:
    """What each rule does, for a help text: "budget: ... paper: ..."."""
    return " ".join(f"{name}: {rule.describe()}" for name, rule in RULES.items())
