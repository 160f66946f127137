"""Which profile takes which shapes, and what is said when none does; no TensorRT needed."""

import numpy as np
import pytest
from engine_records import SIZES, record

from foveate.runtime.errors import ProfileError
from foveate.runtime.manifest import Stage
from foveate.runtime.tensorrt.feeds import chunk_of, derived, padded
from foveate.runtime.tensorrt.limits import Limits
from foveate.runtime.tensorrt.profiles import Profile, choose, least_shapes, nearest

PREFILL = Profile(0, {"ids": ((1, 1), (4, 256))})
DECODE = Profile(1, {"ids": ((1, 1), (4, 1))})
SHORT = Profile(2, {"ids": ((1, 1), (4, 64))})
PROFILES = (PREFILL, DECODE, SHORT)


@pytest.fixture
def limits(tmp_path):
    return Limits(record(), tmp_path / "my bundle")


@pytest.mark.parametrize(
    ("shape", "index"),
    [((4, 1), 1), ((1, 1), 1), ((1, 2), 2), ((4, 64), 2), ((4, 65), 0), ((1, 256), 0)],
)
def test_the_smallest_profile_that_holds_the_shapes_is_chosen(shape, index):
    chosen = choose(PROFILES, {"ids": shape})
    assert chosen is not None
    assert chosen.index == index


@pytest.mark.parametrize("shape", [(5, 1), (1, 257), (0, 1)])
def test_no_profile_holds_what_is_out_of_all_ranges(shape):
    assert choose(PROFILES, {"ids": shape}) is None


def test_static_inputs_are_in_every_profile():
    assert choose(PROFILES, {"ids": (1, 1), "cache": (1, 2, 320, 8)}) is DECODE


def test_the_nearest_profile_is_the_one_to_build_anew():
    (misfit,) = nearest(PROFILES, {"ids": (1, 300)})
    assert (misfit.size, misfit.low, misfit.high, misfit.axis) == (300, 1, 256, 1)
    # A batch of five fits none; the largest profile is named, not the one of steps.
    assert [m.axis for m in nearest(PROFILES, {"ids": (5, 100)})] == [0]


def test_least_shapes_are_those_of_all_profiles():
    large = Profile(3, {"ids": ((1, 128), (4, 512)), "rows": ((8, 4), (64, 4))})
    assert least_shapes([large, PREFILL]) == {"ids": (1, 1), "rows": (8, 4)}


STAGE = Stage.model_validate(
    {
        "file": "onnx/decoder_0.onnx",
        "inputs": [
            {"name": "ids", "dtype": "int64", "shape": ["batch", "sequence"]},
            {"name": "logits_index", "dtype": "int64", "shape": ["batch", "wanted"]},
            {"name": "past_key_0", "dtype": "float16", "shape": ["batch", 2, "capacity_0", 8]},
        ],
        "outputs": [],
    }
)


@pytest.mark.parametrize(
    ("shapes", "axis", "words"),
    [
        ({"ids": (4, 300)}, "sequence", "prompt=300,new=64"),
        ({"ids": (9, 1)}, "batch", "batch=9,prompt=256"),
        ({"ids": (1, 1), "logits_index": (1, 3)}, "wanted", "logits=3"),
        # An input of the engine that the manifest does not know has an entry for each sequence.
        ({"ids": (1, 1), "write_index_0": (6,)}, "batch", "batch=6"),
    ],
)
def test_the_error_names_the_option_and_the_command(limits, shapes, axis, words):
    ranges = {"ids": ((1, 1), (4, 256)), "logits_index": ((1, 1), (4, 1)), "write_index_0": ((1,), (4,))}
    error = limits.exceeded(STAGE, "decoder_0", [Profile(0, ranges)], shapes)
    assert f"axis '{axis}'" in str(error)
    assert "foveate build" in error.mend
    assert words in error.mend
    assert "my bundle'" in error.mend, "a path with a blank is quoted"


