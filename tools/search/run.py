"""The whole search: one export, many measurements, a schedule with its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from foveate.export.checkpoint import Checkpoint
from foveate.export.families import find_family
from foveate.pruning.registry import describe_method
from foveate.pruning.schedule import write_schedule
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError
from foveate.runtime.pipeline import load
from foveate.tools.search.bench import Bench, Memory, Progress
from foveate.tools.search.questions import Question, fingerprint
from foveate.tools.search.rates import Depth
from foveate.tools.search.report import METHOD, Found, draw, write_table
from foveate.tools.search.rules import Answer, g_search, g_search_within, p_sigmoid, sigmoid_rates

RULES = ("g-search", "p-sigmoid")
CURVE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
"""P-Sigmoid's picture shows its steepness at these budgets, too."""


def search(
    rule: str,
    checkpoint: Path,
    questions: Sequence[Question],
    output: Path,
    *,
    name: str = "",
    budget: float | None = None,
    loss: float | None = None,
    cuts: int = 5,
    first: int | None = None,
    query: str = "text",
    new_tokens: int = 16,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Search a schedule, and write it to ``output`` (TOML) with its table (.csv) and picture (.png) beside.

    What was measured stays in ``output`` with the ending ``.measured.json``: a search that is begun again
    takes it from there.

    Args:
        rule: "g-search" or "p-sigmoid".
        checkpoint: a Hugging Face folder.
        questions: the calibration set.
        output: the schedule to be.
        name: the model's, for people; the folder's by default.
        budget: layer average of visual tokens. P-Sigmoid needs one; G-Search fits its schedule into it.
        loss: accuracy that G-Search may lose, where no budget is given.
        cuts: at most so many places, evenly over the depth.
        first: layers before the first place; see ``rates.Depth``.
        query: rows that rank, "text" or "last", as of ``layer-rank``.
        new_tokens: at most so many tokens an answer.
        threads: of ONNX Runtime.
        progress: called as ``progress(what, done, total)``.
        say: called with remarks.

    Raises:
        UsageError: an impossible budget, or a first layer outside the decoder.
        CheckpointError: the checkpoint cannot be read.
    """
    _check(rule, budget, loss)
    source = Checkpoint(checkpoint)
    family = find_family(source.config)[1]
    depth = Depth.spread(family.Config.read(source.config).text.num_layers, cuts, first)
    if budget is not None:
        depth.check_budget(budget)
    describe_method(METHOD).check(Site.DECODER, {"query": query})
    weights = source.weights_sha256()
    bundle = _export(checkpoint, weights, depth, query, progress)
    facts = {"weights": weights, "places": depth.places, "questions": fingerprint(questions), "query": query}
    output.parent.mkdir(parents=True, exist_ok=True)
    memory = Memory(output.with_suffix(".measured.json"), {**facts, "new_tokens": new_tokens})
    if memory.resumed:
        say(f"continuing with {memory.resumed} schedules that are measured already")
    pipeline = load(bundle, threads=threads, check="none")
    bench = Bench(pipeline, depth, questions, memory, new_tokens=new_tokens, progress=progress)
    found = replace(_search(rule, name or checkpoint.name, bench, budget, loss), query=query)
    write_table(found, output.with_suffix(".csv"))
    draw(found, output.with_suffix(".png"))
    write_schedule(output, found.schedule())
    return found


def _search(rule: str, name: str, bench: Bench, budget: float | None, loss: float | None) -> Found:
    depth = bench.depth
    full = bench.share(tuple(1.0 for _ in depth.places))
    if rule == "p-sigmoid":
        assert budget is not None
        answer = p_sigmoid(depth, bench.share, budget)
        for other in CURVE:
            if other > depth.least:
                bench.score(sigmoid_rates(depth, answer.parameter, other))
    elif budget is not None:
        answer = g_search_within(depth, bench.share, full, budget)
    else:
        assert loss is not None
        answer = Answer(g_search(depth, bench.share, full - loss), loss)
    spent = budget if rule == "p-sigmoid" and budget else depth.average(answer.rates)
    flat = sigmoid_rates(depth, 0.0, spent) if spent < 1 else answer.rates
    bench.score(flat)
    return Found(rule, name, depth, answer.rates, answer.parameter, flat, bench.memory.scores, budget)


def _check(rule: str, budget: float | None, loss: float | None) -> None:
    if rule not in RULES:
        raise UsageError(f"there is no search '{rule}'", wanted=" or ".join(RULES))
    if rule == "p-sigmoid" and (budget is None or loss is not None):
        raise UsageError(
            "p-sigmoid needs a budget and takes no loss",
            found=f"budget={budget}, loss={loss}",
            wanted="--budget: the mean over all layers of the visual tokens kept",
            mend="give --budget 0.25, or search with g-search --loss 0.01",
        )
    if rule == "g-search" and (budget is None) == (loss is None):
        raise UsageError(
            "g-search needs a budget or a loss, not both",
            found=f"budget={budget}, loss={loss}",
            wanted="--budget, or --loss: the accuracy that may be lost",
            mend="give --loss 0.01 for a schedule that costs at most one point",
        )
    if loss is not None and not 0 <= loss < 1:
        raise UsageError(
            "the loss is out of range",
            found=f"{loss:g}",
            wanted="0 <= loss < 1: a share of all answers",
            mend="give for example --loss 0.01",
        )


def _export(checkpoint: Path, weights: str, depth: Depth, query: str, progress: Progress) -> Path:
    """A bundle with a cut at every place, kept in the cache for the next search."""
    from foveate.export import export_model
    from foveate.tools.cache import cached_bundle, is_exported

    word = f"{METHOD}@" + "+".join(map(str, depth.places)) + f":query={query}"
    path = cached_bundle("search", word, weights)
    if not is_exported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        export_model(checkpoint, path, plan=[word], layouts=("fused",), progress=progress)
    return path
