"""The whole benchmark: rounds with rivals in them, then requests at once, then the roofline."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.runtime import huge_pages
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import UsageError
from foveate.runtime.images import open_image
from foveate.tools.bench import against, device_roofline, machine, roofline
from foveate.tools.bench.budgets import ALL, Wish, wishes_for
from foveate.tools.bench.child import Child
from foveate.tools.bench.device import Watch
from foveate.tools.bench.order import Order, Report, Say
from foveate.tools.bench.rounds import Entry, ask_all, load_all
from foveate.tools.bench.schema import Case, Ceiling, Level, Result, Settings, Stage, Subject
from foveate.tools.bench.schema import Rival as RivalRecord

Wishes = Mapping[str, tuple[Wish, ...]]


def measure(order: Order, report: Report, say: Say) -> Result:
    """Everything that was ordered.

    Raises:
        FoveateError: a bundle, the image or a budget cannot be used, or a process died.
    """
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        say(text)

    opened = {name: Bundle.open(path) for name, path in order.bundles.items()}
    wishes = {name: wishes_for(bundle.manifest, order.wishes) for name, bundle in opened.items()}
    require_sense(order, opened, wishes)
    picture = open_image(order.image)
    with tempfile.TemporaryDirectory(prefix="foveate-bench-") as folder:
        path = Path(folder) / "image.png"
        picture.save(path)
        subjects, cases, levels, others = _rounds(order, opened, wishes, path, report, remark)
        ceiling: Ceiling | None = None
        stages: tuple[Stage, ...] = ()
        if order.roofline and order.on_device(opened.values()):
            ceiling, stages = device_roofline.measure(order, opened, cases, report, remark)
        elif order.roofline:
            ceiling, stages = roofline.measure(order, wishes, path, report)
    for text in oddities(cases, order.new_tokens):
        remark(text)
    return Result(
        foveate=version("foveate"),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=settings_of(order, picture, opened),
        machine=machine.examine(),
        versions=machine.versions(),
        subjects=subjects,
        cases=cases,
        levels=levels,
        ceiling=ceiling,
        stages=stages,
        rivals=others,
        remarks=tuple(remarks),
    )


def require_sense(order: Order, opened: Mapping[str, Bundle], wishes: Wishes) -> None:
    """What cannot work is found before anything is loaded. Raises `FoveateError`."""
    for name, bundle in opened.items():
        bundle.layout_stages(order.chosen(bundle)[1])
        for wish in wishes[name]:
            wish.options(bundle.manifest, order.new_tokens)
    if order.roofline:
        roofline.require_packages()
        if len({order.on_device([bundle]) for bundle in opened.values()}) > 1:
            raise UsageError(
                "--roofline goes with bundles on the CPU, or with bundles on the GPU",
                mend="measure them apart, or give all the same --backend",
            )


def _rounds(
    order: Order,
    opened: Mapping[str, Bundle],
    wishes: Wishes,
    image: Path,
    report: Report,
    remark: Say,
) -> tuple[tuple[Subject, ...], tuple[Case, ...], tuple[Level, ...], tuple[RivalRecord, ...]]:
    with ExitStack() as stack:
        watch = stack.enter_context(Watch())
        children = {name: stack.enter_context(Child(name, threads=order.threads)) for name in opened}
        facts = load_all(children, order, report)
        contestants = against.starting(order, image, remark, report)
        for contestant in contestants:
            stack.callback(contestant.stop)
        entries = [Entry(name, wish, children[name]) for name in children for wish in wishes[name]]
        ask_all(entries, contestants, order, image, report)
        for name, child in children.items():
            for note in child.call("notes"):
                remark(f"{name}: {note}")
        subjects = tuple(
            subject_of(
                name, bundle, facts[name], children[name].call("rss")[1], watch.peak(children[name].pid)
            )
            for name, bundle in opened.items()
        )
        for contestant in contestants:
            contestant.stop()
        levels = _levels(entries, order, image, report)
    return (
        subjects,
        tuple(entry.case() for entry in entries),
        levels,
        tuple(contestant.result(watch) for contestant in contestants),
    )


def _levels(entries: Sequence[Entry], order: Order, image: Path, report: Report) -> tuple[Level, ...]:
    """Requests at once: level by level, and at each one every case in turn, round after round."""
    rounds = min(order.rounds, 3)
    total = len(order.concurrency) * rounds * len(entries)
    found: list[Level] = []
    for clients in order.concurrency:
        for number in range(rounds):
            start = number % len(entries)
            for entry in [*entries[start:], *entries[:start]]:
                report("concurrency", len(found), total)
                figures = entry.child.call(
                    "serve",
                    image=str(image),
                    prompt=order.prompt,
                    budget=entry.wish.word,
                    new_tokens=order.new_tokens,
                    clients=clients,
                    requests=order.requests,
                )
                found.append(
                    Level.model_validate(
                        {"subject": entry.subject, "budget": entry.wish.word, "round": number, **figures}
                    )
                )
    if total:
        report("concurrency", total, total)
    return tuple(found)


def settings_of(order: Order, picture: Image.Image, opened: Mapping[str, Bundle]) -> Settings:
    """The settings as they are written down."""
    backends, layouts = zip(*(order.chosen(bundle) for bundle in opened.values()), strict=True)
    return Settings(
        image=order.image_name,
        image_sha256=hashlib.sha256(picture.tobytes()).hexdigest(),
        image_size=picture.size,
        prompt=order.prompt,
        new_tokens=order.new_tokens,
        warm_up=order.warm_up,
        rounds=order.rounds,
        threads=order.threads,
        cores=order.cores,
        layout=_joined(layouts),
        backend=_joined(backends),
        requests=order.requests if order.concurrency else 0,
        huge_pages=huge_pages.wanted(),
    )


def _joined(words: Sequence[str]) -> str:
    """One word where all are equal, else each."""
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def subject_of(
    name: str, bundle: Bundle, facts: Mapping[str, Any], peak: int, device_peak: int | None
) -> Subject:
    """What a bundle is."""
    manifest = bundle.manifest
    precision = getattr(manifest, "precision", None)
    load = facts["load"]
    return Subject(
        name=name,
        family=manifest.family,
        source=manifest.source.name,
        weights_sha256=manifest.source.weights_sha256,
        manifest_sha256=manifest.sha256,
        precision={} if precision is None else precision.model_dump(mode="json"),
        plan=tuple(f"{cut.method} at {cut.name}" for cut in manifest.pruning),
        weight_bytes=facts["weight_bytes"],
        load=(load[0], load[1]),
        rss_base=facts["rss_base"],
        rss_loaded=facts["rss_loaded"],
        rss_peak=peak,
        device_peak=device_peak,
    )


def oddities(cases: Sequence[Case], new_tokens: int) -> list[str]:
    """What a reader of the figures has to know about some cases."""
    found = []
    for case in cases:
        what = f"{case.subject} at budget {case.budget}"
        answers = {sample.token_ids for sample in case.samples}
        lengths = sorted({len(answer) for answer in answers})
        if case.tokens.kept and case.budget != ALL and min(case.tokens.kept.values()) >= case.tokens.visual:
            found.append(f"{what} pruned nothing: its figures are not of pruning")
        if len(answers) > 1:
            found.append(f"{what} did not answer the same in every round")
        if lengths != [new_tokens]:
            told = " or ".join(map(str, lengths))
            found.append(f"{what}: its answers have {told} tokens instead of {new_tokens}")
    return found
