"""P4, conversations: turns that reuse the cache, against the reference that recomputes all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from foveate.tools.parity.compare import equal
from foveate.tools.parity.families import Video
from foveate.tools.parity.host import given_videos, options_of
from foveate.tools.parity.ladder import ATTEMPTS, BudgetSet, Ladder
from foveate.tools.parity.prompts import Turn, draw, film
from foveate.tools.parity.report import Check


@dataclass(frozen=True)
class _Send:
    """What the user says in a turn, and how many pictures and videos come with it."""

    text: str
    pictures: int = 0
    videos: int = 0


SENDS = (
    _Send("What is in this picture?", pictures=1),
    _Send("And above it?"),
    _Send("Is this one brighter?", pictures=1),
    _Send("And here, who moves?", videos=1),
)


@dataclass
class _Talk:
    """The conversation so far, as the reference sees it: messages, and the chunks in which it was read."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    read: list[int] = field(default_factory=list)  # ids that a cache would hold, visual tokens written out
    fixed: int = 0  # how many of them are prompt; the rest is the latest answer


@dataclass(frozen=True)
class _Script:
    """What comes with each turn and the reference's answers to it; `fragile` names ties."""

    sends: tuple[_Send, ...]
    pictures: tuple[list[Image.Image], ...]
    videos: tuple[list[Video], ...]
    answers: tuple[tuple[int, ...], ...]
    fragile: tuple[str, ...]


def check_chat(ladder: Ladder, layout: str) -> Iterator[Check]:
    """A picture, only text, another picture, a video where the family reads some; unpruned and pruned."""
    if ladder.missing_oracle:
        yield Check.missing(f"{layout}: conversation", ladder.missing_oracle)
        return
    for budgets in (ladder.keep_all, *(ladder.budgets[:1] if ladder.cuts else ())):
        script = _script(ladder, budgets)
        if script.fragile:
            why = f"ties in float32 at {', '.join(script.fragile)} in all {ATTEMPTS} attempts"
            yield Check.missing(f"{layout}, conversation, {budgets.name}", why)
            continue
        chat = ladder.pipeline(layout).chat()
        for number, send in enumerate(script.sends):
            pictures, films = script.pictures[number], given_videos(script.videos[number])
            got = chat.send(send.text, pictures, options_of(ladder, budgets), videos=films).token_ids
            name = f"{layout}, conversation, turn {number + 1}, {budgets.name}"
            yield Check.of(name, equal(got, script.answers[number]), layout)


def _script(ladder: Ladder, budgets: BudgetSet) -> _Script:
    """The conversation with pictures on which no cut is a tie."""
    if budgets.name not in ladder.scripts:
        for attempt in range(ATTEMPTS):
            script = _play(ladder, budgets, attempt)
            if not script.fragile:
                break
        ladder.scripts[budgets.name] = script
    found: _Script = ladder.scripts[budgets.name]
    return found


def _play(ladder: Ladder, budgets: BudgetSet, attempt: int) -> _Script:
    """All turns by the reference alone."""
    talk = _Talk()
    sends = tuple(send for send in SENDS if ladder.front.reads(1, send.videos))  # the first has an image
    pictures: list[list[Image.Image]] = []
    videos: list[list[Video]] = []
    answers: list[tuple[int, ...]] = []
    fragile: list[str] = []
    plan = ladder.plan_of(budgets)
    for number, send in enumerate(sends):
        seed, size = 500 + 100 * attempt + 10 * number, (80, 60 + 20 * number)
        pictures.append([draw(seed + i, size) for i in range(send.pictures)])
        videos.append([film(seed + 5 + i, 3, (64, 50), 1.0) for i in range(send.videos)])
        _ask(talk, ladder, send.text, pictures[-1], videos[-1])
        made = ladder.reference.generate(
            talk.turns,
            ladder.settings.new_tokens,
            plan,
            budgets.sites,
            ladder.manifest.positions,
            ladder.manifest.model.eos_token_ids,
        )
        _answer(talk, ladder, made.tokens)
        answers.append(made.tokens)
        fragile += made.trace.fragile
    return _Script(sends, tuple(pictures), tuple(videos), tuple(answers), tuple(fragile))


def _ask(
    talk: _Talk, ladder: Ladder, text: str, pictures: Sequence[Image.Image], videos: Sequence[Video]
) -> None:
    """Add a user turn, and the chunk in which it is read.

    The whole conversation is rendered anew. What it shares with the ids read before stays read: prompts
    stay as they are, of the latest answer as much as the template writes the same way. If they part
    earlier, all is read again.
    """
    shown = [{"type": "image"}] * len(pictures) + [{"type": "video"}] * len(videos)
    talk.messages.append({"role": "user", "content": [*shown, {"type": "text", "text": text}]})
    talk.images += pictures
    talk.videos += videos
    ids = list(ladder.front.encode(talk.messages, talk.images, talk.videos).input_ids)
    shared = next((i for i, (a, b) in enumerate(zip(talk.read, ids, strict=False)) if a != b), len(talk.read))
    shared = min(shared, len(ids) - 1)
    if shared < talk.fixed:
        talk.turns, shared = [], 0
    answered = tuple(talk.read[talk.fixed : shared]) if talk.turns else ()
    if answered:
        talk.turns.append(Turn.plain(answered, ladder.manifest.model.position_axes))
    talk.turns.append(ladder.front.turn(talk.messages, talk.images, talk.videos, shared))
    talk.read, talk.fixed = ids, len(ids)


def _answer(talk: _Talk, ladder: Ladder, tokens: Sequence[int]) -> None:
    """Add the model's turn. Its last token was chosen, but not fed back."""
    text = ladder.front.decode(tokens)
    talk.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    talk.read = [*talk.read, *tokens[:-1]]
