"""Settings: what is no setting is refused by its name, whatever its type."""

from __future__ import annotations

import json
from types import MappingProxyType

import numpy as np
import pytest

import rap
from rap.config import (
    EVIDENCE,
    AceConfig,
    ChooseConfig,
    EvidenceName,
    Sampling,
    ScoreConfig,
)
from rap.errors import RapConfigError

ODD = [None, True, 5, -1, 10**400, 1.5, float("nan"), "no", b"x", [], {}, {"x": 1}, object]
"""A value of every type that a setting might be given by mistake."""


@pytest.mark.parametrize("kind", [Sampling, AceConfig, ScoreConfig, ChooseConfig])
def test_any_value_is_taken_or_refused_by_name(kind: type) -> None:
    for name in kind.__dataclass_fields__:
        for value in [*ODD, np.array([1, 2])]:
            try:
                kind(**{name: value})
            except RapConfigError as error:
                assert str(error).startswith((f"{name} = ", f"{name}.")), error


@pytest.mark.parametrize(
    ("kind", "given", "name"),
    [
        (ScoreConfig, {"answer_prefix": None}, "answer_prefix"),
        (ScoreConfig, {"prompt_template": None}, "prompt_template"),
        (ScoreConfig, {"prompt_template": 5}, "prompt_template"),
        (ScoreConfig, {"ace": None}, "ace"),
        (ScoreConfig, {"ace": "max"}, "ace"),
        (ScoreConfig, {"ace": {"head": "max"}}, "ace.head"),
        (ScoreConfig, {"ace": {"heads": "most"}}, "heads"),
        (ScoreConfig, {"sampling": 0.7}, "sampling"),
        (ScoreConfig, {"sampling": AceConfig()}, "sampling"),
        (ScoreConfig, {"evidence": ["answer"]}, "evidence"),
        (AceConfig, {"normalise": "no"}, "normalise"),
        (AceConfig, {"sigma": True}, "sigma"),
        (ChooseConfig, {"budget": True}, "budget"),
        (ChooseConfig, {"budget": np.bool_(True)}, "budget"),
        (ChooseConfig, {"budget": "0.1"}, "budget"),
        (ChooseConfig, {"replace": "no"}, "replace"),
        (ChooseConfig, {"replace": 0}, "replace"),
        (ChooseConfig, {"by": 3}, "by"),
        (ChooseConfig, {"lambda_c": False}, "lambda_c"),
    ],
)
def test_wrong_types_are_refused(kind: type, given: dict, name: str) -> None:
    with pytest.raises(RapConfigError, match=f"^{name}"):
        kind(**given)


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_settings_are_read_back_from_a_fingerprint(evidence: EvidenceName) -> None:
    """Of the cascade, too, whose fingerprint also names its form; an older version's has a
    setting that went."""
    config = ScoreConfig(evidence=evidence, m1=3, sampling={"max_new_tokens": 9})
    told = json.loads(json.dumps(config.fingerprint())) | {"adaptive": None}
    assert ScoreConfig.of_fingerprint(told) == config


def test_what_scoring_would_never_use_is_refused() -> None:
    for given, word in (
        ({"reward": len, "evidence": "logits"}, "reward: evidence 'logits' grades no"),
        ({"reward": len, "evidence": "answer"}, "reward: evidence 'answer'"),
        ({"config": {"m1": 3}}, "config = .*expected a rap.ScoreConfig"),
    ):
        with pytest.raises(RapConfigError, match=word):
            rap.score(None, None, [], **given)


def test_the_paper_s_threshold_needs_accuracies() -> None:
    """Before anything is scored: there is no model here to score with."""
    with pytest.raises(RapConfigError, match="needs an explicit lambda_c"):
        rap.select(None, None, [], rule="paper", evidence="logits")
    logits = {"evidence": "logits", "lambda_c": 0.1}
    for given in ({"evidence": "rollouts"}, {"evidence": "cascade"}, logits):
        with pytest.raises(rap.RapError, match="empty"):
            rap.select(None, None, [], rule="paper", **given)


def test_parts_may_be_mappings() -> None:
    config = ScoreConfig(
        ace={"heads": "max", "sigma": 3},
        sampling=MappingProxyType({"temperature": 0.7, "max_new_tokens": 9}),
    )
    assert config == ScoreConfig(
        ace=AceConfig(heads="max", sigma=3),
        sampling=Sampling(temperature=0.7, max_new_tokens=9),
    )


def test_numpy_numbers_are_numbers() -> None:
    config = ScoreConfig(
        seed=np.int64(3),
        m1=np.int16(4),
        max_bad_fraction=np.float32(0.3),
        ace={"renormalise": np.bool_(True)},
    )
    assert config == ScoreConfig(
        seed=3, m1=4, max_bad_fraction=0.3, ace=AceConfig(renormalise=True)
    )
    json.dumps(config.fingerprint())
    choice = ChooseConfig(budget=np.float32(0.29), lambda_a=np.float64(0.1))
    assert (choice.budget, choice.lambda_a) == (0.29, 0.1)
    assert type(choice.budget) is type(choice.lambda_a) is float
