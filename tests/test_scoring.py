"""Samples -> score table with a real (tiny, random) Qwen2.5-VL."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import math
import re
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scoring_rewards import by_length, by_pixels, hangs, one_too_few, sometimes, zero
from tiny_models import NAMES, build

import rap
from rap import ops, reference
from rap.config import AceConfig, Sampling, ScoreConfig
from rap.errors import RapConfigError, RapInputError, RapModelError, RapStoreError
from rap.model.driver import ModelDriver
from rap.model.halving import in_halves
from rap.model.rollouts import row_seed
from rap.samples.sampleset import open_samples
from rap.scores import files
from rap.scores.store import ScoreStore
from rap.scores.table import VOLATILE_COLUMNS
from rap.scoring import filling
from rap.scoring.batches import memory_of
from rap.scoring.evidence.rollouts import can_be_kept
from rap.scoring.jobs import ahead, answer_tokens, reference_solution, reference_text
from rap.scoring.rounding import significant
from rap.scoring.run import score

FEW = Sampling(max_new_tokens=10)
STEP = 2**-11  # what `significant` may move a value by, relatively, and some noise


@pytest.fixture(scope="module")
def tiny():
    """(model, processor); tests that change the model put it back."""
    return build("qwen2_5_vl")


def png(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(
        0, 255, (40 + 9 * (i % 5), 60 + 7 * (i % 4), 3)
    )
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_rows(n: int) -> list[dict]:
    return [
        {
            "id": f"s{i}",
            "question": "Which number replaces the " + "very " * (i % 6) + f"mark {i}?",
            "answer": "BCA"[i % 3],
            "choices": ["4", "12", "35"],
            "image": {"bytes": png(i), "path": None},
            "source": "ab"[i % 2],
            "solution": "Let x be the length, then x^2 + y^2 = 169, so it is "
            + "BCA"[i % 3],
        }
        for i in range(n)
    ]


def stable(table):
    return table.drop_columns(list(VOLATILE_COLUMNS))


# ---- pieces without a model ---------------------------------------------------


def test_significant_rounds_to_twelve_bits(rng):
    for x in [*rng.normal(size=200), 1.0, -0.75, 3e-300, 1e300, 2**-1040]:
        y = significant(float(x))
        mantissa, _ = math.frexp(y)
        assert (mantissa * 4096).is_integer()
        assert abs(y - x) <= abs(x) * 2**-12
        assert significant(y) == y
        assert significant(-float(x)) == -y
    for x in (0.0, math.inf, -math.inf):
        assert significant(x) == x
    assert math.isnan(significant(math.nan))


def test_can_be_kept_is_every_case_of_the_rules():
    """Against the definition, over all counts up to 4 completions an arm."""
    for m1, m0 in itertools.product(range(1, 5), repeat=2):
        for c1, c0 in itertools.product(range(m1 + 1), range(m0 + 1)):
            gain = Fraction(c1, m1) - Fraction(c0, m0)
            difficulty = 1 - Fraction(c1, m1)
            expected = c1 > 0 and (gain > 0 or 0 < difficulty < 1)
            assert can_be_kept(c1, m1, c0, m0) == expected


def test_fault_30_out_of_memory_halves_the_batch():
    sizes = []

    def run(items):
        sizes.append(len(items))
        if len(items) > 3 or 7 in items:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [i * 10 for i in items]

    got = in_halves(run, list(range(10)))
    assert [g for g in got if isinstance(g, int)] == [0, 10, 20, 30, 40, 50, 60, 80, 90]
    assert got[7].code == "oom" and "2 GiB" in got[7].message
    assert sizes[0] == 10 and max(sizes[1:]) == 5


def test_one_item_that_spoils_a_batch_is_found():
    def run(items):
        if 5 in items:
            raise ValueError("image features and image tokens do not match\nlong story")
        return list(items)

    got = in_halves(run, list(range(8)))
    assert got[5].code == "model_error"
    assert got[5].message == "ValueError: image features and image tokens do not match"
    assert [g for i, g in enumerate(got) if i != 5] == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, TypeError])
def test_other_errors_pass_through_halving(error):
    def run(items):
        raise error

    with pytest.raises(error):
        in_halves(run, [1, 2])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_keeps_order_and_bounds_what_waits(workers):
    made, taken, most = 0, 0, 0
    lock = threading.Lock()

    def prepare(i):
        nonlocal made, most
        time.sleep(0.001 * (i % 3))
        with lock:
            made += 1
            most = max(most, made - taken)
        return i

    got = []
    for item in ahead(prepare, range(40), workers=workers, depth=5):
        got.append(item)
        taken += 1
        time.sleep(0.0005)
    assert got == list(range(40))
    assert most <= 6


def test_ahead_passes_errors_on_and_leaves_no_thread():
    def prepare(i):
        if i == 3:
            raise KeyError("broken")
        return i

    before = threading.active_count()
    jobs = ahead(prepare, range(100), workers=2, depth=4)
    with pytest.raises(KeyError):
        list(jobs)
    jobs = ahead(prepare, range(3), workers=2, depth=2)
    next(jobs)
    jobs.close()
    assert threading.active_count() == before


# ---- the scores are right ----------------------------------------------------------


def by_hand(model, processor, text, image, tail, *, eager=False):
    """log p [R, V] (float64) of the tokens of ``tail`` after the prompt, and the last
    layer's attention [Hq, L, L]; with no code of rap."""
    content = [{"type": "image"}] if image is not None else []
    content.append({"type": "text", "text": text})
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = None if image is None else [image]
    short = processor(text=[prompt + tail[0]], images=images, return_tensors="pt")
    whole = processor(text=[prompt + tail[0] + tail[1]], images=images, return_tensors="pt")
    start = short["input_ids"].shape[1]
    ids = whole["input_ids"][0]
    assert ids[:start].equal(short["input_ids"][0])
    before = model.config._attn_implementation
    if eager:
        model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**whole, output_attentions=eager)
    model.set_attn_implementation(before)
    logp = torch.log_softmax(out.logits[0, start - 1 : -1].double(), -1)
    return logp, ids, start, out.attentions[-1][0].double() if eager else None


