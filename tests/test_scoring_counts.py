"""No work twice: what the model is asked for, counted, against numbers worked out here.

Seven samples of one 56 x 84 image each (six image tokens between two marks) in batches of
3, 3 and 1, the longest prompts first. ``n``: tokens of the prompt with the image; without
it a prompt has eight less.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scoring_rewards import by_length

import rap
from rap.config import Sampling, ScoreConfig
from rap.model.driver import ModelDriver
from rap.model.rollouts import BLIND_ARM, IMAGE_ARM
from rap.samples.sampleset import open_samples
from rap.scores.profile import Profile
from rap.scoring.jobs import answer_tokens

N, BATCH = 7, 3
MARKS = 6 + 2


def rows_of(*, solution: bool) -> list[dict]:
    rows = []
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 255, (56, 84, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        row = {
            "id": f"s{i}",
            "question": "Is the triangle larger" + " than the square" * (i % 4) + "?",
            "answer": ("yes", "no", "no, the square")[i % 3],
            "image": {"bytes": file.getvalue(), "path": None},
        }
        if solution:
            row["solution"] = "It is blue, " * (1 + i % 2) + "so: " + row["answer"]
        rows.append(row)
    return rows


def counted(tiny, rows: list[dict], **options):
    """(counts, score rows, rollout rows)"""
    scores = rap.score(*tiny, rows, profile=True, batch_size=BATCH, **options)
    table = scores.table.to_pylist()
    assert {row["status"] for row in table} == {"scored"}
    rollouts = [] if scores.rollouts is None else scores.rollouts.to_pylist()
    return Profile.of(scores.meta["profile"]).counts, table, rollouts


ORDER = sorted(range(N), key=lambda i: (-(i % 4), i))
"""Of the samples by the length of their questions."""


def batches(values: list) -> list[list]:
    ordered = [values[i] for i in ORDER]
    return [ordered[i : i + BATCH] for i in range(0, len(values), BATCH)]


def padding(lengths: list[int]) -> int:
    """Of one forward a batch over sequences of these lengths."""
    return sum(len(b) * max(b) - sum(b) for b in batches(lengths))


def test_the_prompts_are_as_long_as_this_file_says(tiny):
    _, processor = tiny
    rows = rows_of(solution=True)
    _, table, _ = counted(tiny, rows, evidence="logits", prompt_template="{question}")
    for row, scored in zip(rows, table, strict=True):
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>" + row["question"]
        )
        text += "<|im_end|>\n<|im_start|>assistant\n"
        assert scored["n_prompt"] == len(processor.tokenizer(text)["input_ids"])
        solution = processor.tokenizer(row["solution"], add_special_tokens=False)
        assert scored["n_response"] == len(solution["input_ids"])


def test_answer_reads_each_arm_once(tiny):
    counts, table, _ = counted(tiny, rows_of(solution=False), evidence="answer")
    image = [row["n_prompt"] + row["n_response"] for row in table]
    blind = [n - MARKS for n in image]
    assert counts == {
        "images_encoded": N,
        "images_distinct": N,
        "prefilled_tokens": sum(image) + sum(blind),
        "distinct_tokens": sum(image) + sum(blind),
        "padded_tokens": padding(image) + padding(blind),
        "decoded_tokens": 0,
        "forwards": 3 * 2,
        "kernel_launches": 3 + N,  # the head product a batch, psi a sample
    }


def tails(tiny, rows: list[dict]) -> list[int]:
    """Tokens that the teacher-forced answer has more than the prompt."""
    driver, config = ModelDriver(*tiny), ScoreConfig()
    found = []
    for sample in open_samples(rows):
        prefix, answer = answer_tokens(driver, sample, config)
        found.append(len(driver.encode_response(prefix)) + len(answer))
    return found


def test_logits_with_a_solution_reads_the_prompt_of_response_and_answer_once(tiny):
    rows = rows_of(solution=True)
    counts, table, _ = counted(tiny, rows, evidence="logits")
    image = [row["n_prompt"] + row["n_response"] for row in table]
    blind, more = [n - MARKS for n in image], tails(tiny, rows)
    # Of the answer the trie counts what the response does not begin with.
    distinct = counts.pop("distinct_tokens")
    assert sum(image) + sum(blind) < distinct <= counts["prefilled_tokens"]
    assert counts == {
        "images_encoded": N,
        "images_distinct": N,
        "prefilled_tokens": sum(image) + sum(blind) + sum(more),
        "padded_tokens": padding(image) + padding(blind) + padding(more),
        "decoded_tokens": 0,
        "forwards": 3 * 3,
        "kernel_launches": 3 * 2 + N,
    }


def test_logits_without_a_solution_goes_on_from_the_prompt_it_sampled_from(tiny):
    rows = rows_of(solution=False)
    sampling = Sampling(max_new_tokens=9)
    counts, table, _ = counted(tiny, rows, evidence="logits", sampling=sampling)
    n, r = ([row[name] for row in table] for name in ("n_prompt", "n_response"))
    blind = [a + b - MARKS for a, b in zip(n, r, strict=True)]
    more, steps = tails(tiny, rows), [row["generated_tokens"] for row in table]
    assert steps == [b + (not row["truncated"]) for b, row in zip(r, table, strict=True)]
    distinct = counts.pop("distinct_tokens")
    assert sum(n) + sum(r) + sum(blind) < distinct <= counts["prefilled_tokens"]
    assert counts == {
        "images_encoded": N,
        "images_distinct": N,
        "prefilled_tokens": sum(n) + sum(r) + sum(blind) + sum(more),
        "padded_tokens": padding(n) + padding(r) + padding(blind) + padding(more),
        "decoded_tokens": sum(steps),
        # reading the prompt gives the first token
        "forwards": sum(map(max, batches(steps))) + 3 * 3,
        "kernel_launches": 3 * 2 + N,
    }


def test_rollouts_read_a_prompt_once_for_all_of_its_completions(tiny):
    counts, table, rollouts = counted(
        tiny,
        rows_of(solution=False),
        evidence="rollouts",
        m1=4,
        m0=3,
        reward=by_length,
        sampling=Sampling(max_new_tokens=9),
    )
    n = [row["n_prompt"] for row in table]
    traced = [row["n_response"] for row in table if row["n_response"] is not None]
    assert 0 < len(traced) <= N
    sampled = {arm: [0] * N for arm in (IMAGE_ARM, BLIND_ARM)}  # the longest of a sample
    total = 0
    for rollout in rollouts:
        steps = len(rollout["token_ids"]) + (rollout["finish_reason"] == "stop")
        longest = sampled[rollout["arm"]]
        longest[rollout["index"]] = max(longest[rollout["index"]], steps)
        total += steps
    decoding = sum(max(b) for arm in sampled.values() for b in batches(arm))
    psi = [
        [r for row in batch if (r := row["n_response"]) is not None]
        for batch in batches(table)
    ]
    prompts = 2 * sum(n) - N * MARKS
    assert counts == {
        "images_encoded": N,
        "images_distinct": N,
        "prefilled_tokens": prompts + sum(traced),
        "distinct_tokens": prompts + sum(traced),
        "padded_tokens": 2 * padding(n) + sum(len(b) * max(b) - sum(b) for b in psi if b),
        "decoded_tokens": total,
        "forwards": decoding + sum(map(bool, psi)),
        "kernel_launches": len(traced),
    }
    assert total == sum(row["generated_tokens"] for row in table)


def test_the_cascade_reads_a_prompt_once(tiny):
    """All are drawn: answers and completions, asked for look after look, go on from one
    reading of each prompt, in whichever round a sample is scored."""
    options = {"cascade_pilot": 0.3, "cascade_completions": 1.0, "m1": 4, "m0": 3}
    rows, sampling = rows_of(solution=False), Sampling(max_new_tokens=9)
    more = {"reward": by_length, "sampling": sampling, "allow_degenerate": True}
    counts, table, rollouts = counted(tiny, rows, evidence="cascade", **options, **more)
    assert {row["decided_by"] for row in table} > {"text"}
    assert any(row["m1"] > 3 or row["m0"] > 2 for row in table)
    read = sum(2 * row["n_prompt"] - MARKS for row in table) + 2 * sum(tails(tiny, rows))
    read += sum(row["n_response"] or 0 for row in table)
    assert counts["prefilled_tokens"] == read >= counts["distinct_tokens"] >= 0.97 * read
    assert counts["images_encoded"] == counts["images_distinct"] == N
    assert counts["decoded_tokens"] == sum(row["generated_tokens"] for row in table)
    assert len(rollouts) == sum(row["n_drawn"] for row in table)


@pytest.mark.parametrize("evidence", ["logits", "rollouts", "answer", "cascade"])
def test_the_gate_of_the_benchmark(tiny, evidence):
    """An image is encoded once, and prompts are read at most 1.1 times."""
    graded = evidence in ("rollouts", "cascade")
    more = {"reward": by_length, "m1": 5, "m0": 5} if graded else {}
    if evidence == "cascade":
        more["allow_degenerate"] = True
    sampling = Sampling(max_new_tokens=12)
    rows = rows_of(solution=False)
    counts, _, _ = counted(tiny, rows, evidence=evidence, sampling=sampling, **more)
    ratios = Profile(1, N, 1.0, counts=counts).ratios()
    assert ratios["images_encoded"] == 1.0 and counts["images_encoded"] == N
    assert 1.0 <= ratios["prefilled_tokens"] <= 1.1
