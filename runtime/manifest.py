"""`manifest.json`: what a bundle is, what its graphs take and give, and the hash of each of its files.

The manifest is the one thing that the exporter and the runtime agree on. It is strict: an unknown key is an
error, so that a bundle of a newer Foveate is never half understood.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT: Final = 5
MANIFEST_NAME = "manifest.json"


class Record(BaseModel):
    """Base of all parts: immutable, and refuses unknown keys by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Source(Record):
    """Where the weights came from. `path` is as given at export and may be stale."""

    name: str
    path: str
    config_sha256: str
    weights_sha256: str


class ModelRecord(Record):
    """The sizes and token ids that the runtime needs.

    Attributes:
        vision_width: width of the vision stage's features, which the embed stage's connector takes.
        video_token_id: what stands for a video's visual tokens; None where that is the image's token.
        position_axes: 1, or 3 for models whose visual tokens have time, row and column.
        vision: what the family's preprocessor needs to know, see `foveate.runtime.families`.
        visual_tokens: of every image; None where the number depends on the image.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    vision_width: int
    image_token_id: int
    video_token_id: int | None = None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    position_axes: Literal[1, 3] = 1
    vision: dict[str, Any] = Field(default_factory=dict)
    visual_tokens: int | None = None


class CutRecord(Record):
    """One pruning site and its method.

    Attributes:
        site: "layers" drops no token: arithmetic of visual tokens is left out in the decoder's layers.
        layer: decoder layers that run before the cut; None at the other sites.
        method: its name.
        params: its options, all of them.
        adapter: sha256 of the adapter that its weights came from; None for methods without weights.
    """

    site: Literal["encoder", "layers", "decoder"]
    layer: int | None = None
    method: str
    params: dict[str, Any] = Field(default_factory=dict)
    adapter: str | None = None

    @property
    def name(self) -> str:
        """`encoder`, or `decoder@L`: what a user calls the site."""
        return self.site if self.layer is None else f"{self.site}@{self.layer}"


class TensorSpec(Record):
    """A named input or output of a graph; a string in `shape` is a dynamic axis.

    numpy has no bfloat16: on the host such memory is uint16, and nobody there reads it.
    """

    name: str
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8"]
    shape: tuple[int | str, ...]


class Stage(Record):
    """One graph: its file, relative to the bundle, and its inputs and outputs in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def has_input(self, name: str) -> bool:
        """Whether the graph takes an input of this name."""
        return any(spec.name == name for spec in self.inputs)

    def has_output(self, name: str) -> bool:
        """Whether the graph gives an output of this name."""
        return any(spec.name == name for spec in self.outputs)


class CacheRecord(Record):
    """KV-cache layout: layers of a group share one length; a new group starts after each decoder cut.

    With `positions`, graphs also take `past_position_{group}`, the positions of the cached tokens.
    `text_heads` says of each layer how many of its key-value heads hold text only; empty for none anywhere.
    With `text_slots`, graphs also take `past_text_{group}`, the slots of the cached text.
    """

    dtype: Literal["float32", "float16", "bfloat16"]
    num_kv_heads: int
    head_dim: int
    groups: tuple[tuple[int, ...], ...]
    positions: bool = False
    text_heads: tuple[int, ...] = ()
    text_slots: bool = False

    def heads(self, layer: int) -> tuple[int, int]:
        """Key-value heads of a layer: those that hold all tokens, those that hold text only."""
        few = self.text_heads[layer] if self.text_heads else 0
        return self.num_kv_heads - few, few


class LayerRecord(Record):
    """A linear layer that does not run what its stage's precision says.

    Attributes:
        kernel: what it runs.
        error: relative error of its output under the stage's own kernel, where it was measured.
    """

    kernel: Literal[
        "fp32",
        "fp16",
        "bf16",
        "int8",
        "int8-row",
        "int8-block",
        "int8-static",
        "int8-weight",
        "fp8",
        "int4-block",
        "int4-weight",
    ]
    error: float | None = None


