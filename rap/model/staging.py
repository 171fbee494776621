"""Pixels on their way to a GPU while it computes: from pinned memory, on a side stream.

    worker thread      cast, pin, copy on the side stream, record an event there
    launching thread   its stream waits for the event; the tower reads the copy

``send`` costs the launching thread nothing, ``receive`` no wait of the host. The device is
reached through `Device`, four calls of ``torch.cuda``. Tests put a stand-in there that
shows a copy only to whom has waited for it; on a GPU this never ran.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import torch

AHEAD_BYTES = 1 << 30
"""Copies that wait for their forward, at most: more stay on the host."""


class Device(Protocol):
    """What is asked of a device."""

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """A copy in memory that the device reads by itself."""
        ...

    def copy(self, pinned: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Begin a copy on the side stream: what it will fill, and an event after it."""
        ...

    def wait(self, event: Any) -> None:
        """Let this thread's current stream wait for an event."""
        ...

    def reads(self, x: torch.Tensor) -> None:
        """The current stream will read ``x``: its memory is not given away before."""
        ...


class Cuda:
    """`Device` for torch.cuda."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        return x.pin_memory()

    def copy(self, pinned: torch.Tensor) -> tuple[torch.Tensor, Any]:
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            there = pinned.to(self._device, non_blocking=True)
            event.record(self._stream)
        return there, event

    def wait(self, event: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def reads(self, x: torch.Tensor) -> None:
        x.record_stream(torch.cuda.current_stream(self._device))


class Sent:
    """Copies of one sample's pixels, by the processor's names."""

    def __init__(
        self, device: Device, copies: Mapping[str, tuple[torch.Tensor, Any]]
    ) -> None:
        self._device = device
        self._copies = copies

    def __contains__(self, name: str) -> bool:
        return name in self._copies

    def receive(self, name: str) -> torch.Tensor:
        """A copy, for the current stream of this thread."""
        x, event = self._copies[name]
        self._device.wait(event)
        self._device.reads(x)
        return x


class Stage:
    """Sends pixels ahead to one device, in one dtype. Thread-safe."""

    def __init__(self, device: Device, dtype: torch.dtype, most: int = AHEAD_BYTES) -> None:
        self.device = device
        self._dtype = dtype
        self._most = most
        self._held = 0
        self._lock = threading.Lock()

    def send(self, inputs: Mapping[str, torch.Tensor]) -> Sent | None:
        """Begin to copy the pixels among a processor's tensors; None if there are none,
        too much waits already, or the device's memory is short."""
        pixels = {k: x for k, x in inputs.items() if k.startswith("pixel_values")}
        pixels = {
            k: x.to(self._dtype) if x.is_floating_point() else x for k, x in pixels.items()
        }
        size = sum(x.nbytes for x in pixels.values())
        if not pixels or not self._reserve(size):
            return None
        try:
            copies = {k: self.device.copy(self.device.pin(x)) for k, x in pixels.items()}
        except torch.OutOfMemoryError:
            self._forget(size)
            return None
        sent = Sent(self.device, copies)
        weakref.finalize(sent, self._forget, size)
        return sent

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if self._held + size > self._most:
                return False
            self._held += size
            return True

    def _forget(self, size: int) -> None:
        with self._lock:
            self._held -= size