@pytest.mark.parametrize("evidence", ["answer", "logits"])
def test_scores_are_those_of_the_models_own_logits(tiny, evidence):
    rows = make_rows(5)
    ace = AceConfig(min_rows=2)
    table = score(*tiny, rows, evidence=evidence, batch_size=3, ace=ace).table.to_pylist()
    for row, got in zip(rows, table, strict=True):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        text = row["question"] + "\n(A) 4\n(B) 12\n(C) 35"
        answer = ("The answer is", " " + row["answer"])
        tail = answer if evidence == "answer" else ("", row["solution"])
        logp1, ids, start, attention = by_hand(*tiny, text, image, tail, eager=True)
        logp0, *_ = by_hand(*tiny, text, None, tail)
        target = ids[start:]
        kl = (logp1.exp() * (logp1 - logp0)).sum(-1).mean()
        tv = (logp1.exp() - logp0.exp()).abs().sum(-1).mean() / 2
        assert got["kl"] == pytest.approx(float(kl), rel=STEP)
        assert got["tv"] == pytest.approx(float(tv), rel=STEP)
        assert (got["n_prompt"], got["n_response"]) == (start, len(target))
        # psi by its definition, on eager attention: geometric mean over the rows that
        # see column j, columns with two rows at least, special tokens left out
        w = torch.log(2 * attention.mean(0))
        special = set(tiny[1].tokenizer.all_special_ids)
        columns = {
            j: float(w[j:, j].mean())
            for j in range(start, len(ids) - 1)
            if int(ids[j]) not in special
        }
        assert got["log_psi"] == pytest.approx(max(columns.values()), rel=2 * STEP)
        assert got["psi_position"] == max(columns, key=columns.__getitem__)
        at, decode = got["psi_position"], tiny[1].tokenizer.decode
        assert got["psi_token"] == decode([int(ids[at])])
        before = decode(ids[max(start, at - 12) : at].tolist(), skip_special_tokens=True)
        after = decode(ids[at + 1 : at + 13].tolist(), skip_special_tokens=True)
        assert (got["psi_before"], got["psi_after"]) == (before, after)
        mass = attention.mean(0)[start:, ids == tiny[0].config.image_token_id]
        assert got["image_mass"] == pytest.approx(float(mass.sum(-1).mean()), rel=2 * STEP)

        logp1, ids, start, _ = by_hand(*tiny, text, image, answer)
        logp0, *_ = by_hand(*tiny, text, None, answer)
        n = len(ids) - start
        total1, total0 = (float(x[range(n), ids[start:]].sum()) for x in (logp1, logp0))
        assert got["logp_answer1"] == pytest.approx(total1, rel=STEP)
        assert got["logp_mean1"] == pytest.approx(total1 / n, rel=STEP)
        assert got["p_answer1"] == math.exp(got["logp_answer1"])
        if evidence == "answer":
            assert got["logp_answer0"] == pytest.approx(total0, rel=STEP)
            assert got["p_answer0"] == math.exp(got["logp_answer0"])
        else:
            assert got["logp_answer0"] is None
        assert got["status"] == "scored" and got["truncated"] is False
        assert got["forwards"] == (2 if evidence == "answer" else 3)


def test_rollouts_are_counted_and_traced(tiny):
    rows = make_rows(12)
    scores = score(
        *tiny, rows, evidence="rollouts", m1=3, m0=2, sampling=FEW, reward=by_length
    )
    kept = scores.rollouts.to_pylist()
    assert len(kept) == 12 * 5
    traced = 0
    for got in scores.table.to_pylist():
        mine = [r for r in kept if r["id"] == got["id"]]
        for n, arm, m in (("1", "image", 3), ("0", "counterfactual", 2)):
            ones = [r for r in mine if r["arm"] == arm]
            assert [r["number"] for r in ones] == list(range(m))
            assert got[f"m{n}"] == m
            assert got[f"c{n}"] == sum(len(r["text"]) % 2 for r in ones)
            assert all(r["seed"] == row_seed(0, got["id"], arm, r["number"]) for r in ones)
        expected = sum(len(r["token_ids"]) + (r["finish_reason"] == "stop") for r in mine)
        assert got["generated_tokens"] == expected
        if can_be_kept(*(got[name] for name in ("c1", "m1", "c0", "m0"))):
            first = next(r for r in mine if r["arm"] == "image" and r["correct"])
            assert got["n_response"] == len(first["token_ids"])
            assert got["truncated"] == (first["finish_reason"] == "length")
            assert got["forwards"] == 1 and math.isfinite(got["log_psi"])
            traced += 1
        else:
            assert got["log_psi"] is None and got["forwards"] == 0
    assert 0 < traced < 12
    cost = scores.meta["cost"]
    assert (cost["samples"], cost["rollouts"], cost["forwards"]) == (12, 60, traced)
    assert cost["generated_tokens"] == sum(
        r["generated_tokens"] for r in scores.table.to_pylist()
    )
    assert cost["train_all"]["rollouts"] == 8 * 12
    assert scores.meta["counts"] == {"scored": 12}


def test_logits_without_a_solution_use_one_greedy_completion(tiny):
    rows = [{k: v for k, v in row.items() if k != "solution"} for row in make_rows(3)]
    scores = score(*tiny, rows, evidence="logits", sampling=FEW)
    for row, got in zip(rows, scores.table.to_pylist(), strict=True):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        text = row["question"] + "\n(A) 4\n(B) 12\n(C) 35"
        _, ids, start, _ = by_hand(*tiny, text, image, ("", ""))
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = tiny[1].apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
        )
        inputs = tiny[1](text=[prompt], images=[image], return_tensors="pt")
        out = tiny[0].generate(**inputs, do_sample=False, max_new_tokens=10)
        assert (got["n_prompt"], got["n_response"]) == (start, out.shape[1] - start)
        assert got["generated_tokens"] == 10 and got["truncated"] is True
        assert got["forwards"] == 3
        assert got["kl"] > 0 and 0 < got["js"] < math.log(2)


