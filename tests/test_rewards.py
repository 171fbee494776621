"""rap.rewards: right, wrong, and neither."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rap.errors import RapConfigError
from rap.rewards import grading
from rap.rewards.checker import Verdict, callable_name, make_checker
from rap.rewards.grading import final_answer, grade, named_choice, quantity
from rap.rewards.patience import Limit
from rap.samples.sample import Sample

RIGHT, WRONG = Verdict(True), Verdict(False)


def sample(answer: str = "3", choices: tuple[str, ...] = (), **extra: object) -> Sample:
    return Sample(0, "id", "How many?", answer, choices, (), None, extra)


@pytest.fixture(scope="module")
def builtin():
    with make_checker(timeout=20) as checker:
        yield checker


# ----------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("text", "answer", "marked"),
    [
        ("so \\boxed{1} or \\boxed{\\frac{1}{2}}.", "1, \\frac{1}{2}", True),
        ("<think>\\boxed{1}</think> It is 2", "It is 2", False),
        ("x <answer> 3 </answer> y", "3", True),
        ("<answer>It is \\boxed{3}</answer>", "3", True),
        ("a\n#### 1,250\n", "1,250", True),
        ("The answer is 4. Wait, the answer is 5. Done.", "5", True),
        ("**Answer:** B", "B", True),
        ("Answer: B. 12 cm", "B. 12 cm", True),
        ("The answer is 3.14. It is pi.", "3.14", True),
        ("The answer is:\n\n7", "7", True),
        ("答案是:D", "D", True),
        ("the correct option is (C)", "(C)", True),
        ("The answer is 5. That option is not there.", "5", True),
        ('The correct answer is "soup." Soup has few.', '"soup', True),
        ("A is the correct option. It is green.", "A", True),
        ("There are **2 left**.\n\nI hope this helps!", "2 left", True),
        ("There are 2 left.\n\nI hope this helps!", "There are 2 left.", False),
        ("There are **4** bars above 10.", "4", True),
        ("**3** or **4**", "3 or 4", False),
        ("one\ntwo\n\n", "two", False),
        ("7</s>", "7", False),
        ("7<|im_end|>", "7", False),
        ("\\boxed{1", "\\boxed{1", False),
        ("", "", False),
        (" \n ", "", False),
    ],
)
def test_final_answer(text, answer, marked):
    assert final_answer(text) == (answer, marked)


CM = ("12 cm", "13 cm", "14 cm", "15 cm")


@pytest.mark.parametrize(
    ("final", "choices", "index"),
    [
        ("B", CM, 1),
        ("(b)", CM, 1),
        ("B.", CM, 1),
        ("B。", CM, 1),
        ("(B) 13 cm", CM, 1),
        ("B. 13 cm", CM, 1),
        ("B: 13 cm", CM, 1),
        ("Option B", CM, 1),
        ("B (13 cm)", CM, 1),
        ("a (large) thing", CM, None),
        ('"soup', ("soup", "water"), 0),
        ("option (B)", CM, 1),
        ("13 cm", CM, 1),
        ("13", CM, 1),
        ("13\\,\\text{cm}", CM, 1),
        ("\\text{(B)} 13", CM, 1),
        ("13 m", CM, None),
        ("16 cm", CM, None),
        ("E", CM, None),
        ("A or B", CM, None),
        ("either (A) or (B)", CM, None),
        ("(A), (B) and (C)", CM, None),
        ("A, b, c", ("A", "B", "C"), None),
        ("(B) both (A) and (C)", ("x", "both (A) and (C)", "y"), 1),
        ("\\frac{a+b}{2}", ("$a-b$", "$a+b$"), None),
        ("\\frac{16}{2}", ("16", "18"), None),
        ("it is 16.5 or so", ("16", "18"), None),
        ("it is -16", ("16", "18"), None),
        ("it is 16.", ("16", "18"), 0),
        ("it is dark red", ("red", "dark red"), 1),
        ("red and dark red", ("red", "blue"), 0),
        ("redder", ("red", "blue"), None),
        ("No, yes would be wrong", ("Yes", "No"), 1),
        ("I cannot say a thing", ("A", "B"), None),
        ("1:45 P.M", ("1:45 P.M.", "1:30 P.M."), 0),
        ("0.5", ("$\\frac{1}{2}$", "$\\frac{1}{3}$"), 0),
        ("2√3", ("√{3}", "2√{3}"), 1),
        ("(x+1)^2", ("$x^2+2x+1$", "$x^2+1$"), 0),
    ],
)
def test_named_choice(final, choices, index):
    pytest.importorskip("math_verify")
    assert named_choice(final, choices) == index


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("1250", "The answer is 1,250.", True),
        ("1,250", "1250", True),
        ("6 cm", "6cm", True),
        ("6 cm", "\\boxed{6}", True),
        ("6 cm", "6 km", False),
        ("6", "There are 6 of them.", True),
        ("6", "Of the 7 there are 6", True),
        ("6", "There are 60", False),
        ("6", "16", False),
        ("1/2", "0.5", True),
        ("$\\frac{1}{2}$", "1/2", True),
        ("$\\sqrt{41}$", "\\boxed{\\sqrt{41}}", True),
        ("$\\sqrt{41}$", "\\boxed{6.4}", False),
        ("x^2+2x+1", "\\boxed{(x+1)^2}", True),
        ("-5", "\\boxed{-5}", True),
        ("-5", "\\boxed{5}", False),
        ("$5", "5 dollars", True),
        ("50%", "50", True),
        ("50%", "51%", False),
        ("50", "\\boxed{50\\sqrt{3}}", False),
        ("100", "\\boxed{100\\pi}", False),
        ("5", "\\boxed{5x}", False),
        ("5", "\\boxed{5 \\text{ cm}^2}", True),
        ("7", "so 3 + 4 = 7", True),
        ("<answer> 3 </answer>", "\\boxed{3}", True),
        ("long way ... #### 72", "\\boxed{72}", True),
        ("(1,2)", "(1, 2)", True),
        ("3:4", "4:3", False),
        ("Paris", "The answer is paris.", True),
        ("Paris", "The answer is Rome.", False),
        ("3", "", False),
        ("3", "I do not know.", False),
        ("3", "1" * 5000, False),
    ],
)
def test_open_answers(answer, text, right):
    pytest.importorskip("math_verify")
    assert grade(answer, (), text) is right


def test_choices_by_letter_and_by_text_are_one():
    for answer in ("B", "13 cm"):
        assert grade(answer, CM, "(B)")
        assert grade(answer, CM, "The answer is 13 cm.")
        assert not grade(answer, CM, "Answer: C")
    # choices that say the same are both right
    assert grade("A", ("4", "4", "5"), "B")


def test_a_box_that_names_no_choice_is_not_the_answer():
    text = "The area is $\\boxed{40 \\mathrm{~m}^2}$.\n\nTherefore, the answer is (C)."
    assert grade("C", CM, text)


def test_unmarked_choice_in_the_first_line_and_lists():
    assert grade("B", CM, "B. 13 cm\n\nOne sees this from the drawing.")
    assert not grade("D", CM, "(A) 12 cm\n(B) 13 cm\n(C) 14 cm\n(D) 15 cm")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250", (1250.0, "")),
        ("12,50", None),
        ("6 cm", (6.0, "cm")),
        ("6\\mathrm{cm}", None),
        ("$5", (5.0, "dollar")),
        ("3/4", (0.75, "")),
        ("45°", (45.0, "degree")),
        ("45^\\circ", (45.0, "degree")),
        ("24 cm^2", (24.0, "cm2")),
        ("24 cm²", (24.0, "cm2")),
        ("1/0", None),
        ("x", None),
        ("2 or 3", None),
        ("", None),
    ],
)
def test_quantity(text, value):
    got = quantity(text)
    if text.startswith("1/0"):
        assert got is None or got[0] != math.inf
    else:
        assert got == value


def test_without_math_verify(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert grade("B", CM, "(B)")
    assert grade("1,250", (), "1250")
    assert grade("Paris", (), "paris")
    assert not grade("x^2+2x+1", (), "\\boxed{(x+1)^2}")

    def nothing(name: str) -> str:
        raise grading.PackageNotFoundError(name)

    monkeypatch.setattr(grading, "version", nothing)
    assert "without math-verify" in grading.name()


# ------------------------------------------------- the built-in checker, in its process


def test_builtin_name_has_the_versions(builtin):
    assert re.fullmatch(r"builtin/\d+\+math-verify-[\d.]+", builtin.name)


def test_builtin_checks(builtin):
    assert builtin.check(sample("1/2"), "\\boxed{0.5}") == RIGHT
    assert builtin.check(sample("1/2"), "\\boxed{0.6}") == WRONG
    assert builtin.check(sample("1/2"), "") == WRONG
    assert builtin.check(sample("B", CM), "(B)") == RIGHT
    assert builtin.check(sample("1/2"), "\ud800 \0 0.5") in (RIGHT, WRONG)


def test_builtin_answer_that_is_no_choice_is_an_error(builtin):
    verdict = builtin.check(sample("z", CM), "(B)")
    assert (verdict.correct, verdict.code) == (None, "verifier_error")
    assert "not among the choices" in verdict.message


def test_builtin_is_cheap(builtin):
    """One round trip to the process, measured about 0.1 ms; 20 times that is allowed, of
    this process's time: what the machine does beside it is not counted."""
    builtin.check(sample("3"), "3")
    begin = time.process_time()
    for k in range(500):
        builtin.check(sample("3"), f"{k}.0")
    assert (time.process_time() - begin) / 500 < 2e-3


