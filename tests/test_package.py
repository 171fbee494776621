"""The package as a user meets it: public names, and life without torch."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import rap
from rap import _C, cuda, environment
from rap.errors import RapConfigError, install

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


def test_case_39_public_names_exist_and_say_what_they_are():
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


ROOT = Path(__file__).parents[1]


def test_case_40_a_message_names_the_command_of_a_clone_too() -> None:
    """Until the package is on PyPI ``pip install rap-select`` finds nothing: only
    ``errors.install`` writes the command, and that of a clone with it."""
    assert install("hf") == (
        "pip install 'rap-select[hf]' (in a clone of the repository: pip install '.[hf]')"
    )
    assert install(options="-U", before="A=b") == (
        "A=b pip install -U rap-select (in a clone of the repository: A=b pip install -U .)"
    )
    by_hand = re.compile(r"rap-select\[|pip install[^'\"]*[\s'\"]+rap-select")
    files = [p for p in (ROOT / "rap").rglob("*.py") if by_hand.search(p.read_text())]
    # the second is copied beside an export, where rap may not be installed
    allowed = [ROOT / "rap" / "errors.py", ROOT / "rap" / "export" / "verl_reward.py"]
    assert sorted(files) == allowed
    text = re.sub(r'"\s+"', "", allowed[1].read_text())
    assert install(options="--no-deps") in text


@pytest.mark.parametrize("extra", ["engines", "natural", "report", "hf"])
def test_case_40_the_messages_of_missing_extras(extra, monkeypatch) -> None:
    from rap.demo.natural import parts
    from rap.engines import http
    from rap.errors import require_extra

    def said() -> str:
        if extra == "natural":
            return parts.INSTALL
        with pytest.raises(RapConfigError) as refused:
            if extra == "engines":
                monkeypatch.setitem(sys.modules, "httpx2", None)
                http.make_client(["http://localhost"], 1, 1.0)
            require_extra("this", extra, "no_such_module")
        return str(refused.value)

    assert f"(in a clone of the repository: pip install '.[{extra}]')" in said()


def test_pages_name_the_command_of_a_clone_first() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob(".github/docs/**/*.md")]
    pages += [*ROOT.glob("notebooks/*.ipynb")]
    assert len(pages) > 10
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            if re.search(r"pip install '?rap-select|rap-select\[", line):
                assert "in a clone" in line or "pip install '.[" in line, (page, line)
