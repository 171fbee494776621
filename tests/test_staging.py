"""Pixels sent ahead to a device that shows a copy only to whom has waited for it.

There is no GPU here: `Late` stands in for it, so that this is the order of the calls; the
copies themselves, their streams and events never ran on a GPU.
"""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from PIL import Image
from scoring_inputs import make_rows
from tiny_models import build

import rap
from rap.model import staging
from rap.model.driver import ModelDriver
from rap.model.staging import Stage
from rap.samples.sample import Sample

SAMPLE = Sample(0, "one", "Which number?", "A", (), (), None, {})


class Late:
    """A `staging.Device`: a copy holds NaN until its event was waited for, and its memory
    may go to another as soon as nobody reads it."""

    def __init__(self, *, short_of_memory: bool = False) -> None:
        self.calls: list[str] = []
        self.threads: dict[str, set[int]] = {}
        self._short = short_of_memory

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.setdefault(call, set()).add(threading.get_ident())

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        self._note("pin")
        return x.clone()

    def copy(self, pinned):
        self._note("copy")
        if self._short:
            raise torch.OutOfMemoryError("CUDA out of memory")
        there = torch.full_like(pinned, torch.nan)
        return there, (there, pinned)

    def wait(self, event) -> None:
        self._note("wait")
        there, pinned = event
        there.copy_(pinned)

    def reads(self, x: torch.Tensor) -> None:
        self._note("reads")
        assert bool(torch.isfinite(x).all())


def prompts(driver: ModelDriver, n: int):
    sizes = [(60 + 30 * (i % 3), 50 + 20 * (i % 4)) for i in range(n)]
    pictures = [
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50 + i).convert("RGB")
        for i, size in enumerate(sizes)
    ]
    return [
        driver.prepare(SAMPLE, [picture], [5, 6 + i]) for i, picture in enumerate(pictures)
    ]


def hidden(driver: ModelDriver, batch):
    return [trace.hidden for trace in driver.trace(batch, attention=False)]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "llava", "smolvlm"])
def test_the_tower_reads_copies_that_are_whole(name):
    driver = ModelDriver(*build(name))
    expected = hidden(driver, prompts(driver, 3))
    late = Late()
    driver.stage = Stage(late, torch.float32)
    batch = prompts(driver, 3)
    for prepared in batch:
        driver.send_ahead(prepared)
    assert late.calls == ["pin", "copy"] * 3
    found = hidden(driver, batch)
    assert late.calls[6:] == ["wait", "reads"] * 3
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert all(prepared.shared.sent is None for prepared in batch)  # memory goes


def test_a_batch_of_which_only_some_were_sent_is_taken_from_the_host():
    driver = ModelDriver(*build("qwen2_5_vl"))
    expected = hidden(driver, prompts(driver, 2))
    late = Late()
    driver.stage = Stage(late, torch.float32)
    batch = prompts(driver, 2)
    driver.send_ahead(batch[1])
    for a, b in zip(hidden(driver, batch), expected, strict=True):
        assert torch.equal(a, b)
    assert late.calls == ["pin", "copy"]


def test_a_sample_is_sent_once_and_only_with_images():
    driver = ModelDriver(*build("qwen2_5_vl"))
    driver.check()
    late = Late()
    driver.stage = Stage(late, torch.float32)
    (prepared,) = prompts(driver, 1)
    for one in (prepared, prepared, driver.with_response(prepared, [9])):
        driver.send_ahead(one)
    driver.send_ahead(driver.prepare(SAMPLE, None, [5]))
    assert late.calls == ["pin", "copy"]
    driver.trace([prepared], attention=False)
    driver.send_ahead(prepared)  # its features are there
    assert late.calls == ["pin", "copy", "wait", "reads"]


def test_what_waits_is_bounded_and_given_back():
    pixels = {"pixel_values": torch.ones(4, 8), "image_grid_thw": torch.ones(1, 3)}
    stage = Stage(Late(), torch.float32, most=300)
    one, two = stage.send(pixels), stage.send(pixels)
    assert one is not None and two is not None and "image_grid_thw" not in one
    assert stage.send(pixels) is None  # 128 bytes each
    del one
    gc.collect()
    assert stage.send(pixels) is not None


def test_short_memory_leaves_pixels_on_the_host():
    late = Late(short_of_memory=True)
    stage = Stage(late, torch.float32, most=200)
    pixels = {"pixel_values": torch.ones(4, 8)}
    assert stage.send(pixels) is None and stage.send(pixels) is None
    assert late.calls == ["pin", "copy"] * 2  # what was reserved was given back


def test_pixels_travel_in_the_model_s_dtype():
    stage = Stage(Late(), torch.bfloat16)
    x = torch.randn(4, 8)
    sent = stage.send({"pixel_values": x})
    assert sent is not None
    assert torch.equal(sent.receive("pixel_values"), x.to(torch.bfloat16))


def test_a_model_that_takes_pixels_itself_is_sent_none(monkeypatch):
    from rap.model import vision

    monkeypatch.setattr(vision, "why_not", lambda model: "it is a test")
    driver = ModelDriver(*build("qwen2_5_vl"))
    driver.check()
    driver.stage = Stage(Late(), torch.float32)
    (prepared,) = prompts(driver, 1)
    driver.send_ahead(prepared)
    assert prepared.shared.sent is None


def test_on_the_host_nothing_is_sent():
    driver = ModelDriver(*build("qwen2_5_vl"))
    driver.check()
    (prepared,) = prompts(driver, 1)
    driver.send_ahead(prepared)
    assert driver.stage is None and prepared.shared.sent is None


def test_scoring_sends_from_its_workers_and_scores_the_same(monkeypatch):
    model, processor = build("qwen2_5_vl")
    given = {"evidence": "answer", "progress": False, "batch_size": 2}
    rows = make_rows(6)
    expected = rap.score(model, processor, rows, **given, allow_degenerate=True).table
    late, check = Late(), ModelDriver.check

    def checked(self):
        check(self)
        self.stage = Stage(late, torch.float32)

    monkeypatch.setattr(ModelDriver, "check", checked)
    found = rap.score(model, processor, rows, **given, allow_degenerate=True).table
    columns = [name for name in found.column_names if name != "seconds"]
    assert found.select(columns).equals(expected.select(columns))
    here = threading.get_ident()
    assert here not in late.threads["pin"] | late.threads["copy"]
    assert late.threads["wait"] == late.threads["reads"] == {here}
    assert late.calls.count("wait") == late.calls.count("copy") == 6


def test_the_calls_of_torch_cuda(monkeypatch):
    """`staging.Cuda` against a stand-in for torch.cuda and for tensors there."""
    calls: list[tuple] = []

    class Event:
        def record(self, stream):
            calls.append(("record", stream))

    class Stream:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            calls.append(("on", self))

        def __exit__(self, *error):
            calls.append(("off", self))

        def wait_event(self, event):
            calls.append(("wait", self, event))

    class There:
        def to(self, device, non_blocking):
            calls.append(("to", str(device), non_blocking))
            return self

        def record_stream(self, stream):
            calls.append(("reads", stream))

    current = Stream("cuda:0")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    device = staging.Cuda(torch.device("cuda:0"))
    there, event = device.copy(There())
    device.wait(event)
    device.reads(there)
    side = calls[0][1]
    assert side is not current
    assert calls == [
        ("on", side),
        ("to", "cuda:0", True),
        ("record", side),
        ("off", side),
        ("wait", current, event),
        ("reads", current),
    ]