@pytest.fixture(scope="module")
def impatient():
    with make_checker(timeout=1.5) as checker:
        yield checker


# sympy evaluates the tower for ever, in C, where no signal handler runs
TOWER = "\\boxed{9^{9^{9^{9}}}}"


def test_fault_26_builtin_hang_is_killed_and_the_next_check_is_right(
    impatient, monkeypatch
):
    assert impatient.check(sample("1/2"), "0.5") == RIGHT
    begin = time.monotonic()
    verdict = impatient.check(sample("\\sqrt{2}"), TOWER)
    assert verdict == Verdict(None, "verifier_timeout", "no verdict within 1.5 s")
    assert time.monotonic() - begin < 60
    assert impatient.check(sample("1/2"), "\\boxed{\\frac{2}{4}}") == RIGHT
    monkeypatch.setattr(impatient, "_runner", None)
    assert impatient.check(sample("\\sqrt{2}"), TOWER) == verdict  # kept, not run again


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "\\boxed{" * 20_000, "$" * 50_000, "answer is " * 30_000, "a " * 100_000],
)
def test_fault_26_hostile_text_gets_a_verdict(impatient, text):
    begin = time.monotonic()
    verdict = impatient.check(sample("\\sqrt{2}"), text)
    assert verdict.correct is False or verdict.code == "verifier_timeout"
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    "text",
    [
        "A " + " " * 100_000 + "x",
        "A: wrong. " * 10_000,
        "A:" + " " * 100_000 + "B:" + " " * 100_000,
        "B" + "\u662f" * 100_000,
        "(A)" * 30_000,
        "3,5 " * 30_000,
        "1.111" * 20_000,
        "Blue? No. " * 10_000,
        "I don't think " * 10_000,
        "maybe 7, " * 10_000,
        "it is not A, " * 10_000,
        "not red, but " * 10_000,
        "cat, " * 20_000,
        "\n" * 100_000 + "a?",
    ],
)
def test_fault_26_judgements_and_commas_are_read_in_linear_time(impatient, text):
    """Of processor time, which no other process takes part in; a square is minutes."""
    for answer in ("B", "3.5 (3,5)", "cat", "yes"):
        begin = time.process_time()
        assert grading.grade(answer, (), text) in (True, False)
        assert time.process_time() - begin < 60


