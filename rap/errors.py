"""The exceptions that rap raises on purpose.

A wrong set-up is refused before any work with one of these; one bad sample is
never an exception but a quarantine code in the score table. ``MemoryError`` and
``KeyboardInterrupt`` always pass through unchanged.
"""

from __future__ import annotations

from importlib.util import find_spec

INTERRUPTED = 130
"""Exit code of the shell after Ctrl-C."""


class RapError(Exception):
    """Base of every error that rap raises on purpose."""


class RapInputError(RapError, ValueError):
    """The data handed in cannot be used: array shapes, data set, records."""


class RapConfigError(RapError, ValueError):
    """A setting is invalid, or differs from the one a store was made with."""


class RapStoreError(RapError, OSError):
    """The score store cannot be read, written or locked."""


class RapModelError(RapError, RuntimeError):
    """The model cannot be scored: its attention cannot be captured, or its rollouts are
    degenerate."""


class RapDeviceError(RapError, RuntimeError):
    """The GPU or its driver failed in the middle of a call."""


class RapWorkerError(RapError, RuntimeError):
    """Processes that scored died too often."""


def first_line(error: BaseException) -> str:
    """The first line of any error's text that says something, or its type's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",  # of the driver, not of torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what there was none of: Python's, a GPU's, or torch's on a CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)
    )


def is_device_fault(error: BaseException) -> bool:
    """Whether a device failed, not a sample: torch's ``AcceleratorError``, before torch 2.8
    a ``RuntimeError`` that says so. A library's status ("CUDA error:
    CUBLAS_STATUS_NOT_SUPPORTED when ...") is of one call; on a device that failed, the next
    one fails, too."""
    if is_out_of_memory(error):
        return False
    return any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__) or (
        isinstance(error, RuntimeError)
        and str(error).startswith("CUDA error")
        and "_STATUS_" not in first_line(error)
    )


def install(extra: str = "", options: str = "", before: str = "") -> str:
    """The command that installs rap with an extra, from an index and from a clone, for the
    end of a sentence. ``options``: of pip; ``before``: it, as VARIABLE=value. No other
    module writes it out."""
    pip = f"{before} pip install {options}".strip()
    named, here = (
        (f"'rap-select[{extra}]'", f"'.[{extra}]'") if extra else ("rap-select", ".")
    )
    return f"{pip} {named} (in a clone of the repository: {pip} {here})"


def missing(*modules: str) -> list[str]:
    """Those of these optional modules that are not installed."""
    return [name for name in modules if not _installed(name)]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # sys.modules holds something without a spec
        return False


def require_extra(what: str, extra: str, *modules: str) -> None:
    """Raises ``RapConfigError`` that names the extra, if one of ``modules`` is missing."""
    if lacking := missing(*modules):
        raise RapConfigError(f"{what} needs {' and '.join(lacking)}: {install(extra)}")
