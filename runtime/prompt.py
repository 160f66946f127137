"""From messages to token ids, with a note which ids are an image, and which are the user's question.

messages   user: [image] "What is this?"
rendered   USER: <image>\\nWhat is this? ASSISTANT:
input_ids  BOS USER : <image> \\n What is this ? ASSISTANT :
question    .    .  .    .     .   x   x   x   x     .     .
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from foveate.runtime.arrays import Ints, ints
from foveate.runtime.errors import InputError
from foveate.runtime.families import VisualItem
from foveate.runtime.images import Images, as_images
from foveate.runtime.processor import Processor
from foveate.runtime.videos import Videos, as_videos
from foveate.runtime.visuals import KINDS, Kind, Visual

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[Message]"
Places: TypeAlias = Mapping[str, Sequence[str]]
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Conversation:
    """Messages whose contents are lists of parts, and what their image and video parts show, in order."""

    messages: tuple[dict[str, Any], ...]
    visuals: tuple[Visual, ...]

    def plus(self, other: Conversation) -> Conversation:
        """This conversation, continued."""
        return Conversation(self.messages + other.messages, self.visuals + other.visuals)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt before any visual token is counted.

    Attributes:
        text: the rendered chat template, with the texts of its images and videos.
        input_ids: int64 `[t]`, one image (or video) token per run of visual tokens.
        user_text: bool `[t]`, true for tokens that hold text of a user message.
        visual: bool `[t]`, true for the tokens that stand for runs of visual tokens.
        visuals: images and videos in the order of their tokens; their items are made.
    """

    text: str
    input_ids: Ints
    user_text: np.ndarray
    visual: np.ndarray
    visuals: tuple[Visual, ...]

    @property
    def items(self) -> tuple[VisualItem, ...]:
        """What the model gets of the images and videos; those of an earlier turn may be without feeds."""
        return tuple(visual.item for visual in self.visuals if visual.item is not None)

    @property
    def words(self) -> Ints:
        """The user's words `[w]`, as ids."""
        return ints(self.input_ids[self.user_text & ~self.visual])

    def after(self, count: int) -> TokenizedPrompt:
        """The part behind the first `count` tokens, with its own images; they must not be cut in two."""
        seen, runs = int(np.count_nonzero(self.visual[:count])), 0
        first = 0
        while runs < seen:
            runs += len(self.items[first].runs)
            first += 1
        return replace(
            self,
            input_ids=self.input_ids[count:],
            user_text=self.user_text[count:],
            visual=self.visual[count:],
            visuals=self.visuals[first:],
        )


def read_prompt(prompt: Prompt, places: Places, images: Images = (), videos: Videos = ()) -> Conversation:
    """The prompt in its general form.

    A text is one user turn; `places["image"]` in it say where the images belong, without any they come first;
    likewise the videos, behind the images. A message is `{"role": ..., "content": text or parts}`, a part
    `{"type": "text", "text": ...}`, `{"type": "image"}` or `{"type": "video"}`, the latter two with the image
    or video itself under "image" or "video", or taken from `images` and `videos` in order. `images` is a
    sequence, or a single image; so is `videos`. `places` names the kinds that the model takes.

    Raises:
        InputError: a message is not of this form, or the images and their places are not of equal number.
    """
    given = {"image": as_images(images), "video": as_videos(videos)}
    waiting = {kind: [Visual.given(kind, source) for source in given[kind]] for kind in KINDS}
    if isinstance(prompt, str):
        parts = _split(prompt, places)
        named = {part["type"] for part in parts}
        front = [{"type": kind} for kind in KINDS if kind not in named for _ in waiting[kind]]
        prompt = [{"role": "user", "content": front + parts}]
    if not isinstance(prompt, (list, tuple)):
        wanted = "a text, or a list of messages"
        raise InputError("the prompt is malformed", found=repr(prompt)[:200], wanted=wanted)
    contents = [_parts(message, places) for message in prompt]
    messages = [{"role": m["role"], "content": parts} for m, parts in zip(prompt, contents, strict=True)]
    visuals = _taken([part for parts in contents for part in parts], waiting)
    if any(visual.kind not in places for visual in visuals):
        raise InputError("this model takes no videos", mend="give single frames as images")
    if not messages:
        raise InputError("the prompt has no messages")
    return Conversation(tuple(messages), visuals)


def _taken(parts: Sequence[dict[str, Any]], waiting: Mapping[Kind, list[Visual]]) -> tuple[Visual, ...]:
    """The images and videos of all parts. They are taken out: templates need only know that there is one."""
    for kind in KINDS:
        empty = sum(part["type"] == kind and kind not in part for part in parts)
        if empty != len(waiting[kind]):
            raise _mismatch(kind, len(waiting[kind]), empty)
    queues = {kind: iter(waiting[kind]) for kind in KINDS}
    found = []
    for part in parts:
        for kind in KINDS:
            if part["type"] == kind:
                found.append(Visual.given(kind, part.pop(kind)) if kind in part else next(queues[kind]))
    return tuple(found)


