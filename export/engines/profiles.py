"""How large inputs may be: `--profile` in words, and what it means for every input of every graph.

A decoder's segment has two profiles at least, "prefill" and "decode": kernels are chosen for many rows at
once and for one, while the weights are there once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

import onnx_ir as ir

from foveate.export.engines.pictures import Samples, sizes_vary, vision_stage
from foveate.runtime.engines import Bounds, Profile, ProfileRecord, option_of
from foveate.runtime.errors import UsageError
from foveate.runtime.manifest import Manifest, TensorSpec
from foveate.runtime.model import MAX_IMAGES_PER_CALL

Range = tuple[int, int, int]
"""Smallest, usual and largest length of an axis."""
Axes = Mapping[str, Range]
"""Ranges by the names of axes."""

_TEXT: Final = 512  # tokens of text that a prompt has room for besides its pictures
_NEW: Final = 256
_BATCH: Final = 8  # as many as the scheduler decodes at once, if nothing else is said
_LOGITS_BYTES: Final = 256 << 20  # that the logits of a prompt may take
_STEP: Final = 64
_TEXT_TYPICAL: Final = 64
_SEVERAL: Final = ("kept", "buckets")
# Nobody has memory for more; far larger numbers overflow in the builder.
_MOST: Final = 1 << 20
_MOST_SORTED: Final = 3839


# --- words --------------------------------------------------------------------------------------------------


def make_profile(manifest: Manifest, words: str = "", samples: Samples | None = None) -> Profile:
    """The profile of some words, `batch=4,prompt=1024`; what they do not say follows from the model.

    Raises:
        UsageError: a key is unknown, a number is out of range, or they contradict one another.
    """
    given = read_words(words)
    visual = _one(given, "visual", _usual_visual(manifest, samples))
    images, batch, new = _one(given, "images", 1), _one(given, "batch", _BATCH), _one(given, "new", _NEW)
    positions = manifest.model.max_positions
    usual = -(-(images * visual + _TEXT) // _STEP) * _STEP
    prompt = _one(given, "prompt", max(1, min(usual, positions - new)))
    row = 4 * batch * manifest.model.vocab_size
    pruned = bool(manifest.pruning) and prompt >= 4 * _STEP
    profile = Profile(
        batch=batch,
        prompt=prompt,
        new=new,
        images=images,
        visual=visual,
        frames=_one(given, "frames", 1),
        kept=given.get("kept", ()),
        logits=_one(given, "logits", max(1, min(prompt, _LOGITS_BYTES // row))),
        buckets=tuple(sorted(given.get("buckets", (prompt // 4,) if pruned else ()))),
    )
    for message, found, wanted in _problems(manifest, profile):
        raise UsageError(f"--profile {message}", found=found, wanted=wanted)
    return profile


def read_words(words: str) -> dict[str, tuple[int, ...]]:
    """`batch=4,buckets=256+512` as numbers by key. Raises `UsageError`."""
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(None, (each.strip() for each in words.split(","))):
        key, equals, value = (each.strip() for each in part.partition("="))
        if key not in Profile.model_fields or not equals:
            raise UsageError(
                "--profile is not understood",
                found=repr(part),
                wanted=f"KEY=NUMBER,... with keys {', '.join(Profile.model_fields)}",
            )
        if key in found:
            raise UsageError("--profile says something twice", found=repr(key), wanted="each key once")
        numbers = value.split("+")
        if (len(numbers) > 1 and key not in _SEVERAL) or not all(_is_size(each) for each in numbers):
            several = f", or several as 256+512 for {' and '.join(_SEVERAL)}"
            raise UsageError(
                f"--profile {key} is no size", found=repr(value), wanted=f"1 to {_MOST:,}{several}"
            )
        found[key] = tuple(int(each) for each in numbers)
    return found


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MOST


def _one(given: Mapping[str, tuple[int, ...]], key: str, default: int) -> int:
    return given.get(key, (default,))[0]


def _usual_visual(manifest: Manifest, samples: Samples | None) -> int:
    fixed = manifest.model.visual_tokens
    if fixed is not None:
        return fixed
    assert samples is not None, "a model whose pictures vary comes with samples"
    return samples.most_tokens


def _problems(manifest: Manifest, profile: Profile) -> Iterator[tuple[str, str, str]]:
    """What is nonsense about a profile: message, what was found, what is wanted; worst first."""
    model, cuts, prompt = manifest.model, manifest.decoder_cuts, profile.prompt
    kept, buckets = "+".join(map(str, profile.kept)), "+".join(map(str, profile.buckets))
    if prompt + profile.new > model.max_positions:
        found = f"prompt={prompt} and new={profile.new}"
        yield "asks for more tokens than the model has positions", found, f"at most {model.max_positions}"
    if model.visual_tokens not in (None, profile.visual):
        wanted = f"{model.visual_tokens}, as every picture of this model has"
        yield "visual does not fit", str(profile.visual), wanted
    if profile.kept and len(profile.kept) != len(cuts):
        wanted = f"a number for each of {len(cuts)} cuts in the decoder, as 300+150"
        yield "kept does not fit the bundle's cuts", kept, wanted
    if any(later > earlier for earlier, later in pairwise((prompt, *profile.kept))):
        yield "kept grows", kept, f"at most prompt={prompt}, and no more behind each further cut"
    if any(bucket >= prompt for bucket in profile.buckets):
        wanted = f"lengths below prompt={prompt}, which has a profile of its own"
        yield "buckets are too long", buckets, wanted
    if profile.logits > prompt:
        yield "logits is more than a prompt has", str(profile.logits), f"1 to {prompt}"
    found = f"prompt={prompt}, images={profile.images}, visual={profile.visual}"
    if manifest.encoder_cut is None and prompt <= profile.images * profile.visual:
        wanted = f"prompt above {profile.images * profile.visual}: nothing is dropped before it"
        yield "prompt has no room for the pictures", found, wanted
    elif prompt < profile.images:
        wanted = f"at least prompt={profile.images}: of each a token is kept"
        yield "prompt has no room for the pictures", found, wanted


# --- axes ---------------------------------------------------------------------------------------------------


def capacities(manifest: Manifest, profile: Profile) -> dict[str, int]:
    """Slots of every cache by the name of its axis, in the order of `KVCache`."""
    groups = range(len(manifest.cache.groups))
    kinds = ("", "text_") if manifest.cache.text_heads else ("",)
    return {
        f"{kind}capacity_{group}": -(-(_entering(profile, group) + profile.new) // _STEP) * _STEP
        for kind in kinds
        for group in groups
    }


def _entering(profile: Profile, group: int) -> int:
    """The most rows of a prompt that a segment gets."""
    return profile.kept[group - 1] if group and profile.kept else profile.prompt


def stage_axes(
    manifest: Manifest, profile: Profile, samples: Samples | None = None
) -> dict[str, dict[str, Axes]]:
    """Of each graph of the segmented layout, by the name of its optimisation profiles, in their order."""
    vision, embed, *segments = manifest.layouts["segmented"]
    found = {vision: _vision_axes(manifest, profile, samples), embed: _embed_axes(profile)}
    for group, stage in enumerate(segments):
        found[stage] = _decoder_axes(manifest, profile, group)
    return found


def axes_of(graph: ir.Graph, axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Of each profile, those that a graph's inputs have, in their order."""
    open_axes: dict[str, None] = {}
    for value in graph.inputs:
        open_axes |= {str(axis.value): None for axis in value.shape or () if not isinstance(axis, int)}
    return {name: {axis: sizes[axis] for axis in open_axes} for name, sizes in axes.items()}


