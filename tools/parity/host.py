"""The runtime under test: requests, and prompts that already hold generated tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foveate.runtime import options as runtime_options
from foveate.runtime.chunk import PreparedPrompt
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import Request
from foveate.runtime.videos import Video
from foveate.tools.parity.facts import Budget
from foveate.tools.parity.ladder import BudgetSet, Ladder
from foveate.tools.parity.prompts import Prompt


def options_of(ladder: Ladder, budgets: BudgetSet, new_tokens: int | None = None) -> GenerateOptions:
    """The runtime's options for a budget set: greedy, and nothing is an error because it kept much."""
    return GenerateOptions(
        max_new_tokens=new_tokens or ladder.settings.new_tokens,
        keep={site: _budget(budget) for site, budget in budgets.sites.items()},
        pruning_seed=budgets.seed if takes_seed(ladder) else None,
        allow_unpruned=True,
    )


def takes_seed(ladder: Ladder) -> bool:
    """Whether a method of the bundle draws at random; the runtime refuses a seed that nobody would read."""
    names = {spec.name for stage in ladder.manifest.stages.values() for spec in stage.inputs}
    return any(name.partition("_")[0] == "seed" for name in names)


def _budget(budget: Budget) -> runtime_options.Budget:
    return runtime_options.Budget(ratio=budget.keep_ratio or None, tokens=budget.keep_tokens or None)


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """Fresh copies: the runtime may take images out of the parts."""
    return [_copy(message) for message in prompt.messages]


def given_videos(videos: Sequence[tuple[Sequence[Any], float]]) -> list[Video]:
    """Frames and their rate, as the runtime takes them."""
    return [Video(list(frames), fps=fps, max_frames=len(frames)) for frames, fps in videos]


def request_of(prompt: Prompt) -> Request:
    """All of a prompt, for a batch."""
    return Request(messages_of(prompt), list(prompt.images), given_videos(prompt.videos))


def prepared(ladder: Ladder, layout: str, prompt: Prompt, options: GenerateOptions) -> PreparedPrompt:
    """What the runtime makes of a prompt before the decoder."""
    return ladder.pipeline(layout).prepare(
        messages_of(prompt), list(prompt.images), options, videos=given_videos(prompt.videos)
    )


def _copy(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [dict(part) for part in message["content"]]}


def with_tokens(prepared: PreparedPrompt, tokens: Sequence[int]) -> PreparedPrompt:
    """A prompt of one row with generated tokens behind it, as one chunk: protected, at the next positions."""
    count = len(tokens)
    start = int(prepared.next_position[0])

    def longer(array: np.ndarray, tail: Any) -> np.ndarray:
        rows = np.broadcast_to(np.asarray(tail, np.int64), (1, count))
        rows = rows.reshape(1, count, *[1] * (array.ndim - 2))  # all axes of a position count on alike
        return np.concatenate([array, np.broadcast_to(rows, (1, count, *array.shape[2:]))], axis=1)

    return replace(
        prepared,
        input_ids=longer(prepared.input_ids, list(tokens)),
        slots=longer(prepared.slots, -1),
        roles=longer(prepared.roles, 0),
        positions=longer(prepared.positions, np.arange(start, start + count)),
        origin=longer(prepared.origin, -1),
        block=longer(prepared.block, -1),
        length=prepared.length + count,
        next_position=prepared.next_position + count,
    )
