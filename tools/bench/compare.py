"""Sets two runs side by side, when they differ in nothing but what was to be compared.

Settings, machine and weights have to be equal, or the difference is named and the comparison refused. What
may differ is what a comparison is made for: the version of Foveate and its packages, how a bundle was made.
These differences are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.runtime.errors import UsageError
from foveate.tools.bench.schema import Case, Level, Result, Subject
from foveate.tools.bench.statistics import percentile
from foveate.tools.bench.table import Rows, middle, milliseconds, speed

PARTS = ("preprocess", "vision", "embed", "prefill", "ttft", "decode", "total")


@dataclass(frozen=True)
class Difference:
    """A name and what it is in each run."""

    name: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.name}: {self.first} and {self.second}"


@dataclass(frozen=True)
class Comparison:
    """Pairs of cases that were asked the same, what differs besides, and what has no partner."""

    first: Result
    second: Result
    cases: tuple[tuple[Case, Case], ...]
    levels: tuple[tuple[tuple[Level, ...], tuple[Level, ...]], ...]
    differences: tuple[Difference, ...]
    alone: tuple[str, ...]


def compare(first: Result, second: Result, allow: Sequence[str] = ()) -> Comparison:
    """Pair the cases of two runs.

    Bundles are paired by their names; if each run has one, these two are a pair whatever they are called.

    Args:
        first, second: what is compared with what.
        allow: names of settings that may differ, as the refusal names them.

    Raises:
        UsageError: a setting differs that is not allowed to, or nothing has a partner.
    """
    names = _pairs(first, second)
    unlike = list(unlikes(first, second, names))
    unknown = [name for name in allow if name not in {each.name for each in unlike}]
    if unknown:
        raise UsageError(
            f"--allow names what does not differ: {', '.join(unknown)}",
            wanted=", ".join(each.name for each in unlike) or "nothing: all settings are equal",
        )
    refused = [each for each in unlike if each.name not in allow]
    if refused:
        words = " ".join(f"--allow {each.name}" for each in refused)
        raise UsageError(
            f"these runs are not comparable: {len(refused)} of their settings differ",
            found="; ".join(map(str, refused)),
            mend=f"run both alike, or say that you know it: {words}",
        )
    cases = {(each.subject, each.budget): each for each in second.cases}
    pairs = [
        (case, cases[(names[case.subject], case.budget)])
        for case in first.cases
        if (names.get(case.subject, ""), case.budget) in cases
    ]
    if not pairs:
        raise UsageError(
            "these runs have no case in common",
            found=f"{_cases(first)} and {_cases(second)}",
            mend="give bundles one name in both runs (NAME=FOLDER), and ask for the same budgets",
        )
    partners = {id(each) for pair in pairs for each in pair}
    alone = [
        f"{case.subject} at {case.budget} ({which} run)"
        for which, run in (("first", first), ("second", second))
        for case in run.cases
        if id(case) not in partners
    ]
    shown = (*(each for each in unlike if each.name in allow), *changes(first, second, names))
    return Comparison(first, second, tuple(pairs), _levels(first, second, names), shown, tuple(alone))


def unlikes(first: Result, second: Result, names: dict[str, str]) -> Iterator[Difference]:
    """Settings, facts of the machine and weights that are not the same."""
    for part in ("settings", "machine"):
        one, other = getattr(first, part).model_dump(), getattr(second, part).model_dump()
        for name in one:
            if name != "image" and one[name] != other[name]:  # the picture is told by its pixels
                yield Difference(name, _told(one[name]), _told(other[name]))
    for mine, theirs in names.items():
        one_of, other_of = _subject(first, mine), _subject(second, theirs)
        if one_of.weights_sha256 != other_of.weights_sha256:
            yield Difference(f"weights of {mine}", one_of.source, other_of.source)


def changes(first: Result, second: Result, names: dict[str, str]) -> Iterator[Difference]:
    """What may differ, and does: versions, and how bundles were made."""
    for name in sorted({*first.versions, *second.versions}):
        one, other = first.versions.get(name, "none"), second.versions.get(name, "none")
        if one != other:
            yield Difference(f"version of {name}", one, other)
    for mine, theirs in names.items():
        one_of, other_of = _subject(first, mine), _subject(second, theirs)
        for field in ("name", "precision", "plan"):
            if getattr(one_of, field) != getattr(other_of, field):
                yield Difference(
                    f"{field} of {mine}", _told(getattr(one_of, field)), _told(getattr(other_of, field))
                )


def table(found: Comparison, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per case and part: both medians, and the second over the first."""
    columns = ("bundle", "budget", "part", "first ms", "second ms", "second / first")
    rows: Rows = []
    for one, other in found.cases:
        for part in PARTS:
            before, after = middle(one, part, clock), middle(other, part, clock)
            name = "step" if part == "decode" else "answer" if part == "total" else part
            share = f"{after / before:.2f}" if before else "-"
            rows.append((one.subject, one.budget, name, milliseconds(before), milliseconds(after), share))
        rate = (f"{speed(one, clock):.1f}", f"{speed(other, clock):.1f}")
        rows.append((one.subject, one.budget, "tokens/s", *rate, "" if not speed(one) else _over(rate)))
    return columns, rows


