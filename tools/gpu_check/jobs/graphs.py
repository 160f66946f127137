"""Decoding with and without CUDA graphs: the same tokens, and what a step takes each way."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from foveate.tools.gpu_check.records import Job

NEW_TOKENS: Final = 48
_PROMPTS: Final = ("What is in this picture?", "How many objects are there, and where?")


class GraphsError(AssertionError):
    """Recorded steps gave other tokens than plain ones."""


def compare(job: Job, bundle: str, backend: str) -> dict[str, Any]:
    """One and two sequences; the row's remark says if a backend could not record its steps, and why."""
    plain, _ = _answers(job, bundle, backend, graphs=False)
    found, notes = _answers(job, bundle, backend, graphs=True)
    for batch, (ids, _) in found.items():
        if ids != plain[batch][0]:
            raise GraphsError(f"batch {batch}: other tokens with CUDA graphs than without")
    figures = {}
    for batch in found:
        figures[f"batch {batch}: ms a step, plain"] = 1e3 * plain[batch][1]
        figures[f"batch {batch}: ms a step, recorded"] = 1e3 * found[batch][1]
    return {**figures, "remark": "; ".join(notes)}


def _answers(
    job: Job, bundle: str, backend: str, *, graphs: bool
) -> tuple[dict[int, tuple[list[tuple[int, ...]], float]], tuple[str, ...]]:
    """By batch size: tokens, and the median of a step's seconds; and what the backend has to say."""
    from foveate.runtime.backend import BackendOptions
    from foveate.runtime.backends import choose, open_backend
    from foveate.runtime.bundle import Bundle
    from foveate.runtime.model import Model
    from foveate.runtime.options import GenerateOptions
    from foveate.runtime.pipeline import Pipeline, Request
    from foveate.runtime.processor import Processor
    from foveate.tools.demo import resolve_image

    opened = Bundle.open(job.work / bundle)
    name, layout = choose(opened, backend)
    made = open_backend(name, opened, layout, BackendOptions(graphs=graphs))
    processor = Processor(opened.processor_path, opened.manifest.model, opened.manifest.family)
    pipeline = Pipeline(opened, Model(opened, layout, made), processor)
    options = GenerateOptions(max_new_tokens=NEW_TOKENS)
    picture, found = resolve_image("demo:3"), {}
    for batch in (1, 2):
        requests = [Request(prompt, [picture]) for prompt in _PROMPTS[:batch]]
        pipeline.generate_batch(requests, options)
        generations = pipeline.generate_batch(requests, options)
        steps = [each.timings.decode / each.timings.steps for each in generations if each.timings.steps]
        found[batch] = ([each.token_ids for each in generations], median(steps) if steps else 0.0)
    return found, tuple(made.notes)
