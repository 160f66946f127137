"""Which kernel each linear layer gets: a word for each stage, and the layers that deviate from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from foveate.export.precision.layers import LinearLayer
from foveate.runtime.errors import UsageError

STAGES: Final = ("vision", "projector", "decoder", "head")

PRECISIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "fp32": dict.fromkeys(STAGES, "fp32"),
    "fp16": dict.fromkeys(STAGES, "fp16"),
    # Texts bring single rows whose activations are hundreds of times larger than all others', and requests
    # share calls; pictures do neither, and their layers' biases want the product itself.
    "int8": {"vision": "int8", "projector": "int8", "decoder": "int8-row", "head": "int8-row"},
    "int4": dict.fromkeys(STAGES, "int4-block"),
}
"""The kernel that the layers of each stage get under each word."""

AUTO: Final = "auto"
"""Asks for a choice; only `parse_precision` knows it."""

KERNELS: Final[Mapping[str, str]] = {
    "fp32": "as the checkpoint says",
    "fp16": "stored in half precision, multiplied in single",
    "int8": "8-bit weights by output, 8-bit activations by call: the fastest with many rows",
    "int8-row": "8-bit weights by output, 8-bit activations by row: no row depends on another",
    "int8-block": "8-bit weights and activations in blocks: bears outliers, slow with many rows",
    "int4-block": "4-bit weights in blocks: the fastest decode, no faster than fp32 with many rows",
}

# With many rows 4-bit weights are no faster than fp32, so only the decoder, whose every token reads all of
# them, gets them from the bare word.
_WHOLE: Final[Mapping[str, Mapping[str, str]]] = {
    **{word: dict.fromkeys(STAGES, word) for word in PRECISIONS},
    "int4": {"vision": "int8", "projector": "int8", "decoder": "int4", "head": "int8"},
    AUTO: dict.fromkeys(STAGES, AUTO),
}


@dataclass(frozen=True)
class PrecisionPlan:
    """What an export stores, layer by layer.

    Attributes:
        stages: a word of `PRECISIONS` for each of `STAGES`; a stage left out is fp32.
        kernels: of the layers that do not get their stage's kernel, by name.
        errors: measured relative error of a layer's output under its stage's kernel, by name; may hold any.
        measured: whether somebody looked at errors at all.
        reason: why these stages, in a sentence, where they were chosen by a program.
    """

    stages: Mapping[str, str]
    kernels: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    measured: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        for stage, word in self.stages.items():
            if stage not in STAGES:
                raise UsageError("unknown stage", found=repr(stage), wanted=f"one of {', '.join(STAGES)}")
            if word not in PRECISIONS:
                raise UsageError(
                    f"unknown precision for stage {stage}",
                    found=repr(word),
                    wanted=f"one of {', '.join(PRECISIONS)}",
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

    def usual(self, layer: LinearLayer) -> str:
        """What the word of its stage gives a layer."""
        return PRECISIONS[self.word(layer.stage)][layer.stage]

    def kernel(self, layer: LinearLayer) -> str:
        """What a layer runs."""
        return self.kernels.get(layer.name, self.usual(layer))

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


def parse_precision(words: str) -> dict[str, str]:
    """`int8`, `vision=int8,decoder=int4`, or `int8,head=fp32`: a word for every stage.

    A bare word is for all stages (bare `int4`: the decoder in int4, the rest in int8); stages that are not
    named stay fp32. `auto` leaves the choice to the exporter.

    Raises:
        UsageError: an unknown word or stage.
    """
    stages = dict.fromkeys(STAGES, "fp32")
    for part in words.split(","):
        stage, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals:
            if stage not in _WHOLE:
                raise UsageError(
                    "unknown precision",
                    found=repr(part),
                    wanted=f"one of {', '.join(_WHOLE)}, or STAGE=PRECISION,... with stages "
                    f"{', '.join(STAGES)}",
                )
            stages |= _WHOLE[stage]
        else:
            PrecisionPlan({stage: "fp32" if word == AUTO else word})
            stages[stage] = word
    return stages
