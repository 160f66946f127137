"""From messages to token ids, with a note which ids are an image, and which are the user's question.

messages   user: [image] "What is this?"
rendered   USER: <image>\\nWhat is this? ASSISTANT:
input_ids  BOS USER : <image> \\n What is this ? ASSISTANT :
question    .    .  .    .     .   x   x   x   x     .     .
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from foveate.runtime.arrays import Ints
from foveate.runtime.errors import InputError
from foveate.runtime.images import Images, ImageSource, as_images
from foveate.runtime.processor import Processor

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[Message]"


@dataclass(frozen=True)
class Conversation:
    """Messages whose contents are lists of parts, and the images of their image parts, in order."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageSource, ...]

    def plus(self, other: Conversation) -> Conversation:
        """This conversation, continued."""
        return Conversation(self.messages + other.messages, self.images + other.images)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt before any visual token is counted.

    Attributes:
        text: the rendered chat template.
        input_ids: int64 `[t]`, one image token per image.
        user_text: bool `[t]`, true for tokens that hold text of a user message.
        images: the images, in the order of their tokens; not opened yet.
    """

    text: str
    input_ids: Ints
    user_text: np.ndarray
    images: tuple[ImageSource, ...]

    def after(self, count: int, image_token_id: int) -> TokenizedPrompt:
        """The part behind the first `count` tokens, with its own images."""
        seen = int(np.count_nonzero(self.input_ids[:count] == image_token_id))
        return replace(
            self,
            input_ids=self.input_ids[count:],
            user_text=self.user_text[count:],
            images=self.images[seen:],
        )


def read_prompt(prompt: Prompt, images: Images, image_token: str) -> Conversation:
    """The prompt in its general form.

    A text is one user turn; image tokens in it say where the images belong, without any they come first. A
    message is `{"role": ..., "content": text or parts}`, a part `{"type": "text", "text": ...}` or
    `{"type": "image"}`, the latter with the image itself under "image", or taken from `images` in order.
    `images` is a sequence, or a single image.

    Raises:
        InputError: a message is not of this form, or the images and their places are not of equal number.
    """
    waiting = list(as_images(images))
    if isinstance(prompt, str):
        front = "" if image_token in prompt else image_token * len(waiting)
        prompt = [{"role": "user", "content": front + prompt}]
    if not isinstance(prompt, (list, tuple)):
        wanted = "a text, or a list of messages"
        raise InputError("the prompt is malformed", found=repr(prompt)[:200], wanted=wanted)
    found: list[ImageSource] = []
    contents = [_parts(message, image_token) for message in prompt]
    messages = [{"role": m["role"], "content": parts} for m, parts in zip(prompt, contents, strict=True)]
    places = [part for parts in contents for part in parts if part["type"] == "image"]
    empty = sum("image" not in part for part in places)
    if empty != len(waiting):
        raise _mismatch(len(waiting), empty)
    for part in places:
        # Taken out of the part: templates only need to know that there is one.
        found.append(part.pop("image", None) if "image" in part else waiting.pop(0))
    if not messages:
        raise InputError("the prompt has no messages")
    return Conversation(tuple(messages), tuple(found))


def tokenize(conversation: Conversation, processor: Processor) -> TokenizedPrompt:
    """Render the template and tokenise.

    Raises:
        InputError: the template refuses the messages, the text is not Unicode, or text other than an image
            part gave an image token.
    """
    text = processor.render(conversation.messages)
    _require_unicode(text)
    encoding = processor.encode(text)
    places = int(np.count_nonzero(encoding.input_ids == processor.image_token_id))
    if places != len(conversation.images):
        raise _mismatch(len(conversation.images), places)
    user_text = np.zeros(len(encoding.input_ids), dtype=bool)
    for start, end in user_spans(conversation, processor, text):
        user_text |= (encoding.spans[:, 0] < end) & (encoding.spans[:, 1] > start)
    return TokenizedPrompt(text, encoding.input_ids, user_text, conversation.images)


def _require_unicode(text: str) -> None:
    """Bytes of a terminal or file that are no UTF-8 become lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "the prompt is not valid Unicode text",
            found=f"{text[error.start]!a} at character {error.start} of the rendered prompt",
            mend="give the prompt as UTF-8",
        ) from error


