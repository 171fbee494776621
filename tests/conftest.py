"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before any test imports a library: no hub is ever asked, and two cores are not
# oversubscribed by every BLAS at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them
# every program whose Ctrl-C they try.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


LONG = (
    "test_executor_ray.py",
    "test_cli.py",
    "test_cuda_host.py",
    "test_executors.py",
    "test_processes.py",
    "test_resume.py",
    "test_scoring_bad_samples.py",
    "test_notebooks.py",
    "test_cuda_bugs.py",
)
"""Files that take a minute or more, the longest first: of two workers none begins one of
them when the other has nothing left (a worker takes whole files)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))  # else as they are


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``../shared`` with real data, beside the checkout."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed: a failing test fails again."""
    return np.random.default_rng(20250604)


@pytest.fixture(scope="module")
def tiny():
    """(model, processor), small, with random weights; tests that change the model put it
    back."""
    import torch
    from tiny_models import build

    torch.set_num_threads(1)  # here, too: of a module, it comes before _one_torch_thread
    return build("qwen2_5_vl")


@pytest.fixture(scope="module")
def pool():
    """Samples of the demo's world, to select from and to train on."""
    pytest.importorskip("datasets")
    from rap.demo import world
    from rap.samples.sampleset import open_samples

    return open_samples(world.rows(world.draw(24, seed=2)))


@pytest.fixture
def trl():
    return pytest.importorskip("trl", reason="training needs trl")


@pytest.fixture
def isa(request: pytest.FixtureRequest):
    """Runs a test with one kernel table; parametrize indirectly over ``ISAS``."""
    from rap import _C

    before = _C.isa(request.param)
    yield request.param
    _C.isa(before)


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Two test processes on two cores: torch must not start a pool in each."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
