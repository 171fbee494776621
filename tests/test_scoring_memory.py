"""Out of memory: batches are halved, and the scores are the same."""

from __future__ import annotations

import pytest
import torch
from scoring_inputs import FEW, STEP, make_rows
from scoring_rewards import by_length

from rap import ops
from rap.model.halving import in_halves
from rap.scores.table import VOLATILE_COLUMNS
from rap.scoring.batches import memory_of
from rap.scoring.run import score


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


def assert_close(row, other):
    """Equal rows of a score table, but for float32 noise at a rounding border."""
    for name in row.keys() - set(VOLATILE_COLUMNS):
        a, b = row[name], other[name]
        assert a == b or a == pytest.approx(b, rel=STEP), name


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
