"""What each target makes of a precision's word: which kernel, stage by stage, and in which half type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

STAGES: Final = ("vision", "projector", "decoder", "head")

KERNELS: Final[Mapping[str, str]] = {
    "fp32": "as the checkpoint says",
    "fp16": "stored in half precision; multiplied in it on GPUs, in single precision on CPUs",
    "bf16": "stored and multiplied in bfloat16",
    "int8": "8-bit weights by output, 8-bit activations by call: the fastest with many rows",
    "int8-row": "8-bit weights by output, 8-bit activations by row: no row depends on another",
    "int8-block": "8-bit weights and activations in blocks: bears outliers, slow with many rows",
    "int8-static": "8-bit weights by output, 8-bit activations of one range, which was measured at export",
    "int8-weight": "8-bit weights in blocks, activations in half precision",
    "fp8": "8-bit floating-point weights by output, and activations of one range, measured at export",
    "int4-block": "4-bit weights in blocks: the fastest decode, no faster than fp32 with many rows",
    "int4-weight": "4-bit weights in blocks, activations in half precision: the fastest decode on GPUs",
}

MEASURED: Final = frozenset({"int8-static", "fp8"})
"""Kernels that need the range of a layer's activations."""

WEIGHT_ONLY: Final = frozenset({"int8-weight", "int4-weight"})
SHORTEST_BLOCK: Final = 64
"""Weights of these kernels come in whole blocks, of 64 or 128 inputs for TensorRT ("Quantization
Schemes"):
layers whose inputs are no multiple of this stay in half."""

HALVES: Final[Mapping[str, str]] = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Dialect:
    """A target's words.

    Attributes:
        kernels: the kernel that the layers of each stage get under each word.
        whole: what a bare word means, stage by stage, where it is not itself everywhere.
        default: of stages that nobody speaks of.
        typed: whether products, attention and caches are in half precision together with the weights.
    """

    kernels: Mapping[str, Mapping[str, str]]
    whole: Mapping[str, Mapping[str, str]]
    default: str
    typed: bool


def _everywhere(*words: str) -> dict[str, Mapping[str, str]]:
    return {word: dict.fromkeys(STAGES, word) for word in words}


_CPU: Final = Dialect(
    kernels={
        **_everywhere("fp32", "fp16"),
        # Texts bring single rows whose activations are hundreds of times larger than all others', and
        # requests share calls; pictures do neither, and their layers' biases want the product itself.
        "int8": {"vision": "int8", "projector": "int8", "decoder": "int8-row", "head": "int8-row"},
        "int4": dict.fromkeys(STAGES, "int4-block"),
    },
    # With many rows 4-bit weights are no faster than fp32, so only the decoder, whose every token reads all
    # of them, gets them from the bare word.
    whole={"int4": {"vision": "int8", "projector": "int8", "decoder": "int4", "head": "int8"}},
    default="fp32",
    typed=False,
)

# On GPUs the same holds of 4-bit weights, and what is left out stays in half precision.
_HALF_BUT_DECODER: Final = {"vision": "fp16", "projector": "fp16", "head": "fp16"}

_DIALECTS: Final[Mapping[str, Dialect]] = {
    "cuda": Dialect(
        kernels={
            **_everywhere("fp16", "bf16"),
            "int8": dict.fromkeys(STAGES, "int8-weight"),
            "int4": dict.fromkeys(STAGES, "int4-weight"),
        },
        whole={word: {**_HALF_BUT_DECODER, "decoder": word} for word in ("int8", "int4")},
        default="fp16",
        typed=True,
    ),
    "tensorrt": Dialect(
        kernels={
            **_everywhere("fp32", "fp16", "bf16", "fp8"),
            "int8": dict.fromkeys(STAGES, "int8-static"),
            "int4": dict.fromkeys(STAGES, "int4-weight"),
        },
        whole={"int4": {**_HALF_BUT_DECODER, "decoder": "int4"}},
        default="fp16",
        typed=True,
    ),
}


def dialect(target: str) -> Dialect:
    """A target's words; targets without their own speak as on CPUs."""
    return _DIALECTS.get(target, _CPU)


def half_type(stages: Mapping[str, str], stage: str, target: str) -> str | None:
    """In which half type a stage's attention and products run: float16, bfloat16, or None for float32.

    Stages whose word names no type (int8, int4, fp8) take the one that another stage's word names.
    """
    words = dialect(target)
    word = stages.get(stage, "fp32")
    if not words.typed or word == "fp32":
        return None
    return HALVES.get(word) or ("bfloat16" if "bf16" in stages.values() else "float16")