def user_spans(conversation: Conversation, processor: Processor, text: str) -> list[tuple[int, int]]:
    """Where the texts of user messages stand in the rendered `text`, without white space around them.

    Rendering once more with marks in the place of the texts shows where the template puts each one: a search
    for the text itself could find it in a role marker or an earlier turn.
    """
    parts = [
        (message["role"], part["text"])
        for message in conversation.messages
        for part in message["content"]
        if part["type"] == "text"
    ]
    marked = processor.render(_with_marks(conversation.messages))
    for texts in ([text for _, text in parts], [text.strip() for _, text in parts]):
        spans, rebuilt = _fill_marks(marked, texts)
        if rebuilt == text and len(spans) == len(parts):
            return [
                _stripped(text, span) for (role, _), span in zip(parts, spans, strict=True) if role == "user"
            ]
    return _search(parts, text)


def _with_marks(messages: Sequence[Message]) -> list[dict[str, Any]]:
    marked, number = [], 0
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                part, number = {**part, "text": _mark(number)}, number + 1
            parts.append(part)
        marked.append({**message, "content": parts})
    return marked


def _mark(number: int) -> str:
    """A word that no template and no user writes (private-use characters)."""
    return f"\ue000{number}\ue001"


def _fill_marks(marked: str, texts: Sequence[str]) -> tuple[list[tuple[int, int]], str]:
    """The spans of the texts once they are put in the place of their marks, and the result."""
    spans, done, rest = [], "", marked
    for number, text in enumerate(texts):
        before, mark, rest = rest.partition(_mark(number))
        if not mark:
            return [], ""
        done += before
        spans.append((len(done), len(done) + len(text)))
        done += text
    return spans, done + rest


def _search(parts: Sequence[tuple[str, str]], text: str) -> list[tuple[int, int]]:
    """For templates that change the texts or their order: find each one behind the one before."""
    spans, cursor = [], 0
    for role, part in parts:
        start = text.find(part.strip(), cursor)
        if start >= 0 and part.strip():
            cursor = start + len(part.strip())
            if role == "user":
                spans.append((start, cursor))
    return spans


def _stripped(text: str, span: tuple[int, int]) -> tuple[int, int]:
    part = text[span[0] : span[1]]
    start = span[0] + len(part) - len(part.lstrip())
    return start, max(start, span[0] + len(part.rstrip()))


def _parts(message: Message, image_token: str) -> list[dict[str, Any]]:
    """The content of a message as parts."""
    role, content = (
        (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    )
    if not isinstance(role, str) or not isinstance(content, (str, list, tuple)):
        wanted = '{"role": "user", "content": text or a list of parts}'
        raise InputError("a message is malformed", found=repr(message)[:200], wanted=wanted)
    if isinstance(content, str):
        pieces = content.split(image_token)
        parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
        for piece in pieces[1:]:
            text = piece.removeprefix("\n")  # templates write one after an image themselves
            parts += [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
        return parts
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not (kind == "image" or (kind == "text" and isinstance(part.get("text"), str))):
            wanted = '{"type": "text", "text": ...} or {"type": "image"}'
            raise InputError("a part of a message is malformed", found=repr(part)[:200], wanted=wanted)
    return [dict(part) for part in content]


def _mismatch(images: int, places: int) -> InputError:
    return InputError(
        "images and their places in the prompt do not match",
        found=f"{images} image{'s' * (images != 1)}, {places} place{'s' * (places != 1)}",
        wanted="as many image parts (or image tokens in the text) as images",
        mend="give one image per place; a text without image tokens gets the images in front",
    )
