"""Engines give the tokens of ONNX Runtime: through doubles of TensorRT and CUDA, never counted as a GPU's run."""

from __future__ import annotations

import gc
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cudart import Cudart
from doubles.cudart_names import cudaError_t
from doubles.fixtures import cudart, tensorrt  # noqa: F401
from doubles.tensorrt import engine as engine_double
from doubles.tensorrt.install import install
from engines_made import PORTABLE, build, copy, engines  # noqa: F401
from many import IMAGES, asks, outcome

from foveate.runtime import GenerateOptions, Pipeline, Scheduler, load
from foveate.runtime.backends.tensorrt import Backend

GRAPHS = 4  # that a decoding step runs: embed, and a segment before, between and behind two cuts


@pytest.fixture(scope="session")
def on_cpu(engines: Path) -> Pipeline:
    return load(engines, backend="onnxruntime", threads=1)


@pytest.fixture
def pipeline(engines: Path, cudart: Cudart, tensorrt: types.ModuleType) -> Iterator[Pipeline]:
    """On engines; afterwards all memory has to be given back, in the order that TensorRT wants."""
    loaded = load(engines)
    yield loaded
    backend_of(loaded).close()
    loaded.__dict__.clear()
    gc.collect()
    assert engine_double.violations == []


def backend_of(pipeline: Pipeline) -> Backend:
    backend = pipeline.model.backend
    assert isinstance(backend, Backend)
    return backend


def test_a_bundle_for_tensorrt_runs_on_its_engines(pipeline: Pipeline) -> None:
    assert backend_of(pipeline).name == "tensorrt"
    assert pipeline.model.layout == "segmented"


def test_answers_and_reports_are_those_of_onnxruntime(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    for ask in asks("pruned"):
        assert outcome(pipeline.generate(*ask)) == outcome(on_cpu.generate(*ask))


def test_a_batch_gives_each_its_own_answer(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    requests = [(ask.prompt, ask.images) for ask in asks("pruned")[:4]]
    options = GenerateOptions(max_new_tokens=9)
    answers = pipeline.generate_batch(requests, options)
    assert [outcome(each) for each in answers] == [
        outcome(on_cpu.generate(*request, options)) for request in requests
    ]


def test_a_chat_keeps_its_caches(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    ours, theirs = pipeline.chat(), on_cpu.chat()
    options = GenerateOptions(max_new_tokens=5)
    for words, images in (("What is this?", IMAGES[:1]), ("And that?", IMAGES[1:2]), ("Why?", ())):
        assert outcome(ours.send(words, images, options)) == outcome(theirs.send(words, images, options))


def test_the_scheduler_mixes_reading_and_steps(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    every = [ask for ask in asks("pruned") if not ask.options.temperature]
    with Scheduler(pipeline, slots=4, rows=9) as scheduler:
        handles = [scheduler.submit(*ask) for ask in every]
        answers = [handle.result() for handle in handles]
    assert [outcome(each) for each in answers] == [outcome(on_cpu.generate(*ask)) for ask in every]


def test_scores_of_all_rows_are_those_of_onnxruntime(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    """Numbers, not only the tokens that win."""
    prepared = [each.prepare("Hi", IMAGES[:1]) for each in (pipeline, on_cpu)]
    ours, theirs = (each.prefill(one).logits for each, one in zip((pipeline, on_cpu), prepared, strict=True))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


# --- CUDA graphs --------------------------------------------------------------------------------------------

STEPS = 11
ASK = ("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=STEPS + 1))


def test_steps_are_recorded_once_and_replayed(pipeline: Pipeline, cudart: Cudart) -> None:
    first = pipeline.generate(*ASK)
    assert len(first.token_ids) == STEPS + 1
    assert cudart.launches == GRAPHS * (STEPS - 1), "the first step runs plainly"
    assert cudart.calls.count("cudaStreamBeginCapture") == GRAPHS
    copies = cudart.calls.count("cudaMemcpyAsync")
    assert pipeline.generate(*ASK).token_ids == first.token_ids
    assert cudart.calls.count("cudaMemcpyAsync") > copies, "prompts are not replayed"
    # The caches of the second answer lie where those of the first did: nothing is recorded again.
    assert cudart.launches == GRAPHS * (STEPS - 1) + GRAPHS * STEPS
    assert cudart.calls.count("cudaStreamBeginCapture") == GRAPHS
    assert backend_of(pipeline).notes == ()


def test_caches_elsewhere_are_recorded_anew(pipeline: Pipeline, cudart: Cudart) -> None:
    streams = [pipeline.stream(*ASK) for _ in range(2)]  # two caches at once
    tokens: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=True):
        for own, token in zip(tokens, pair, strict=True):
            own.append(token.id)
    assert tokens[0] == tokens[1] == list(pipeline.generate(*ASK).token_ids)
    # Taking turns, each finds the other's addresses bound, and runs plainly; embed has no caches.
    assert cudart.calls.count("cudaStreamBeginCapture") >= 1


def test_without_graphs_everything_runs_plainly(
    engines: Path, cudart: Cudart, tensorrt: types.ModuleType, on_cpu: Pipeline
) -> None:
    plain = load(engines, graphs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain.generate(*ASK).token_ids == on_cpu.generate(*ASK).token_ids
    assert cudart.launches == 0
    backend_of(plain).close()


def test_a_failed_recording_is_said_once_and_run_plainly(
    pipeline: Pipeline, cudart: Cudart, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = cudaError_t.cudaErrorStreamCaptureUnsupported
    monkeypatch.setattr(cudart, "cudaStreamBeginCapture", lambda stream, mode: (refused,), raising=False)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs.*stage 'embed'") as caught:
        answer = pipeline.generate(*ASK)
    assert len([each for each in caught if each.category is RuntimeWarning]) == 1
    assert answer.token_ids == on_cpu.generate(*ASK).token_ids
    (note,) = backend_of(pipeline).notes
    assert "cudaErrorStreamCaptureUnsupported" in note


# --- other engines ------------------------------------------------------------------------------------------


def test_portable_engines_of_tensorrt_10(
    copy: Path, cudart: Cudart, monkeypatch: pytest.MonkeyPatch, on_cpu: Pipeline
) -> None:
    """Standard operators with masks, which only know `cache_length`; beside the engines that are there."""
    build(copy, version=PORTABLE)
    install(monkeypatch, version=PORTABLE)
    loaded = load(copy)
    assert backend_of(loaded).record.attention == "portable"
    for ask in asks("pruned")[:3]:
        assert outcome(loaded.generate(*ask)) == outcome(on_cpu.generate(*ask))
    backend_of(loaded).close()


def test_streamed_weights_are_not_recorded(
    copy: Path, cudart: Cudart, tensorrt: types.ModuleType, on_cpu: Pipeline
) -> None:
    build(copy, weight_streaming=True)
    with pytest.warns(RuntimeWarning, match="weights are streamed"):
        loaded = load(copy)
    assert loaded.generate(*ASK).token_ids == on_cpu.generate(*ASK).token_ids
    assert cudart.launches == 0
    backend_of(loaded).close()


def test_closing_twice_does_no_harm(pipeline: Pipeline) -> None:
    backend_of(pipeline).close()
    backend_of(pipeline).close()


def test_the_memory_of_an_answer_is_given_back(pipeline: Pipeline, cudart: Cudart) -> None:
    """Contexts remember addresses, not caches."""
    pipeline.generate(*ASK)
    device: Any = backend_of(pipeline).device
    used = device.used_bytes
    pipeline.generate(*ASK)
    gc.collect()
    assert device.used_bytes == used
