"""Where the time goes on a GPU, beside what it can do: whole graphs, since its operators are not traced.

A graph's seconds are the medians of the rounds themselves, with the device waited for at its end. Operations
of prefill are counted by formula, where the family has one; a decoding step reads weights and caches once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from foveate.export.config import read_json
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import FoveateError
from foveate.tools import flops
from foveate.tools.bench.child import Child
from foveate.tools.bench.order import Order, Report
from foveate.tools.bench.roofline import highest
from foveate.tools.bench.schema import Case, Ceiling, Stage
from foveate.tools.bench.table import middle

KIND: Final = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""Products by the type of a bundle's caches, as `device_ceilings` calls them."""


def measure(
    order: Order,
    opened: Mapping[str, Bundle],
    cases: Sequence[Case],
    report: Report,
    say: Callable[[str], None],
) -> tuple[Ceiling, tuple[Stage, ...]]:
    """The ceilings, twice, of which the higher ones count; and a stage for every graph of every case."""
    first = _ceilings(report)
    stages = tuple(
        stage for case in cases for stage in stages_of(case, opened[case.subject], order.chosen, say)
    )
    return highest(first, _ceilings(report)), stages


def stages_of(
    case: Case,
    bundle: Bundle,
    chosen: Callable[[Bundle], tuple[str, str]],
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Stage]:
    """The graphs before the first token, and a step of decoding as one."""
    counted = prefill_flops(case, bundle)
    if not counted:
        say(f"{case.subject}: its operations are not counted: there is no formula, or its checkpoint is gone")
    kind = KIND.get(bundle.manifest.cache.dtype, "fp32")
    names = sorted({name for sample in case.samples for name in sample.graphs})
    decoder = [name for name in names if name.startswith("decoder")]
    for name in [each for each in names if each not in decoder]:
        own = {kind: counted.get(name.partition("_")[0], 0.0)}
        yield _stage(case, "prefill", name, _seconds(case, [name]), own, 0.0)
    whole = {kind: counted.get("decoder", 0.0)}
    yield _stage(case, "prefill", "decoder", _seconds(case, decoder), whole, 0.0)
    held = step_weight_bytes(bundle, chosen(bundle)[1]) + sum(each.bytes for each in case.cache)
    yield _stage(case, "decode", "decoder", middle(case, "decode"), {}, held)


def prefill_flops(case: Case, bundle: Bundle) -> dict[str, float]:
    """Operations of vision, embed and decoder before the first token; empty where they cannot be counted."""
    try:
        config = read_json(Path(bundle.manifest.source.path) / "config.json")
        sizes = flops.Sizes.read(config)
    except (FoveateError, OSError, KeyError, TypeError, ValueError):
        return {}
    if bundle.manifest.family != "llava":  # the formulas are LLaVA's
        return {}
    return {
        "vision": flops.vision_flops(sizes.vision),
        "embed": flops.connector_flops(sizes, case.tokens.kept.get("encoder", case.tokens.visual)),
        "decoder": decoder_flops(case, sizes.decoder),
    }


def decoder_flops(case: Case, sizes: flops.DecoderSizes) -> float:
    """Each group of layers reads the tokens that its cache then holds; the head reads one row."""
    layers = sum(len(each.layers) * flops.layer_flops(sizes, each.tokens) for each in case.cache)
    return layers + 2.0 * sizes.width * sizes.vocabulary


def step_weight_bytes(bundle: Bundle, layout: str) -> float:
    """Of what a decoding step reads: the decoder's weights as they are stored, without tables to look up."""
    from foveate.tools.bench.trace import Reader

    read = Reader(bundle, layout).weights
    return sum(held for part, held in read.items() if part.startswith("segment") or part == "head")


def _stage(
    case: Case, phase: str, part: str, seconds: float, counted: Mapping[str, float], held: float
) -> Stage:
    known = {kind: value for kind, value in counted.items() if value}
    return Stage.model_validate(
        {
            "subject": case.subject,
            "budget": case.budget,
            "phase": phase,
            "part": part,
            "seconds": seconds,
            "products": seconds,
            "flops": known,
            "bytes": held,
            "slowest": (),
        }
    )


def _seconds(case: Case, names: Sequence[str]) -> float:
    """Of some graphs before the first token together, the median of the rounds."""
    return median(sum(sample.graphs.get(name, (0.0, 0.0))[0] for name in names) for sample in case.samples)


def _ceilings(report: Report) -> Ceiling:
    with Child("the ceilings") as child:
        found = child.call("device_ceilings", progress=lambda done, total: report("ceilings", done, total))
    return Ceiling.model_validate(found)
