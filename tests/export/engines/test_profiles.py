"""Profiles: what words mean, what is nonsense, and that the shapes of every request lie inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import masks
import numpy as np
import onnx_ir as ir
import pytest

from foveate.export.engines.intent import Intent, intend
from foveate.export.engines.pictures import Sample, Samples
from foveate.export.engines.profiles import capacities, make_profile, require_sortable
from foveate.runtime import GenerateOptions
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.engines import BuildOptions, Profile, option_of
from foveate.runtime.errors import CheckError, UsageError
from foveate.runtime.manifest import Manifest

WORDS = "batch=2,prompt=96,new=32"


@pytest.fixture(scope="module")
def manifest(exported: Path) -> Manifest:
    return Bundle.open(exported).manifest


@pytest.fixture(scope="module")
def intent(exported: Path) -> Intent:
    return intend(Bundle.open(exported), BuildOptions(), WORDS)


def test_words_and_profile_are_one(manifest: Manifest) -> None:
    for words in ("", WORDS, "batch=3,prompt=80,new=16,kept=40+20,buckets=20+40,logits=1,images=2"):
        made = make_profile(manifest, words)
        assert make_profile(manifest, made.words()) == made


def test_defaults_hold_a_prompt_of_the_model(manifest: Manifest) -> None:
    made = make_profile(manifest)
    assert made.visual == manifest.model.visual_tokens
    assert made.visual < made.prompt
    assert made.prompt + made.new <= manifest.model.max_positions
    assert all(bucket < made.prompt for bucket in made.buckets)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("banana=3", "KEY=NUMBER"),
        ("batch", "KEY=NUMBER"),
        ("batch=0", "batch is no size"),
        ("batch=-1", "batch is no size"),
        ("batch=1.5", "batch is no size"),
        ("batch=99999999999999999999", "batch is no size"),
        ("batch=2,batch=3", "twice"),
        ("batch=1+2", "batch is no size"),
        ("prompt=90000,new=100", "more tokens than the model has positions"),
        ("visual=7", "visual does not fit"),
        ("prompt=96,kept=50", "kept does not fit"),
        ("prompt=96,kept=97+20", "kept grows"),
        ("prompt=96,kept=20+30", "kept grows"),
        ("prompt=96,buckets=96", "buckets are too long"),
        ("prompt=96,logits=97", "more than a prompt has"),
    ],
)
def test_nonsense_is_refused_in_words(manifest: Manifest, words: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_profile(manifest, words)
    assert said in str(caught.value)
    assert "Wanted" in str(caught.value)


def test_a_bundle_that_drops_nothing_before_needs_room_for_its_pictures(manifest: Manifest) -> None:
    bare = manifest.model_copy(update={"pruning": manifest.decoder_cuts})
    words = f"prompt={manifest.model.visual_tokens},new=8"
    assert make_profile(manifest, words)
    with pytest.raises(UsageError, match="no room for the pictures"):
        make_profile(bare, words)


def test_of_each_picture_a_token_is_kept(manifest: Manifest) -> None:
    assert make_profile(manifest, "prompt=40,images=40,new=8")
    with pytest.raises(UsageError, match=r"no room for the pictures.*images=41.*at least prompt=41"):
        make_profile(manifest, "prompt=40,images=41,new=8")


def test_capacity_is_what_comes_in_and_what_follows(manifest: Manifest) -> None:
    slots = capacities(manifest, make_profile(manifest, "prompt=100,new=28,kept=36+30"))
    assert slots == {"capacity_0": 128, "capacity_1": 64, "capacity_2": 64}


def test_decoders_have_prefill_and_decode_first(intent: Intent) -> None:
    for stage in intent.stages:
        names = [record.name for record in stage.profiles]
        if stage.name.startswith("decoder"):
            assert names[:2] == ["prefill", "decode"]
            assert all(bounds.max[1] == 1 for bounds in [stage.profiles[1].inputs["hidden"]])


def test_bounds_are_ordered_and_of_the_graph_s_inputs(intent: Intent) -> None:
    for stage in intent.stages:
        inputs = {value.name: value.shape for value in stage.flavoured.model.graph.inputs}
        for record in stage.profiles:
            assert set(record.inputs) <= set(inputs)
            dynamic = [name for name, shape in inputs.items() if any(not isinstance(a, int) for a in shape)]
            assert set(dynamic) == set(record.inputs), "an input without a profile is refused by TensorRT"
            for bounds in record.inputs.values():
                for low, usual, high in zip(bounds.min, bounds.opt, bounds.max, strict=True):
                    assert 1 <= low <= usual <= high


def test_caches_have_one_capacity(intent: Intent, manifest: Manifest) -> None:
    found: dict[tuple[str, str], list[str]] = {}
    for stage in intent.stages:
        for record in stage.profiles:
            for name, bounds in record.inputs.items():
                if name.startswith("past_"):
                    assert bounds.min[2] == bounds.max[2] == intent.capacity[int(stage.name[-1])]
                    found.setdefault((stage.name, record.name), []).append(name)
    for group, layers in enumerate(manifest.cache.groups):
        caches = sorted(f"past_{part}_{layer}" for part in ("key", "value") for layer in layers)
        for profile in ("prefill", "decode", "decode of one"):
            assert sorted(found.pop((f"decoder_{group}", profile))) == caches
    assert not found


class Listening(Backend):
    """ONNX Runtime, noting the shapes of what each graph is fed."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.fed: list[tuple[str, dict[str, tuple[int, ...]]]] = []

    def open(self, path: Path, name: str, stage: Any) -> Any:
        runner, fed = super().open(path, name, stage), self.fed

        class Spy:
            def __init__(self) -> None:
                self.stage = runner.stage

            def run(self, feeds: Any, bindings: Any = None) -> Any:
                fed.append((name, {key: np.shape(value) for key, value in feeds.items()}))
                return runner.run(feeds, bindings) if bindings is not None else runner.run(feeds)

        return Spy()