# ---------------------------------------------------------------------- reward functions

MODULE = textwrap.dedent(
    """
    import os, re, sys, time

    def right(prompts, completions, answer, **kwargs):
        return [float(c[0]["content"] == a) for c, a in zip(completions, answer)]

    def everything(**kwargs):
        kwargs["log_extra"]("x", [1])
        kwargs["log_metric"]("x", 1.0)
        del kwargs["log_extra"], kwargs["log_metric"]
        raise ValueError(repr(sorted(kwargs.items())))

    def works(completions, **kwargs):
        begin = time.process_time()
        while time.process_time() - begin < 1:
            pass
        return [1.0]

    def value(v, **kwargs):
        return v[0]

    def raises(**kwargs):
        raise RuntimeError("broken \\ud800 checker")

    def leaves(**kwargs):
        sys.exit(3)

    def dies(**kwargs):
        os._exit(7)

    def sleeps(**kwargs):
        time.sleep(60)

    def regex(completions, **kwargs):
        return [bool(re.fullmatch("(a+)+", completions[0][0]["content"]))]

    def prints(**kwargs):
        print("x" * 100_000)
        sys.stdout.flush()
        os.write(1, b"\\\\x00" * 8)
        return [1.0]

    async def awaited(**kwargs):
        return [1.0]

    class Reward:
        def __init__(self, value):
            self.value = value
        def __call__(self, **kwargs):
            return [self.value]

    def strict(prompts, completions):
        return [1.0]

    def play(environments, **kwargs):
        return [1.0]
    """
)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """A user's module of reward functions, importable by name."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user_rewards.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import user_rewards

    yield user_rewards
    sys.path.remove(str(folder))
    del sys.modules["user_rewards"]


def sample_with(extra: dict[str, object]) -> Sample:
    return Sample(0, "id", "How many?", "3", (), (), None, extra)


@pytest.fixture(scope="module")
def value_checker(rewards):
    """Of a function that returns what column v holds."""
    with make_checker(rewards.value, timeout=20) as checker:
        yield checker


def check(reward: object, text: str = "3") -> Verdict:
    with make_checker(reward, timeout=20) as checker:
        return checker.check(sample_with({"answer": "3"}), text)


@pytest.mark.parametrize(
    ("answer", "choices", "text", "right"),
    [
        ("B", ("4", "12"), "I count them.\nB", False),  # a last line nobody marked
        ("B", ("4", "12"), "I count them.\n(B) 12\n", False),
        ("B", ("4", "12"), "I count them.\nThe answer is (B). And", True),
        ("B", ("4", "12"), "The answer is (B) or maybe", False),  # a sentence begun
        ("12", (), "I count them.\n12", False),
        ("12", (), "I count them.\n12\n", False),
        ("12", (), "12", False),
        ("12", (), "So \\boxed{12} is", True),
        ("12", (), "So \\boxed{1", False),
    ],
)
def test_cut_off_responses_count_only_what_they_marked(answer, choices, text, right):
    assert grade(answer, choices, text, finished=False) is right
    if not right and "boxed" not in text and "maybe" not in text:
        assert grade(answer, choices, text) is True


def test_of_several_hashes_the_last_count():
    assert final_answer("#### 4\nNo: 2 + 3.\n#### 5\nThat is it.") == ("5", True)
    assert grade("5", (), "#### 4\nNo: 2 + 3.\n#### 5") is True
    assert grade("4", (), "#### 4\nNo: 2 + 3.\n#### 5") is False


def test_reward_function(rewards):
    with make_checker(rewards.right, timeout=20) as checker:
        row = sample_with({"answer": "3"})
        assert checker.check(row, "3") == RIGHT
        assert checker.check(row, "4") == WRONG
        assert re.fullmatch(r"user_rewards:right@[0-9a-f]{12}", checker.name)


def test_reward_function_is_called_as_trl_does(rewards):
    """Against the trainer's own code: _calculate_rewards of TRL's GRPOTrainer."""
    prompt = [{"role": "user", "content": "How many?"}]
    answer = [{"role": "assistant", "content": "3"}]
    row = {"prompt": prompt, "solution": "3", "level": 2}
    with make_checker(rewards.everything, timeout=20) as checker:
        verdict = checker.check(sample_with(row), "3", token_ids=[5, 6])
    assert verdict.code == "verifier_error"

    trainer_module = pytest.importorskip("trl.trainer.grpo_trainer")
    from types import SimpleNamespace

    seen = {}

    def reward(**kwargs: object) -> list[float]:
        seen.update(kwargs)
        return [1.0]

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False),
        reward_funcs=[reward],
        reward_processing_classes=[None],
        reward_func_names=["reward"],
        environments=None,
        state=SimpleNamespace(global_step=0),
        _log_completion_extra=None,
        _log_metric=None,
        args=SimpleNamespace(report_to=[]),
        model=SimpleNamespace(training=True),
    )
    calculate = trainer_module.GRPOTrainer._calculate_rewards
    calculate = getattr(calculate, "__wrapped__", calculate)
    # what comes after the call (gathering over processes) needs a real trainer
    with contextlib.suppress(AttributeError, TypeError, RuntimeError):
        calculate(trainer, [row], [prompt], [answer], [[5, 6]])
    assert seen, "TRL did not call the function"
    del seen["log_extra"], seen["log_metric"]
    seen["trainer_state"] = None  # there is no trainer when rap calls
    assert verdict.message == f"ValueError: {sorted(seen.items())!r}"[:500]


@pytest.mark.parametrize(
    ("extra", "prompt", "completion"),
    [
        ({}, [{"role": "user", "content": "How many?"}], [{"role": "assistant"}]),
        ({"prompt": None}, [{"role": "user", "content": "How many?"}], [{}]),
        ({"prompt": "plain"}, "plain", "text"),
        ({"prompt": [{"role": "user", "content": "x"}]}, [{"content": "x"}], [{}]),
    ],
)
def test_conversational_or_plain(extra, prompt, completion):
    seen = {}

    def reward(**kwargs: object) -> list[float]:
        seen.update(kwargs)
        return [1.0]

    with make_checker(reward, timeout=20) as checker:
        assert checker.check(sample_with(extra), "text") == RIGHT
    if isinstance(prompt, str):
        assert seen["prompts"] == [prompt] and seen["completions"] == [completion]
    else:
        assert seen["prompts"][0][0]["content"] == prompt[0]["content"]
        assert seen["completions"] == [[{"role": "assistant", "content": "text"}]]


def test_trl_accuracy_reward():
    accuracy_reward = pytest.importorskip("trl.rewards").accuracy_reward
    with make_checker(accuracy_reward, timeout=30) as checker:
        assert checker.check(sample_with({"solution": "$3$"}), "\\boxed{3}") == RIGHT
        assert checker.check(sample_with({"solution": "$3$"}), "\\boxed{4}") == WRONG
        none = checker.check(sample_with({"solution": "no formula"}), "\\boxed{4}")
        assert (none.correct, none.code) == (None, "verifier_error")


@pytest.mark.parametrize(
    ("value", "correct"),
    [
        ([1.0], True),
        ([0.5], True),
        ([0.49], False),
        ([True], True),
        ([-3], False),
        ([None], None),
        ([float("nan")], None),
        ([float("inf")], None),
        ([], None),
        ([1.0, 1.0], None),
        (1.0, None),
        (None, None),
        (["x"], None),
    ],
)
def test_fault_26_returned_values(value_checker, value, correct):
    verdict = value_checker.check(sample_with({"v": value}), "3")
    assert verdict.correct is correct
    assert verdict.code == (None if correct is not None else "verifier_error")
    assert (verdict.message is None) == (correct is not None)


def test_fault_26_checker_that_raises_leaves_or_dies(rewards):
    for reward, message in [
        (rewards.raises, "RuntimeError: broken ? checker"),
        (rewards.leaves, "SystemExit: 3"),
        (rewards.dies, "the checking process died (status 7)"),
    ]:
        with make_checker(reward, timeout=20) as checker:
            for _ in range(2):  # and is there again for the next
                verdict = checker.check(sample(), "3")
                assert verdict == Verdict(None, "verifier_error", message)


def test_fault_26_checker_that_hangs(rewards):
    for reward in (rewards.sleeps, rewards.regex):
        with make_checker(reward, timeout=1) as checker:
            begin = time.monotonic()
            verdict = checker.check(sample(), "a" * 40 + "b")  # re holds the interpreter
            assert verdict.code == "verifier_timeout"
            assert time.monotonic() - begin < 60
    with make_checker(rewards.regex, timeout=1) as checker:
        assert checker.check(sample(), "a" * 40 + "b").code == "verifier_timeout"
        assert checker.check(sample(), "aaa") == RIGHT


BUSY = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("busy", flush=True)
while os.getppid() == int(sys.argv[2]):
    sum(range(10_000))
"""


