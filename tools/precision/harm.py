"""Which runs of layers a distance comes from: found by halves, the most harmful first."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from foveate.export.precision import STAGES, LinearLayer

Group = Sequence[LinearLayer]

_GROUPS: Final = 8  # of a stage: runs of blocks that are raised together
_BLOCK: Final = re.compile(r"\b(layers|blocks)\.\d+\.")


def groups_of(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Runs of consecutive blocks of one stage, stage by stage; a block's products stay together."""
    groups: list[list[LinearLayer]] = []
    for stage in STAGES:
        blocks: dict[str, list[LinearLayer]] = {}
        for layer in layers:
            if layer.stage == stage:
                found = _BLOCK.search(layer.name)
                blocks.setdefault(found[0] if found else layer.name, []).append(layer)
        own = list(blocks.values())
        size = max(1, -(-len(own) // _GROUPS))
        groups += [[x for block in own[i : i + size] for x in block] for i in range(0, len(own), size)]
    return groups


def most_harmful(
    groups: Sequence[Group],
    whole: float,
    share: Callable[[Sequence[Group]], float],
) -> Iterator[tuple[float, Group]]:
    """Each group with its share of a distance, the most harmful first; measures no more than it has to.

    The set with the largest share is split next: the part with fewer weights is measured, for it loads and
    runs faster in fp32, and the other is what is left. So a group that stands out takes a handful of
    measurements instead of one for each group, and sets that add little are never split. Where shares add
    up, the order is that of the groups' own shares: a group comes when it is no smaller than any set that is
    left, and so than any group in one.

    Args:
        groups: as `groups_of` has them.
        whole: what all of them add; where they are all that differs from fp32, the distance itself.
        share: measures what some of them add.
    """
    number = itertools.count()
    heap = [(-whole, next(number), list(groups))] if groups else []
    while heap:
        negative, _, some = heapq.heappop(heap)
        if len(some) == 1:
            yield -negative, some[0]
            continue
        measured, rest = sorted(_split(some), key=_weights)
        own = min(max(share(measured), 0.0), -negative)
        for part, value in ((measured, own), (rest, -negative - own)):
            heapq.heappush(heap, (-value, next(number), part))


def _split(groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """The stage with the most weights and the others; a stage alone in two halves."""
    stages: dict[str, list[Group]] = {}
    for group in groups:
        stages.setdefault(group[0].stage, []).append(group)
    if len(stages) == 1:
        half = (len(groups) + 1) // 2
        return groups[:half], groups[half:]
    largest = max(stages.values(), key=_weights)
    return largest, [group for group in groups if group not in largest]


def _weights(groups: Sequence[Group]) -> int:
    return sum(layer.inputs * layer.outputs for group in groups for layer in group)
