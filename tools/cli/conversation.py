"""`foveate run --chat`: a conversation on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foveate.runtime.errors import FoveateError
from foveate.tools.cli import output
from foveate.tools.cli.run import print_tokens

if TYPE_CHECKING:
    from foveate.runtime.images import ImageSource
    from foveate.runtime.options import GenerateOptions
    from foveate.runtime.pipeline import Pipeline
    from foveate.runtime.videos import Video

HELP = "one question a line; /image FILE or /video FILE adds one to the next; an empty line or Ctrl-D ends it"


def converse(
    pipeline: Pipeline,
    first: str,
    images: Sequence[ImageSource],
    options: GenerateOptions,
    videos: Sequence[Video] = (),
) -> None:
    """Answer line by line until the user is done; `first` is asked before the first line is read.

    A turn that fails (an image that cannot be used, a question that is too long, a run that pruned nothing)
    is told, and the conversation goes on.
    """
    from foveate.runtime.videos import Video
    from foveate.tools.account import summary
    from foveate.tools.demo import resolve_image

    chat = pipeline.chat()
    waiting, clips = list(images), list(videos)
    output.remark(HELP)
    while text := first or _ask():
        first = ""
        try:
            if text.startswith("/image "):
                waiting.append(resolve_image(text.removeprefix("/image ").strip()))
                continue
            if text.startswith("/video "):
                clips.append(Video(text.removeprefix("/video ").strip()))
                continue
            stream = chat.stream(text, waiting, options, videos=clips)
            print_tokens(stream)
        except FoveateError as error:
            output.show_error(error)
            continue
        finally:
            if not text.startswith(("/image ", "/video ")):
                waiting, clips = [], []
        output.remark(summary(stream.generation))


def _ask() -> str:
    """The next line; empty at the end of the input."""
    output.stderr().print("[bold]you>[/] ", end="")
    try:
        return input().strip()
    except EOFError:
        return ""