@pytest.fixture
def one_busy_processor():
    """A processor that four others compute on all the time, and its number."""
    number = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", BUSY, str(number), str(os.getpid())]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    for other in others:
        assert other.stdout.readline() == b"busy\n"
    yield number
    for other in others:
        other.kill()
        other.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity, schedstat")
@pytest.mark.proof
def test_fault_53_a_busy_machine_changes_no_verdict(rewards, one_busy_processor):
    """A second of work takes two to five there (two where a scheduler shares by session),
    and the limit is 1.5: what the check waits for the processor is not counted. One that
    hangs is still ended."""
    with make_checker(rewards.works, timeout=1.5) as checker:
        os.sched_setaffinity(checker._runner._child[-1].pid, {one_busy_processor})
        begin = time.monotonic()
        assert checker.check(sample(), "3") == RIGHT
        assert time.monotonic() - begin > 1.5, "the processor was not busy"
    with make_checker(rewards.regex, timeout=1) as checker:
        os.sched_setaffinity(checker._runner._child[-1].pid, {one_busy_processor})
        assert checker.check(sample(), "a" * 40 + "b").code == "verifier_timeout"


def test_fault_53_seconds_ready_to_run_are_added_to_a_limit(tmp_path, monkeypatch):
    now, statistics = [100.0], tmp_path / "schedstat"
    monkeypatch.setattr("rap.rewards.patience.time.monotonic", lambda: now[0])
    statistics.write_text("5 1000000000 7\n")
    limit = Limit(2.0, statistics)
    now[0] = 101.5
    assert limit.left() == 0.5
    statistics.write_text("5 4000000000 7\n")
    now[0] = 103.0
    assert limit.left() == 2.0  # three of its three seconds it waited
    now[0] = 105.0
    assert limit.left() == 0.0
    statistics.unlink()  # the process ended, or it is not Linux
    assert limit.left() == -3.0