def profile_records(graph: ir.Graph, axes: Mapping[str, Axes]) -> tuple[ProfileRecord, ...]:
    """The profiles of a flavoured graph: shapes of its inputs with an open axis."""
    return tuple(ProfileRecord(name=name, inputs=_bounds(graph, sizes)) for name, sizes in axes.items())


def _bounds(graph: ir.Graph, axes: Axes) -> dict[str, Bounds]:
    found = {}
    for value in graph.inputs:
        sizes = [axis if isinstance(axis, int) else axis.value for axis in value.shape or ()]
        ranges = [(size,) * 3 if isinstance(size, int) else axes[str(size)] for size in sizes]
        low, usual, high = (tuple(each[i] for each in ranges) for i in range(3))
        if low != high or not all(isinstance(size, int) for size in sizes):
            found[value.name or ""] = Bounds(min=low, opt=usual, max=high)
    return found


def require_sortable(graph: ir.Graph, stage: str, axes: Mapping[str, Axes]) -> None:
    """Raises `UsageError` where a profile lets a graph sort more rows than TensorRT's TopK takes."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        shape = node.inputs[0].shape if node.op_type == "TopK" and node.inputs[0] is not None else None
        if shape is None:
            continue
        axis = shape[node.attributes.get_int("axis", -1)]
        name = None if isinstance(axis, int) else axis.value
        if name is None:
            continue
        most = max((sizes[name][2] for sizes in axes.values() if name in sizes), default=0)
        if most > _MOST_SORTED:
            raise UsageError(
                f"--profile lets stage '{stage}' choose among more rows than TensorRT can sort",
                found=f"{most} ({option_of(stage, name)})",
                wanted=f"at most {_MOST_SORTED}",
                mend=f"build with --profile {option_of(stage, name)}={_MOST_SORTED} or less",
            )


def _vision_axes(manifest: Manifest, profile: Profile, samples: Samples | None) -> dict[str, Axes]:
    several = min(MAX_IMAGES_PER_CALL, profile.batch * profile.images)
    known: dict[str, Range] = {"batch": (1, 1, several), "text": _up_to(profile.prompt, _TEXT_TYPICAL)}
    if sizes_vary(manifest):
        assert samples is not None, "a model whose pictures vary comes with samples"
        specs = manifest.stages[vision_stage(manifest)].inputs
        known |= _measured_axes(specs, samples.within(profile.visual), profile.visual)
    return {"all": known}


def _measured_axes(specs: tuple[TensorSpec, ...], samples: Samples, visual: int) -> dict[str, Range]:
    """Axes of the vision graph whose lengths follow from a picture's size."""
    axes: dict[str, Range] = {}
    for spec in specs:
        if spec.name not in samples.typical.shapes:
            continue
        for place, axis in enumerate(spec.shape):
            if isinstance(axis, str) and axis not in axes:
                lengths = [sample.shapes[spec.name][place] for sample in samples.every]
                # One of these per visual token: no sample happens to have just as many as are allowed.
                most = max([*lengths, visual] if axis in ("tokens", "cells") else lengths)
                axes[axis] = (min(lengths), samples.typical.shapes[spec.name][place], most)
    return axes


