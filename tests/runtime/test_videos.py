"""Videos of every kind become the right frames; whatever else becomes an InputError."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from foveate.runtime.errors import InputError, MissingDependencyError, UsageError
from foveate.runtime.videos import Video, as_videos, chosen_frames, open_video

GREY = [Image.new("RGB", (12, 8), (20 * i, 20 * i, 20 * i)) for i in range(12)]


def shades(video: Any, **options: Any) -> tuple[list[int], float]:
    """Which of the grey frames were chosen."""
    pictures, fps = open_video(Video(video, **options))
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (12, 8))}
    return [round(picture.getpixel((5, 4))[0] / 20) for picture in pictures], fps  # type: ignore[index]


def animation(kind: str, milliseconds: int | list[int]) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    frames = [frame.quantize(256) for frame in GREY] if kind == "GIF" else GREY
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, **options
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_images(kind: str, tmp_path: Path) -> None:
    content = animation(kind, 100)
    path = tmp_path / "film"
    path.write_bytes(content)
    for source in (content, path, str(path)):
        assert shades(source) == (list(range(12)), pytest.approx(10))
    assert shades(content, fps=5) == ([0, 2, 4, 6, 8, 10], pytest.approx(5))
    assert shades(content, fps=50) == (list(range(12)), pytest.approx(10))
    assert shades(content, max_frames=4) == ([0, 3, 6, 9], pytest.approx(4 / 1.2))
    assert shades(content, fps=5, max_frames=2) == ([0, 6], pytest.approx(2 / 1.2))
    assert shades(content, fps=0.01) == ([0], pytest.approx(1 / 1.2))


def test_frames_that_last_unequally_long() -> None:
    """Frame 0 lasts half of the film."""
    content = animation("GIF", [1100, *[100] * 11])
    assert shades(content, fps=10 / 11) == ([0, 1], pytest.approx(2 / 2.2))
    assert shades(content, fps=20 / 11) == ([0, 0, 1, 6], pytest.approx(4 / 2.2))


def test_given_frames(tmp_path: Path) -> None:
    assert shades(GREY) == (list(range(12)), 2.0)
    assert shades(tuple(GREY), fps=3, max_frames=6) == ([0, 2, 4, 6, 8, 10], 1.5)
    assert shades(np.stack([np.asarray(frame) for frame in GREY]))[0] == list(range(12))
    names = [tmp_path / f"frame{i}.png" for i in range(12)]  # frame10 sorts behind frame9
    for name, frame in zip(names, GREY, strict=True):
        frame.save(name)
    (tmp_path / "notes.txt").write_text("no frame")
    assert shades(tmp_path)[0] == shades(names)[0] == list(range(12))
    assert shades([names[0], GREY[1], names[2].read_bytes()])[0] == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 100])
@pytest.mark.parametrize("fps", [None, 0.5, 3.0, 1000.0])
def test_chosen_frames(count: int, fps: float | None) -> None:
    """Ascending, in range, at most as many as wanted, and as many a second as is said."""
    index, rate = chosen_frames(np.arange(count) / 24, count / 24, fps, 16)
    assert 1 <= len(index) <= min(16, count)
    assert index[0] == 0
    assert (np.diff(index) > 0).all()
    assert index[-1] < count
    assert rate == pytest.approx(len(index) * 24 / count)
    if fps is None or fps > 24:
        assert len(index) == min(16, count)
    elif round(fps * count / 24) <= 16:
        assert len(index) == max(1, round(fps * count / 24))


def test_several_videos_or_one() -> None:
    assert as_videos("film.gif") == ("film.gif",)
    assert as_videos(()) == ()
    stack = np.zeros((2, 8, 8, 3), np.uint8)
    for videos, count in (([GREY, GREY], 2), (stack, 1), ([stack], 1), (Video(GREY), 1), (b"GIF", 1)):
        assert len(as_videos(videos)) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "no frames"),
        (b"", "empty"),
        ("gone.mp4", "there is no video gone.mp4"),
        ("https://example.org/film.mp4", "download the video first"),
        ([GREY[0], tiny.make_image(0, (30, 30))], "not of one size.*12 x 8, 30 x 30"),
        ([GREY[0], "gone.png"], "there is no image gone.png"),
        (animation("GIF", 100)[:300], "corrupt"),
    ],
)
def test_bad_videos(video: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_video(Video(video))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        open_video(Video(tmp_path))


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"max_frames": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Video(GREY, **options)


def test_video_files_need_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"'av'.*foveate\[video\]"):
        open_video(Video(b"no image at all"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_real_video_files(tmp_path: Path, suffix: str) -> None:
    """Written with PyAV; the codec may change the shades a little."""
    av: Any = pytest.importorskip("av")
    path = tmp_path / f"film.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(12):
            shade = np.full((32, 48, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    for source in (path, path.read_bytes()):
        for options, wanted, rate in (
            ({}, list(range(12)), 10),
            ({"fps": 5}, [0, 2, 4, 6, 8, 10], 5),
            ({"max_frames": 3}, [0, 4, 8], 2.5),
        ):
            pictures, fps = open_video(Video(source, **options))  # type: ignore[arg-type]
            assert {picture.size for picture in pictures} == {(48, 32)}
            assert [round(np.asarray(picture).mean() / 20) for picture in pictures] == wanted
            assert fps == pytest.approx(rate, rel=0.02)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="corrupt"):
        open_video(Video(path))


def test_a_file_with_sound_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Container([])
    sound.streams.video = []
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(open=lambda file: sound))
    with pytest.raises(InputError, match="sound"):
        open_video(Video(b"a song"))


class Container:
    """What PyAV gives, with as little as is used of it."""

    def __init__(self, times: list[float | None]) -> None:
        self.streams = SimpleNamespace(video=[SimpleNamespace(average_rate=10)])
        self._times = times

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *error: object) -> None: ...

    def decode(self, *, video: int) -> Any:
        for frame, time in zip(GREY, self._times, strict=True):
            yield SimpleNamespace(time=time, to_image=lambda frame=frame: frame, rotation=0)


@pytest.mark.parametrize(
    "times", [[3 + i / 10 for i in range(12)], [None] * 12], ids=["timed", "without times"]
)
def test_video_files(monkeypatch: pytest.MonkeyPatch, times: list[float | None]) -> None:
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(open=lambda file: Container(times)))
    assert shades(b"a film") == (list(range(12)), pytest.approx(10))
    assert shades(b"a film", fps=5) == ([0, 2, 4, 6, 8, 10], pytest.approx(5))
    assert shades(b"a film", max_frames=3)[0] == [0, 4, 8]