def test_what_a_reward_prints_is_not_an_answer(rewards, capfd):
    assert check(rewards.prints) == RIGHT
    assert "xxx" in capfd.readouterr().err


def test_coroutine_and_object_and_partial(rewards):
    assert check(rewards.awaited) == RIGHT
    one, zero = rewards.Reward(1.0), rewards.Reward(0.0)
    assert (check(one), check(zero)) == (RIGHT, WRONG)
    assert callable_name(one) != callable_name(zero)
    assert callable_name(one) == callable_name(rewards.Reward(1.0))
    bound = functools.partial(rewards.right, strictness=1)
    assert check(bound) == RIGHT
    assert callable_name(bound) != callable_name(functools.partial(rewards.right))


def test_name_changes_with_the_source():
    def make(source: str) -> object:
        scope: dict[str, object] = {"__name__": "m"}
        exec(source, scope)
        return scope["f"]

    first = make("def f(**kwargs): return [1.0]")
    second = make("def f(**kwargs): return [0.0]")
    assert callable_name(first) != callable_name(second)
    assert callable_name(first) == callable_name(make("def f(**kwargs): return [1.0]"))


def test_fault_26_function_that_cannot_be_pickled_runs_in_a_thread():
    calls = []
    go_on = threading.Event()

    def reward(completions: list, **kwargs: object) -> list[float]:
        calls.append(threading.current_thread().name)
        text = completions[0][0]["content"]
        if text == "hang":
            go_on.wait(900)
        if text == "raise":
            raise SystemExit("no")
        return [text == "3"]

    with make_checker(reward, timeout=0.5) as checker:
        assert checker.check(sample(), "3") == RIGHT
        assert checker.check(sample(), "4") == WRONG
        assert checker.check(sample(), "raise").code == "verifier_error"
        assert checker.check(sample(), "hang").code == "verifier_timeout"
        assert checker.check(sample(), "3") == RIGHT  # in a new thread
    go_on.set()
    assert set(calls) == {"rap-reward"}


