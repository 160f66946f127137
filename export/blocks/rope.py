"""Rotary position embedding (RoPE, arXiv 2104.09864) and the published ways of stretching it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.config import Reader
from foveate.runtime.errors import CheckpointError

# Keys that every type has; what is left belongs to the type.
_COMMON: Final = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}
)


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles. `parameters` holds the keys of the scaling type, as in config.json.

    `sections` says how many of the `head_dim / 2` angles turn with each axis of a position (time, row,
    column); empty for positions of one axis. `interleaved` deals them out in turn instead of one section
    after another.
    """

    head_dim: int
    max_positions: int
    rope_type: str
    theta: float
    parameters: tuple[tuple[str, Any], ...] = ()
    sections: tuple[int, ...] = ()
    interleaved: bool = False

    @property
    def axes(self) -> int:
        """Numbers in a position."""
        return len(self.sections) or 1

    @staticmethod
    def read(
        text: Mapping[str, Any],
        head_dim: int,
        max_positions: int,
        *,
        axes: int = 1,
        interleaved: bool = False,
    ) -> RopeConfig:
        """Reads both spellings: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling`.

        Raises:
            CheckpointError: the scaling type is not one of `FREQUENCIES`, or one of its keys is missing.
        """
        reader = Reader(text, "text_config")
        given = {**reader.section_of("rope_scaling", {}), **reader.section_of("rope_parameters", {})}
        own = Reader(given, "text_config.rope_parameters")
        if any(isinstance(value, Mapping) for value in given.values()):
            raise reader.refused("rope_parameters", given, "one set of parameters for all layers")
        rope_type = own.text("rope_type", own.text("type", "default"))
        if axes > 1 and rope_type == "mrope":  # older files name the axes here, not a way of stretching
            rope_type = "default"
        theta = own.positive("rope_theta", reader.positive("rope_theta", 10000.0))
        if own.number("partial_rotary_factor", 1.0) != 1.0:
            raise own.refused("partial_rotary_factor", given["partial_rotary_factor"], "1.0")
        if rope_type not in FREQUENCIES:
            raise CheckpointError(
                "unsupported RoPE scaling type",
                found=repr(rope_type),
                wanted=f"one of {', '.join(FREQUENCIES)}",
            )
        used = {key: value for key, value in given.items() if key not in _COMMON}
        sections = _sections(own, head_dim, axes) if axes > 1 else ()
        config = RopeConfig(
            head_dim, max_positions, rope_type, theta, tuple(sorted(used.items())), sections, interleaved
        )
        if not bool(torch.isfinite(inverse_frequencies(config)[0]).all()):
            raise reader.refused("rope_parameters", given, "parameters that give finite frequencies")
        return config

    def get(self, key: str, default: Any = None) -> Any:
        return dict(self.parameters).get(key, default)

    def need(self, key: str) -> float:
        return Reader(dict(self.parameters), "text_config.rope_parameters").positive(key)


def _sections(reader: Reader, head_dim: int, axes: int) -> tuple[int, ...]:
    given = reader.section.get("mrope_section")
    whole = isinstance(given, list) and all(isinstance(size, int) and size > 0 for size in given)
    if not isinstance(given, list) or not whole or len(given) != axes or sum(given) != head_dim // 2:
        wanted = f"{axes} whole numbers with the sum head_dim / 2 ({head_dim // 2})"
        raise reader.refused("mrope_section", given, wanted)
    return tuple(given)


def _default(config: RopeConfig) -> tuple[Tensor, float]:
    return 1.0 / _wavelengths(config), 1.0


def _wavelengths(config: RopeConfig) -> Tensor:
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).to(torch.float32) / config.head_dim
    return torch.pow(torch.tensor(config.theta, dtype=torch.float32), exponent)


def _linear(config: RopeConfig) -> tuple[Tensor, float]:
    return 1.0 / _wavelengths(config) / config.need("factor"), 1.0


