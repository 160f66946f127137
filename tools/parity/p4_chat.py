"""P4, conversations: turns that reuse the cache, against the reference that recomputes all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from foveate.tools.parity.compare import equal
from foveate.tools.parity.host import options_of
from foveate.tools.parity.ladder import ATTEMPTS, BudgetSet, Ladder
from foveate.tools.parity.prompts import Turn, draw
from foveate.tools.parity.report import Check

# What the user says in each turn, and how many pictures come with it.
SENDS = (("What is in this picture?", 1), ("And above it?", 0), ("Is this one brighter?", 1))


@dataclass
class _Talk:
    """The conversation so far, as the reference sees it: messages, and the chunks in which it was read."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    read: list[int] = field(default_factory=list)  # ids that a cache would hold, visual tokens written out
    fixed: int = 0  # how many of them are prompt; the rest is the latest answer


@dataclass(frozen=True)
class _Script:
    """Pictures for each turn and the reference's answers to it; `fragile` names ties."""

    pictures: tuple[tuple[Image.Image, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    fragile: tuple[str, ...]


def check_chat(ladder: Ladder, layout: str) -> Iterator[Check]:
    """Three turns (a picture, only text, another picture), unpruned and pruned."""
    if ladder.missing_oracle:
        yield Check.missing(f"{layout}: conversation", ladder.missing_oracle)
        return
    for budgets in (ladder.keep_all, *(ladder.budgets[:1] if ladder.plan else ())):
        script = _script(ladder, budgets)
        if script.fragile:
            why = f"ties in float32 at {', '.join(script.fragile)} in all {ATTEMPTS} attempts"
            yield Check.missing(f"{layout}, conversation, {budgets.name}", why)
            continue
        chat = ladder.pipeline(layout).chat()
        for number, ((text, _), pictures) in enumerate(zip(SENDS, script.pictures, strict=True)):
            got = chat.send(text, list(pictures), options_of(ladder, budgets)).token_ids
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
    pictures: list[tuple[Image.Image, ...]] = []
    answers: list[tuple[int, ...]] = []
    fragile: list[str] = []
    plan = () if budgets is ladder.keep_all else ladder.plan
    for number, (text, count) in enumerate(SENDS):
        new = tuple(draw(500 + 100 * attempt + 10 * number + i, (80, 60 + 20 * number)) for i in range(count))
        _ask(talk, ladder, text, new)
        made = ladder.reference.generate(
            talk.turns,
            ladder.settings.new_tokens,
            plan,
            budgets.sites,
            ladder.manifest.positions,
            ladder.manifest.model.eos_token_ids,
        )
        _answer(talk, ladder, made.tokens)
        pictures.append(new)
        answers.append(made.tokens)
        fragile += made.trace.fragile
    return _Script(tuple(pictures), tuple(answers), tuple(fragile))


def _ask(talk: _Talk, ladder: Ladder, text: str, pictures: Sequence[Image.Image]) -> None:
    """Add a user turn, and the chunk in which it is read.

    The whole conversation is rendered anew. What it shares with the ids read before stays read: prompts
    stay as they are, of the latest answer as much as the template writes the same way. If they part
    earlier, all is read again.
    """
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]
    talk.messages.append({"role": "user", "content": content})
    talk.images += pictures
    ids = list(ladder.front.encode(talk.messages, talk.images).input_ids)
    shared = next((i for i, (a, b) in enumerate(zip(talk.read, ids, strict=False)) if a != b), len(talk.read))
    shared = min(shared, len(ids) - 1)
    if shared < talk.fixed:
        talk.turns, shared = [], 0
    answered = tuple(talk.read[talk.fixed : shared]) if talk.turns else ()
    if answered:
        talk.turns.append(Turn.plain(answered, ladder.manifest.model.position_axes))
    talk.turns.append(ladder.front.turn(talk.messages, talk.images, (), shared))
    talk.read, talk.fixed = ids, len(ids)


def _answer(talk: _Talk, ladder: Ladder, tokens: Sequence[int]) -> None:
    """Add the model's turn. Its last token was chosen, but not fed back."""
    text = ladder.front.decode(tokens)
    talk.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    talk.read = [*talk.read, *tokens[:-1]]
