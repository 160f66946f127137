"""Engines give the tokens of ONNX Runtime. TensorRT and CUDA are doubles here: this is no run on a GPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cudart import Cudart
from doubles.cudart_names import cudaError_t
from doubles.tensorrt import engine as engine_double
from engines_made import PORTABLE, Doubles, build
from many import IMAGES, asks, outcome

from foveate.runtime import GenerateOptions, Pipeline, Scheduler, load
from foveate.runtime.backends.tensorrt import Backend
from foveate.runtime.errors import BackendError

GRAPHS = 4  # that a decoding step runs: embed, and a segment before, between and behind two cuts


@pytest.fixture(scope="module")
def on_cpu(engines: Path) -> Pipeline:
    return load(engines, backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Cudart]:
    """In the end all memory has to have been given back, in the order that TensorRT wants."""
    with Doubles() as gpu:
        yield gpu
        gc.collect()
        assert engine_double.violations == []
        gpu.close()


@pytest.fixture(scope="module")
def shared(engines: Path, gpu: Cudart) -> Iterator[Pipeline]:
    loaded = load(engines)
    yield loaded
    backend_of(loaded).close()
    loaded.__dict__.clear()


@pytest.fixture
def fresh(engines: Path, gpu: Cudart) -> Iterator[Pipeline]:
    """For what happens once only."""
    loaded = load(engines)
    gpu.calls.clear()
    gpu.launches = 0
    yield loaded
    backend_of(loaded).close()
    loaded.__dict__.clear()


def backend_of(pipeline: Pipeline) -> Backend:
    backend = pipeline.model.backend
    assert isinstance(backend, Backend)
    return backend


def test_a_bundle_for_tensorrt_runs_on_its_engines(shared: Pipeline) -> None:
    assert backend_of(shared).name == "tensorrt"
    assert shared.model.layout == "segmented"


def test_answers_and_reports_are_those_of_onnxruntime(shared: Pipeline, on_cpu: Pipeline) -> None:
    for ask in asks("pruned"):
        assert outcome(shared.generate(*ask)) == outcome(on_cpu.generate(*ask))


def test_a_batch_gives_each_its_own_answer(shared: Pipeline, on_cpu: Pipeline) -> None:
    requests = [(ask.prompt, ask.images) for ask in asks("pruned")[:4]]
    options = GenerateOptions(max_new_tokens=9)
    answers = shared.generate_batch(requests, options)
    assert [outcome(each) for each in answers] == [
        outcome(on_cpu.generate(*request, options)) for request in requests
    ]


def test_a_chat_keeps_its_caches(shared: Pipeline, on_cpu: Pipeline) -> None:
    ours, theirs = shared.chat(), on_cpu.chat()
    options = GenerateOptions(max_new_tokens=5)
    for words, images in (("What is this?", IMAGES[:1]), ("And that?", IMAGES[1:2]), ("Why?", ())):
        assert outcome(ours.send(words, images, options)) == outcome(theirs.send(words, images, options))


def test_the_scheduler_mixes_reading_and_steps(shared: Pipeline, on_cpu: Pipeline) -> None:
    every = [ask for ask in asks("pruned") if not ask.options.temperature]
    with Scheduler(shared, slots=4, rows=9) as scheduler:
        handles = [scheduler.submit(*ask) for ask in every]
        answers = [handle.result() for handle in handles]
    assert [outcome(each) for each in answers] == [outcome(on_cpu.generate(*ask)) for ask in every]


def test_more_pictures_than_the_engine_takes_at_once(shared: Pipeline, on_cpu: Pipeline) -> None:
    """Eight: the others go through the engine after them."""
    words, pictures = "<image>" * 11, [IMAGES[i % 3] for i in range(11)]
    ours, theirs = (each.prepare(words, pictures).visual for each in (shared, on_cpu))
    # The double runs other graphs than onnxruntime does, with float32 sums in another order.
    np.testing.assert_allclose(np.asarray(ours.features), np.asarray(theirs.features), atol=1e-5)
    np.testing.assert_array_equal(ours.kept_index, theirs.kept_index)
    np.testing.assert_array_equal(np.stack(ours.order), np.stack(theirs.order))


def test_scores_of_all_rows_are_those_of_onnxruntime(shared: Pipeline, on_cpu: Pipeline) -> None:
    """Numbers, not only the tokens that win."""
    prepared = [each.prepare("Hi", IMAGES[:1]) for each in (shared, on_cpu)]
    ours, theirs = (each.prefill(one).logits for each, one in zip((shared, on_cpu), prepared, strict=True))
    # As above, through all layers and the head.
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


# --- CUDA graphs --------------------------------------------------------------------------------------------

STEPS = 11
ASK = ("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=STEPS + 1))


def test_steps_are_recorded_once_and_replayed(fresh: Pipeline, gpu: Cudart) -> None:
    first = fresh.generate(*ASK)
    assert len(first.token_ids) == STEPS + 1
    assert gpu.launches == GRAPHS * (STEPS - 1), "the first step runs plainly"
    assert gpu.calls.count("cudaStreamBeginCapture") == GRAPHS
    assert fresh.generate(*ASK).token_ids == first.token_ids
    # From now on caches get the blocks that those before them had, in the same order: nothing is recorded.
    launches, recorded = gpu.launches, gpu.calls.count("cudaStreamBeginCapture")
    copies = gpu.calls.count("cudaMemcpyAsync")
    assert fresh.generate(*ASK).token_ids == first.token_ids
    assert gpu.launches == launches + GRAPHS * STEPS
    assert gpu.calls.count("cudaStreamBeginCapture") == recorded
    assert gpu.calls.count("cudaMemcpyAsync") > copies, "prompts are not replayed"
    assert backend_of(fresh).notes == ()


def test_a_step_is_waited_for_once(fresh: Pipeline, gpu: Cudart) -> None:
    """Not between its graphs: nothing that a cut gives for one token is news."""
    fresh.generate(*ASK)
    launch = [number for number, name in enumerate(gpu.calls) if name == "cudaGraphLaunch"][-2 * GRAPHS :]
    between = gpu.calls[launch[0] : launch[-1]]
    assert between.count("cudaGraphLaunch") == 2 * GRAPHS - 1
    assert between.count("cudaStreamSynchronize") == 1, "for the scores of the first of two steps"


def test_caches_elsewhere_are_recorded_anew(fresh: Pipeline, gpu: Cudart) -> None:
    streams = [fresh.stream(*ASK) for _ in range(2)]  # two caches at once
    tokens: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=True):
        for own, token in zip(tokens, pair, strict=True):
            own.append(token.id)
    # Taking turns, each finds the other's addresses bound, and runs plainly; only embed has no caches.
    assert gpu.launches == 2 * STEPS - 1
    assert tokens[0] == tokens[1] == list(fresh.generate(*ASK).token_ids)


def test_without_graphs_everything_runs_plainly(engines: Path, gpu: Cudart, on_cpu: Pipeline) -> None:
    gpu.launches = 0
    plain = load(engines, graphs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain.generate(*ASK).token_ids == on_cpu.generate(*ASK).token_ids
    assert gpu.launches == 0
    backend_of(plain).close()


def test_a_failed_recording_is_said_once_and_run_plainly(
    fresh: Pipeline, gpu: Cudart, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = cudaError_t.cudaErrorStreamCaptureUnsupported
    monkeypatch.setattr(gpu, "cudaStreamBeginCapture", lambda stream, mode: (refused,), raising=False)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs.*stage 'embed'") as caught:
        answer = fresh.generate(*ASK)
    assert len([each for each in caught if each.category is RuntimeWarning]) == 1
    assert answer.token_ids == on_cpu.generate(*ASK).token_ids
    (note,) = backend_of(fresh).notes
    assert "cudaErrorStreamCaptureUnsupported" in note


# --- other engines ------------------------------------------------------------------------------------------


def test_portable_engines_of_tensorrt_10(engines_copy: Path, gpu: Cudart, on_cpu: Pipeline) -> None:
    """Standard operators with masks, which only know `cache_length`; beside the engines that are there."""
    build(engines_copy, version=PORTABLE)
    with Doubles(PORTABLE):
        loaded = load(engines_copy)
        assert backend_of(loaded).record.attention == "portable"
        for ask in asks("pruned")[:3]:
            assert outcome(loaded.generate(*ask)) == outcome(on_cpu.generate(*ask))
        backend_of(loaded).close()


def test_streamed_weights_are_not_recorded(engines_copy: Path, gpu: Cudart, on_cpu: Pipeline) -> None:
    build(engines_copy, weight_streaming=True)
    gpu.launches = 0
    with pytest.warns(RuntimeWarning, match="weights are streamed"):
        loaded = load(engines_copy)
    assert loaded.generate(*ASK).token_ids == on_cpu.generate(*ASK).token_ids
    assert gpu.launches == 0
    backend_of(loaded).close()


def test_contexts_of_many_batch_sizes_make_room(
    fresh: Pipeline, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.runtime.backends.tensorrt._MOST_CONTEXTS", 2)
    options = GenerateOptions(max_new_tokens=4)
    for batch in (1, 2, 3, 1, 3):
        words = [f"Number {i}" for i in range(batch)]
        answers = fresh.generate_batch(words, options)
        assert [a.token_ids for a in answers] == [on_cpu.generate(w, (), options).token_ids for w in words]
    assert max(len(runner._contexts) for runner in backend_of(fresh)._runners) == 2


def test_what_is_dropped_is_closed(engines: Path, gpu: Cudart) -> None:
    gc.collect()
    before = gpu.used
    pipeline = load(engines)
    pipeline.generate(*ASK)
    assert gpu.used > before
    del pipeline
    gc.collect()
    assert gpu.used == before
    assert engine_double.violations == []


def test_closing_twice_does_no_harm(fresh: Pipeline) -> None:
    backend_of(fresh).close()
    backend_of(fresh).close()
    with pytest.raises(BackendError, match="after its backend was closed"):
        fresh.generate(*ASK)


def test_the_memory_of_an_answer_is_given_back(fresh: Pipeline, gpu: Cudart) -> None:
    """Contexts remember addresses, not caches."""
    fresh.generate(*ASK)
    device: Any = backend_of(fresh).device
    used = device.used_bytes
    fresh.generate(*ASK)
    gc.collect()
    assert device.used_bytes == used
