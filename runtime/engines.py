"""Engines beside a bundle's graphs: what was built, of what, for which machine.

    bundle/engines/
      <key>/engine.json                 an `EngineRecord`; written last
      <key>/<stage>.plan                one TensorRT engine for each graph of the segmented layout
      timing-<TensorRT>-<GPU>.cache     what the builder measured, for the next build

The key is a hash of everything that an engine depends on, so engines of several machines and profiles lie
side by side. They are not part of what was exported: the bundle's own check does not look at them. `foveate
build` writes them (`foveate.export.engines`); the backend `tensorrt` loads them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from foveate.runtime.manifest import Manifest, Record

FORMAT: Final = 1
FOLDER: Final = "engines"
RECORD_NAME: Final = "engine.json"
_KEY_LENGTH: Final = 16

Attention = Literal["native", "portable"]
Hardware = Literal["none", "ampere-plus", "same-capability"]


class Profile(Record):
    """How large what an engine is fed may be: `--profile batch=4,prompt=1024,new=256`.

    Attributes:
        batch: sequences at once.
        prompt: tokens of a sequence that are read at once: text, and visual tokens behind the encoder's cut.
        new: tokens that follow; a cache holds `prompt + new`.
        images: pictures or videos of one prompt.
        visual: visual tokens of one of them, before any cut.
        frames: of a video; 1 for pictures only.
        kept: tokens of a prompt that get past each of the decoder's cuts; empty: maybe all.
        logits: rows of a prompt whose logits are wanted at once; 1 is enough for generating.
        buckets: shorter prompts that kernels are chosen for, too: each makes a profile of its own.
    """

    batch: int
    prompt: int
    new: int
    images: int
    visual: int
    frames: int = 1
    kept: tuple[int, ...] = ()
    logits: int
    buckets: tuple[int, ...] = ()

    def words(self) -> str:
        """As it is typed: `batch=4,prompt=1024,...,buckets=256+512`."""
        pairs = []
        for name, value in self.model_dump().items():
            values = value if isinstance(value, tuple | list) else (value,)
            if values:
                pairs.append(f"{name}={'+'.join(map(str, values))}")
        return ",".join(pairs)


class Bounds(Record):
    """Smallest, usual and largest shape of an input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class ProfileRecord(Record):
    """One optimisation profile of an engine, in the engine's order, and what it was made for.

    `name`: "prefill" and "decode" are the first two of a decoder's segment; "all" is a graph's only one;
    others are for a part of the range of one of these.
    """

    name: str
    inputs: dict[str, Bounds]


class BuildOptions(Record):
    """What the builder was told besides the graph and its profiles.

    Attributes:
        attention: "native" has TensorRT's own cache and attention layers, "portable" standard operators.
        fused_only: whether to fail where TensorRT has no fused kernel for an attention.
        level: of optimisation, 0 to 5.
        workspace: bytes that a layer may use; None is all of the device's memory.
        tf32: whether float32 products may round their inputs to 10 bits.
        version_compatible: loads in later versions of TensorRT, too.
        hardware: other GPUs that it loads on.
        weight_streaming: weights may stay in host memory.
        refit: weights may be replaced.
    """

    attention: Attention = "native"
    fused_only: bool = False
    level: int = 3
    workspace: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware: Hardware = "none"
    weight_streaming: bool = False
    refit: bool = False

    def words(self) -> list[str]:
        """The options of the command line that differ from their defaults."""
        found = []
        for name, value in self.model_dump().items():
            if value == type(self).model_fields[name].default:
                continue
            option = f"--{name.replace('_', '-')}"
            found += [option] if value is True else [option, str(value)]
        return found


