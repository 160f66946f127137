"""What a run found, as rows of text. Ratios are of measured times, never of tokens."""

from __future__ import annotations

from statistics import median

from foveate.tools.bench.schema import Case, Result
from foveate.tools.bench.statistics import Ratio, Spread, paired

Rows = list[tuple[str, ...]]
SPLIT = ("preprocess", "vision", "embed", "prefill", "host")


def first_token(result: Result, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per case: tokens, percentiles of the first one's time, and its ratio to row 1's."""
    columns = ("#", "bundle", "budget", "visual tokens", "p50 ms", "p90", "p99", "of #1")
    rows = []
    for case in result.cases:
        spread = Spread.of(values(case, "ttft", clock))
        against = ratio(result.cases[0], case, "ttft", clock)
        rows.append(
            (
                *(number(result, case), case.subject, case.budget, visual(case)),
                *(milliseconds(each) for each in (spread.p50, spread.p90, spread.p99)),
                str(against or "-"),
            )
        )
    return columns, rows


def split(result: Result, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per case: the parts of the time to the first token."""
    columns = ("#", "tokens read", *(f"{part} ms" for part in SPLIT))
    rows = [
        (
            *(number(result, case), str(case.tokens.prompt)),
            *(milliseconds(middle(case, part, clock)) for part in SPLIT),
        )
        for case in result.cases
    ]
    return columns, rows


def decoding(result: Result, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per case: time between tokens, and of the whole answer."""
    columns = ("#", "step p50 ms", "p90", "p99", "tokens/s", "answer ms", "of #1")
    rows = []
    for case in result.cases:
        step = Spread.of([each[clock == "cpu"] for sample in case.samples for each in sample.steps])
        against = ratio(result.cases[0], case, "total", clock)
        rows.append(
            (
                number(result, case),
                *(milliseconds(each) for each in (step.p50, step.p90, step.p99)),
                f"{speed(case, clock):.1f}",
                milliseconds(middle(case, "total", clock)),
                str(against or "-"),
            )
        )
    return columns, rows


def memory(result: Result) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per bundle; on a GPU, also per rival, with what each process held of it at most."""
    columns = ("bundle", "precision", "weights MB", "base MB", "loaded MB", "peak MB", "load s")
    rows: Rows = [
        (
            subject.name,
            precision(subject.precision),
            *(megabytes(each) for each in (subject.weight_bytes, subject.rss_base)),
            *(megabytes(each) for each in (subject.rss_loaded, subject.rss_peak)),
            f"{subject.load[0]:.2f}",
        )
        for subject in result.subjects
    ]
    peaks = [subject.device_peak for subject in result.subjects]
    peaks += [rival.device_peak for rival in result.rivals]
    if not any(peaks):
        return columns, rows
    rows += [(r.name, "", "", "", "", megabytes(r.rss_peak), f"{r.load[0]:.2f}") for r in result.rivals]
    shown = ["not told" if each is None else megabytes(each) for each in peaks]
    return (*columns, "GPU peak MB"), [(*row, peak) for row, peak in zip(rows, shown, strict=True)]


def caches(result: Result) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per case: what one request's prompt leaves in each segment of the cache."""
    most = max((len(case.cache) for case in result.cases), default=0)
    columns = ("#", *(f"segment {i}" for i in range(most)), "kB together")
    rows = []
    for case in result.cases:
        cells = [
            f"{each.tokens} x {len(each.layers)} layers: {each.bytes / 1e3:.1f} kB" for each in case.cache
        ]
        total = sum(each.bytes for each in case.cache)
        rows.append((number(result, case), *cells, *[""] * (most - len(cells)), f"{total / 1e3:.1f}"))
    return columns, rows


def number(result: Result, case: Case) -> str:
    """A case's number, by which tables refer to it."""
    return str(1 + result.cases.index(case))


def values(case: Case, part: str, clock: str = "wall") -> list[float]:
    """A part's seconds, round by round; of decoding, seconds per step."""
    found = []
    for sample in case.samples:
        seconds = (sample.wall if clock == "wall" else sample.cpu)[part]
        found.append(seconds / max(len(sample.steps), 1) if part == "decode" else seconds)
    return found


def middle(case: Case, part: str, clock: str = "wall") -> float:
    """The median of `values`."""
    return median(values(case, part, clock))


def speed(case: Case, clock: str = "wall") -> float:
    """New tokens for each second behind the first one; 0 for answers of one token."""
    step = middle(case, "decode", clock)
    return 1 / step if step > 0 else 0.0


def ratio(base: Case, case: Case, part: str, clock: str = "wall") -> Ratio | None:
    """Time of a case over that of another, round by round."""
    return paired(values(case, part, clock), values(base, part, clock))


def visual(case: Case) -> str:
    """`576 > 128 > 64`: visual tokens, and what is left behind each site."""
    return " > ".join(map(str, (case.tokens.visual, *case.tokens.kept.values())))


def precision(record: dict[str, object]) -> str:
    """The words of the stages, as short as they can be said."""
    words = record.get("stages", record)
    if not isinstance(words, dict) or not words:
        return "fp32"
    kinds = {str(word) for word in words.values()}
    return kinds.pop() if len(kinds) == 1 else " ".join(f"{stage}={word}" for stage, word in words.items())


def milliseconds(seconds: float) -> str:
    """Three digits, or all before the point."""
    value = 1e3 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def megabytes(count: int) -> str:
    """In decimal megabytes."""
    return f"{count / 1e6:.1f}" if count < 100e6 else f"{count / 1e6:.0f}"


def levels(result: Result, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per case and level: medians of rounds; percentiles of all requests, in wall time."""
    columns = (
        *("#", "at once", "tokens/s", "of #1", "requests/s"),
        *("first p50 ms", "p99", "between p50 ms", "p99"),
    )
    rows: Rows = []
    base: dict[int, list[float]] = {}
    steps = sorted({each.concurrency for each in result.levels})
    keys = [(step, case.subject, case.budget) for step in steps for case in result.cases]
    for place, (clients, subject, budget) in enumerate(keys):
        same = [
            e for e in result.levels if (e.concurrency, e.subject, e.budget) == (clients, subject, budget)
        ]
        made = [each.tokens / getattr(each, clock) for each in same]
        first = Spread.of([seconds for each in same for seconds in each.first])
        between = Spread.of([seconds for each in same for seconds in each.between])
        rows.append(
            (
                *(str(1 + place % len(result.cases)), str(clients), f"{median(made):.1f}"),
                str(paired(made, base.setdefault(clients, made)) or "-"),
                f"{median(each.requests / getattr(each, clock) for each in same):.2f}",
                *(milliseconds(each) for each in (first.p50, first.p99, between.p50, between.p99)),
            )
        )
    return columns, rows


def rivals(result: Result, clock: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and a row per rival and case: the rival's time, and the case's over it, round by round."""
    columns = ("rival", "first ms", "step ms", "peak MB", "#", "first: # / rival", "step: # / rival")
    rows: Rows = []
    for rival in result.rivals:
        for case in result.cases:
            shown, ratios = [], []
            for part in ("ttft", "decode"):
                theirs = rival.seconds(part, clock)
                shown.append(milliseconds(median(theirs)) if theirs else "not told")
                ratios.append(str(paired(values(case, part, clock), theirs) or "-"))
            rows.append((rival.name, *shown, megabytes(rival.rss_peak), number(result, case), *ratios))
    return columns, rows