def test_unusable_rewards_are_refused_before_the_first_sample(rewards, tmp_path):
    for reward in (
        3,
        "accuracy",
        [],
        [rewards.right, 3],
        int,
        rewards.strict,
        rewards.play,
    ):
        with pytest.raises(RapConfigError):
            make_checker(reward)
    for timeout in (0, -1, math.nan, math.inf, "5", None):
        with pytest.raises(RapConfigError, match="timeout"):
            make_checker(timeout=timeout)
    torch = pytest.importorskip("torch")
    with pytest.raises(RapConfigError, match="is a model"):
        make_checker(torch.nn.Linear(2, 2))


def test_module_that_cannot_be_imported_there(monkeypatch):
    import types

    module = types.ModuleType("only_here")
    exec("def f(**kwargs): return [1.0]", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RapConfigError, match="cannot start: .*only_here"):
        make_checker(module.f)


# ------------------------------------------------------------------- the process itself


def children() -> set[int]:
    path = Path("/proc/self/task")
    found = set()
    for task in path.iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def test_close_ends_the_process(rewards):
    before = children()
    checker = make_checker(rewards.right, timeout=20)
    assert len(children() - before) == 1
    checker.close()
    checker.close()
    assert children() == before
    with pytest.raises(RapConfigError, match="closed"):
        checker.check(sample(), "3")
    dropped = make_checker(rewards.right, timeout=20)
    del dropped
    assert children() == before