class PrecisionRecord(Record):
    """How linear layers are stored and multiplied. Everything else is float32.

    Attributes:
        stages: vision, projector, decoder, head.
        layers: those that deviate from their stage.
        measured: whether errors were measured at export.
        reason: why these stages, where a program chose them.
    """

    stages: dict[str, Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4"]] = Field(default_factory=dict)
    layers: dict[str, LayerRecord] = Field(default_factory=dict)
    measured: bool = False
    reason: str = ""

    @property
    def name(self) -> str:
        """One word where all stages agree, else each stage's: `vision=int8,decoder=int4`."""
        words = set(self.stages.values()) or {"fp32"}
        if len(words) == 1:
            return str(words.pop())
        return ",".join(f"{stage}={word}" for stage, word in self.stages.items())


class WindowRecord(Record):
    """Visual tokens see `size` rows and columns of their image, whose `grid` has so many."""

    size: int
    grid: tuple[int, int]


class FileRecord(Record):
    """Size in bytes and sha256 of one file."""

    bytes: int
    sha256: str


class ParityRecord(Record):
    """What `foveate verify` found last; the details are in `parity.json`."""

    passed: bool
    summary: dict[str, Any] = Field(default_factory=dict)


class Manifest(Record):
    """The whole of `manifest.json`.

    `files` and `sha256` stay empty until `BundleWriter.finish` has hashed the files, and then the manifest.
    """

    format: Literal[5] = FORMAT
    foveate: str
    family: str
    source: Source
    model: ModelRecord
    pruning: tuple[CutRecord, ...]
    positions: Literal["compact", "original"]
    target: str
    precision: PrecisionRecord = Field(default_factory=PrecisionRecord)
    layouts: dict[str, tuple[str, ...]]
    stages: dict[str, Stage]
    cache: CacheRecord
    window: WindowRecord | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
    sha256: str = ""
    parity: ParityRecord | None = None

    def digest(self) -> str:
        """What `sha256` ought to be: of everything but itself and `parity`, which is written later."""
        content = self.model_dump(mode="json", exclude={"sha256", "parity"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def encoder_cut(self) -> CutRecord | None:
        """The cut after the vision encoder, if there is one."""
        return next((cut for cut in self.pruning if cut.site == "encoder"), None)

    @property
    def decoder_cuts(self) -> tuple[CutRecord, ...]:
        """The cuts inside the decoder, in the order of their layers."""
        return tuple(cut for cut in self.pruning if cut.site == "decoder")

    @model_validator(mode="after")
    def _parts_agree(self) -> Manifest:
        for problem in _disagreements(self):
            raise ValueError(problem)
        return self


def _disagreements(manifest: Manifest) -> list[str]:
    """Sentences about parts of a manifest that contradict one another."""
    problems = []
    for layout, names in manifest.layouts.items():
        unknown = [name for name in names if name not in manifest.stages]
        if unknown:
            problems.append(f"layout '{layout}' names unknown stages {unknown}")
    layers = [layer for group in manifest.cache.groups for layer in group]
    if layers != list(range(manifest.model.num_layers)):
        problems.append(
            f"cache groups {manifest.cache.groups} are not the {manifest.model.num_layers} layers"
        )
    heads = manifest.cache.text_heads
    possible = range(manifest.cache.num_kv_heads + 1)
    if heads and (len(heads) != len(layers) or any(few not in possible for few in heads)):
        problems.append(f"text heads {heads} are not those of {len(layers)} layers")
    if len(manifest.cache.groups) != len(manifest.decoder_cuts) + 1:
        problems.append("there must be one cache group more than decoder cuts")
    if manifest.model.position_axes > 1 and manifest.positions != "original":
        problems.append("positions of several axes cannot be made compact")
    if not problems:
        problems += _graph_disagreements(manifest)
    paths = [stage.file for stage in manifest.stages.values()] + list(manifest.files)
    problems += [f"'{path}' leaves the bundle's folder" for path in paths if _leaves(path)]
    if manifest.files:
        missing = sorted({s.file for s in manifest.stages.values()} - set(manifest.files))
        problems += [f"stage file '{path}' has no entry under files" for path in missing]
    return problems


def _graph_disagreements(manifest: Manifest) -> list[str]:
    """Whether each layout has its stages, and a graph for each cut takes the cut's budget."""
    problems = []
    sizes = {"fused": 3, "segmented": 2 + len(manifest.cache.groups)}
    for layout, names in manifest.layouts.items():
        if sizes.get(layout) != len(names):
            wanted = f"{sizes[layout]} stages" if layout in sizes else f"the name {' or '.join(sizes)}"
            problems.append(f"layout '{layout}' ({', '.join(names)}) ought to have {wanted}")
            continue
        for i, cut in enumerate(manifest.decoder_cuts):
            name = names[2] if layout == "fused" else names[2 + i]
            if not manifest.stages[name].has_input(f"keep_ratio_l{cut.layer}"):
                problems.append(f"stage '{name}' has no input keep_ratio_l{cut.layer} for cut '{cut.name}'")
        if manifest.encoder_cut and not manifest.stages[names[0]].has_input("keep_ratio"):
            problems.append(f"stage '{names[0]}' has no input keep_ratio for cut 'encoder'")
    return problems


def _leaves(path: str) -> bool:
    """A manifest must not be able to point outside its own folder."""
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path
