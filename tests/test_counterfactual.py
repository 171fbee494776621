"""What "without the image" means: sizes, pixels, repeatability."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from rap.config import COUNTERFACTUALS
from rap.errors import RapConfigError, RapInputError
from rap.model.counterfactual import counterfactual_images


@pytest.fixture
def images(rng):
    shapes = [(20, 31, 3), (7, 5, 3)]
    return [Image.fromarray(rng.integers(0, 256, s, dtype=np.uint8)) for s in shapes]


def digest(image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_drop_is_no_image(images):
    assert counterfactual_images(images, "drop", seed=1) is None


@pytest.mark.parametrize("kind", [k for k in COUNTERFACTUALS if k != "drop"])
def test_same_number_and_form_and_the_originals_stay(images, kind, rng):
    partner = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))]
    before = [digest(x) for x in images]
    got = counterfactual_images(images, kind, seed=3, partner=partner)
    again = counterfactual_images(images, kind, seed=3, partner=partner)
    assert [digest(x) for x in images] == before
    assert [digest(x) for x in got] == [digest(x) for x in again]
    assert len(got) == len(images)
    assert all(x.mode == "RGB" for x in got)
    if kind != "shuffle":
        assert [x.size for x in got] == [x.size for x in images]
    assert all(digest(a) != digest(b) for a, b in zip(got, images, strict=True))


def test_blank_is_the_mean_colour_of_each_channel(images):
    for image, blank in zip(
        images, counterfactual_images(images, "blank", seed=0), strict=True
    ):
        (count, colour), *rest = blank.getcolors()
        assert not rest and count == image.width * image.height
        means = np.asarray(image).reshape(-1, 3).mean(axis=0)
        assert np.abs(np.array(colour) - means).max() <= 0.5


def test_blank_rounds_halves_up():
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (1, 255, 3))
    (blank,) = counterfactual_images([image], "blank", seed=0)
    assert blank.getpixel((0, 0)) == (1, 128, 2)


def test_noise_is_uniform_and_differs_by_seed_and_image(images):
    same = [images[0], images[0].copy()]
    first, second = counterfactual_images(same, "noise", seed=5)
    (other,) = counterfactual_images(same[:1], "noise", seed=6)
    assert len({digest(first), digest(second), digest(other)}) == 3
    big = Image.new("RGB", (256, 256))
    (noise,) = counterfactual_images([big], "noise", seed=7)
    counts = np.bincount(np.asarray(noise).ravel(), minlength=256)
    expected = 3 * 256 * 256 / 256
    # chi-square with 255 degrees of freedom; 1e-4 in the upper tail
    assert float(((counts - expected) ** 2 / expected).sum()) < 346.0


def test_noise_is_the_same_on_every_machine():
    (noise,) = counterfactual_images([Image.new("RGB", (4, 2))], "noise", seed=0)
    stream = hashlib.shake_128(b"rap noise 0 0").digest(24)
    assert noise.tobytes() == stream
    assert noise.getpixel((1, 0)) == tuple(stream[3:6])


def test_shuffle_takes_the_partners_images(images):
    partner = [Image.new("RGB", (3, 3), c) for c in ("red", "green", "blue")]
    got = counterfactual_images(images, "shuffle", seed=0, partner=partner)
    assert [x.getpixel((0, 0)) for x in got] == [(255, 0, 0), (0, 128, 0)]
    one = counterfactual_images(images, "shuffle", seed=0, partner=partner[:1])
    assert [x.getpixel((0, 0)) for x in one] == [(255, 0, 0), (255, 0, 0)]


@pytest.mark.parametrize("partner", [None, []])
def test_shuffle_without_a_partner_is_refused(images, partner):
    with pytest.raises(RapInputError, match="partner"):
        counterfactual_images(images, "shuffle", seed=0, partner=partner)


@pytest.mark.parametrize("kind", ["", "dropp", "DROP", None])
def test_unknown_kind_is_refused(images, kind):
    with pytest.raises(RapConfigError, match="counterfactual"):
        counterfactual_images(images, kind, seed=0)