def test_process_that_died_between_checks_is_replaced(rewards):
    before = children()
    with make_checker(rewards.right, timeout=20) as checker:
        row = sample_with({"answer": "3"})
        assert checker.check(row, "3") == RIGHT
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        verdicts = [checker.check(row, "3") for _ in range(2)]
        assert verdicts[-1] == RIGHT


def test_several_threads_share_a_checker(builtin):
    wrong = []

    def work(k: int) -> None:
        for i in range(50):
            text = f"{1000 * k + i}"
            if builtin.check(sample(text), text) != RIGHT:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_interrupt_does_not_mix_up_answers(rewards, monkeypatch):
    with make_checker(rewards.right, timeout=20) as checker:
        row = sample_with({"answer": "3"})
        read = checker._runner._read

        def interrupted(*args: object) -> bytes:
            raise KeyboardInterrupt

        monkeypatch.setattr(checker._runner, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checker.check(row, "4")
        monkeypatch.setattr(checker._runner, "_read", read)
        assert checker.check(row, "3") == RIGHT


def test_worker_ends_when_its_parent_is_killed(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal
        from rap.rewards import make_checker
        from rap.samples import Sample
        checker = make_checker(timeout=60)
        checker.check(Sample(0, "", "q", "3", (), (), None, {}), "3")
        print(checker._runner._child[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600
    )
    pid = int(done.stdout)
    for _ in range(50):
        if (
            not Path(f"/proc/{pid}").exists()
            or "Z" in Path(f"/proc/{pid}/stat").read_text()
        ):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent by 5 s")


def test_script_without_a_main_guard(tmp_path):
    """multiprocessing's spawn would run the script again and fail."""
    (tmp_path / "script.py").write_text(
        "from rap.rewards import make_checker\n"
        "from rap.samples import Sample\n"
        "def mine(completions, **kwargs): return [1.0]\n"
        "row = Sample(0, '', 'q', '3', (), (), None, {})\n"
        "for reward in (None, mine):\n"
        "    with make_checker(reward, timeout=20) as checker:\n"
        "        print(checker.name.partition('@')[0], checker.check(row, '3').correct)\n"
    )
    path = os.pathsep.join(p for p in [str(Path(__file__).parent.parent)] if p)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].endswith(" True") and lines[1] == "__main__:mine True"


# ------------------------------------------------------------- against published verdicts


def agreement(shared: Path, name: str, field: str, prompts: set[str], n: int) -> float:
    """Share of a seeded sample of published records on which we judge as upstream did."""
    folder = shared / "data" / name
    lines = (folder / "gold.jsonl").read_text().splitlines()
    gold = {r["id"]: r for r in map(json.loads, lines)}
    rows = [
        r
        for r in pq.read_table(folder / "records.parquet").to_pylist()
        if r["model"] != "random" and r["prompt"] in prompts
    ]
    rows = random.Random(20250604).sample(rows, n)
    same = 0
    for r in rows:
        reference = gold[r["id"]]
        choices = tuple(reference["choices"] or ())
        same += grade(str(reference["gold"]), choices, r[field] or "") == r["correct"]
    return same / n


# Measured over all rows of these kinds (22,995; 22,995; 21,000; 17,000). The rule was
# mended while reading disagreements in these same records, so this is no held-out figure:
# it guards against getting worse. Some 170 of the disagreements were read. Mostly MATH-V's
# judge wants the letter where the value of the right choice is given ("26" for
# "(C) 26 cm^2") or misreads "\\textbf{(E)}", and MathVista's takes the choice nearest in
# spelling when a response refuses to answer; a few are ours ("158 + LK" is accepted for
# 158). 2shot_pot responses are programs, whose output is the
# answer: only their extracted answers are compared.
@pytest.mark.parametrize(
    ("name", "field", "prompts", "whole"),
    [
        ("mathvision_records", "answer", {"direct", "cot"}, 0.9916),
        ("mathvision_records", "response", {"direct", "cot"}, 0.9823),
        ("mathvista_records", "answer", {"0shot", "2shot_cot", "2shot_pot"}, 1.0),
        ("mathvista_records", "response", {"0shot", "2shot_cot"}, 0.9233),
    ],
)
def test_agrees_with_published_verdicts(shared, name, field, prompts, whole):
    """A seeded sample of 400 stays within three standard errors below the whole."""
    pytest.importorskip("math_verify")
    n = 400
    bound = whole - 3 * math.sqrt(whole * (1 - whole) / n)
    assert agreement(shared, name, field, prompts, n) >= bound


@pytest.mark.parametrize("denied", ["can't be", "couldn't be", "wasn't", "isn't", "is not"])
def test_a_number_that_is_denied_is_not_given(denied: str) -> None:
    assert not grade("5", (), f"It {denied} 5.")
    assert grade("5", (), "It is 5.")
