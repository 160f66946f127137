"""What it costs to choose, next to the prefill that it saves: every method at the shapes of LLaVA-1.5-7B.

    python -m foveate.tools.selection_cost                        # some minutes, about 4 GB of memory
    python -m foveate.tools.selection_cost --method dart --method fastv --keep 64 --csv cost.csv

Each method is traced alone, at full width, with noise for evidence and weights, and run by ONNX Runtime on
one thread. In the same run, before and after, one decoder layer of that model is timed at several lengths; a
prefill is 32 of them (a straight line between the measured lengths). Times are processor seconds. Encoder
methods that read projected tokens are charged the connector over all tokens. A method with several cuts keeps
keep^(k/m) of what entered at cut k of m, and is charged all of them. A method that decides alone how many
stay is shown with what it kept.

Not charged: tokens that a method runs along in the encoder, and a text feature that it asks for; both are
named.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from foveate.pruning.registry import MethodInfo, list_methods
from foveate.pruning.spec import Site
from foveate.runtime.errors import FoveateError, UsageError
from foveate.tools import selection_graphs as graphs
from foveate.tools.selection_graphs import FIXED, Arrays, Model, Session

MODEL: Final = "llava-1.5-7b"
TEXT: Final = 29
"""Tokens of the question and the template behind the picture."""
LENGTHS: Final = (0.1, 0.35, 1.0)
"""Shares of the picture at which the layer is timed."""
_HEADERS: Final = (
    *("method", "cut after", "kept of 576", "choosing ms", "connector ms"),
    *("prefill s", "saved s", "choosing / saved", "not charged"),
)


class Cost(NamedTuple):
    """One method's line, in seconds; `error` in place of the numbers where it refuses."""

    method: str
    cuts: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    choosing: float = 0.0
    connector: float = 0.0
    prefill: float = 0.0
    saved: float = 0.0
    besides: str = ""

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of the headers."""
        where = "+".join(str(cut) if cut else "encoder" for cut in self.cuts)
        cost = self.choosing + self.connector
        share = f"{100 * cost / self.saved:.2f} %" if self.saved > 0 else "-"
        return (
            self.method,
            where,
            " ".join(map(str, self.kept)),
            f"{1e3 * self.choosing:.1f}",
            f"{1e3 * self.connector:.1f}" if self.connector else "-",
            f"{self.prefill:.2f}",
            f"{self.saved:.2f}",
            share,
            self.besides,
        )


class Bench:
    """Medians of processor seconds: what other processes do meanwhile is not counted."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, session: Session, feeds: Arrays) -> dict[str, np.ndarray]:
        """Runs a graph once to warm up and `rounds` times by the clock; what came out. May be repeated."""
        found = session.run(feeds)
        for _ in range(self.rounds):
            start = time.process_time()
            session.run(feeds)
            self.seconds.setdefault(name, []).append(time.process_time() - start)
        print(f"{name}: {1e3 * self.median(name):.1f} ms", file=sys.stderr, flush=True)
        return found

    def median(self, name: str) -> float:
        """Seconds of one graph."""
        return statistics.median(self.seconds[name])


class Entry(NamedTuple):
    """A method's cuts in a bench: after how many layers (0: the encoder), what each kept of the picture."""

    method: str
    cuts: tuple[int, ...]
    kept: tuple[int, ...]
    projects: bool
    besides: str


def cuts_of(info: MethodInfo, site: Site, layers: int) -> tuple[int, ...]:
    """After how many layers a method cuts by its own schedule; 2 without one, 0 for the encoder."""
    if site is Site.ENCODER:
        return (0,)
    places = [place if isinstance(place, int) else round(place * layers) for place, _ in info.schedule]
    return tuple(sorted({min(max(place, 1), layers - 1) for place in places})) or (2,)


def time_method(bench: Bench, model: Model, info: MethodInfo, site: Site, keep: int) -> Entry:
    """Times every cut of a method.

    Raises:
        FoveateError: the method refuses the model, or could not be traced.
    """
    session = graphs.method_graph(model, info.name, site)
    method = graphs.build(model, info.name, site)
    cuts = cuts_of(info, site, model.shape.num_layers)
    share, arriving, kept = keep / model.candidates, model.candidates, []
    for number, cut in enumerate(cuts):
        asked = max(1, round(model.candidates * share ** ((number + 1) / len(cuts))))
        feeds = graphs.method_feeds(model, session, arriving, TEXT, asked)
        found = bench.time(f"{info.name} {site} {cut}", session, feeds)
        rest = 0 if site is Site.ENCODER else FIXED + TEXT
        kept.append(int(found["count"][0]) - rest)
        arriving = max(kept[-1], 1)
    extra = method.extra_tokens()
    besides = [f"{len(extra)} tokens in the encoder"] if extra is not None else []
    besides += ["a prefill of the words alone"] if method.needs_text else []
    projects = site is Site.ENCODER and (method.needs_projected or method.needs_prompt)
    return Entry(info.name, cuts, tuple(kept), projects, ", ".join(besides))