@pytest.mark.parametrize("counterfactual", ["blank", "noise", "shuffle"])
def test_every_counterfactual(tiny, counterfactual):
    rows = make_rows(4)
    options = {"evidence": "answer", "counterfactual": counterfactual}
    table = score(*tiny, rows, **options).table
    assert table.equals(table) and set(table["status"].to_pylist()) == {"scored"}
    assert min(table["kl"].to_pylist()) > 0
    drop = score(*tiny, rows, evidence="answer").table
    assert drop["logp_answer1"].equals(table["logp_answer1"])
    assert not drop["logp_answer0"].equals(table["logp_answer0"])
    again = score(*tiny, rows, batch_size=2, workers=0, **options).table
    assert stable(again).equals(stable(table))


def test_shuffle_skips_a_partner_that_is_bad(tiny):
    rows = make_rows(3)
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    options = {"evidence": "answer", "counterfactual": "shuffle", "max_bad_fraction": 0.5}
    assert score(*tiny, rows, **options).meta["counts"] == {
        "quarantined_image_unreadable": 1,
        "scored": 2,
    }
    with pytest.raises(RapInputError, match="two samples"):
        score(*tiny, rows[:1], **options)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_class_scores(name):
    """All three kinds of evidence on each of the eight classes."""
    model, processor = build(name)
    rows = make_rows(3)
    for evidence in ("answer", "logits", "rollouts"):
        scores = score(
            model,
            processor,
            rows,
            evidence=evidence,
            m1=2,
            m0=2,
            sampling=FEW,
            batch_size=2,
        )
        assert scores.meta["counts"] == {"scored": 3}


# ---- which text is scored -----------------------------------------------------------


def sample_of(**row):
    base = {"question": "Q", "image": {"bytes": png(0), "path": None}}
    return open_samples([base | row])[0]


def test_the_reference_of_a_choice_question_is_its_letter():
    config = ScoreConfig()
    choices = ["4", "12", "35"]
    for answer in ("C", "35", "(C)", "(C) 35"):
        assert reference_text(sample_of(answer=answer, choices=choices), config) == "C"
    bare = ScoreConfig(prompt_template="{question}")
    assert reference_text(sample_of(answer="35", choices=choices), bare) == "35"
    assert reference_text(sample_of(answer="x = 3"), config) == "x = 3"


def test_the_answer_is_split_where_the_tokenizer_splits_it(tiny):
    driver = ModelDriver(*tiny)
    tokenizer = tiny[1].tokenizer
    sample = sample_of(answer="the answer")
    prefix, ids = answer_tokens(driver, sample, ScoreConfig())
    assert (prefix, tokenizer.decode(ids)) == ("The answer is", " the answer")
    assert ids == tokenizer(" the answer", add_special_tokens=False)["input_ids"]
    prefix, ids = answer_tokens(driver, sample, ScoreConfig(answer_prefix="\\boxed{"))
    assert (prefix, tokenizer.decode(ids)) == ("\\boxed{", "the answer")
    prefix, ids = answer_tokens(driver, sample, ScoreConfig(answer_prefix=""))
    assert (prefix, tokenizer.decode(ids)) == ("", "the answer")
    # a prefix that would merge with the answer into one token
    merged = ScoreConfig(answer_prefix="The ans")
    prefix, ids = answer_tokens(driver, sample_of(answer="wer"), merged)
    assert (prefix, tokenizer.decode(ids)) == ("The ans", "wer")


def test_a_solution_must_say_more_than_the_answer():
    assert reference_solution(sample_of(answer="4", solution="2 + 2 = 4")) == "2 + 2 = 4"
    assert reference_solution(sample_of(answer="4", solution="4 ")) is None
    assert reference_solution(sample_of(answer="4", solution=None)) is None
    assert reference_solution(sample_of(answer="4")) is None


# ---- the same selection, whatever the batch size ------------------------------------


@pytest.mark.parametrize("evidence", ["answer", "logits", "rollouts"])
def test_batch_size_and_workers_do_not_change_the_selection(tiny, tmp_path, evidence):
    rows = make_rows(24)
    options = {
        "evidence": evidence,
        "m1": 3,
        "m0": 2,
        "sampling": FEW,
        "reward": by_length if evidence == "rollouts" else None,
        "shard_size": 10,
    }
    first = score(*tiny, rows, batch_size=8, workers=2, **options)
    for batch_size, workers in ((8, 0), (3, 2), (1, 0)):
        other = score(*tiny, rows, batch_size=batch_size, workers=workers, **options)
        if first.rollouts is not None:
            assert other.rollouts.equals(first.rollouts)
        for budget in (0.1, 0.3, 0.5):
            a, b = (rap.choose(s, budget=budget) for s in (first, other))
            assert a.indices.tolist() == b.indices.tolist()
            assert a.table["reason"].equals(b.table["reason"])
        if batch_size == 8:  # the same batches: the same bytes
            assert stable(other.table).equals(stable(first.table))
        for name in first.table.column_names:
            if name in VOLATILE_COLUMNS:
                continue
            pairs = zip(
                first.table[name].to_pylist(), other.table[name].to_pylist(), strict=True
            )
            differ = [(x, y) for x, y in pairs if x != y]
            # a value on a rounding border moves by one step
            assert len(differ) <= 1
            assert all(x == pytest.approx(y, rel=STEP) for x, y in differ)


# ---- bad samples -----------------------------------------------------------------------


def assert_close(row, other):
    """Equal rows of a score table, but for float32 noise at a rounding border."""
    for name in row.keys() - set(VOLATILE_COLUMNS):
        a, b = row[name], other[name]
        assert a == b or a == pytest.approx(b, rel=STEP), name


def poison(model, token: int):
    """NaN in the embedding of one token: only sequences that hold it are touched."""

    def hook(module, args, output):
        return output.masked_fill((args[0] == token)[..., None], math.nan)

    return model.get_input_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("evidence", ["answer", "logits", "rollouts"])
