"""Measures which heads of a decoder look at visual tokens: the value of method yopo's option `heads`.

    python -m foveate.tools.visual_heads tools/demo_model/checkpoint --threshold 0.2

YOPO (arXiv 2410.06169): in each sample a head's ratio is the attention that all rows give to visual columns,
divided by what they give to text columns; it votes for itself when the ratio exceeds the threshold, and is
active with more than 40 votes of a hundred. The first two layers stay whole. Heads that share keys are summed
before the ratio is taken, which is ours: they are on or off together.

A threshold fits one model (the paper has another one for each); `--share` asks for so many heads instead.

The samples are questions about scenes of the validation split, read by transformers' own model with eager
attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.tools.parity.families import Oracle, find_oracle
from foveate.tools.search.questions import demo_questions

WHOLE_LAYERS = 2  # the paper's: the first layers keep all heads
VOTES = 0.4  # of the samples
ALL = "all"


def ratios(oracle: Oracle, samples: int) -> np.ndarray:
    """Attention to visual columns over attention to text, `[samples, layers, groups]`."""
    return np.stack([_ratio(oracle, inputs, visual) for inputs, visual in _prompts(oracle, samples)])


def active(
    ratio: np.ndarray, threshold: float, votes: float = VOTES, whole: int = WHOLE_LAYERS
) -> np.ndarray:
    """Which groups are active: bool `[layers, groups]`."""
    chosen: np.ndarray = (ratio > threshold).mean(axis=0) > votes
    chosen[:whole] = True
    return chosen


def most_active(ratio: np.ndarray, share: float, whole: int = WHOLE_LAYERS) -> np.ndarray:
    """That share of the groups behind the whole layers, those of the largest mean ratio."""
    mean = ratio.mean(axis=0)
    mean[:whole] = np.inf
    count = mean[:whole].size + round(share * mean[whole:].size)
    chosen = np.zeros(mean.size, bool)
    chosen[np.argsort(-mean, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(mean.shape)


def word(chosen: np.ndarray) -> str:
    """The option's value: per layer a hexadecimal number, bit g for group g."""
    if chosen.all():
        return ALL
    return "+".join(format(sum(1 << group for group in np.flatnonzero(layer)), "x") for layer in chosen)


def _prompts(oracle: Oracle, samples: int) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    for question in demo_questions(-(-samples // 8))[:samples]:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        assert not isinstance(question.image, Path)  # scenes are drawn, not read
        encoded = oracle.encode([{"role": "user", "content": content}], [question.image])
        ids = torch.tensor([encoded.input_ids])
        inputs = {**encoded.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield inputs, torch.tensor(encoded.visual)


@torch.no_grad()
def _ratio(oracle: Oracle, inputs: dict[str, Any], visual: torch.Tensor) -> np.ndarray:
    attention = oracle.model(**inputs, output_attentions=True).attentions
    rows = []
    for index, share in enumerate(attention):  # 1 h s s
        each = oracle.text.layers[index].self_attn.num_key_value_groups
        column = share[0].double().sum(dim=1)  # h s, what each column receives
        by_group = column.reshape(-1, each, column.shape[1]).sum(dim=1)  # (g r) s -> g s
        rows.append(by_group[:, visual].sum(dim=1) / by_group[:, ~visual].sum(dim=1))
    return torch.stack(rows).numpy()


def main() -> None:
    """Prints the mean ratio of each layer's heads, which are active, and the option."""
    parser = argparse.ArgumentParser(prog="python -m foveate.tools.visual_heads", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threshold", type=float, default=0.2, help="a head with a larger ratio is active")
    parser.add_argument("--share", type=float, help="instead: this share of the heads, the most active ones")
    parser.add_argument("--votes", type=float, default=VOTES, help="in more than this share of the samples")
    parser.add_argument("--whole", type=int, default=WHOLE_LAYERS, help="first layers that keep all heads")
    parser.add_argument("--samples", type=int, default=100, help="questions that are read")
    given = parser.parse_args()
    torch.set_num_threads(1)
    from foveate.export.checkpoint import Checkpoint

    family = str(Checkpoint(given.checkpoint).config["model_type"])
    found = ratios(find_oracle(family)(given.checkpoint), given.samples)
    if given.share is None:
        chosen = active(found, given.threshold, given.votes, given.whole)
    else:
        chosen = most_active(found, given.share, given.whole)
    for layer, (mean, on) in enumerate(zip(found.mean(axis=0), chosen, strict=True)):
        heads = "  ".join(
            f"{each:6.3f}{'*' if each_on else ' '}" for each, each_on in zip(mean, on, strict=True)
        )
        print(f"layer {layer:3d}  {heads}")
    print(f"active: {int(chosen.sum())} of {chosen.size} (*)")
    print(f"heads={word(chosen)}")


if __name__ == "__main__":
    main()
