"""Opens images safely: whatever a file holds, the answer is an RGB image or an `InputError`."""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.runtime.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveate.runtime.visuals import Visual

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
Images: TypeAlias = "ImageSource | Visual | Sequence[ImageSource | Visual]"

# A phone's picture has 12 to 50 million pixels. A file of a few KB can claim billions.
MAX_PIXELS = 100_000_000
# Processors scale the shorter side to the model's size first: a strip of 1 x 20000 pixels, in a file of 157
# bytes, would become gigabytes before it is cropped.
MAX_ASPECT = 50
# Raster formats only: Pillow would hand PostScript to an interpreter.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")


def as_images(images: Images) -> tuple[ImageSource | Visual, ...]:
    """Several images, or a single one as the only one of a tuple.

    Raises:
        InputError: neither an image nor a sequence of some.
    """
    from foveate.runtime.visuals import Visual

    if isinstance(images, (str, os.PathLike, bytes, Image.Image, np.ndarray, Visual)):
        return (images,)
    if isinstance(images, Iterable) and not isinstance(images, Mapping):
        return tuple(images)
    raise InputError(
        "the images are of an unknown kind",
        found=type(images).__name__,
        wanted="an image or a list of them; an image is a path, bytes, a Pillow image or a uint8 array",
        mend="leave them out for a prompt without images",
    )


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as RGB, turned upright as its EXIF data says.

    `source` is a path, the bytes of a file, a Pillow image, or an array `[height, width]` or
    `[height, width, 1 | 3 | 4]` of uint8. Float pixels (mode F) are taken as 0..1, or as 0..255 when one is
    larger than 1; whole ones (mode I) as 8 or 16 bits, likewise.

    Raises:
        InputError: no such file, an empty, corrupt or truncated one, an unknown format or kind, too many
            pixels, sides of too unequal length, or values out of these ranges.
    """
    if isinstance(source, Image.Image):
        return _decoded("given as a Pillow image", lambda: source, max_pixels)
    if isinstance(source, np.ndarray):
        return _decoded("given as an array", lambda: _from_array(source), max_pixels)
    name, content = read_bytes(source)
    if not content:
        raise InputError(f"image {name} is empty (0 bytes)", mend="check that it was copied whole")
    return _decoded(name, lambda: Image.open(io.BytesIO(content), formats=_formats()), max_pixels)


def _decoded(name: str, open_header: Callable[[], Image.Image], max_pixels: int) -> Image.Image:
    """Pillow's decoders meet broken files with all kinds of exceptions, so all of them are caught here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = within_limits(open_header(), max_pixels, name)
            image.load()
            return _to_rgb(image, name)
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


def read_bytes(source: str | os.PathLike[str] | bytes, what: str = "image") -> tuple[str, bytes]:
    """A name for messages, and the file's bytes. Raises `InputError`: no file, or it cannot be read."""
    if isinstance(source, bytes):
        return "given as bytes", source
    if not isinstance(source, (str, os.PathLike)):
        wanted = "a path, the bytes of a file, a Pillow image or a uint8 array"
        raise InputError(f"the {what} is of an unknown kind", found=repr(source)[:200], wanted=wanted)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InputError(f"{source} is an address", wanted="a file", mend=f"download the {what} first")
    path = Path(source)
    try:
        return str(path), path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no {what} {path}") from error
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read", found=str(error.strerror)) from error
    except ValueError as error:  # a zero character in the name
        raise InputError(f"{str(path)!r} cannot be the name of a file", found=str(error)) from error


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


def within_limits(image: Image.Image, max_pixels: int, name: str) -> Image.Image:
    """The image if its size can be worked with; only the header need have been read. Raises `InputError`."""
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height} pixels", max_pixels)
    if width * height == 0:
        raise InputError(f"image {name} has no pixels", found=f"{width} x {height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"image {name} is a strip; scaled until its shorter side fits the model it fills the memory",
            found=f"{width} x {height} pixels",
            wanted=f"a longer side of at most {MAX_ASPECT} times the shorter one",
            mend="crop the picture to the part that matters",
        )
    return image


def _too_large(name: str, found: str, max_pixels: int) -> InputError:
    wanted = f"at most {max_pixels:,} pixels"
    return InputError(f"image {name} is too large", found=found, wanted=wanted, mend="scale it down first")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow would cut deep pixels off at 255 instead of scaling them.
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values * _scale(values, image.mode, name)).round().astype(np.uint8))
    return image.convert("RGB")


def _scale(values: NDArray[Any], mode: str, name: str) -> float:
    """What brings pixels of a deep grey image to 0..255. Their range has to tell what they mean."""
    low, high = float(values.min()), float(values.max())
    white = 1.0 if mode == "F" else 255.0
    deep = 255.0 if mode == "F" else 65535.0
    if not (low >= 0 and high <= deep):  # NaN is neither
        raise InputError(
            f"image {name} has pixels of an unknown scale",
            found=f"{low:g} to {high:g} (mode {mode})",
            wanted="0 to 1 or 0 to 255" if mode == "F" else "0 to 255 or 0 to 65535",
            mend="convert it to an 8-bit image first",
        )
    return 255.0 / (white if high <= white and not mode.startswith("I;16") else deep)