def test_fault_21_nan_quarantines_its_own_sample_only(tiny, evidence):
    (token,) = tiny[1].tokenizer("\u00fe", add_special_tokens=False)["input_ids"][-1:]
    rows = make_rows(7)
    rows[2]["question"] += " \u00fe"
    options = {
        "evidence": evidence,
        "m1": 2,
        "m0": 2,
        "sampling": FEW,
        "batch_size": 4,
        "max_bad_fraction": 0.5,
    }
    clean = score(*tiny, make_rows(7), **options).table.to_pylist()
    hook = poison(tiny[0], token)
    try:
        table = score(*tiny, rows, **options).table.to_pylist()
    finally:
        hook.remove()
    bad = table[2]
    assert (bad["status"], bad["stage"], bad["code"]) == (
        "quarantined",
        "model",
        "nonfinite",
    )
    assert re.search("with(out)? the image", bad["message"])
    assert all(bad[name] is None for name in ("kl", "log_psi", "p_answer1", "c1", "m0"))
    for i in (0, 1, 3, 4, 5, 6):
        for name, value in clean[i].items():
            if name not in VOLATILE_COLUMNS:
                assert table[i][name] == value or table[i][name] == pytest.approx(
                    value, rel=STEP
                )


def test_bad_rows_and_images_are_quarantined_and_counted(tiny, tmp_path):
    rows = make_rows(12)
    rows[0]["image"] = {"bytes": None, "path": "../../etc/passwd"}
    rows[1]["image"] = {"bytes": png(1)[:200], "path": None}
    rows[2]["answer"] = None
    rows[3]["question"] = "Look at <|image_pad|>"
    rows[4]["image"] = {"bytes": None, "path": "missing.png"}
    rows[5]["question"] = "long " * 9000
    scores = score(*tiny, rows, root=tmp_path, max_bad_fraction=0.6, batch_size=4)
    table = scores.table.to_pylist()
    assert [row["code"] for row in table] == [
        "path_outside_root",
        "image_truncated",
        "bad_answer",
        "image_count",
        "image_missing",
        "prompt_too_long",
        *[None] * 6,
    ]
    assert [row["index"] for row in table] == list(range(12))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert all(row["message"] for row in table[:6])
    assert sum(scores.meta["counts"].values()) == 12
    assert scores.meta["counts"]["scored"] == 6
    chosen = rap.choose(scores, budget=0.5)
    assert not {0, 1, 2, 3, 4, 5} & set(chosen.indices.tolist())


def test_too_many_bad_samples_stop_the_run_and_keep_the_shards(tiny, tmp_path):
    rows = make_rows(60)
    for row in rows[20:30]:
        row["image"] = {"bytes": b"<html>", "path": None}
    with pytest.raises(RapInputError, match="10 of 60 .*image/image_unreadable: 10"):
        score(
            *tiny, rows, store=tmp_path, max_bad_fraction=0.16, shard_size=8, batch_size=4
        )
    fingerprinted = ScoreStore.load(tmp_path)
    done = set(range(8)) - set(fingerprinted.missing())
    assert {0, 1, 2} <= done and 7 not in done  # stopped as soon as it was hopeless
    scores = score(*tiny, rows, store=tmp_path, max_bad_fraction=0.17, shard_size=8)
    assert scores.meta["counts"]["quarantined_image_unreadable"] == 10
    # the finished store says so too, without scoring
    with pytest.raises(RapInputError, match="10 of 60"):
        score(*tiny, rows, store=tmp_path, max_bad_fraction=0.16, shard_size=8)
    warnings = rap.choose(rap.Scores.load(tmp_path)).warnings
    assert any("refused: 10 of 60 samples are bad" in text for text in warnings)


def test_too_many_bad_samples_lose_no_row(tiny, tmp_path):
    """Rows of the shard in progress, and those of a shard whose end is the last straw. Of a
    shard the bad ones come first; 20 have to be seen."""
    rows = make_rows(24)
    for i in (0, 10, 11, 23):
        rows[i]["image"] = {"bytes": b"<html>", "path": None}
    options = {"evidence": "logits", "batch_size": 4, "max_bad_fraction": 0.15}
    for shard_size, kept in ((24, 20), (12, 21), (50, 20)):
        options |= {"store": tmp_path / f"{shard_size}", "shard_size": shard_size}
        with pytest.raises(RapInputError, match=f"4 of 24 .*{kept} seen"):
            score(*tiny, rows, **options)
        assert ScoreStore.load(options["store"]).n_kept() == kept
    options |= {"store": tmp_path / "end", "shard_size": 20}
    with pytest.raises(RapInputError, match="4 of 20 .*20 seen"):
        score(*tiny, rows[:12] + rows[-8:], **options)
    assert ScoreStore.load(options["store"]).missing() == []
    # stopped in the middle, after the first batch that shows 20 samples: the bad come first
    options |= {"store": tmp_path / "middle", "max_bad_fraction": 0.05, "shard_size": 30}
    with pytest.raises(RapInputError, match="4 of 24 .*20 seen"):
        score(*tiny, rows, **options)
    assert ScoreStore.load(tmp_path / "middle").n_kept() == 20
    assert len(score(*tiny, rows, **options | {"max_bad_fraction": 1.0})) == 24


@pytest.mark.parametrize("n", [2, pytest.param(10, marks=pytest.mark.proof)])
def test_one_bad_sample_never_stops_a_run(tiny, n):
    rows = make_rows(n)
    rows[1]["image"] = {"bytes": b"<html>", "path": None}
    counts = score(*tiny, rows).meta["counts"]
    assert counts == {"quarantined_image_unreadable": 1, "scored": n - 1}
    rows = make_rows(10)
    for i in (1, 2):
        rows[i]["image"] = {"bytes": b"<html>", "path": None}
    with pytest.raises(RapInputError, match="2 of 10"):
        score(*tiny, rows)


def test_fault_18_nothing_usable_is_an_error(tiny):
    with pytest.raises(RapInputError):
        score(*tiny, [])
    rows = make_rows(3)
    for row in rows:
        row["image"] = {"bytes": b"<html>", "path": None}
    with pytest.raises(RapInputError, match="3 of 3 .*none is left"):
        score(*tiny, rows, max_bad_fraction=1.0)
    (one,) = score(*tiny, make_rows(1)).table.to_pylist()
    assert one["status"] == "scored"