def tokenize(conversation: Conversation, processor: Processor) -> TokenizedPrompt:
    """Render the template, put the texts of the images and videos into it, and tokenise.

    Raises:
        InputError: the template refuses the messages, the text is not Unicode, an image or video cannot be
            opened, or text other than an image part gave an image token.
    """
    rendered = processor.render(conversation.messages)
    _require_unicode(rendered)
    found = _find_places(rendered, processor.placeholders)
    visuals = _in_order(conversation.visuals, [kind for kind, _ in found])
    visuals = made_for(visuals, processor)
    items = [visual.item for visual in visuals if visual.item]
    fills = [(span, item.text) for (_, span), item in zip(found, items, strict=True)]
    text, spans = _filled(rendered, fills, user_spans(conversation, processor, rendered))
    encoding = processor.encode(text)
    visual = np.isin(encoding.input_ids, processor.visual_ids)
    runs = sum(len(item.runs) for item in items)
    if np.count_nonzero(visual) != runs:
        raise InputError(
            "a text of the prompt holds a token that stands for an image",
            found=f"{np.count_nonzero(visual) - runs} such tokens",
            mend=f"write it otherwise than {processor.image_token}",
        )
    user_text = np.zeros(len(encoding.input_ids), dtype=bool)
    for start, end in spans:
        user_text |= (encoding.spans[:, 0] < end) & (encoding.spans[:, 1] > start)
    return TokenizedPrompt(text, encoding.input_ids, user_text, visual, visuals)


def made_for(visuals: Sequence[Visual], processor: Processor) -> tuple[Visual, ...]:
    """The images and videos of one prompt with their items.

    Those of earlier turns stay as they were, unless the model reads an image otherwise when it is not alone.
    """
    images = sum(visual.kind == "image" for visual in visuals)

    def stays(visual: Visual) -> bool:
        alike = not processor.counts_images or visual.kind == "video" or (visual.of == 1) == (images == 1)
        return visual.resting and alike

    return tuple(visual if stays(visual) else processor.made(visual, images) for visual in visuals)


def _find_places(text: str, placeholders: Mapping[str, str]) -> list[tuple[str, Span]]:
    """Kind and span of everything in a rendered text that stands for an image or video."""
    kinds = {mark: kind for kind, mark in placeholders.items()}
    return [(kinds[match.group()], match.span()) for match in _any_of(kinds).finditer(text)]


def _in_order(visuals: Sequence[Visual], kinds: Sequence[str]) -> tuple[Visual, ...]:
    """The visuals as the template put them: some write all images of a message first, then the videos."""
    for kind in KINDS:
        have = sum(visual.kind == kind for visual in visuals)
        if have != kinds.count(kind):
            raise _mismatch(kind, have, kinds.count(kind))
    queues = {kind: iter([visual for visual in visuals if visual.kind == kind]) for kind in KINDS}
    return tuple(next(queues[kind]) for kind in kinds)  # type: ignore[index]


def _filled(text: str, fills: Sequence[tuple[Span, str]], spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """The text with others in the place of some spans, and where other `spans` of it are now."""
    done, cursor = "", 0
    for (start, end), fill in fills:
        done += text[cursor:start] + fill
        cursor = end
    done += text[cursor:]

    def moved(place: int) -> int:
        return place + sum(len(fill) - (end - start) for (start, end), fill in fills if end <= place)

    return done, [(moved(start), moved(end)) for start, end in spans]


def _any_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the marks, the longest where several fit."""
    return re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))


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


def user_spans(conversation: Conversation, processor: Processor, text: str) -> list[Span]:
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


def _fill_marks(marked: str, texts: Sequence[str]) -> tuple[list[Span], str]:
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


def _search(parts: Sequence[tuple[str, str]], text: str) -> list[Span]:
    """For templates that change the texts or their order: find each one behind the one before."""
    spans, cursor = [], 0
    for role, part in parts:
        start = text.find(part.strip(), cursor)
        if start >= 0 and part.strip():
            cursor = start + len(part.strip())
            if role == "user":
                spans.append((start, cursor))
    return spans


def _stripped(text: str, span: Span) -> Span:
    part = text[span[0] : span[1]]
    start = span[0] + len(part) - len(part.lstrip())
    return start, max(start, span[0] + len(part.rstrip()))


def _parts(message: Message, places: Places) -> list[dict[str, Any]]:
    """The content of a message as parts."""
    role, content = (
        (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    )
    if not isinstance(role, str) or not isinstance(content, (str, list, tuple)):
        wanted = '{"role": "user", "content": text or a list of parts}'
        raise InputError("a message is malformed", found=repr(message)[:200], wanted=wanted)
    if isinstance(content, str):
        return _split(content, places)
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not (kind in KINDS or (kind == "text" and isinstance(part.get("text"), str))):
            wanted = '{"type": "text", "text": ...}, {"type": "image"} or {"type": "video"}'
            raise InputError("a part of a message is malformed", found=repr(part)[:200], wanted=wanted)
    return [dict(part) for part in content]


def _split(text: str, places: Places) -> list[dict[str, Any]]:
    """A text as parts, cut where it says that an image or video belongs."""
    kinds = {mark: kind for kind, marks in places.items() for mark in marks}
    parts: list[dict[str, Any]] = []
    cursor = 0
    for match in [*_any_of(kinds).finditer(text), None]:
        piece = text[cursor : match.start() if match else len(text)]
        # Templates write a line end behind an image themselves.
        piece = piece.removeprefix("\n") if parts and parts[-1]["type"] != "text" else piece
        if piece:
            parts.append({"type": "text", "text": piece})
        if match:
            parts.append({"type": kinds[match.group()]})
            cursor = match.end()
    return parts


def _mismatch(kind: str, given: int, places: int) -> InputError:
    return InputError(
        f"{kind}s and their places in the prompt do not match",
        found=f"{given} {kind}{'s' * (given != 1)}, {places} place{'s' * (places != 1)}",
        wanted=f"as many {kind} parts (or <{kind}> in the text) as {kind}s",
        mend=f"give one {kind} per place; a text that names no places gets the {kind}s in front",
    )
