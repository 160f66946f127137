"""Opens videos: frames that were given, a folder of them, an animated image, or a video file (with PyAV)."""

from __future__ import annotations

import importlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from foveate.runtime.arrays import Array, Ints, ints
from foveate.runtime.errors import InputError, MissingDependencyError, UsageError
from foveate.runtime.images import FORMATS, MAX_PIXELS, ImageSource, open_image, read_bytes, within_limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveate.runtime.visuals import Visual

VideoSource: TypeAlias = "str | os.PathLike[str] | bytes | Sequence[ImageSource] | NDArray[np.uint8] | Video"
Videos: TypeAlias = "VideoSource | Visual | Sequence[VideoSource | Visual]"

MAX_FRAMES: Final = 16
# Of frames that come without times; the models were trained on about as many.
FRAMES_PER_SECOND: Final = 2.0
_SINGLE: Final = (str, os.PathLike, bytes, np.ndarray, Image.Image, Mapping)
_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


class Frames(NamedTuple):
    """RGB pictures of one size, `fps` of them a second."""

    pictures: list[Image.Image]
    fps: float


@dataclass(frozen=True)
class Video:
    """A video and how to look at it.

    Attributes:
        source: a path (video file, animated GIF, WebP or PNG, or a folder of images), the bytes of a file, or
            the frames: a list of images or a uint8 array `[frames, height, width, 3]`.
        fps: of a file, how many frames to take for each second (None: all); of single frames, how many there
            are for each second (None: 2).
        max_frames: if there are more, as many are taken, evenly.

    Raises:
        UsageError: a number is out of range.
    """

    source: Any
    fps: float | None = None
    max_frames: int = MAX_FRAMES

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError("fps is out of range", found=str(self.fps), wanted="frames a second, above 0")
        if not (isinstance(self.max_frames, int) and self.max_frames >= 1):
            raise UsageError("max_frames is out of range", found=str(self.max_frames), wanted="1 or more")


def as_videos(videos: Videos) -> tuple[object, ...]:
    """Several videos, or a single one as the only one of a tuple; a list is one of videos, not of frames."""
    if isinstance(videos, Iterable) and not isinstance(videos, _SINGLE):
        return tuple(videos)
    return (videos,)


def as_video(source: object) -> Video:
    """One video with the default way to look at it. Raises `InputError`: nothing that can be a video."""
    if isinstance(source, Video):
        return source
    if isinstance(source, (str, os.PathLike, bytes, list, tuple)) or _is_stack(source):
        return Video(source)
    raise _unknown(source)


def _is_stack(source: object) -> bool:
    return isinstance(source, np.ndarray) and source.ndim == 4


def _unknown(found: object) -> InputError:
    return InputError(
        "a video is of an unknown kind",
        found=type(found).__name__,
        wanted="a path, the bytes of a file, a list of images or a uint8 array [frames, height, width, 3]",
        mend="put the frames of one video into a list of their own: videos=[[first, second]]",
    )


def open_video(video: Video) -> Frames:
    """The frames to look at.

    Raises:
        InputError: no such file, a corrupt or empty one, frames of unequal sizes, or none at all.
        MissingDependencyError: a video file, and PyAV is not installed.
    """
    source = video.source
    if isinstance(source, (list, tuple)) or _is_stack(source):
        frames = _given(list(source), video)
    elif isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        frames = _given(_files(Path(source)), video)
    else:
        frames = _from_file(source, video)
    sizes = {picture.size for picture in frames.pictures}
    if len(sizes) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise InputError("the frames of a video are not of one size", found=found)
    return frames


