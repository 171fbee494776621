from collections.abc import Callable
from typing import Any

GIL_BYTES: int
CDE_OUTPUTS: int
CUDA_KERNELS: tuple[str, ...]

# Where a call runs: threads on the CPU, or (stream, allocate) on a CUDA device.
_Place = int | tuple[int, Callable[[int], Any]]

def cde(
    logits1: Any, logits0: Any, targets: Any, out: Any, want: int, place: _Place, /
) -> None: ...
def linear_cde(
    hidden1: Any,
    hidden0: Any,
    weight: Any,
    bias: Any,
    targets: Any,
    out: Any,
    scale: float,
    softcap: float,
    memory: int,
    want: int,
    place: _Place,
    /,
) -> None: ...
def cde_means(
    answers: Any, weights: Any, cu_seqlens: Any, out: Any, want: int, place: _Place, /
) -> None: ...
def ace(
    q: Any,
    k: Any,
    cu_seqlens: Any,
    response_start: Any,
    column_mask: Any,
    image_mask: Any,
    lse: Any,
    summary: Any,
    position: Any,
    psi: Any,
    options: tuple[float, ...],
    place: _Place,
    /,
) -> None: ...
def drm(difficulty: Any, gain: Any, eligible: Any, out: Any, place: _Place, /) -> int: ...
def isa(name: str | None = None) -> str: ...
def isa_names() -> list[str]: ...
def cuda_info() -> dict[str, Any]: ...
def cublaslt(path: str | None = None, /) -> int: ...
def cuda_alloc(size: int, device: int, stream: int, /) -> tuple[object, int]: ...
def cuda_read(to: Any, pointer: int, device: int, stream: int, /) -> None: ...
def cuda_wait(device: int, stream: int, /) -> None: ...
def cuda_device_of(pointer: int, /) -> int: ...
def cuda_dlpack(
    owner: object,
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    code: int,
    bits: int,
    device: int,
    /,
) -> object: ...