def _dynamic(config: RopeConfig) -> tuple[Tensor, float]:
    # NTK scaling changes the base only beyond the trained length, and the bundle stops there
    # (`manifest.model.max_positions`), so within a bundle it is the default.
    config.need("factor")
    return _default(config)


def _llama3(config: RopeConfig) -> tuple[Tensor, float]:
    factor, low, high = config.need("factor"), config.need("low_freq_factor"), config.need("high_freq_factor")
    trained = config.need("original_max_position_embeddings")
    if high <= low:
        raise CheckpointError(
            "RoPE scaling type 'llama3' can't blend over an empty range",
            found=f"low_freq_factor {low}, high_freq_factor {high}",
            wanted="low_freq_factor < high_freq_factor",
        )
    plain = 1.0 / _wavelengths(config)
    turns = trained * plain / (2 * math.pi)  # full turns within the trained length
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return plain / factor * (1 - blend) + plain * blend, 1.0


def _yarn(config: RopeConfig) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071 §3.2-3.4): interpolate slow dimensions, keep fast ones, ramp between."""
    trained = config.need("original_max_position_embeddings")
    factor = config.need("factor") if config.get("factor") else config.max_positions / trained
    half = config.head_dim // 2

    def dimension(turns: float) -> float:
        return config.head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = dimension(float(config.get("beta_fast") or 32))
    high = dimension(float(config.get("beta_slow") or 1))
    if config.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    width = (high - low) or 0.001
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    plain = _wavelengths(config)
    return ramp / (factor * plain) + (1 - ramp) / plain, _yarn_temperature(config, factor)


def _yarn_temperature(config: RopeConfig, factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, top, bottom = (config.get(k) for k in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    return scale(top) / scale(bottom) if top and bottom else scale(1.0)


FREQUENCIES: Final[Mapping[str, Callable[[RopeConfig], tuple[Tensor, float]]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}


def inverse_frequencies(config: RopeConfig) -> tuple[Tensor, float]:
    """Returns the angle per position, float32, and the factor on cosine and sine.

    `[head_dim / 2]`; with several axes `[axes, head_dim / 2]`, zero where an angle turns with another axis.
    """
    frequency, factor = FREQUENCIES[config.rope_type](config)
    if config.axes == 1:
        return frequency, factor
    axis = torch.tensor(_axis_of_angles(config))  # e
    turns_with = axis == torch.arange(config.axes)[:, None]  # axes e
    return torch.where(turns_with, frequency, torch.zeros_like(frequency)), factor


def _axis_of_angles(config: RopeConfig) -> list[int]:
    """Which axis turns each angle: sections (arXiv 2409.12191 §2.1), or in turn (Qwen3-VL)."""
    if not config.interleaved:
        return [axis for axis, size in enumerate(config.sections) for _ in range(size)]
    # Angle 3 i + a belongs to axis a while that axis has any left; what is over turns with time.
    owners = []
    for i in range(config.head_dim // 2):
        axis = i % config.axes
        owners.append(axis if i < config.sections[axis] * config.axes else 0)
    return owners


class Rope(nn.Module):
    """Cosines and sines of positions: `[b, s]` or `[b, s, axes]` to `[b, s, head_dim / 2]` twice, in float32.

    The angles are a parameter, not a literal: under fake tensors a literal would have no value. The writer
    fills it from `inverse_frequencies`.
    """

    def __init__(self, config: RopeConfig, factor: float) -> None:
        super().__init__()
        half = config.head_dim // 2
        shape = (half,) if config.axes == 1 else (config.axes, half)
        self.inverse_frequency = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.factor = factor

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids.to(torch.float32)[..., None] * self.inverse_frequency  # b s (axes) e
        if position_ids.dim() == 3:
            # All terms but one are zero, so this picks an axis for each angle; a matrix product might round.
            angle = angle.sum(dim=2)  # b s axes e -> b s e
        cos, sin = angle.cos(), angle.sin()
        return (cos, sin) if self.factor == 1.0 else (cos * self.factor, sin * self.factor)