def chosen_frames(
    starts: Sequence[float] | Array, duration: float, fps: float | None, most: int
) -> tuple[Ints, float]:
    """Which frames to take, `[k]` ascending, and how many of them there are a second.

    Args:
        starts: when each frame appears, in seconds, ascending from 0.
        duration: of the whole video.
        fps: frames wanted for each second; None takes all, and so does more than there are.
        most: if there are more, as many are taken, evenly.
    """
    index = np.arange(len(starts))
    if fps is not None and fps * duration < len(starts):
        times = np.arange(max(1, round(fps * duration))) / fps
        # Half a millisecond of grace: files round their times.
        index = np.maximum(np.searchsorted(np.asarray(starts), times + 5e-4, side="right") - 1, 0)
    if len(index) > most:
        index = index[np.arange(most) * len(index) // most]
    return ints(index), len(index) / duration


def _given(sources: Sequence[ImageSource], video: Video) -> Frames:
    """Frames without times."""
    if not sources:
        raise InputError("a video has no frames")
    rate = video.fps or FRAMES_PER_SECOND
    index, fps = chosen_frames(
        np.arange(len(sources)) / rate,
        len(sources) / rate,
        None,
        video.max_frames,
    )
    return Frames([open_image(sources[i]) for i in index], fps)


def _files(folder: Path) -> list[ImageSource]:
    """The images of a folder; frame 10 comes behind frame 9."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES]
    if not found:
        raise InputError(f"the folder {folder} holds no images", wanted=", ".join(_SUFFIXES))

    def by_number(path: Path) -> list[tuple[int, str]]:
        return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", path.name)]

    return sorted(found, key=by_number)  # type: ignore[arg-type]


def _from_file(source: str | os.PathLike[str] | bytes, video: Video) -> Frames:
    name, content = read_bytes(source, "video")
    if not content:
        raise InputError(f"video {name} is empty (0 bytes)", mend="check that it was copied whole")
    try:
        animation = Image.open(io.BytesIO(content), formats=[f for f in FORMATS if f in Image.OPEN] or None)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return _guarded(name, lambda: _decoded(name, content, video))
    return _guarded(name, lambda: _animated(animation, video))


def _guarded(name: str, read: Callable[[], Frames]) -> Frames:
    """Decoders meet broken files with all kinds of exceptions."""
    try:
        return read()
    except (InputError, MissingDependencyError):
        raise
    except Exception as error:
        raise InputError(f"video {name} is corrupt or of an unknown format", found=str(error)) from error


def _animated(animation: Image.Image, video: Video) -> Frames:
    """The frames of an animated GIF, WebP or PNG; an image that is none is a video of one frame."""
    within_limits(animation, MAX_PIXELS, "in the video")
    lengths = []
    for frame in ImageSequence.Iterator(animation):
        frame.load()  # WebP tells a frame's duration only then
        lengths.append(float(frame.info.get("duration", 0)) / 1000)
    if sum(lengths) <= 0:
        lengths = [1 / FRAMES_PER_SECOND] * len(lengths)
    starts = np.cumsum([0.0, *lengths[:-1]])
    index, fps = chosen_frames(starts.tolist(), sum(lengths), video.fps, video.max_frames)
    pictures = []
    for i in index:
        animation.seek(int(i))
        pictures.append(open_image(animation.copy()))
    return Frames(pictures, fps)


def _decoded(name: str, content: bytes, video: Video) -> Frames:
    """The frames of a video file. It is decoded twice, so that only the wanted frames are in memory."""
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise MissingDependencyError.of("av", "video") from error
    with av.open(io.BytesIO(content)) as container:
        if not container.streams.video:
            raise InputError(f"video {name} holds no pictures", mend="check that it is no sound file")
        rate = float(container.streams.video[0].average_rate or 0) or FRAMES_PER_SECOND
        times = [frame.time for frame in container.decode(video=0)]
    if not times:
        raise InputError(f"video {name} has no frames")
    starts = [i / rate if time is None else float(time - (times[0] or 0)) for i, time in enumerate(times)]
    index, fps = chosen_frames(starts, starts[-1] + 1 / rate, video.fps, video.max_frames)
    wanted = set(index.tolist())
    pictures = {}
    with av.open(io.BytesIO(content)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                upright = frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True)
                pictures[i] = open_image(upright)
    return Frames([pictures[int(i)] for i in index], fps)
