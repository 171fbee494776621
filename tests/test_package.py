"""The package as a user meets it: public names, and life without torch."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import rap
from rap import _C, cuda, environment

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
import numpy as np, rap
from rap import *
x = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
assert np.isfinite(rap.cde(x, x[::-1]).kl).all()
assert rap.drm(np.array([0.2, 0.5]), 1).tolist() == [1]
assert rap.info()["isa"]
for call in (rap.score, rap.select):
    try:
        call(None, None, [])
    except rap.RapConfigError as error:
        assert "torch" in str(error) and "rap-select[hf]" in str(error)
    else:
        raise AssertionError("not refused")
"""


def test_public_names_exist_and_say_what_they_are():
    for name in rap.__all__:
        assert getattr(rap, name).__doc__, name


def test_kernels_and_names_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    assert not hasattr(rap, "scores_of")


class OnDevice:
    """All that is asked of an array before it is read."""

    def __dlpack_device__(self):
        return 2, 0


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(_C, "CUDA_KERNELS", ())
    monkeypatch.setattr(
        _C, "cuda_info", lambda: {"made": "nvcc was not found when it was built",
                                  "error": "no CUDA kernels in this build: nvcc was not "
                                  "found when it was built", "kernels": []},
    )  # fmt: skip
    cuda._warn_of_host.cache_clear()
    yield
    cuda._warn_of_host.cache_clear()


def test_a_build_without_kernels_says_once_that_it_computes_on_the_host(no_kernels):
    with pytest.warns(RuntimeWarning, match="no CUDA kernels .nvcc was not found") as said:
        for kernel in ("cde", "ace", "cde"):
            assert cuda.place_of(kernel, logits1=OnDevice(), logits0=OnDevice()) is None
    (warning,) = said
    assert "RAP_CUDA=on pip install" in str(warning.message)


def test_nothing_is_said_where_the_host_is_meant(no_kernels, monkeypatch):
    monkeypatch.setenv("RAP_CUDA", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda.place_of("cde", logits1=OnDevice(), logits0=OnDevice()) is None


@pytest.mark.parametrize("gpu", [True, False])
def test_info_says_what_a_build_without_kernels_needs(no_kernels, monkeypatch, gpu):
    monkeypatch.setattr(environment, "_has_gpu", lambda: gpu)
    text = rap.info()["gpu"]
    assert text.startswith("arrays are computed on the CPU: no CUDA kernels in this build")
    assert ("This machine has a GPU: install a wheel" in text) == gpu