def loads(found: Comparison, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per level of concurrency: requests and tokens per second."""
    columns = ("bundle", "budget", "at once", "requests/s", "second", "tokens/s", "second", "second / first")
    rows: Rows = []
    for one, other in found.levels:
        asked = [
            percentile([each.requests / getattr(each, clock) for each in run], 0.5) for run in (one, other)
        ]
        made = [percentile([each.tokens / getattr(each, clock) for each in run], 0.5) for run in (one, other)]
        rows.append(
            (
                *(one[0].subject, one[0].budget, str(one[0].concurrency)),
                *(f"{value:.2f}" for value in asked),
                *(f"{value:.1f}" for value in made),
                f"{made[1] / made[0]:.2f}",
            )
        )
    return columns, rows


def to_json(found: Comparison, clock: str) -> dict[str, Any]:
    """Both tables as rows with names, and what differs."""
    documents = {}
    for name, (columns, rows) in (("cases", table(found, clock)), ("levels", loads(found, clock))):
        keys = _unique(columns)
        documents[name] = [dict(zip(keys, row, strict=True)) for row in rows]
    return {
        "clock": clock,
        **documents,
        "differences": [vars(each) for each in found.differences],
        "alone": list(found.alone),
    }


def _pairs(first: Result, second: Result) -> dict[str, str]:
    if len(first.subjects) == len(second.subjects) == 1:
        return {first.subjects[0].name: second.subjects[0].name}
    theirs = {each.name for each in second.subjects}
    return {each.name: each.name for each in first.subjects if each.name in theirs}


def _levels(
    first: Result, second: Result, names: dict[str, str]
) -> tuple[tuple[tuple[Level, ...], tuple[Level, ...]], ...]:
    def grouped(run: Result) -> dict[tuple[str, str, int], tuple[Level, ...]]:
        found: dict[tuple[str, str, int], tuple[Level, ...]] = {}
        for each in run.levels:
            key = (each.subject, each.budget, each.concurrency)
            found[key] = (*found.get(key, ()), each)
        return found

    theirs = grouped(second)
    keys = {(name, *rest): (names.get(name, ""), *rest) for name, *rest in grouped(first)}
    return tuple((grouped(first)[one], theirs[other]) for one, other in keys.items() if other in theirs)  # type: ignore[index]


def _subject(run: Result, name: str) -> Subject:
    return next(each for each in run.subjects if each.name == name)


def _cases(run: Result) -> str:
    return ", ".join(f"{each.subject} at {each.budget}" for each in run.cases)


def _over(values: tuple[str, str]) -> str:
    return f"{float(values[1]) / float(values[0]):.2f}" if float(values[0]) else "-"


def _told(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return str(value) if str(value) else "nothing"


def _unique(columns: Sequence[str]) -> list[str]:
    """Names of columns, told apart by what stands before them where two are equal."""
    return [
        name if columns.count(name) == 1 else f"{columns[i - 1]} ({name})" for i, name in enumerate(columns)
    ]