def test_fault_23_empty_responses(tiny):
    model, processor = tiny
    theirs = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(len(processor.tokenizer)))
    rows = make_rows(4)
    rows[1].pop("solution")
    try:
        for options in ({"evidence": "rollouts", "m1": 2, "m0": 2}, {"evidence": "logits"}):
            if options["evidence"] == "rollouts":
                with pytest.raises(RapModelError, match="4 of 4 .*model/empty_response: 4"):
                    score(*tiny, rows, sampling=FEW, max_bad_fraction=1.0, **options)
            else:  # only the one without a solution needs a completion
                table = score(*tiny, rows, max_bad_fraction=0.3, **options).table
                assert table["code"].to_pylist() == [None, "empty_response", None, None]
    finally:
        model.generation_config.eos_token_id = theirs


def test_an_empty_completion_is_a_wrong_one(tiny):
    """A third of all tokens end the turn, so some completions are empty."""
    model, processor = tiny
    theirs = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(0, len(processor.tokenizer), 3))
    options = {"evidence": "rollouts", "m1": 4, "m0": 4, "sampling": FEW}
    try:
        scores = score(*tiny, make_rows(8), max_bad_fraction=0.5, **options)
    finally:
        model.generation_config.eos_token_id = theirs
    kept = scores.rollouts.to_pylist()
    empty = [r for r in kept if not r["text"].strip()]
    assert 5 < len(empty) < 40
    assert all(r["correct"] is False and r["code"] == "empty_response" for r in empty)
    for got in scores.table.to_pylist():
        mine = [r for r in empty if r["id"] == got["id"] and r["arm"] == "image"]
        assert (got["code"] == "empty_response") == (len(mine) == 4)
        assert got["m0"] == 4 or got["m0"] is None


def test_fault_23_a_response_of_one_token_is_too_short_for_psi(tiny):
    rows = make_rows(2)
    for row in rows:
        row["choices"], row["answer"] = None, "4"
    table = score(*tiny, rows, evidence="answer", answer_prefix="\\boxed{").table
    assert table["n_response"].to_pylist() == [1, 1]
    assert table["log_psi"].to_pylist() == [-math.inf] * 2
    assert table["psi_position"].to_pylist() == [-1, -1]
    assert table["psi_token"].to_pylist() == [None, None]
    assert table["status"].to_pylist() == ["scored"] * 2
    assert len(rap.choose(rap.Scores(table), rule="paper", lambda_c=-1.0)) <= 2


def test_fault_25_26_what_the_checker_cannot_judge(tiny):
    rows = make_rows(4)
    scores = score(
        *tiny,
        rows,
        evidence="rollouts",
        m1=6,
        m0=6,
        sampling=FEW,
        reward=sometimes,
        max_bad_fraction=0.5,
    )
    table = scores.table.to_pylist()
    assert [r["code"] for r in table] == [None, "verifier_error", "verifier_error", None]
    assert [r["stage"] for r in table] == [None, "check", "check", None]
    assert "broken" in table[1]["message"]
    assert (table[0]["c1"], table[0]["m1"], table[0]["c0"], table[0]["m0"]) == (6, 6, 6, 6)
    kept = [r for r in scores.rollouts.to_pylist() if r["id"] == "s3"]
    judged = [r for r in kept if r["correct"] is not None]
    assert 0 < len(judged) < 12
    assert table[3]["m1"] + table[3]["m0"] == len(judged)
    assert all(r["code"] == "verifier_error" for r in kept if r["correct"] is None)


def test_rewards_of_a_list_see_whole_groups_and_images(tiny, caplog):
    rows = make_rows(8)
    scores = score(
        *tiny,
        rows,
        evidence="rollouts",
        m1=3,
        m0=2,
        sampling=FEW,
        reward=[zero, by_pixels],
        reward_weights=[2.0, 0.5],
    )
    for kept in scores.rollouts.to_pylist():
        image = Image.open(io.BytesIO(rows[kept["index"]]["image"]["bytes"]))
        value = (image.getpixel((0, 0))[0] + len(kept["text"])) % 2
        assert kept["correct"] is (value == 1)
    named = r"2\.0\*scoring_rewards:zero@\w+ \+ 0\.5\*scoring_rewards:by_pixels@\w+"
    assert re.fullmatch(named, scores.meta["fingerprint"]["checker"])
    assert not [r for r in caplog.records if "tells no sample" in r.getMessage()]


def test_a_reward_of_zero_for_all_is_said_in_the_log_and_the_selection(tiny, caplog):
    options = {"evidence": "rollouts", "m1": 2, "m0": 1, "sampling": FEW}
    scores = score(*tiny, make_rows(8), **options, reward=zero)
    said = [r.getMessage() for r in caplog.records if "tells no sample" in r.getMessage()]
    assert len(said) == 1 and "scoring_rewards:zero' gave 0 for all 24 " in said[0]
    chosen = rap.choose(scores, rule="paper")
    (line,) = [w for w in chosen.warnings if "tells no sample" in w]
    assert line.startswith(
        "reward 'scoring_rewards:zero' gave less than 0.5 for all 24 completions, with and "
        "without the image"
    )
    assert line in chosen.summary()
    few = rap.choose(rap.Scores(scores.table.slice(0, 7), meta=scores.meta), rule="paper")
    assert not [w for w in few.warnings if "tells no sample" in w]


def test_a_reward_of_one_value_too_few_is_refused_at_the_first_call(tiny):
    options = {"evidence": "rollouts", "m1": 2, "m0": 1, "sampling": FEW}
    short = r"one_too_few': it returned 0 rewards for 1 completion; expected one each"
    with pytest.raises(RapInputError, match=short):
        score(*tiny, make_rows(2), **options, reward=one_too_few)


