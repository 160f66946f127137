"""Rounds: every case and every rival answers in each, in turn, each bundle in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.tools.bench.against import Contestant
from foveate.tools.bench.budgets import Wish
from foveate.tools.bench.child import Child
from foveate.tools.bench.order import Order, Report
from foveate.tools.bench.schema import Case, Sample, Segment, Tokens


@dataclass
class Entry:
    """A case while it is measured."""

    subject: str
    wish: Wish
    child: Child
    samples: list[Sample] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)

    def ask(self, order: Order, image: Path, number: int) -> None:
        """One answer; those before round 0 warm up."""
        self.answer = self.child.call(
            "ask",
            image=str(image),
            prompt=order.prompt,
            budget=self.wish.word,
            new_tokens=order.new_tokens,
            number=max(number, 0),
        )
        if number >= 0:
            self.samples.append(Sample.model_validate(self.answer["sample"]))

    def case(self) -> Case:
        """What came out."""
        return Case(
            subject=self.subject,
            budget=self.wish.word,
            tokens=Tokens.model_validate(self.answer["tokens"]),
            cache=tuple(Segment.model_validate(each) for each in self.answer["cache"]),
            samples=tuple(self.samples),
        )


def load_all(children: Mapping[str, Child], order: Order, report: Report) -> dict[str, Any]:
    """Open every bundle in its process; what each is. Raises `FoveateError`."""
    facts = {}
    for done, (name, child) in enumerate(children.items()):
        report("loading", done, len(children))
        facts[name] = child.call(
            "open",
            bundle=str(order.bundles[name]),
            layout=order.layout,
            backend=order.backend,
            threads=order.threads,
            cores=order.cores,
        )
    report("loading", 1, 1)
    return facts


def ask_all(
    entries: Sequence[Entry], rivals: Sequence[Contestant], order: Order, image: Path, report: Report
) -> None:
    """Warm up, then round after round; the order moves on by one, so that nobody is always first."""
    everyone: list[Entry | Contestant] = [*entries, *rivals]
    total = (order.warm_up + order.rounds) * len(everyone)
    done = 0
    for number in range(-order.warm_up, order.rounds):
        start = number % len(everyone)
        for each in [*everyone[start:], *everyone[:start]]:
            report("asking", done, total)
            if isinstance(each, Contestant):
                each.ask(number)
            else:
                each.ask(order, image, number)
            done += 1
    report("asking", total, total)
