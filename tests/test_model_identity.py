"""What identifies a model and its processor in a fingerprint."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import build

from rap.model.driver import ModelDriver
from rap.model.identity import processor_sha256, weights_sha256


def test_identity_is_the_same_in_every_process():
    model, processor = build("qwen2_5_vl")
    mine = ModelDriver(model, processor).identity()
    code = (
        "import json; from rap.demo.tiny import tiny_qwen2_5_vl as t; "
        "from rap.model.driver import ModelDriver as D\n"
        "print(json.dumps(D(*t()).identity()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == mine
    assert mine["class"] == "Qwen2_5_VLForConditionalGeneration"
    assert mine["processor"] == "Qwen2_5_VLProcessor"


def test_identity_sees_what_changes_a_score():
    model, processor = build("smolvlm")
    weights, settings = weights_sha256(model), processor_sha256(processor)
    assert weights_sha256(build("smolvlm")[0]) == weights
    assert weights_sha256(build("smolvlm", seed=1)[0]) != weights
    with torch.no_grad():
        model.model.text_model.norm.weight[3] += 1e-6
    assert weights_sha256(model) != weights
    # A call leaves its padding in the tokenizer: no other processor for that.
    processor.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=8)
    assert processor_sha256(processor) == settings
    for change in (
        lambda p: setattr(p, "chat_template", p.chat_template + " "),
        lambda p: setattr(p.image_processor, "image_mean", [0.4, 0.5, 0.5]),
        lambda p: setattr(p, "image_seq_len", 5),
        lambda p: p.tokenizer.add_tokens(["<new>"]),
    ):
        other = build("smolvlm")[1]
        assert processor_sha256(other) == settings
        change(other)
        assert processor_sha256(other) != settings


def test_weights_hash_of_large_tensors():
    class Holder(torch.nn.Module):
        def __init__(self, x):
            super().__init__()
            self.x = torch.nn.Parameter(x, requires_grad=False)

    x = torch.arange(1 << 18, dtype=torch.float32)  # 1 MiB
    start = weights_sha256(Holder(x))
    assert weights_sha256(Holder(x.clone())) == start
    for i in (0, 4095, len(x) - 4096, len(x) - 1):
        y = x.clone()
        y[i] += 1
        assert weights_sha256(Holder(y)) != start
    assert weights_sha256(Holder(x * 1.0001)) != start
    assert weights_sha256(Holder(x.reshape(512, 512))) != start
    assert weights_sha256(Holder(x.to(torch.bfloat16))) != start
    small = torch.zeros(1000)
    all_bytes = {
        weights_sha256(Holder(small.index_fill(0, torch.tensor([i]), 1.0)))
        for i in range(0, 1000, 7)
    }
    assert len(all_bytes) == len(range(0, 1000, 7))
    meta = Holder(torch.empty(5, device="meta"))
    assert weights_sha256(meta) != weights_sha256(Holder(torch.empty(6, device="meta")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_weights_hash_sees_any_one_weight(dtype, monkeypatch):
    """Whatever the chunk it lies in, and wherever the tensor lies in memory."""
    from rap.model import identity as module

    monkeypatch.setattr(module, "_CHUNK_BYTES", 1 << 14)
    rng = torch.Generator().manual_seed(0)
    n = 70_003  # no multiple of a chunk, nor of eight bytes
    x = torch.randint(0, 2, (n,), generator=rng).to(dtype)
    plain = torch.nn.Module()
    plain.register_buffer("x", x)
    start = weights_sha256(plain)
    for i in [0, n - 1, *torch.randint(0, n, (40,), generator=rng).tolist()]:
        plain.x = x.clone()
        plain.x[i] = 1 - x[i].to(torch.int8)
        assert weights_sha256(plain) != start, i
    plain.x = x.clone()
    a, b = 20_000, int((x[20_000:] != x[20_000]).nonzero()[0]) + 20_000
    plain.x[a], plain.x[b] = x[b].clone(), x[a].clone()
    assert weights_sha256(plain) != start
    room = torch.zeros(n + 1, dtype=dtype)
    plain.x = room[1:].copy_(x)  # not at a multiple of eight bytes
    assert weights_sha256(plain) == start
    plain.x = torch.stack([x, x], dim=1)[:, 0]  # nor contiguous
    assert weights_sha256(plain) == start


def test_weights_checksums_are_what_they_say():
    from rap.model.identity import _checksums

    x = torch.arange(-5, 1 << 14, dtype=torch.int16) * 7
    data = x.numpy().tobytes()
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), dtype="<i8").tolist()
    sums = (sum(words), sum(w * (2 * i + 1) for i, w in enumerate(words)))
    assert [[int(v) % 2**64 for v in row] for row in _checksums(x).tolist()] == [
        [v % 2**64 for v in sums]
    ]