def _embed_axes(profile: Profile) -> dict[str, Axes]:
    rows = profile.batch * profile.images * profile.visual
    one = profile.images * profile.visual
    kept = min(rows, profile.batch * profile.prompt)
    prefill = {
        "batch": (1, 1, profile.batch),
        "sequence": _up_to(profile.prompt),
        "rows": _up_to(rows, one),
        "kept": _up_to(kept, min(one, profile.prompt)),
    }
    return {"prefill": prefill, "decode": _steps(profile.batch, ("sequence", "rows", "kept"))}


def _steps(batch: int, axes: tuple[str, ...]) -> Axes:
    """A step of decoding: one token of each sequence."""
    return {"batch": (1, batch, batch), **dict.fromkeys(axes, (1, 1, 1))}


def _decoder_axes(manifest: Manifest, profile: Profile, group: int) -> dict[str, Axes]:
    """By the name of each profile; the first two are those of every segment."""
    prefill = _prefill_axes(manifest, profile, group, profile.prompt)
    axes = tuple(name for name in prefill if name != "batch")
    found = {"prefill": prefill, "decode": _steps(profile.batch, axes)}
    if profile.batch > 1:
        found["decode of one"] = _steps(1, axes)
    for bucket in profile.buckets:
        found[f"prefill of {bucket}"] = _prefill_axes(manifest, profile, group, bucket)
    return found


def _prefill_axes(manifest: Manifest, profile: Profile, group: int, prompt: int) -> Axes:
    entering = min(prompt, _entering(profile, group))
    before = min(prompt, _entering(profile, group - 1)) if group else prompt
    axes = {
        "batch": (1, 1, profile.batch),
        # What the graph before the cut gave; the rows behind it are `kept`.
        "sequence": _up_to(before),
        "kept": _up_to(entering),
        "query": _up_to(prompt, _TEXT_TYPICAL),
        "texts": _up_to(prompt, _TEXT_TYPICAL),
        "past_texts": _up_to(prompt + profile.new, 1),
        "wanted": _up_to(min(prompt, profile.logits), 1),
    }
    return axes | _tile_axes(manifest, profile)


def _tile_axes(manifest: Manifest, profile: Profile) -> dict[str, Range]:
    """Of visual rows that see only their neighbours, see `foveate.runtime.neighbours`."""
    if manifest.window is None:
        return {}
    side, reach = max(4, manifest.window.size - 1), manifest.window.size // 2
    rows, columns = manifest.window.grid
    tiles = profile.images * -(-rows // side) * -(-columns // side)
    near = min(side + 2 * reach, rows) * min(side + 2 * reach, columns)
    return {
        "tiles": _up_to(tiles),
        "tile_rows": _up_to(min(side, rows) * min(side, columns)),
        "near_rows": _up_to(near),
    }


def _up_to(most: int, usual: int | None = None) -> Range:
    return 1, most if usual is None else min(usual, most), most
