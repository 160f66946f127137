"""Knee rules: how many tokens stand before the inflection point of a falling score curve.

The main paper (arXiv 2409.01162) cuts at "the inflection point" of the visual-to-CLS similarity curve and
does not say how it is found, so every rule here is a **reconstruction** (the IQR rule is taken from
PruMerge, arXiv 2403.15388, section 3.1 of its method). ``chord`` is the default.

Rules are called through :func:`knee_count`. Every rule takes ``curve [b, n]`` (sorted, falling; only the
first ``size [b]`` entries of a row count) and gives ``count [b]``. Shared guards, applied before any rule:

1. a flat curve (head and tail equal to within ``FLAT`` of their size) has no knee: everything is kept;
2. a rule that finds no knee keeps everything;
3. values that agree to within ``TOLERANCE`` of the curve's height are ties, and the first one wins. Without
   this rule, ties that exist on paper (a straight stretch, decimals) would be settled by rounding noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.pruning.budget import scaled_count
from foveate.pruning.spec import KneeConfig

FLAT = 1e-5
TOLERANCE = 1e-6

KneeRule = Callable[[Tensor, Tensor, KneeConfig], Tensor]


def knee_count(curve: Tensor, size: Tensor, config: KneeConfig) -> Tensor:
    """Tokens to keep, int64 ``[b]``: ``config.knee`` times ``config.knee_scale``, not clipped to limits."""
    head, tail = curve[:, 0], _at(curve, size - 1)
    bent = head - tail > FLAT * torch.maximum(head.abs(), tail.abs())
    # Every rule ignores an offset. Taking it off first keeps sums over a low curve on a high base exact.
    inside = _index(curve) < size.unsqueeze(-1)  # b n
    curve = torch.where(inside, curve - tail.unsqueeze(-1), torch.zeros_like(curve))
    count = KNEES[config.knee](curve, size, config)
    scaled = torch.minimum(scaled_count(count, config.knee_scale), size)
    # A rule that keeps everything found no knee, and there is nothing to scale.
    return torch.where(bent & (count < size), scaled, size)


def chord(curve: Tensor, size: Tensor, config: KneeConfig) -> Tensor:
    """Largest distance below the straight line from first to last score ("Kneedle"); the knee itself is kept.

    With x = i/(m-1) and y scaled to [0, 1], the distance is proportional to 1 - x - y. A curve that never
    sags below its chord (straight or bulging) has no knee.
    """
    count, found = _chord_from(curve, torch.zeros_like(size), size)
    return torch.where(found, count, size)


def recursive(curve: Tensor, size: Tensor, config: KneeConfig) -> Tensor:
    """The chord knee, plus the chord knee of the tail behind it; a tail without a knee adds nothing."""
    first, found = _chord_from(curve, torch.zeros_like(size), size)
    second, again = _chord_from(curve, first, size)
    return torch.where(found, first + torch.where(again, second, torch.zeros_like(second)), size)


def cumulative(curve: Tensor, size: Tensor, config: KneeConfig) -> Tensor:
    """Knee of the cumulative curve, max of cumsum(s)/sum(s) - x: the number of scores above the mean."""
    height = curve[:, 0] - _at(curve, size - 1)
    mean = curve.sum(dim=-1) / torch.maximum(size, torch.ones_like(size)).to(curve.dtype)
    above = curve - mean.unsqueeze(-1) > TOLERANCE * height.unsqueeze(-1)
    return _count(above & (_index(curve) < size.unsqueeze(-1)))


def iqr(curve: Tensor, size: Tensor, config: KneeConfig) -> Tensor:
    """Upper outliers: scores above Q3 + 1.5 (Q3 - Q1), at least one (PruMerge 3.1; linear quantiles)."""
    height = curve[:, 0] - _at(curve, size - 1)
    low, high = _quantile(curve, size, 0.25), _quantile(curve, size, 0.75)
    fence = high + 1.5 * (high - low)
    outlier = curve - fence.unsqueeze(-1) > TOLERANCE * height.unsqueeze(-1)
    count = _count(outlier & (_index(curve) < size.unsqueeze(-1)))
    return torch.maximum(count, torch.ones_like(count))


def derivative(curve: Tensor, size: Tensor, config: KneeConfig) -> Tensor:
    """Largest drop (``difference=1``) or bend (2) of the smoothed curve, after ``skip`` tokens.

    The smoothing window is a centred triangle. Its peak keeps a step or a bend in its place (a box smears
    it evenly over the window, and the first of those ties, half a window early, would win). It shrinks
    symmetrically at both ends, so a straight curve passes unchanged and the ends make no drop or bend of
    their own (padding or a one-sided window do). With ``skip >= smooth // 2`` every candidate near the head
    has the full window.

    On a heavy tail the largest drop lies at the head: this rule then cuts right after ``skip``, whatever
    the smoothing. It is here because a hint in the sister paper's code points to it, not because it is
    recommended.
    """
    index, last = _index(curve), size.unsqueeze(-1) - 1
    height = curve[:, 0] - _at(curve, size - 1)
    smooth = _smoothed(curve, size, config.smooth // 2)
    after = _shift(smooth, 1)
    if config.difference == 1:
        measure, inside = smooth - after, (index >= config.skip) & (index < last)
    else:
        measure = (_shift(smooth, -1) - smooth) - (smooth - after)
        inside = (index >= max(config.skip, 1)) & (index < last)
    top = torch.where(inside, measure, torch.full_like(measure, -torch.inf)).amax(dim=-1)
    bottom = torch.where(inside, measure, torch.full_like(measure, torch.inf)).amin(dim=-1)
    best = _first(inside & (measure >= (top - TOLERANCE * height).unsqueeze(-1)))
    return torch.where(top - bottom > TOLERANCE * height, best + 1, size)


KNEES: dict[str, KneeRule] = {
    "chord": chord,
    "cumulative": cumulative,
    "recursive": recursive,
    "derivative": derivative,
    "iqr": iqr,
}
"""Name in a config -> rule."""


def _chord_from(curve: Tensor, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Chord knee of ``curve[start:size]``: entries of that part to keep, and whether it has a knee."""
    place = (_index(curve) - start.unsqueeze(-1)).to(curve.dtype)  # b n
    head, tail = _at(curve, start), _at(curve, size - 1)
    span, height = (size - 1 - start).to(curve.dtype), head - tail
    # 1 - x - y, times span * height: no division, so n = 1 is safe and whole-number curves stay exact.
    sag = span.unsqueeze(-1) * (head.unsqueeze(-1) - curve) - place * height.unsqueeze(-1)  # b n
    inside = (place >= 0) & (place <= span.unsqueeze(-1))
    deepest = torch.where(inside, sag, torch.zeros_like(sag)).amax(dim=-1)
    slack = TOLERANCE * span * height
    best = _first(inside & (sag >= (deepest - slack).unsqueeze(-1)))
    # For the second knee: a tail that is flat next to the whole curve is rounding noise.
    flat = height <= FLAT * (curve[:, 0] - tail)
    return best - start + 1, (deepest > slack) & ~flat