def test_fault_26_a_checker_that_hangs(tiny):
    started = time.monotonic()
    with pytest.raises(RapInputError, match="check/verifier_timeout: 1"):
        score(
            *tiny,
            make_rows(1),
            evidence="rollouts",
            m1=1,
            m0=1,
            sampling=FEW,
            reward=hangs,
            checker_timeout=0.3,
        )
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("evidence", ["answer", "rollouts"])
def test_fault_30_out_of_memory_ends_with_the_same_scores(tiny, monkeypatch, evidence):
    """A model that fits two sequences at once, and never the sample s3."""
    rows = make_rows(7)
    rows[3]["question"] += " \u00fe"
    mark = tiny[1].tokenizer("\u00fe", add_special_tokens=False)["input_ids"][-1]
    options = {
        "evidence": evidence,
        "m1": 3,
        "m0": 2,
        "sampling": FEW,
        "batch_size": 7,
        "reward": by_length if evidence == "rollouts" else None,
    }
    clean = score(*tiny, rows, **options)
    model = tiny[0]
    embed = model.get_input_embeddings()
    failed = 0

    def small(module, args):
        nonlocal failed
        ids = args[0]
        if len(ids) > 2 or (ids.shape[1] > 1 and bool((ids == mark).any())):
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    hook = embed.register_forward_pre_hook(small)
    try:
        scores = score(*tiny, rows, max_bad_fraction=0.5, **options)
    finally:
        hook.remove()
    assert failed > 3
    table = scores.table.to_pylist()
    assert (table[3]["code"], table[3]["stage"]) == ("oom", "model")
    for i in (0, 1, 2, 4, 5, 6):
        assert_close(table[i], clean.table.to_pylist()[i])


@pytest.mark.parametrize("kernel", ["linear_cde", "ace"])
def test_fault_30_kernels_out_of_device_memory_halve_their_batch(tiny, monkeypatch, kernel):
    """As torch's allocator says it, on the way to the kernels or from them."""
    rows = [r | {"solution": "because it is so"} for r in make_rows(5)]
    clean = score(*tiny, rows, evidence="logits", batch_size=5)
    real, failed = getattr(ops, kernel), []
    longest = max(clean.table["n_response"].to_pylist())

    def small(*args, **kwargs):
        samples = len(kwargs.get("cu_seqlens", (0, 0))) - 1
        if samples > 2 or (kernel == "ace" and len(failed) < 3):
            failed.append(samples)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return real(*args, **kwargs)

    monkeypatch.setattr(ops, kernel, small)
    scores = score(*tiny, rows, evidence="logits", batch_size=5)
    assert failed and longest > 1
    for got, want in zip(scores.table.to_pylist(), clean.table.to_pylist(), strict=True):
        assert_close(got, want)


def test_fault_30_memory_of_a_device_and_of_the_host_are_told_apart():
    for device, kind in (("cuda", torch.OutOfMemoryError), ("cpu", MemoryError)):
        with pytest.raises(kind), memory_of(torch.device(device)):
            raise MemoryError("2 GiB")


# ---- set-up ------------------------------------------------------------------------------


def test_degenerate_rollouts_stop_the_run(tiny):
    options = {"evidence": "rollouts", "m1": 3, "m0": 3, "batch_size": 4}
    greedy = Sampling(top_k=1, max_new_tokens=8)
    with pytest.raises(RapModelError, match="8 of 8 groups .*identical.*top_k=1"):
        score(*tiny, make_rows(12), sampling=greedy, **options)
    scores = score(*tiny, make_rows(12), sampling=greedy, allow_degenerate=True, **options)
    assert scores.meta["counts"] == {"scored": 12}


def test_answers_without_any_probability_stop_the_run(tiny):
    """Random logits far apart: each token of the answer is one in e**1000."""
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e6)
    options = {"evidence": "answer", "batch_size": 8}
    with pytest.raises(RapInputError, match=r"median p\(answer\) a token is .* 2\d sam"):
        score(model, processor, make_rows(24), **options)
    scores = score(model, processor, make_rows(24), allow_degenerate=True, **options)
    assert len(scores) == 24
    few = score(model, processor, make_rows(4), **options)  # too few to tell
    assert few.meta["counts"] == {"scored": 4}


def test_degenerate_rollouts_of_few_samples_and_of_earlier_runs(tiny, tmp_path):
    options = {"evidence": "rollouts", "m1": 3, "m0": 3, "batch_size": 1}
    options |= {"sampling": Sampling(top_k=1, max_new_tokens=8)}
    with pytest.raises(RapModelError, match="2 of 2 groups"):  # one sample, two arms
        score(*tiny, make_rows(1), **options)
    # six samples in a partial shard and two in a whole one, then one run more
    options |= {"store": tmp_path, "shard_size": 4}
    with pytest.raises(RapModelError, match="8 of 8 groups"):
        score(*tiny, make_rows(6), **options)
    there = ScoreStore.load(tmp_path)
    assert (there.n_kept(), there.parts()) == (3, [0])
    with pytest.raises(RapModelError, match="8 of 8 groups"):  # three, and one sample more
        score(*tiny, make_rows(6), **options)
    scores = score(*tiny, make_rows(6), allow_degenerate=True, **options)
    assert len(scores) == 6
    assert ScoreStore.load(tmp_path).tally(0) == {"groups": 8, "degenerate": 8}
    with pytest.raises(RapModelError, match="12 of 12 groups"):  # nothing left to score
        score(*tiny, make_rows(6), **options)


def test_fault_10_images_that_changed_since_they_were_scored(tiny, tmp_path):
    """Their shards are scored again and said so; the others stay."""
    rows, folder = make_rows(9), tmp_path / "images"
    folder.mkdir()
    for i, row in enumerate(rows):
        (folder / f"{i}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"images/{i}.png"
    options = {"store": tmp_path / "store", "shard_size": 3, "root": tmp_path}
    before = score(*tiny, rows, **options)
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes())
    stale = score(*tiny, rows, verify_images=False, **options)
    assert stable(stale.table).equals(stable(before.table))
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        after = score(*tiny, rows, **options)
    fresh = score(*tiny, rows, **options | {"store": tmp_path / "fresh"})
    assert stable(after.table).equals(stable(fresh.table))
    assert after.table["image_sha256"][4] == before.table["image_sha256"][0]
    (folder / "8.png").unlink()
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        gone = score(*tiny, rows, **options)
    assert gone.table["code"][8].as_py() == "image_missing"


