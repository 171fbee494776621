"""Windows and images in one attention call a layer: as many calls, and the same numbers."""

from __future__ import annotations

import contextlib
import inspect
import logging

import pytest
import torch
from PIL import Image
from tiny_models import NAMES, build
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import rap
from rap.config import ScoreConfig
from rap.demo.model import load_demo_model
from rap.demo.world import draw, to_dataset
from rap.model import decode, packing, vision
from rap.model.capture import UnsupportedModelError
from rap.model.driver import ModelDriver
from rap.samples.sample import Sample

SPLIT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Those whose towers cut a sequence by ``cu_seqlens``."""
SAMPLE = Sample(0, "one", "Which number?", "A", (), (), None, {})
SIZES = ((56, 56), (252, 196), (140, 112), (252, 84), (252, 196))


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50).convert("RGB")


def pictured(name: str, *sizes: tuple[int, int], **options):
    """(driver, a prompt for each picture)"""
    driver = ModelDriver(*build(name, **options))
    prompts = [driver.prepare(SAMPLE, [picture(size)]) for size in sizes]
    driver.check()
    return driver, prompts


@contextlib.contextmanager
def counted(monkeypatch):
    """How often sdpa was called, by the number of sequences in the call."""
    calls: list[int] = []
    real = functional.scaled_dot_product_attention

    def sdpa(query, *args, **kwargs):
        calls.append(query.shape[0])
        return real(query, *args, **kwargs)

    with monkeypatch.context() as inside:
        inside.setattr(functional, "scaled_dot_product_attention", sdpa)
        yield calls


def encoded(driver, prompts, configs):
    """Features of these prompts' images, all in one pass of the tower."""
    with decode.running(driver), packing.packed(configs):
        found = vision._encoded(driver.model, prompts)
    return [
        part for features in found for part in (*features.parts, *sum(features.deep, ()))
    ]


# ---- the same numbers ------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLIT)
def test_images_of_any_sizes_are_encoded_as_piece_by_piece(name, monkeypatch):
    driver, prompts = pictured(name, *SIZES)
    assert driver._towers
    with counted(monkeypatch) as before:
        theirs = encoded(driver, prompts, ())
    with counted(monkeypatch) as after:
        ours = encoded(driver, prompts, driver._towers)
    assert len(theirs) == len(ours) >= len(SIZES)
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)  # sdpa on the host treats every sequence by itself
    assert sum(after) == sum(before) == len(before)
    assert len(after) < len(before)


def test_as_many_calls_a_layer_as_there_are_sizes_of_windows(monkeypatch):
    """252 x 196 pixels are 9 x 7 image tokens of 2 x 2 patches: in the tiny Qwen2.5-VL 12
    windows of 16 patches, 7 of 8 at two edges, one of 4; the other layer sees an image
    whole."""
    driver, prompts = pictured("qwen2_5_vl", *[(252, 196)] * 3)
    config = driver.model.config.vision_config
    assert (config.depth, len(config.fullatt_block_indexes)) == (2, 1)
    with counted(monkeypatch) as calls:
        encoded(driver, prompts, driver._towers)
    assert sorted(calls) == [3 * 1, 3 * 1, 3 * 7, 3 * 12]
    with counted(monkeypatch) as calls:
        encoded(driver, prompts, ())
    assert len(calls) == 3 * (1 + 7 + 12) + 3


@pytest.mark.parametrize("evidence", ["answer", "logits", "rollouts"])
def test_scores_are_the_same_bytes(evidence, monkeypatch):
    model, processor = load_demo_model()
    data = to_dataset(draw(12, seed=3))
    given = {"evidence": evidence, "m1": 3, "m0": 3, "progress": False}
    driver = ModelDriver(model, processor)
    driver.check()
    assert driver._towers
    ours = rap.score(model, processor, data, **given, allow_degenerate=True)
    monkeypatch.setattr(packing, "towers", lambda *args: ())
    theirs = rap.score(model, processor, data, **given, allow_degenerate=True)
    columns = [name for name in ours.table.column_names if name != "seconds"]
    assert ours.table.select(columns).equals(theirs.table.select(columns))


# ---- on a device -----------------------------------------------------------------------


