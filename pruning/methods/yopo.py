"""Leaves out arithmetic of visual tokens in the decoder's layers; drops none of them.

YOPO, "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (arXiv 2410.06169), has
four parts. Three stand here:

- ``ffn``: visual rows use the first ``d_ff / ffn`` neurons of each MLP (2 in the released script).
- ``heads``: heads that hardly look at visual columns see and keep text only. The paper decides per layer and
  head from attention on a hundred samples (``python -m foveate.tools.visual_heads`` measures it); where heads
  share keys, a whole key-value group is on or off, which is ours: part of a group would save no key.
- ``window``: among visual rows of one image, each sees the neighbours inside a square of that many rows and
  columns (5), in both directions, as the released code has it.

The fourth, no visual token from a layer on, is method ``exit@L``.

The released code masks after the softmax and does not spread the lost mass; here what is left out is gone
before the softmax. docs/methods/yopo.md says where the two are one function.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.pruning.method import PruningMethod
from foveate.pruning.spec import MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("layers",)
PAPER = "arXiv 2410.06169"
TITLE = "YOPO"
KIND = "training-free"

_ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Which part of the work visual rows take part in."""

    ffn: int = option(2, "visual rows use one of this many parts of each MLP (1 = all of it)", low=1)
    heads: str = option(
        "all", "per layer, a hexadecimal number whose bits are the active key-value heads, as 3+3+1+0"
    )

    window: int | None = option(
        None, "a visual row sees this many rows and columns of its image, itself in the middle (odd)", low=1
    )
    both_ways: bool = option(
        True, "with a window: neighbours behind a row are seen, too, as in the paper's code"
    )

    def __post_init__(self) -> None:
        """Refuses words that name no heads, and windows without a middle (``UsageError``)."""
        super().__post_init__()
        if self.window is not None and self.window % 2 == 0:
            raise UsageError(
                f"Method 'yopo' cannot use window={self.window}.",
                found=str(self.window),
                wanted="an odd number: as many rows on either side",
                mend=f"Use window={self.window + 1}.",
            )
        try:
            masks = () if self.heads == _ALL else tuple(int(word, 16) for word in self.heads.split("+"))
        except ValueError:
            masks = (-1,)
        if any(mask < 0 for mask in masks):
            raise self._refusal(self.heads, "hexadecimal numbers joined by +, one for each layer, or all")

    def groups(self, num_layers: int, num_kv_heads: int) -> tuple[tuple[int, ...], ...]:
        """Per layer, the active key-value heads.

        Raises:
            UsageError: the model has other layers or heads.
        """
        every = tuple(range(num_kv_heads))
        if self.heads == _ALL:
            return (every,) * num_layers
        masks = [int(word, 16) for word in self.heads.split("+")]
        if len(masks) != num_layers or any(mask >> num_kv_heads for mask in masks):
            raise self._refusal(
                f"{len(masks)} layers, largest {max(masks):x}",
                f"{num_layers} layers of {num_kv_heads} key-value heads (up to {(1 << num_kv_heads) - 1:x})",
            )
        return tuple(tuple(group for group in every if mask >> group & 1) for mask in masks)

    def neurons(self, size: int) -> int:
        """How many of an MLP's neurons visual rows use, rounded down, as the paper's code does.

        Raises:
            UsageError: fewer neurons than parts.
        """
        if self.ffn > size:
            raise UsageError(
                f"Method 'yopo' cannot use ffn={self.ffn}.",
                found=f"{size} neurons in each MLP",
                wanted=f"at most {size}",
            )
        return size // self.ffn

    def _refusal(self, found: str, wanted: str) -> UsageError:
        return UsageError(
            "Method 'yopo' cannot use these heads.",
            found=found,
            wanted=wanted,
            mend="Measure them: python -m foveate.tools.visual_heads CHECKPOINT",
        )


class Method(PruningMethod):
    """Chooses nothing while a prompt runs: the exporter asks ``config`` once."""

    sites = (Site.LAYERS,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config
