"""Which kernel each linear layer gets: a word for each stage, and the layers that deviate from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from foveate.export.precision.layers import LinearLayer
from foveate.export.precision.words import (
    HALVES,
    KERNELS,
    MEASURED,
    SHORTEST_BLOCK,
    STAGES,
    WEIGHT_ONLY,
    dialect,
    half_type,
)
from foveate.runtime.errors import UsageError

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
"""All words, from the exact to the coarse; each target knows some of them."""

AUTO: Final = "auto"
"""Asks for a choice; only `parse_precision` knows it."""

_MEND: Final = (
    "for float32 on CUDA, export with --target portable: GroupQueryAttention has no such kernel there"
)


@dataclass(frozen=True)
class PrecisionPlan:
    """What an export stores, layer by layer.

    Attributes:
        stages: a word of `PRECISIONS` for each of `STAGES`; a stage left out is fp32.
        kernels: of the layers that do not get their stage's kernel, by name.
        errors: measured relative error of a layer's output under its stage's kernel, by name; may hold any.
        measured: whether somebody looked at errors at all.
        reason: why these stages, in a sentence, where they were chosen by a program.
        target: whose words these are.
        ranges: largest magnitude of a layer's activations, by name, for the kernels that need it.
    """

    stages: Mapping[str, str]
    kernels: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    measured: bool = False
    reason: str = ""
    target: str = "onnxruntime"
    ranges: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage, word in self.stages.items():
            if stage not in STAGES:
                raise UsageError("unknown stage", found=repr(stage), wanted=f"one of {', '.join(STAGES)}")
            known = dialect(self.target).kernels
            if word not in known:
                raise UsageError(
                    f"target {self.target} has no such precision for stage {stage}",
                    found=repr(word),
                    wanted=f"one of {', '.join(known)}",
                    mend=_MEND if word == "fp32" else "",
                )
        for layer, kernel in self.kernels.items():
            if kernel not in KERNELS:
                raise UsageError(
                    f"unknown kernel for layer {layer}",
                    found=repr(kernel),
                    wanted=f"one of {', '.join(KERNELS)}",
                )

    def word(self, stage: str) -> str:
        """The precision of a stage."""
        return self.stages.get(stage, "fp32")

    def half(self, stage: str) -> str | None:
        """In which half type a stage's products, attention and caches run; None for float32."""
        return half_type(self.stages, stage, self.target)

    def table(self) -> str | None:
        """The type of the words' table: a half one as soon as the decoder is below float32."""
        return None if self.word("decoder") == "fp32" else self.half("decoder") or "float16"

    def usual(self, layer: LinearLayer) -> str:
        """What the word of its stage gives a layer."""
        word = self.word(layer.stage)
        return "fp32" if word == "fp32" else dialect(self.target).kernels[word][layer.stage]

    def kernel(self, layer: LinearLayer) -> str:
        """What a layer runs."""
        kernel = self.kernels.get(layer.name, self.usual(layer))
        if kernel in WEIGHT_ONLY and layer.inputs % SHORTEST_BLOCK:
            return self.spare(layer.stage)  # blocks would not come out even
        return kernel

    def spare(self, stage: str) -> str:
        """What a layer runs that its stage's kernel does not suit."""
        half = self.half(stage)
        return next((word for word, dtype in HALVES.items() if dtype == half), "fp32")

    def check(self, layers: Iterable[LinearLayer], supported: Iterable[str], target: str) -> None:
        """Raises `UsageError` for layers that do not exist and kernels that a target does not have."""
        layers, supported = tuple(layers), {"fp32", *supported}
        unknown = sorted(set(self.kernels) - {layer.name for layer in layers})
        if unknown:
            raise UsageError(
                "kernels are given for layers that this export does not have",
                found=", ".join(unknown[:5]),
                wanted="names of linear layers of at least 64 x 64, as in the fp32 graphs, without '.weight'",
            )
        for layer in layers:
            if self.kernel(layer) not in supported:
                raise UsageError(
                    f"target {target} does not have this kernel",
                    found=f"{self.kernel(layer)} for {layer.name}",
                    wanted=f"one of {', '.join(k for k in KERNELS if k in supported)}",
                )

    def check_ranges(self, layers: Iterable[LinearLayer]) -> None:
        """Raises `UsageError` for layers whose kernel needs a range that nobody measured."""
        bare = [x for x in layers if self.kernel(x) in MEASURED and x.name not in self.ranges]
        if bare:
            raise UsageError(
                f"{self.kernel(bare[0])} needs the range of each layer's activations",
                found=f"{len(bare)} layers that were not measured, {bare[0].name} first",
                wanted="a calibration: the graphs run once in float32 on pictures",
                mend="export with `foveate export`, or give export_model a chooser (foveate.tools.precision)",
            )


def nothing_to_choose(words: Mapping[str, str], target: str) -> bool:
    """Whether words mean the same whatever is measured: float32, and half precision on GPUs."""
    plain = {"fp32", *HALVES} if dialect(target).typed else {"fp32"}
    return set(words.values()) <= plain


def parse_precision(words: str, target: str = "onnxruntime") -> dict[str, str]:
    """`int8`, `vision=int8,decoder=int4`, or `int8,head=fp32`: a word for every stage.

    A bare word is for all stages (bare `int4`: the decoder in int4, the rest in int8, or in fp16 on GPUs);
    stages that are not named get the target's default. `auto` leaves the choice to the exporter.

    Raises:
        UsageError: an unknown word or stage.
    """
    known = dialect(target)
    bare = (*known.kernels, *(() if known.typed else (AUTO,)))  # a GPU's kernels can't be timed here
    whole = {word: dict.fromkeys(STAGES, word) for word in bare} | dict(known.whole)
    stages, named = dict.fromkeys(STAGES, known.default), set[str]()
    for part in sorted(words.split(","), key=lambda part: "=" in part):  # a bare word first
        stage, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals:
            if stage not in whole:
                raise UsageError(
                    "unknown precision",
                    found=repr(part),
                    wanted=f"one of {', '.join(whole)}, or STAGE=PRECISION,... with stages "
                    f"{', '.join(STAGES)}",
                    mend=_MEND if stage == "fp32" else "",
                )
            name, made = "all stages", whole[stage]
        else:
            name, made = stage, {stage: word}
            PrecisionPlan({stage: "fp32" if word == AUTO and AUTO in whole else word}, target=target)
        if name in named:
            raise UsageError(f"two precisions for {name}", found=repr(words), wanted="one word for each")
        named.add(name)
        stages |= made
    return stages
