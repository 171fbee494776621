"""Samples -> score table with a real (tiny, random) Qwen2.5-VL."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import threading
import time
from fractions import Fraction

import pytest
import torch
from PIL import Image
from scoring_inputs import FEW, STEP, make_rows, png, stable
from scoring_rewards import by_length
from tiny_models import NAMES, build

import rap
from rap import reference
from rap.config import AceConfig, ScoreConfig
from rap.errors import RapConfigError
from rap.model.driver import ModelDriver
from rap.model.rollouts import row_seed
from rap.samples.sampleset import open_samples
from rap.scores.table import VOLATILE_COLUMNS
from rap.scoring.evidence.rollouts import can_be_kept
from rap.scoring.jobs import ahead, answer_tokens, reference_solution, reference_text
from rap.scoring.rounding import significant
from rap.scoring.run import score

# ---- pieces without a model ----------------------------------------------------------


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


# ---- the scores are right ------------------------------------------------------------


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


# ---- which text is scored ------------------------------------------------------------


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


# ---- the same selection, whatever the batch size -------------------------------------


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


# ---- set-up --------------------------------------------------------------------------


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
