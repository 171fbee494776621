from collections.abc import Callable
from typing import Any

GIL_BYTES: int
CDE_OUTPUTS: int
CUDA_ROOMS: tuple[str, ...]

def cde(
    logits1: Any, logits0: Any, targets: Any, out: Any, want: int, threads: int
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
    threads: int,
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
    scale: float,
    sigma: float,
    min_rows: int,
    window: int,
    key_window: int,
    heads: int,
    columns: int,
    top: int,
    renormalise: bool,
    normalise: bool,
    stats: bool,
    threads: int,
) -> None: ...
def drm(difficulty: Any, gain: Any, eligible: Any, out: Any, threads: int) -> int: ...
def isa(name: str | None = None) -> str: ...
def isa_names() -> list[str]: ...
def cuda_info() -> dict[str, Any]: ...
def cde_cuda(
    logits1: Any,
    logits0: Any,
    targets: Any,
    out: Any,
    want: int,
    stream: int,
    allocate: Callable[[int], Any],
) -> None: ...
def linear_cde_cuda(
    hidden1: Any,
    hidden0: Any,
    weight: Any,
    bias: Any,
    targets: Any,
    out: Any,
    scale: float,
    softcap: float,
    want: int,
    stream: int,
    allocate: Callable[[int], Any],
) -> None: ...
def cde_means_cuda(
    answers: Any,
    weights: Any,
    cu_seqlens: Any,
    out: Any,
    want: int,
    stream: int,
    allocate: Callable[[int], Any],
) -> None: ...
def ace_cuda(
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
    scale: float,
    sigma: float,
    min_rows: int,
    window: int,
    key_window: int,
    heads: int,
    columns: int,
    top: int,
    renormalise: bool,
    normalise: bool,
    stats: bool,
    stream: int,
    allocate: Callable[[int], Any],
) -> None: ...
def drm_cuda(
    difficulty: Any,
    gain: Any,
    eligible: Any,
    out: Any,
    stream: int,
    allocate: Callable[[int], Any],
) -> int: ...
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