class PlanRecord(Record):
    """One stage's engine.

    Attributes:
        file: inside the engines' folder.
        graph_sha256: of the graph in the bundle that it was built of.
        key: hash of everything that this plan depends on; a plan is built again when that changes.
        profiles: the engine's optimisation profiles, by index.
        inputs, outputs: names that the engine has; lengths in place of a mask are not in the bundle's graph.
        seconds: that building took.
    """

    file: str
    bytes: int
    sha256: str
    graph_sha256: str
    key: str
    profiles: tuple[ProfileRecord, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    seconds: float = 0.0


class Machine(Record):
    """What engines are tied to. `driver` is the CUDA version that the driver offers, such as "13.0"."""

    tensorrt: str
    compute_capability: str
    gpu: str
    driver: str


class EngineRecord(Record):
    """The whole of `engine.json`.

    Attributes:
        key: name of the folder, see `identity`.
        capacity: slots of each cache in the order of `KVCache`: groups, then their heads of text.
        stages: a plan for each graph of the segmented layout.
        built: when they were built or last asked for by `foveate build`: time in UTC, ISO 8601.
    """

    format: Literal[1] = FORMAT
    foveate: str
    key: str = ""
    tensorrt: str
    compute_capability: str
    gpu: str
    driver: str
    precision: str
    profile: Profile
    options: BuildOptions
    capacity: tuple[int, ...]
    weights_sha256: str
    stages: dict[str, PlanRecord] = Field(default_factory=dict)
    built: str = ""

    @property
    def attention(self) -> Attention:
        """Which lowering the engines have."""
        return self.options.attention

    @property
    def machine(self) -> Machine:
        """What it was built on."""
        return Machine(**{name: getattr(self, name) for name in Machine.model_fields})

    @property
    def bytes(self) -> int:
        """Of all plans."""
        return sum(plan.bytes for plan in self.stages.values())

    def command(self, bundle: Path) -> str:
        """The line that builds engines like these again."""
        return build_command(bundle, self.profile, self.options)


def build_command(bundle: Path, profile: Profile | None = None, options: BuildOptions | None = None) -> str:
    """`foveate build BUNDLE ...` with a profile and options, or with the usual ones."""
    words = ["foveate", "build", str(bundle)]
    words += ["--profile", profile.words()] if profile else []
    return shlex.join(words + (options.words() if options else []))


def engines_folder(bundle: Path) -> Path:
    """Where a bundle's engines lie."""
    return bundle / FOLDER


def timing_cache(bundle: Path, machine: Machine) -> Path:
    """The file of what the builder measured on such a machine."""
    capability = machine.compute_capability.replace(".", "")
    return engines_folder(bundle) / f"timing-{machine.tensorrt}-sm{capability}.cache"


def records(bundle: Path) -> list[tuple[Path, EngineRecord | str]]:
    """Each finished folder of engines with its record, or with the reason why that cannot be read."""
    found = sorted(engines_folder(bundle).glob(f"*/{RECORD_NAME}"))
    return [(path.parent, _read(path)) for path in found if not path.parent.name.startswith(".")]


def _read(path: Path) -> EngineRecord | str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT:
            return f"format {version} instead of {FORMAT}: built by another version of foveate"
        return EngineRecord.model_validate(content)
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return f"not readable as JSON ({error})"


# --- what engines depend on ---------------------------------------------------------------------------------


def graph_hashes(manifest: Manifest) -> dict[str, str]:
    """sha256 of the graph of each stage that engines are built of, in order."""
    names = manifest.layouts.get("segmented", ())
    return {name: manifest.files[manifest.stages[name].file].sha256 for name in names}


def weights_hash(manifest: Manifest) -> str:
    """sha256 over what the graphs refer to: everything beside them in their folder."""
    graphs = {stage.file for stage in manifest.stages.values()}
    content = {
        name: file.sha256
        for name, file in manifest.files.items()
        if name.startswith("onnx/") and name not in graphs
    }
    return digest(content)


def digest(content: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def identity(record: EngineRecord) -> dict[str, Any]:
    """Everything that engines depend on, as flat words and values: what their key is made of."""
    profile, options = record.profile.model_dump(mode="json"), record.options.model_dump(mode="json")
    return {
        "TensorRT": record.tensorrt,
        "compute capability": record.compute_capability,
        "driver": record.driver,
        "precision": record.precision,
        "weights": record.weights_sha256,
        **{f"graph {name}": plan.graph_sha256 for name, plan in record.stages.items()},
        **{f"profile {name}": value for name, value in profile.items()},
        **{f"option {name}": value for name, value in options.items()},
    }


def engine_key(record: EngineRecord) -> str:
    """The name of the folder: a hash of the identity."""
    return digest(identity(record))[:_KEY_LENGTH]


def changes(old: EngineRecord, new: EngineRecord) -> list[str]:
    """What is different, in words: `TensorRT 11.3.0 -> 11.4.0`, `graph decoder_1 changed`."""
    before, after = identity(old), identity(new)
    found = []
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        hashed = name == "weights" or name.startswith("graph ")
        found.append(_hash_change(name, one, other) if hashed else f"{name} {_word(one)} -> {_word(other)}")
    return found


def _hash_change(name: str, one: object, other: object) -> str:
    return f"{name} {'is new' if one is None else 'is gone' if other is None else 'changed'}"


def _word(value: object) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value).lower()


# --- which option bounds which axis -------------------------------------------------------------------------

# Of graphs of the decoder; a vision graph's axes are bounded by `images` (its batch) or else by `visual`.
_DECODER_AXES: Final = {
    "batch": "batch",
    "sequence": "prompt",
    "query": "prompt",
    "texts": "prompt",
    "wanted": "logits",
    "rows": "images",
    "kept": "kept",
    "past_texts": "new",
}


def option_of(stage: str, axis: str) -> str:
    """The key of `--profile` that bounds a dynamic axis of a stage."""
    if stage.startswith("vision"):
        return {"batch": "images", "text": "prompt", "frames": "frames"}.get(axis, "visual")
    if stage == "embed" and axis == "kept":
        return "images"
    if stage.startswith("decoder") and axis in ("tiles", "tile_rows", "near_rows"):
        return "images"
    return "new" if "capacity" in axis else _DECODER_AXES.get(axis, "prompt")