def test_every_request_lies_in_a_profile(exported: Path, intent: Intent) -> None:
    """What a batch of pictures and words really feeds the graphs, and the smallest profile that takes it."""
    import tiny

    from foveate.runtime.model import Model
    from foveate.runtime.pipeline import Pipeline, Request
    from foveate.runtime.processor import Processor

    bundle, spy = Bundle.open(exported), Listening()
    processor = Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)
    pipeline = Pipeline(bundle, Model(bundle, "segmented", spy), processor)
    requests = [Request("What is this?", [tiny.make_image(1)]), Request("Tell a joke.")]
    pipeline.generate_batch(requests, GenerateOptions(max_new_tokens=3))
    profiles = {stage.name: stage.profiles for stage in intent.stages}
    taken = set()
    for stage, shapes in spy.fed:
        # A batch without rows is filled up to one by the backend.
        shapes = {name: tuple(max(1, size) for size in shape) for name, shape in shapes.items()}
        fitting = [
            record.name
            for record in profiles[stage]
            if all(
                all(low <= size <= high for low, size, high in zip(b.min, shapes[n], b.max, strict=True))
                for n, b in record.inputs.items()
                if n in shapes
            )
        ]
        assert fitting, (stage, shapes)
        taken.add((stage, fitting[-1]))
    assert ("decoder_2", "decode") in taken
    assert any(name.startswith("prefill") for stage, name in taken if stage == "decoder_0")


def test_more_rows_than_topk_sorts_are_refused() -> None:
    model = masks.attention_model()
    query = model.graph.inputs[0]
    count = ir.node("Shape", [query], {"start": 2, "end": 3})
    sort = ir.node("TopK", [query, count.outputs[0]], {"axis": 2}, num_outputs=2)
    model.graph.extend([count, sort])
    require_sortable(model.graph, "decoder_0", {"prefill": {"sequence": (1, 3839, 3839)}})
    with pytest.raises(UsageError, match=r"3840 \(prompt\).*--profile prompt=3839"):
        require_sortable(model.graph, "decoder_0", {"prefill": {"sequence": (1, 3840, 3840)}})


def test_samples_within_a_limit() -> None:
    small, large = (Sample(tokens, {"patches": (1, tokens)}) for tokens in (10, 900))
    samples = Samples(large, (small, large))
    assert samples.within(900) == samples
    assert samples.within(899) == Samples(small, (small,))
    with pytest.raises(UsageError, match="10 or more visual tokens"):
        samples.within(9)


def test_every_axis_names_an_option(exported: Path) -> None:
    manifest = Bundle.open(exported).manifest
    for stage in manifest.layouts["segmented"]:
        for spec in manifest.stages[stage].inputs:
            for axis in spec.shape:
                if isinstance(axis, str):
                    assert option_of(stage, axis) in Profile.model_fields


def test_a_bundle_for_another_target_is_refused(exported: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(exported)
    other = Bundle(bundle.path, bundle.manifest.model_copy(update={"target": "onnxruntime"}))
    with pytest.raises(UsageError, match="--target tensorrt"):
        intend(other, BuildOptions(), WORDS)


def test_a_graph_that_tensorrt_misreads_is_refused_with_its_node(bundle: Path) -> None:
    path = bundle / "onnx" / "embed.onnx"
    model = ir.load(path)
    (first,) = (node for node in model.graph if node.op_type == "Where" and not node.outputs[0].uses())
    first.op_type = "GroupQueryAttention"
    first.domain = "com.microsoft"
    ir.save(model, path)
    opened = Bundle.open(bundle, check="none")
    with pytest.raises(CheckError, match="GroupQueryAttention"):
        intend(opened, BuildOptions(), WORDS)