def test_an_option_of_several_numbers_is_raised_in_all_of_them(tmp_path):
    limits = Limits(record(profile=SIZES.model_copy(update={"kept": (100, 50)})), tmp_path)
    stage = STAGE.model_copy(
        update={"inputs": (STAGE.inputs[0].model_copy(update={"shape": ("batch", "kept")}),)}
    )
    error = limits.exceeded(stage, "decoder_1", [Profile(0, {"ids": ((1, 1), (4, 50))})], {"ids": (1, 60)})
    assert "kept=120+120" in error.mend


def test_what_is_too_small_has_no_command(limits):
    error = limits.exceeded(STAGE, "decoder_0", [Profile(0, {"ids": ((1, 16), (4, 256))})], {"ids": (1, 3)})
    assert error.wanted == "16 to 256"
    assert not error.mend


def test_caches_have_the_size_that_was_built(limits):
    assert limits.capacity(0, 1) == limits.capacity(0, 320) == 320
    assert limits.capacity(1, 200) == 200
    with pytest.raises(ProfileError, match=r"321 tokens.*at most 320.*new=65"):
        limits.capacity(0, 321)
    with pytest.raises(ProfileError, match=r"1000 tokens.*prompt=936,new=64"):
        limits.capacity(0, 1000)


@pytest.mark.parametrize(
    ("kept", "batch", "lengths", "said"),
    [
        ((), 4, [256, 256], ""),
        ((), 5, [1, 1], "Found: 5.*batch=5"),
        ((), 1, [257, 3], "at least 257 tokens in the decoder.*at most 256.*prompt=257"),
        ((), 1, [256, 257], "behind cut 1.*at most 256.*prompt=257"),
        ((100,), 1, [256, 100], ""),
        ((100,), 1, [200, 101], "at least 101 tokens behind cut 1 of the decoder.*at most 100.*kept=101"),
    ],
)
def test_what_cannot_fit_is_said_before_anything_runs(kept, batch, lengths, said, tmp_path):
    limits = Limits(record(profile=SIZES.model_copy(update={"kept": kept})), tmp_path)
    if not said:
        limits.require_prompt(batch, lengths)
        return
    with pytest.raises(ProfileError, match=said):
        limits.require_prompt(batch, lengths)


def test_a_chunk_has_to_fit_behind_what_is_cached(limits):
    limits.require_room({"cache_length_0": np.array([3, 300])}, 20)
    with pytest.raises(ProfileError):
        limits.require_room({"cache_length_0": np.array([3, 301])}, 20)
    with pytest.raises(ProfileError):
        limits.require_room({"cache_length_1": np.array([199])}, 2)
    limits.require_room({}, None)


def test_lengths_that_only_engines_take_count_the_padding():
    feeds = {
        "position_ids": np.zeros((2, 4, 3), np.int64),
        "length": np.array([4, 2]),
        "cache_length_0": np.array([28, 5]),
        "cache_length_1": np.array([12, 0]),
    }
    made = derived(["write_index_0", "key_value_length_1", "hidden", "text_cache_length_0"], feeds)
    assert {name: value.tolist() for name, value in made.items()} == {
        "write_index_0": [28, 5],
        "key_value_length_1": [16, 4],
    }


def test_graphs_without_tokens_have_no_chunk():
    assert chunk_of({"pixel_values": np.zeros((1, 3, 8, 8))}) is None
    assert chunk_of({"input_ids": np.zeros((2, 7), np.int64)}) == (2, 7)
    assert derived(["write_index_0"], {"cache_length_0": np.array([1])}) == {}


def test_only_what_is_empty_is_padded():
    none = padded(np.ones((0, 6), np.float32), (1, 6))
    assert none.shape == (1, 6)
    assert not none.any()
    assert padded(np.ones((1, 6)), (4, 6)).shape == (1, 6)
    assert padded(np.ones((0, 6)), None).shape == (0, 6)
