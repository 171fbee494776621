"""What counts as right when scoring is what the exported reward counts.

``data/answer_forms.jsonl``: completion, reference, verdict, and why; wording of our own.
The same pairs go through the checker that scores and through every reward that training
can be given: the files that `rap export` writes, and ``rap.trl.builtin_reward``.
"""

from __future__ import annotations

import itertools
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_export import PNG, everything

from rap.rewards import grade, make_checker
from rap.rewards.exported import packed, unpacked
from rap.samples import Sample
from rap.trl.rewards import builtin_reward

DATA = Path(__file__).parent / "data"
END = 2
"""Id of the token that ends a turn in the tests' completions."""


def read(name: str) -> list[dict[str, Any]]:
    return list(map(json.loads, (DATA / name).read_text(encoding="utf-8").splitlines()))


FORMS = read("answer_forms.jsonl")
PAIRS = FORMS + read("grading_pairs.jsonl")


@pytest.fixture(autouse=True)
def mathematics() -> None:
    pytest.importorskip("math_verify")


def verdicts(pair: dict[str, Any]) -> bool:
    return grade(
        pair["reference"],
        tuple(pair["choices"]),
        pair["response"],
        finished=pair.get("finished", True),
    )


def test_forms_of_answers_that_are_right_and_wrong():
    wrong = [pair for pair in FORMS if verdicts(pair) is not pair["right"]]
    assert len(FORMS) >= 500 and all(pair["why"] for pair in FORMS)
    assert 0.3 < sum(pair["right"] for pair in FORMS) / len(FORMS) < 0.7
    assert wrong == []


# ------------------------------------------------------------- the rewards of training

REFERENCES = list(dict.fromkeys((p["reference"], tuple(p["choices"])) for p in PAIRS))
ROW = {reference: row for row, reference in enumerate(REFERENCES)}
Reward = Callable[[dict[str, Any], str, bool], float]
"""(row of the exported file, completion, whether it was finished) -> its reward."""


def module(folder: Path) -> types.ModuleType:
    made = types.ModuleType("rap_reward")
    exec((folder / "rap_reward.py").read_text(encoding="utf-8"), made.__dict__)
    return made


def trl_reward(folder: Path) -> Reward:
    reward = builtin_reward(end_tokens=[END])

    def call(row: dict[str, Any], text: str, finished: bool) -> float:
        (found,) = reward(
            prompts=[row["prompt"]],
            completions=[[{"role": "assistant", "content": text}]],
            completion_ids=[[7, END] if finished else [7]],
            solution=[row["solution"]],
            choices=[row["choices"]],
        )
        return 0.0 if found is None else found

    return call


def verl_reward(folder: Path) -> Reward:
    score = module(folder).compute_score

    def call(row: dict[str, Any], text: str, finished: bool) -> float:
        truth = row["reward_model"]["ground_truth"]
        return score(row["data_source"], text, truth, extra_info=row["extra_info"])

    return call


def easyr1_reward(folder: Path) -> Reward:
    score = partial(module(folder).compute_score, max_response_length=100)

    def call(row: dict[str, Any], text: str, finished: bool) -> float:
        one = {"response": text, "ground_truth": row["rap_truth"]}
        one["response_length"] = 99 if finished else 100
        (found,) = score([one])
        assert found == score(one) and found["overall"] == found["accuracy"]
        return found["overall"]

    return call


def openrlhf_reward(folder: Path) -> Reward:
    pytest.importorskip("torch")
    reward = module(folder).reward_func

    def call(row: dict[str, Any], text: str, finished: bool) -> float:
        query = row["prompt"] + text + "</s>"
        return reward([query], [row["prompt"]], [row["rap_truth"]])["rewards"].item()

    return call


def swift_reward(folder: Path) -> Reward:
    stand_in: Any = types.ModuleType("swift.rewards")
    stand_in.ORM, stand_in.orms = object, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "swift", types.ModuleType("swift"))
        patch.setitem(sys.modules, "swift.rewards", stand_in)
        module(folder)
    reward = stand_in.orms["rap"]()

    def call(row: dict[str, Any], text: str, finished: bool) -> float:
        columns = {name: [value] for name, value in row.items()}
        reason = ["stop" if finished else "length"]
        (found,) = reward([text], finish_reason=reason, **columns)
        assert reward([text], is_truncated=[not finished], **columns) == [found]
        return found

    return call


REWARDS = {
    "trl": trl_reward,
    "verl": verl_reward,
    "easyr1": easyr1_reward,
    "openrlhf": openrlhf_reward,
    "ms-swift": swift_reward,
}
NOT_TOLD = ("verl", "openrlhf")
"""Trainers that do not tell their reward which completions were cut off."""


@pytest.fixture(scope="module")
def selection():
    rows = [
        {
            "id": str(k),
            "question": "How many?",
            "image": PNG,
            "answer": answer,
            "choices": list(choices) or None,
        }
        for k, (answer, choices) in enumerate(REFERENCES)
    ]
    return everything(rows)


@pytest.fixture(scope="module")
def scored() -> list[bool]:
    """What scoring counts, pair by pair: the checker in its own process."""
    with make_checker() as checker:
        return [
            checker.check(
                Sample(0, "", "", p["reference"], tuple(p["choices"]), (), None, {}),
                p["response"],
                finished=p.get("finished", True),
            ).correct
            is True
            for p in PAIRS
        ]


@pytest.mark.parametrize("lettered", [True, False], ids=["letters", "texts"])
@pytest.mark.parametrize("target", REWARDS)
def test_every_exported_reward_counts_what_scoring_counts(
    selection, scored, tmp_path, target, lettered
):
    """``lettered``: the prompt lists the choices by letter, so the answer is a letter."""
    template = None if lettered else "{question}"
    found = selection.export(target, tmp_path / "out", prompt_template=template)
    if (found.folder / "train.parquet").exists():
        rows = pq.read_table(found.folder / "train.parquet").to_pylist()
    else:
        text = (found.folder / "train.jsonl").read_text(encoding="utf-8")
        rows = list(map(json.loads, text.splitlines()))
    assert len(rows) == len(REFERENCES)
    reward = REWARDS[target](found.folder)
    other = []
    for pair, right in zip(PAIRS, scored, strict=True):
        finished = pair.get("finished", True)
        if not finished and target in NOT_TOLD:
            continue
        row = rows[ROW[pair["reference"], tuple(pair["choices"])]]
        if (reward(row, pair["response"], finished) == 1.0) is not right:
            other.append(pair)
    assert other == []


def test_scoring_counts_what_the_tables_say(scored):
    assert scored == [pair["right"] for pair in PAIRS]


def test_a_packed_answer_is_unpacked_and_any_other_text_stays():
    for answer, choices in itertools.product(('a "b"', "2"), ((), ("x", "y"))):
        assert unpacked(packed(answer, choices)) == (answer, choices)
    for text in ("B", "3", "[1, 2]", '{"a": 1}', ""):
        assert unpacked(text) == (text, ())