def _smoothed(curve: Tensor, size: Tensor, half: int) -> Tensor:
    """``[b, n]``: mean with weights ``r + 1 - |offset|``, r = min(half, distance to the nearer end)."""
    if half == 0:
        return curve
    b, n = curve.shape
    index = _index(curve)
    room = torch.minimum(index.expand_as(curve), size.unsqueeze(-1) - 1 - index)  # b n
    reach = torch.minimum(torch.maximum(room, torch.zeros_like(room)), torch.full_like(room, half))
    offset = torch.arange(-half, half + 1, device=curve.device)
    window = index.unsqueeze(-1) + offset  # n w
    inner = torch.minimum(torch.maximum(window, torch.zeros_like(window)), torch.zeros_like(window) + (n - 1))
    flat = inner.reshape(1, -1).expand(b, -1)  # n w -> b (n w)
    values = torch.gather(curve, 1, flat).reshape(b, n, 2 * half + 1)  # b (n w) -> b n w
    weight = reach.unsqueeze(-1) + 1 - offset.abs()  # b n w
    weight = torch.maximum(weight, torch.zeros_like(weight)).to(curve.dtype)
    return (values * weight).sum(dim=-1) / weight.sum(dim=-1)


def _quantile(curve: Tensor, size: Tensor, fraction: float) -> Tensor:
    """``[b]``: linearly interpolated quantile of the first ``size`` entries of the falling ``curve``."""
    place = (size - 1).to(curve.dtype) * fraction  # exact: quarters of whole numbers
    below = torch.floor(place)
    low = _at(curve, size - 1 - below.to(torch.int64))
    high = _at(curve, size - 1 - torch.ceil(place).to(torch.int64))
    return low + (high - low) * (place - below)


def _index(curve: Tensor) -> Tensor:
    return torch.arange(curve.shape[-1], device=curve.device)  # n


def _at(curve: Tensor, place: Tensor) -> Tensor:
    """``[b]``: ``curve[b, place[b]]``, with places outside the curve moved to its ends."""
    last = torch.zeros_like(place) + (curve.shape[-1] - 1)
    inside = torch.minimum(torch.maximum(place, torch.zeros_like(place)), last)
    return torch.gather(curve, 1, inside.unsqueeze(-1)).squeeze(-1)


def _shift(curve: Tensor, step: int) -> Tensor:
    """``[b, n]``: entry ``i`` holds ``curve[i + step]``; the ends repeat."""
    if step > 0:
        return torch.cat([curve[:, step:], curve[:, -1:]], dim=-1)
    return torch.cat([curve[:, :1], curve[:, :step]], dim=-1)


def _first(mask: Tensor) -> Tensor:
    """``[b]`` int64: the first true place. A minimum, not an argmax: no reliance on a backend's tie rule."""
    index = _index(mask).expand(mask.shape)
    return torch.where(mask, index, torch.full_like(index, mask.shape[-1])).amin(dim=-1)


def _count(mask: Tensor) -> Tensor:
    return mask.to(torch.int64).sum(dim=-1)