def cost_of(bench: Bench, entry: Entry, model: Model, site: Site) -> Cost:
    """What a method's cuts took, and what they save."""
    layer, layers = layer_seconds(bench, model), model.shape.num_layers
    rows = [model.candidates, *entry.kept]
    ends = [*entry.cuts, layers]
    parts = [(ends[0], rows[0]), *((b - a, r) for a, b, r in zip(ends, ends[1:], rows[1:], strict=False))]
    whole = layers * layer(model.candidates)
    prefill = sum(count * layer(visual) for count, visual in parts)
    choosing = sum(bench.median(f"{entry.method} {site} {cut}") for cut in entry.cuts)
    connector = bench.median("connector") if entry.projects else 0.0
    saved = 0.0 if min(entry.kept) >= model.candidates else whole - prefill
    return Cost(entry.method, entry.cuts, entry.kept, choosing, connector, prefill, saved, entry.besides)


def time_layer(bench: Bench, model: Model, layer: Session) -> None:
    """One decoder layer at every length."""
    for share in LENGTHS:
        visual = round(share * model.candidates)
        bench.time(f"layer {visual}", layer, graphs.layer_feeds(layer, FIXED + visual + TEXT))


def layer_seconds(bench: Bench, model: Model) -> Callable[[int], float]:
    """Seconds of one decoder layer, by visual tokens."""
    lengths = [round(share * model.candidates) for share in LENGTHS]
    times = [bench.median(f"layer {visual}") for visual in lengths]
    slope = (times[1] - times[0]) / (lengths[1] - lengths[0])

    def seconds(visual: int) -> float:
        if visual < lengths[0]:  # below the shortest that was timed
            return times[0] + slope * (visual - lengths[0])
        return float(np.interp(visual, lengths, times))

    return seconds


def measure(names: Sequence[str], keep: int, rounds: int, model: Model) -> list[Cost]:
    """A line per method and site, encoder first."""
    known = {info.name: info for info in list_methods()}
    for name in names:
        if name not in known:
            raise UsageError("unknown method", found=name, wanted=", ".join(known))
    bench = Bench(rounds)
    layer = graphs.layer_graph(model)
    time_layer(bench, model, layer)
    connector = graphs.connector_graph(model)
    bench.time("connector", connector, graphs.connector_feeds(model, connector))
    entries: list[tuple[Site, Entry | Cost]] = []
    for site in (Site.ENCODER, Site.DECODER):
        for info in known.values():
            if site in info.sites and (not names or info.name in names):
                try:
                    entries.append((site, time_method(bench, model, info, site, keep)))
                except FoveateError as error:
                    entries.append((site, Cost(info.name, besides=str(error).splitlines()[0])))
    time_layer(bench, model, layer)  # before and after: the machine may have changed its pace
    return [
        cost_of(bench, entry, model, site) if isinstance(entry, Entry) else entry for site, entry in entries
    ]


def as_table(costs: Sequence[Cost]) -> str:
    """Markdown."""
    rows = [_HEADERS, ("---",) * len(_HEADERS), *(cost.cells() for cost in costs)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", action="append", default=[], help="only these; repeat it for several")
    parser.add_argument("--keep", type=int, default=128, help="visual tokens to keep of 576 [128]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each graph, of which the median [3]")
    parser.add_argument("--csv", type=Path, help="write the table there, too")
    given = parser.parse_args()
    model = graphs.read_model(MODEL)
    if not 1 <= given.keep < model.candidates or given.rounds < 1:
        parser.error(f"--keep is from 1 to {model.candidates - 1}, --rounds at least 1")
    costs = measure(given.method, given.keep, given.rounds, model)
    print(as_table(costs))
    if given.csv:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_HEADERS, *(cost.cells() for cost in costs)])


if __name__ == "__main__":
    main()