def looped(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, enable_gqa):
    """What `varlen_attn` computes, in float64: q, k, v [T, H, D]."""
    assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k)
    ends, out = cu_q.tolist(), torch.empty_like(q)
    assert max_q == max_k == max(b - a for a, b in zip(ends, ends[1:], strict=False))
    for a, b in zip(ends, ends[1:], strict=False):
        s, t, u = (x[a:b].transpose(0, 1).double() for x in (q, k, v))
        if enable_gqa:
            t, u = (x.repeat_interleave(len(s) // len(t), dim=0) for x in (t, u))
        weights = (scale * s @ t.transpose(1, 2)).softmax(-1)
        out[a:b] = (weights @ u).transpose(0, 1).to(q.dtype)
    return out


@pytest.mark.parametrize("name", SPLIT)
def test_a_variable_length_kernel_is_called_once_a_layer(name, monkeypatch):
    driver, prompts = pictured(name, *SIZES)
    theirs = encoded(driver, prompts, ())
    calls = []

    def kernel(*args, **kwargs):
        calls.append(len(args[3]) - 1)
        return looped(*args, **kwargs)

    monkeypatch.setattr(packing, "varlen_kernel", lambda query: kernel)
    with counted(monkeypatch) as sdpa:
        ours = encoded(driver, prompts, driver._towers)
    layers = len(driver.model.model.visual.blocks)
    assert len(calls) == layers and not sdpa
    assert min(calls) == len(SIZES)  # pieces: one an image, or its windows
    for a, b in zip(theirs, ours, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())


def test_torch_s_kernel_takes_what_it_is_given(monkeypatch):
    """Its own shape function, on tensors that say they lie on a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        x = torch.empty(130, 3, 4, 80, dtype=torch.bfloat16, device="cuda")
        q, k, v = (t.transpose(0, 1)[None] for t in x.unbind(1))
        assert packing.varlen_kernel(q) is not None
        ends = torch.empty(4, dtype=torch.int32, device="cuda")
        out, _ = packing.attention(
            torch.nn.Identity(),
            q,
            k,
            v,
            None,
            scaling=0.1,
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
            max_length_q=100,
            max_length_k=100,
            dropout=0.0,
            is_causal=False,
        )
        assert out.shape == (1, 130, 4, 80) and out.device.type == "cuda"
        assert packing.varlen_kernel(q.float()) is None
        assert packing.varlen_kernel(q[..., :20]) is None
        assert (
            packing.varlen_kernel(torch.empty(1, 4, 9, 512, device="cuda").half()) is None
        )
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert packing.varlen_kernel(q) is None
    assert packing.varlen_kernel(torch.empty(1, 4, 9, 64).half()) is None


# ---- the function ----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [3, 5, 3, 1, 5], [2, 0, 3, 0, 2]])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_pieces_of_any_sizes_against_float64(sizes, key_heads):
    generator = torch.Generator().manual_seed(len(sizes))
    total = sum(sizes)
    q, k, v = (
        torch.randn(1, heads, total, 8, generator=generator)
        for heads in (4, key_heads, key_heads)
    )
    module = torch.nn.Identity()
    module.num_key_value_groups = 4 // key_heads
    ends = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    most = {"max_length_q": max(sizes), "max_length_k": max(sizes)}
    given = {"scaling": 0.3, "is_causal": False}
    out, weights = packing.attention(
        module, q, k, v, None, cu_seq_lens_q=ends, cu_seq_lens_k=ends, **most, **given
    )
    given = [x[0].transpose(0, 1) for x in (q, k, v)]
    truth = looped(*given, ends, ends, *most.values(), scale=0.3, enable_gqa=key_heads != 4)
    assert weights is None and out.shape == (1, total, 4, 8)
    assert torch.allclose(out[0], truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more, said",
    [
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "mask"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"softcap": 30.0}, "soft-capping"),
        ({"is_causal": True}, "causal"),
        ({"sliding_window": 2}, "window"),
        ({"dropout": 0.1}, "drops"),
    ],
)
def test_what_changes_the_weights_is_refused(more, said):
    x, ends = torch.ones(1, 2, 4, 8), torch.tensor([0, 4])
    given = {"attention_mask": None, "cu_seq_lens_q": ends, "is_causal": False} | more
    with pytest.raises(UnsupportedModelError, match=said):
        packing.attention(torch.nn.Identity(), x, x, x, **given)


def test_without_pieces_it_is_sdpa():
    """As in earlier releases of transformers, which hand over one piece at a time."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    x, module = torch.randn(1, 2, 4, 8), torch.nn.Identity()
    given = {"scaling": 0.2, "is_causal": False, "dropout": 0.0}
    ours, _ = packing.attention(module, x, x, x, None, **given)
    theirs, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, x, x, x, None, **given)
    assert torch.equal(ours, theirs)


# ---- where it is used, and where not ---------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SPLIT)))
def test_other_towers_keep_their_path(name):
    driver, _ = pictured(name, (60, 50))
    assert driver._towers == ()


@pytest.mark.parametrize("theirs", ["eager", "flash_attention_2"])
def test_a_tower_loaded_otherwise_keeps_its_attention(theirs):
    driver, _ = pictured("qwen2_5_vl", (60, 50))
    (config,) = driver._towers
    config._attn_implementation_internal = theirs
    assert packing.towers(driver.model, driver.parts.configs) == ()


def test_the_model_is_left_as_it_was():
    driver, prompts = pictured("qwen2_5_vl", (60, 50))
    (config,) = driver._towers
    assert config is driver.model.config.vision_config
    driver.trace([driver.with_response(prompts[0], [5, 6])])
    assert config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), packing.packed(driver._towers):
        assert config._attn_implementation == packing.PACKED_NAME
        raise ZeroDivisionError
    assert config._attn_implementation == "sdpa"
    assert config.to_dict() == type(config)(**config.to_dict()).to_dict()


@pytest.mark.parametrize("fault", ["other numbers", "an error"])
def test_a_tower_that_comes_out_otherwise_is_not_packed(fault, monkeypatch, caplog):
    real = packing.by_size

    def broken(attend, query, key, value, sizes):
        if fault == "an error":
            raise RuntimeError("no kernel image is available")
        return real(attend, query, key, value.flip(2), sizes)

    monkeypatch.setattr(packing, "by_size", broken)
    with caplog.at_level(logging.INFO, logger="rap"):
        driver, prompts = pictured("qwen2_5_vl", (252, 196))
        driver.trace([driver.with_response(prompts[0], [5, 6])])
    assert driver._towers == () and driver.counts.images_encoded == 1
    assert sum("piece by piece" in r.message for r in caplog.records) == 1


def test_memory_that_is_short_in_the_check_is_the_caller_s(monkeypatch):
    def short(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(packing, "by_size", short)
    driver = ModelDriver(*build("qwen2_5_vl"), ScoreConfig())
    with pytest.raises(torch.OutOfMemoryError):
        driver.check()


def test_the_kernel_s_arguments_are_those_of_torch():
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch before 2.10")
    taken = inspect.signature(varlen.varlen_attn).parameters
    assert {"scale", "enable_gqa"} <= {
        name for name, p in taken.items() if p.kind is p.KEYWORD_ONLY
    }
