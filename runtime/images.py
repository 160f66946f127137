"""Opens images safely: whatever a file holds, the answer is an RGB image or an `InputError`."""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.runtime.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"

# A phone's picture has 12 to 50 million pixels. A file of a few KB can claim billions.
MAX_PIXELS = 100_000_000
# Raster formats only: Pillow would hand PostScript to an interpreter.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as RGB, turned upright as its EXIF data says.

    `source` is a path, the bytes of a file, a Pillow image, or an array `[height, width]` or
    `[height, width, 1 | 3 | 4]` of uint8.

    Raises:
        InputError: no such file, an empty, corrupt or truncated one, an unknown format, or too many pixels.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(_within(source, max_pixels, "the image"))
    if isinstance(source, np.ndarray):
        return _to_rgb(_within(_from_array(source), max_pixels, "the array"))
    name, content = _read(source)
    if not content:
        raise InputError(f"image {name} is empty (0 bytes)", mend="check that it was copied whole")
    # Pillow's decoders meet broken files with all kinds of exceptions, so all of them are caught here.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _within(Image.open(io.BytesIO(content), formats=_formats()), max_pixels, name)
            image.load()
            return _to_rgb(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        known = ", ".join(_formats())
        raise InputError(f"image {name} is corrupt or of an unknown format", wanted=known) from error
    except Exception as error:
        mend = "open it in an image editor and save it again"
        raise InputError(f"image {name} is corrupt or truncated", found=str(error), mend=mend) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of Pillow can open."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _read(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """A name for messages, and the file's bytes."""
    if isinstance(source, bytes):
        return "given as bytes", source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InputError(f"{source} is an address", wanted="a file", mend="download the image first")
    path = Path(source)
    try:
        return str(path), path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no image {path}") from error
    except OSError as error:
        raise InputError(f"image {path} cannot be read", found=str(error.strerror)) from error


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    shape = array.shape
    fits = array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or 0 in shape:
        raise InputError(
            "the array is not an image",
            found=f"{array.dtype} {list(shape)}",
            wanted="uint8 [height, width] or [height, width, 1 | 3 | 4]",
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array)


def _within(image: Image.Image, max_pixels: int, name: str) -> Image.Image:
    """The image if it is not too large; only the header has been read so far."""
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height} pixels", max_pixels)
    if width * height == 0:
        raise InputError(f"image {name} has no pixels", found=f"{width} x {height}")
    return image


def _too_large(name: str, found: str, max_pixels: int) -> InputError:
    wanted = f"at most {max_pixels:,} pixels"
    return InputError(f"image {name} is too large", found=found, wanted=wanted, mend="scale it down first")


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would cut 16-bit grey off at 255 instead of scaling it.
        grey = (np.asarray(image).astype(np.float64) / 257.0).clip(0, 255)
        image = Image.fromarray(grey.round().astype(np.uint8))
    return image.convert("RGB")
