"""rap.samples.images: what is refused and by which code, and what RGB means."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import socket
import struct
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rap.samples.images import FORMATS, decode, encode_image, load_images, read_bytes
from rap.samples.sample import Bad, BadSample, ImageRef, Sample
from rap.samples.sampleset import open_samples

MANY = 50_000_000


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(rng: np.random.Generator, w: int = 24, h: int = 16) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def code_of(data: bytes, **options: int) -> str:
    with pytest.raises(BadSample) as caught:
        decode(data, **{"max_pixels": MANY, **options})
    assert caught.value.stage == "image"
    assert caught.value.message
    return caught.value.code


def path_code(path: object) -> str:
    with pytest.raises(BadSample) as caught:
        read_bytes(ImageRef(None, str(path)))
    return caught.value.code


def one(root: Path, image: object) -> Sample | Bad:
    """The row with this image, beside a good one (a set with no good row is refused)."""
    good = {"question": "q", "answer": "1", "image": encoded(Image.new("RGB", (8, 8)))}
    rows = [good, {"question": "q", "answer": "1", "image": image}]
    return open_samples(rows, root=root)[1]


def row_code(root: Path, image: object) -> str:
    bad = one(root, image)
    assert isinstance(bad, Bad) and bad.stage == "image"
    return bad.code


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with no pixels to speak of."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# ------------------------------------------------------------------------- refused


def test_fault_01_missing_image(tmp_path):
    assert path_code(tmp_path / "nothing.png") == "image_missing"
    sample = one(tmp_path, "nothing.png")  # seen when it is read, not when rows are
    assert isinstance(sample, Sample)
    with pytest.raises(BadSample, match="no such file"):
        load_images(sample.images, max_pixels=MANY)
    assert row_code(tmp_path, "") == "image_missing"
    assert row_code(tmp_path, {"bytes": None, "path": None}) == "image_missing"


def test_fault_01_unreadable_permission(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("runs as root, whom permissions do not stop")
    assert path_code(path) == "image_unreadable"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"  <html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        b"<?xml version='1.0'?><svg/>",
        b"\x00" * 100,
        b"hello",
    ],
)
def test_fault_02_not_an_image(data):
    assert code_of(data) == "image_unreadable"


@pytest.mark.parametrize("kind", FORMATS)
def test_fault_03_truncated_image(rng, kind):
    whole = encoded(picture(rng, 64, 64), kind)
    assert decode(whole, max_pixels=MANY).size == (64, 64)
    for keep in (len(whole) // 2, 30):
        assert code_of(whole[:keep]) == "image_truncated"


def test_fault_03_verify_would_not_have_noticed(rng):
    cut = encoded(picture(rng, 64, 64), "JPEG")[:-500]
    Image.open(io.BytesIO(cut)).verify()  # the reason why decode() loads
    assert code_of(cut) == "image_truncated"


def test_fault_04_bomb_is_refused_before_it_is_decoded():
    # Pillow says nothing to the first, warns at the second, raises at the third
    for side in (8_000, 10_000, 100_000):
        tracemalloc.start()
        assert code_of(png_header(side, side)) == "image_too_large"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


def test_fault_04_limit_is_inclusive_and_ours():
    data = encoded(Image.new("RGB", (40, 50)))
    assert decode(data, max_pixels=2000).size == (40, 50)
    assert code_of(data, max_pixels=1999) == "image_too_large"
    assert Image.MAX_IMAGE_PIXELS is not None


def test_fault_04_file_too_large(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(300 << 20)  # takes no room on the disk, and none in memory
    assert path_code(path) == "image_too_large"


def test_fault_05_too_small():
    assert code_of(png_header(0, 0)) == "image_too_small"
    assert code_of(b"GIF89a" + struct.pack("<HHBBB", 0, 7, 0, 0, 0)) == "image_too_small"
    for kind in FORMATS:
        assert code_of(encoded(Image.new("RGB", (1, 1)), kind)) == "image_too_small"
    data = encoded(Image.new("RGB", (28, 14)))
    assert code_of(data, min_side=28) == "image_too_small"
    assert decode(data, max_pixels=MANY, min_side=14).size == (28, 14)


def test_fault_07_format_outside_the_allow_list(rng):
    image = picture(rng)
    refused = [
        encoded(image, "TIFF"),
        encoded(image, "EPS"),
        encoded(image, "PDF"),
        encoded(image, "ICO"),
        b"SIMPLE  =                    T" + b" " * 2850,
        b"\0\0\0\x20ftypavif" + b"\0" * 100,
    ]
    for data in refused:
        assert code_of(data) == "image_format"


def test_fault_08_path_outside_root(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(Image.new("RGB", (8, 8))))
    (root / "link.png").symlink_to(secret)
    (root / "folder").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")
    outside = ["../secret.png", str(secret), "link.png", "folder/secret.png", "/etc/passwd"]
    for path in [*outside, "a/../../secret.png", "..", "/dev/zero"]:
        assert row_code(root, path) == "path_outside_root", path
    # a sibling whose name begins like the root's
    (tmp_path / "data-2").mkdir()
    assert row_code(root, "../data-2/x.png") == "path_outside_root"
    # without a folder no path is allowed
    assert row_code(None, "x.png") == "path_outside_root"


def test_fault_08_inside_root_is_allowed_however_it_is_written(tmp_path):
    data = encoded(Image.new("RGB", (8, 8), "red"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(data)
    (tmp_path / "link.png").symlink_to("a/x.png")
    for path in ("a/x.png", "a/../a/x.png", "link.png", str(tmp_path / "a" / "x.png")):
        sample = one(tmp_path, path)
        assert isinstance(sample, Sample)
        assert sample.images == (ImageRef(None, str(tmp_path / "a" / "x.png")),)
        assert load_images(sample.images, max_pixels=MANY)[1] == [
            hashlib.sha256(data).hexdigest()
        ]


def test_fault_08_not_a_regular_file_never_hangs(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s.png"))
    listener.close()
    begin = time.monotonic()
    for path in (tmp_path / "fifo.png", tmp_path / "folder.png", tmp_path / "s.png"):
        assert path_code(path) == "not_regular_file"
    assert path_code("/dev/zero") == "not_regular_file"
    assert time.monotonic() - begin < 60


def test_fault_08_link_put_there_later_is_not_followed(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(Image.new("RGB", (8, 8))))
    sample = one(tmp_path, "x.png")
    (tmp_path / "x.png").unlink()
    (tmp_path / "x.png").symlink_to("/etc/passwd")
    with pytest.raises(BadSample, match="not_regular_file"):
        load_images(sample.images, max_pixels=MANY)


def test_fault_08_link_put_there_after_the_look_is_not_followed(tmp_path, monkeypatch):
    """Between the look at the file and its opening."""
    path, target = tmp_path / "x.png", tmp_path / "secret.png"
    for file in (path, target):
        file.write_bytes(encoded(Image.new("RGB", (8, 8))))
    looked = os.lstat(path)
    path.unlink()
    path.symlink_to(target)
    real = os.lstat
    monkeypatch.setattr(
        os, "lstat", lambda p, **k: looked if str(p) == str(path) else real(p, **k)
    )
    assert path_code(path) == "image_unreadable"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/x.png",
        "HTTPS://example.com/x.png",
        "ftp://x/y.png",
        "s3://bucket/y.png",
        "zip://x.png::https://example.com/a.zip",
    ],
)
def test_fault_09_url_refused(tmp_path, url):
    assert row_code(tmp_path, url) == "url_refused"
    assert row_code(tmp_path, {"bytes": None, "path": url}) == "url_refused"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "file:/etc/passwd"])
def test_fault_09_url_of_a_file_leads_nowhere_that_its_path_does_not(tmp_path, url):
    assert row_code(tmp_path, url) == "path_outside_root"
    assert row_code(tmp_path, {"bytes": None, "path": url}) == "path_outside_root"


def test_fault_09_data_uri_is_decoded_without_network(tmp_path):
    data = encoded(Image.new("RGB", (8, 8), "blue"))
    sample = one(tmp_path, "data:image/png;base64," + base64.b64encode(data).decode())
    assert sample.images == (ImageRef(data, None),)
    for broken in ("data:image/png;base64,???", "data:image/png,abc", "data:"):
        assert row_code(tmp_path, broken) == "image_unreadable"


def test_fault_10_hash_is_over_the_encoded_bytes(rng):
    image = picture(rng)
    png, slower = encoded(image), encoded(image, compress_level=0)
    refs = (ImageRef(png, None), ImageRef(slower, None))
    images, hashes = load_images(refs, max_pixels=MANY)
    assert hashes == [hashlib.sha256(d).hexdigest() for d in (png, slower)]
    assert images[0].tobytes() == images[1].tobytes() == image.tobytes()


# ------------------------------------------------------------------- fault 6: to RGB


def test_fault_06_extension_lies(tmp_path, rng):
    image = picture(rng)
    (tmp_path / "x.jpg").write_bytes(encoded(image, "PNG"))
    sample = one(tmp_path, "x.jpg")
    assert load_images(sample.images, max_pixels=MANY)[0][0].tobytes() == image.tobytes()


def test_fault_06_transparency_is_laid_on_white(rng):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255  # red, half of it transparent
    rgba[:2, :, 3] = 255
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        pixels = np.asarray(
            decode(encoded(Image.fromarray(rgba), kind, **options), max_pixels=MANY)
        )
        assert (pixels[:2] == (255, 0, 0)).all()
        assert (pixels[2:] == (255, 255, 255)).all()


def test_fault_06_palette_with_and_without_transparency(rng):
    image = picture(rng, 8, 8).quantize(16)
    assert image.mode == "P"
    got = decode(encoded(image), max_pixels=MANY)
    assert got.tobytes() == image.convert("RGB").tobytes()
    clear = decode(encoded(image, transparency=image.getpixel((0, 0))), max_pixels=MANY)
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def test_fault_06_grey_cmyk_and_one_bit(rng):
    for mode, kind in (("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG")):
        image = picture(rng).convert(mode)
        data = encoded(image, kind)
        got = decode(data, max_pixels=MANY)
        assert got.mode == "RGB"
        assert got.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_fault_06_sixteen_bits_are_scaled_not_clipped():
    ramp = (np.arange(64 * 64, dtype=np.uint32) * 16).astype(np.uint16).reshape(64, 64)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp)), max_pixels=MANY))
    assert np.abs(pixels[..., 0] - ramp / 257).max() <= 0.5
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_fault_06_exif_orientation_is_applied(rng):
    image = picture(rng, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    got = decode(encoded(image, exif=exif.tobytes()), max_pixels=MANY)
    assert got.size == (16, 24)
    assert got.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


# Pillow warns about it; outside of this suite a warning is no error
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_fault_06_broken_exif_says_nothing_about_the_pixels(rng):
    image = picture(rng)
    data = encoded(
        image, "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + b"\xff" * 40
    )
    assert decode(data, max_pixels=MANY).size == image.size


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_fault_06_animated_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "green")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red = np.asarray(decode(data, max_pixels=MANY)).reshape(-1, 3).mean(0)
    assert red[0] > 250 and red[1] < 5 and red[2] < 5  # WEBP is lossy


# --------------------------------------------------------------------------- handed in


def test_pil_images_in_a_list_become_png_bytes(tmp_path, rng):
    image = picture(rng)
    sample = one(tmp_path, image)
    assert load_images(sample.images, max_pixels=MANY)[0][0].tobytes() == image.tobytes()
    assert encode_image(image) == sample.images[0].data
    assert row_code(tmp_path, Image.new("RGB", (0, 5))) == "image_too_small"
    assert row_code(tmp_path, 17) == "image_unreadable"


def test_decode_from_many_threads_gives_the_same_pixels(rng):
    good = [encoded(picture(rng, 64, 64), kind) for kind in ("PNG", "WEBP", "BMP")] * 4
    expected = [decode(d, max_pixels=MANY).tobytes() for d in good]
    got: list[list[bytes]] = [[] for _ in range(4)]

    def work(k: int) -> None:
        for data in good:
            got[k].append(decode(data, max_pixels=MANY).tobytes())
            assert code_of(data[:40]) == "image_truncated"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert got == [expected] * 4


def test_no_file_descriptor_is_left_open(tmp_path, rng):
    (tmp_path / "x.png").write_bytes(encoded(picture(rng)))
    (tmp_path / "cut.png").write_bytes(encoded(picture(rng))[:50])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        load_images((ImageRef(None, str(tmp_path / "x.png")),), max_pixels=MANY)
        with pytest.raises(BadSample):
            load_images((ImageRef(None, str(tmp_path / "cut.png")),), max_pixels=MANY)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("name", ["mathvision", "puzzlevqa", "tabmwp"])
def test_every_real_image_loads(shared, name):
    samples = open_samples(shared / "data" / name)
    for sample in list(samples)[::10]:
        images, hashes = load_images(sample.images, max_pixels=MANY)
        assert images[0].mode == "RGB" and len(hashes[0]) == 64