@pytest.mark.proof
def test_fault_10_under_shuffle_an_image_is_its_partners_too(tiny, tmp_path):
    rows = make_rows(6)
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"{i}.png"
    options = {"store": tmp_path / "store", "shard_size": 2, "root": tmp_path}
    options["counterfactual"] = "shuffle"
    score(*tiny, rows, **options)
    (tmp_path / "3.png").write_bytes(png(77))
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        after = score(*tiny, rows, **options)
    fresh = score(*tiny, rows, **options | {"store": tmp_path / "fresh"})
    assert stable(after.table).equals(stable(fresh.table))


def test_quarantined_samples_can_be_retried(tiny, tmp_path):
    rows, good = make_rows(9), tmp_path / "4.png"
    for i, row in enumerate(rows):
        path = tmp_path / f"{i}.png"
        if i != 4:
            path.write_bytes(row["image"]["bytes"])
        row["content"], row["image"] = row["image"]["bytes"], path.name
    contents = [row.pop("content") for row in rows]
    options = {"store": tmp_path / "store", "shard_size": 3, "root": tmp_path}
    first = score(*tiny, rows, **options)
    assert first.meta["counts"] == {"scored": 8, "quarantined_image_missing": 1}
    good.write_bytes(contents[4])
    assert score(*tiny, rows, **options).meta["counts"] == first.meta["counts"]
    again = score(*tiny, rows, retry_quarantined=True, **options)
    assert again.meta["counts"] == {"scored": 9}
    fresh = score(*tiny, rows, **options | {"store": tmp_path / "fresh"})
    assert stable(again.table).equals(stable(fresh.table))


def test_what_a_score_reads_is_in_the_fingerprint(tiny, tmp_path):
    rows = make_rows(4)
    for row in rows:
        row["solution"] = "First the left one, then the right one, that makes it."
    options = {"store": tmp_path, "evidence": "logits"}
    score(*tiny, rows, **options)
    for row in rows:
        row["solution"] += " Really."
    with pytest.raises(RapConfigError, match="dataset"):
        score(*tiny, rows, **options)
    options = {"store": tmp_path / "answer", "evidence": "answer"}  # reads no solution
    score(*tiny, rows, **options)
    rows[0]["solution"] = "Another."
    score(*tiny, rows, **options)


ACE_OPTIONS = [
    {},
    {"sigma": 3.0},
    {"heads": "max"},
    {"heads": "max", "renormalise": True},
    {"normalise": False},
    {"min_rows": 1},
    {"window": 3, "min_rows": 3},
    {"columns": "prompt"},
]


@pytest.mark.parametrize("changed", ACE_OPTIONS, ids=str)
def test_every_ace_option_reaches_the_kernel(tiny, monkeypatch, changed):
    """psi against the specification on the very traces, special tokens in the response."""
    rows = make_rows(3)
    special = tiny[1].tokenizer.all_special_tokens[0]
    for i, row in enumerate(rows):
        row["solution"] = f"one two {special} three four five six seven eight {i} nine ten"
    seen = []
    trace = ModelDriver.trace

    def watched(self, batch, **options):
        traces = trace(self, batch, **options)
        seen.extend(t for t in traces if t.q is not None)
        return traces

    monkeypatch.setattr(ModelDriver, "trace", watched)
    ace = AceConfig(**changed)
    table = score(*tiny, rows, evidence="logits", ace=ace, batch_size=1).table
    assert len(seen) == 3
    scored = sorted(table.to_pylist(), key=lambda row: (-row["n_prompt"], row["index"]))
    for row, t in zip(scored, seen, strict=True):
        assert t.special_mask[t.n_prompt :].any(), "the case needs a special token"
        truth = reference.ace(
            t.q,
            t.k,
            response_start=t.n_prompt,
            scale=t.scaling,
            column_mask=~t.special_mask,
            **dataclasses.asdict(ace),
        )
        assert row["log_psi"] == pytest.approx(truth["log_psi"][0], rel=3e-4)
        assert row["psi_position"] == truth["position"][0]


def test_ace_options_are_told_apart_by_the_case(tiny):
    """The test above could not fail if every option gave the same psi."""
    rows = make_rows(1)
    rows[0]["solution"] = "one two three four five six seven eight nine ten"
    values = [
        score(*tiny, rows, evidence="logits", ace=AceConfig(**changed)).table["log_psi"][0]
        for changed in ACE_OPTIONS
    ]
    assert len({v.as_py() for v in values}) == len(ACE_OPTIONS), values


def test_fault_36_another_setting_on_the_same_store_is_refused(tiny, tmp_path):
    rows = make_rows(4)
    score(*tiny, rows, store=tmp_path, seed=1)
    for options, name in (
        ({"seed": 2}, "seed"),
        ({"seed": 1, "evidence": "answer"}, "evidence"),
        ({"seed": 1, "answer_prefix": "So"}, "answer_prefix"),
        ({"seed": 1, "ace": AceConfig(sigma=3.0)}, "sigma"),
    ):
        with pytest.raises(RapConfigError, match=name):
            score(*tiny, rows, store=tmp_path, **options)
    others = [row | {"id": f"other {i}"} for i, row in enumerate(rows)]
    with pytest.raises(RapConfigError, match="dataset: the data set is another"):
        score(*tiny, others, store=tmp_path, seed=1)
    with pytest.raises(RapConfigError, match="weights"):
        score(*build("qwen2_5_vl", seed=5), rows, store=tmp_path, seed=1)
    # speed may change
    again = score(*tiny, rows, store=tmp_path, seed=1, batch_size=1, workers=0)
    assert len(again) == 4


