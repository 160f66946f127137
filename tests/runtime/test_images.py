"""Whatever a file holds, the answer is an upright RGB image or an `InputError`."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.runtime.errors import InputError
from foveate.runtime.images import as_images, open_image

RED = (250, 10, 10)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_all_sources_give_the_same_image(tmp_path: Path) -> None:
    wanted = np.asarray(picture())
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture()))
    for source in (path, str(path), path.read_bytes(), picture(), wanted):
        image = open_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), wanted)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(kind: str) -> None:
    assert open_image(encoded(picture(), kind)).size == (60, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_modes(mode: str) -> None:
    deep = {"I;16": np.uint16, "I": np.int32}
    if mode in deep:
        image = Image.fromarray(np.full((4, 8), 200 * 257, deep[mode]))
    else:
        image = Image.new("L", (8, 4), 200).convert(mode)
    opened = open_image(encoded(image, "TIFF" if mode in ("CMYK", "F", "I") else "PNG"))
    assert opened.mode == "RGB"
    assert opened.size == (8, 4)
    if mode in ("L", "I;16", "I"):
        assert opened.getpixel((0, 0)) == (200, 200, 200)


def test_exif_turns_the_image_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    image = open_image(encoded(picture(), "JPEG", exif=exif.tobytes()))
    assert image.size == (40, 60)


def _png_that_claims(width: int, height: int) -> bytes:
    """A few hundred bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello", "unknown format"),
        (encoded(picture())[:200], "corrupt or truncated"),
        (encoded(picture(), "JPEG")[:200], "corrupt"),
        (encoded(picture())[:8] + b"\0" * 100, "corrupt"),
        (_png_that_claims(100_000, 100_000), "too large"),
        (_png_that_claims(12_000, 12_000), "too large"),
        (_png_that_claims(0, 10), "corrupt|no pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unknown format"),
    ],
    ids=["empty", "text", "short png", "short jpeg", "zeros", "bomb", "large", "no width", "postscript"],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_image(path)
    with pytest.raises(InputError, match=message):
        open_image(content)


def test_every_broken_byte_is_a_clear_error_or_an_image() -> None:
    """Damage at many places: decoders fail in many ways, and none may come through."""
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        good = encoded(picture(), kind)
        for _ in range(60):
            content = bytearray(good)
            for place in rng.integers(0, len(content), 4):
                content[place] ^= int(rng.integers(1, 256))
            with contextlib.suppress(InputError):
                assert open_image(bytes(content), max_pixels=1_000_000).mode == "RGB"


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no image"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="cannot be read"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="download"):
        open_image("https://example.org/cat.jpg")
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(InputError, match=r"uint8 \[height, width\]"):
            open_image(array)
    with pytest.raises(InputError, match="too large"):
        open_image(Image.new("RGB", (20, 20)), max_pixels=399)


def test_strips_are_refused_before_they_are_scaled() -> None:
    strip = Image.new("RGB", (1, 20_000))
    for source in (strip, encoded(strip), np.asarray(strip)):
        with pytest.raises(InputError, match=r"strip.*1 x 20000 pixels.*crop"):
            open_image(source)
    assert open_image(Image.new("RGB", (2, 100))).size == (2, 100)


def test_sources_that_are_no_images() -> None:
    for source in (None, 3, {"a": 1}):
        with pytest.raises(InputError, match="unknown kind"):
            open_image(source)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name of a file"):
        open_image("a\0b")
    with pytest.raises(InputError, match="corrupt or truncated"):
        open_image(Image.open(io.BytesIO(encoded(picture())[:2000])))


def test_a_single_image_stands_for_a_list_of_one() -> None:
    for image in ("a.png", Path("a.png"), b"x", picture(), np.zeros((4, 4), np.uint8)):
        assert as_images(image)[0] is image
    assert as_images(["a", "b"]) == ("a", "b")
    for wrong in (None, 3, {"image": "a"}):
        with pytest.raises(InputError, match="leave them out"):
            as_images(wrong)  # type: ignore[arg-type]


def test_deep_pixels_keep_their_brightness() -> None:
    for values in (
        np.full((4, 8), 200, np.int32),
        np.full((4, 8), 200 * 257, np.int32),
        np.full((4, 8), 200, np.float32),
        np.full((4, 8), 200 / 255, np.float32),
    ):
        assert open_image(Image.fromarray(values)).getpixel((0, 0)) == (200, 200, 200)
    for values in (np.full((4, 8), 1e6, np.float32), np.full((4, 8), np.nan, np.float32)):
        with pytest.raises(InputError, match="unknown scale"):
            open_image(Image.fromarray(values))
