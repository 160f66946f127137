"""Compresses each tile of patches into one token by attention that knows the question.

QueCC of "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters" (arXiv 2411.03312). Facts,
from the authors' code: the question's last hidden state, read by the language model alone, is projected,
normed and added to every patch; a perceptron and a norm make queries of that, and a depthwise convolution
with kernel and stride s takes one query from each s x s tile; keys and values come from four hidden states
side by side, each by a perceptron and a norm of its own; every query attends to its own tile, by 8 heads,
and nothing is added behind that. The hidden states are 12, 16, 22 and 23 of CLIP-L's 24, of which 23 is what
the connector takes; s is 4, which makes 36 tokens of 576.

Ours: the same depths, in proportion, on another encoder (each once); s grows with the grid. A tile's token
takes slot t of the candidates, tiles in raster order, so it stands where the t-th patch stood. The authors
train projector and language model along; here both stay as they are, and the tokens are what the connector
takes. All pictures of a prompt get one text feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.pruning.blocks import LayerNorm, Linear, Perceptron
from foveate.pruning.budget import Budget, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_mask
from foveate.pruning.spec import MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2411.03312"
TITLE = "QueCC"
KIND = "trained"

_DEPTHS = (12 / 23, 16 / 23, 22 / 23, 1.0)
"""Of the hidden states that keys and values read, as a share of the features' own."""
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of quecc."""

    stride: int | None = option(
        None,
        "side of a tile in patches (none = the least that divides the grid and is above a seventh of it)",
        low=2,
    )
    heads: int = option(8, "attention heads inside a tile", low=1)
    states: tuple[int, ...] | None = option(
        None, "hidden states that keys and values read (none = as deep as the paper's)", low=0
    )


class Mapped(nn.Module):
    """A perceptron with a norm behind it: how queries, keys and values are made."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mlp, self.norm = Perceptron(inputs, width, width), LayerNorm(width, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, n, inputs]`` to ``[b, n, width]``."""
        y: Tensor = self.norm(self.mlp(x))
        return y


class Method(PruningMethod):
    """One token for each tile, in slots 0 to k - 1; the count is fixed by the tiles.

    A request's budget changes that only if it keeps everything: then the candidates stay as they were.
    """

    sites = (Site.ENCODER,)
    needs_text = True
    trained = True
    weight_options = ("stride", "heads", "states")

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def build(self, shape: ModelShape) -> None:
        """The module for a model's widths and grid.

        Raises:
            UsageError: an encoder without one square grid, or a width or grid that cannot be divided so.
        """
        grid, width = shape.grid, shape.feature_width
        if grid is None or width != shape.encoder_width:
            raise _refusal("needs pictures of one grid whose patches are the candidates", "none", "llava")
        fits = [s for s in range(2, max(grid) + 1) if grid[0] % s == 0 and grid[1] % s == 0]
        least = next((s for s in fits if 7 * s > max(grid)), None)
        self.grid, stride = grid, self.config.stride or least
        if stride not in fits:
            sizes = ", ".join(map(str, fits)) or "a grid whose sides have a common divisor"
            raise _refusal("cuts the grid into whole tiles", f"{grid[0]} x {grid[1]}, stride {stride}", sizes)
        self.stride = stride
        if width % self.config.heads:
            raise _refusal(
                "splits the width into heads", f"heads={self.config.heads}, width {width}", "a divisor"
            )
        self.chosen = self.hidden_layers(shape.encoder)
        self.text_proj, self.text_norm = Linear(shape.hidden_size, width), LayerNorm(width, _EPS)
        self.query = Mapped(width, width)
        self.key, self.value = (Mapped(width * len(self.chosen), width) for _ in range(2))
        # The depthwise convolution, one weight for each place in a tile and each channel.
        self.conv = nn.Parameter(torch.empty(self.stride**2, width), requires_grad=False)
        self.conv_bias = nn.Parameter(torch.empty(width), requires_grad=False)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width) for _ in range(4))

    def hidden_layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """The hidden states of keys and values.

        Raises:
            UsageError: one that lies behind the features, or does not exist.
        """
        last = shape.feature_layer
        asked = self.config.states or tuple(round(depth * last) for depth in _DEPTHS)
        if max(asked) > shape.num_layers:
            raise _refusal(
                "reads hidden states of the encoder", f"state {max(asked)}", f"0 to {shape.num_layers}"
            )
        return tuple(sorted(set(asked)))

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``, with the tiles' tokens in the first slots."""
        assert isinstance(evidence, EncoderEvidence)
        features = evidence.features
        n, k = features.shape[1], self.grid[0] * self.grid[1] // self.stride**2
        tokens = self.compress(evidence)  # b k c
        size = torch.zeros_like(evidence.tile[:, 0]) + n  # b
        whole = budget.given() & (resolve_count(budget, size, size) >= size)  # b
        keep = (torch.arange(n, device=features.device) < k) | whole.unsqueeze(-1)  # b n
        rest = torch.zeros_like(features[:, k:])
        rows = torch.where(whole.reshape(-1, 1, 1), features, torch.cat([tokens, rest], dim=1))
        return select_mask(keep)._replace(features=rows)

    def compress(self, evidence: EncoderEvidence) -> Tensor:
        """The tiles' tokens ``[b, k, c]``, tiles in raster order."""
        assert evidence.text is not None
        x = evidence.features.float()
        text = self.text_norm(self.text_proj(evidence.text.float())).unsqueeze(1)  # b d -> b 1 c
        skip = 0 if evidence.cls is None else 1
        many = torch.cat([evidence.hidden[i][:, skip:] for i in self.chosen], dim=-1).float()  # b n (m w)
        query = (self.tiles(self.query(x + text)) * self.conv).sum(dim=2) + self.conv_bias  # b k c
        key, value = self.tiles(self.key(many)), self.tiles(self.value(many))  # b k s*s c
        return self._attend(query, key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each query ``[b, k, c]`` looks at its own tile ``[b, k, p, c]``."""
        b, k, p, c = key.shape
        heads = self.config.heads
        asked = self.q_proj(query).reshape(b, k, 1, heads, c // heads)
        keys, values = (
            proj(each).reshape(b, k, p, heads, c // heads)
            for proj, each in ((self.k_proj, key), (self.v_proj, value))
        )
        weight = torch.softmax((asked * keys).sum(dim=-1) * (c // heads) ** -0.5, dim=2)  # b k p h
        mixed = (weight.unsqueeze(-1) * values).sum(dim=2)  # b k h e
        rows: Tensor = self.out_proj(mixed.reshape(b, k, c))
        return rows

    def tiles(self, x: Tensor) -> Tensor:
        """``[b, n, c]`` as tiles ``[b, k, s * s, c]``, both in raster order."""
        b, _, c = x.shape
        s, rows, columns = self.stride, self.grid[0] // self.stride, self.grid[1] // self.stride
        parts = x.reshape(b, rows, s, columns, s, c).transpose(2, 3)  # b (h s w s) c -> b h w s s c
        return parts.reshape(b, rows * columns, s * s, c)


def _refusal(what: str, found: str, wanted: str) -> UsageError:
    return UsageError(
        f"Method 'quecc' {what}.",
        found=found,
        wanted=wanted,
        mend="Choose options that fit the encoder, or another method; see `foveate methods quecc`.",
    )