def test_unknown_settings_are_refused(tiny):
    with pytest.raises(RapConfigError, match="batchsize"):
        score(*tiny, make_rows(1), batchsize=4)
    with pytest.raises(RapConfigError, match="m1"):
        score(*tiny, make_rows(1), m1=0)


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_the_model_is_left_as_it_was(tiny):
    model = tiny[0]
    model.train()
    model.model.visual.eval()
    before = {name: m.training for name, m in model.named_modules()}
    config, hooked = model.generation_config, hooks(model)
    try:
        seen = []
        hook = model.register_forward_pre_hook(lambda m, a: seen.append(m.training))
        score(*tiny, make_rows(2), evidence="rollouts", m1=2, m0=2, sampling=FEW)
        hook.remove()
        assert seen and not any(seen)
        assert {name: m.training for name, m in model.named_modules()} == before
        assert model.generation_config is config
        assert model.config._attn_implementation == "sdpa"
        assert hooks(model) == hooked
        assert all(p.grad is None for p in model.parameters())
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("evidence", "error"),
    [
        ("answer", KeyboardInterrupt),
        ("answer", OSError),
        ("rollouts", SystemExit),
        ("logits", RapModelError),
    ],
)
def test_fault_32_interrupt_loses_at_most_the_current_batch(
    tiny, tmp_path, monkeypatch, evidence, error
):
    rows = make_rows(12)
    options = {"shard_size": 4, "batch_size": 2, "evidence": evidence, "m1": 2, "m0": 2}
    options |= {"sampling": FEW, "max_bad_fraction": 0.5}
    if evidence == "rollouts":
        options["reward"] = by_length
    rows[4]["image"] = {"bytes": b"", "path": None}  # its shard: one batch of 2, one of 1
    whole = score(*tiny, rows, store=tmp_path / "whole", **options)
    calls = 0
    score_batch = filling.score_batch

    def interrupted(scorer, jobs):
        nonlocal calls
        calls += 1
        score_batch(scorer, jobs)
        if calls == 4:  # second shard, last batch: its rows are filled in, not counted
            raise error("stop")

    threads = threading.active_count()
    monkeypatch.setattr(filling, "score_batch", interrupted)
    seconds = 0.0 if error is OSError else 1e9
    monkeypatch.setattr(filling, "PARTIAL_SECONDS", seconds)
    broken = tmp_path / "broken"
    with pytest.raises(error):
        score(*tiny, rows, store=broken, **options)
    assert threading.active_count() == threads
    there = ScoreStore.load(broken)
    assert (there.missing(), there.parts(), there.n_kept()) == ([1, 2], [1], 4 + 3)
    calls = 100
    resumed = score(*tiny, rows, store=broken, **options)
    assert calls == 100 + 1 + 2  # a batch of shard 1, two of shard 2
    assert stable(resumed.table).equals(stable(whole.table))
    if evidence == "rollouts":
        assert resumed.rollouts.equals(whole.rollouts)
    assert sorted(p.name for p in broken.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_fault_32_a_failed_write_of_what_is_left_hides_no_error(
    tiny, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise RapStoreError("no space left")

    calls = itertools.count()
    trace = ModelDriver.trace

    def interrupted(self, *args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return trace(self, *args, **kwargs)

    monkeypatch.setattr(ModelDriver, "trace", interrupted)
    monkeypatch.setattr(ScoreStore, "write_partial", full)
    with pytest.raises(KeyboardInterrupt) as stopped:
        score(*tiny, make_rows(4), store=tmp_path, batch_size=2, evidence="answer")
    assert "could not be kept: no space left" in stopped.value.__notes__[0]


def test_fault_32_a_long_shard_is_kept_while_it_is_in_progress(tiny, tmp_path, monkeypatch):
    kept, one = [], {"evidence": "logits"}
    write = ScoreStore.write_partial

    def written(self, k, scores, *args, **kwargs):
        kept.append((k, scores.num_rows))
        write(self, k, scores, *args, **kwargs)

    monkeypatch.setattr(ScoreStore, "write_partial", written)
    score(*tiny, make_rows(8), store=tmp_path / "quick", batch_size=2, shard_size=6, **one)
    assert kept == []  # not half a minute
    monkeypatch.setattr(filling, "PARTIAL_SECONDS", 0.0)
    score(*tiny, make_rows(8), store=tmp_path / "slow", batch_size=2, shard_size=6, **one)
    assert kept == [(0, 2), (0, 4)]
    assert not list((tmp_path / "slow").glob("partial*"))


def test_progress_shows_rate_and_quarantine(tiny, capfd):
    rows = make_rows(6)
    rows[1]["image"] = {"bytes": b"", "path": None}
    score(*tiny, rows, max_bad_fraction=0.5, progress="force", batch_size=2)
    shown = capfd.readouterr().err
    assert "6/6" in shown and "samples/s" in shown and "1 quarantined" in shown
    score(*tiny, make_rows(2))
    assert capfd.readouterr().err == ""  # nobody is watching


def test_select_is_score_and_choose(tiny, tmp_path):
    rows = make_rows(10)
    selection = rap.select(*tiny, rows, budget=0.3, store=tmp_path, seed=3)
    scores = rap.score(*tiny, rows, store=tmp_path, seed=3)
    expected = rap.choose(scores, budget=0.3)
    assert selection.indices.tolist() == expected.indices.tolist()
    with pytest.raises(RapConfigError, match="budget"):
        rap.select(*tiny, rows, budget=7.0, store=tmp_path / "new")
    assert not (tmp_path / "new").exists()  # refused before the model ran


def test_a_run_that_finds_all_done_reads_each_file_once(tiny, tmp_path, monkeypatch):
    options = {"store": tmp_path, "evidence": "rollouts", "shard_size": 4, "m1": 2, "m0": 2}
    options |= {"allow_degenerate": True, "sampling": {"max_new_tokens": 3}}
    first = score(*tiny, make_rows(10), **options)
    read: Counter[str] = Counter()
    opened = files.read_regular

    def noted(path: Path) -> bytes:
        if path.suffix == ".parquet":
            read[path.name] += 1
        return opened(path)

    monkeypatch.setattr(files, "read_regular", noted)
    again = score(*tiny, make_rows(10), **options)
    assert again.table.equals(first.table)
    names = [f"{kind}-0000{k}.parquet" for kind in ("scores", "rollouts") for k in range(3)]
    assert read == dict.fromkeys(names, 1)
