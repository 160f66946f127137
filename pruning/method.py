"""The base of every pruning method: a small torch module that only chooses."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Site
from foveate.runtime.errors import UsageError


class PruningMethod(nn.Module):
    """Chooses tokens at one site. Subclasses set ``sites`` and write ``forward``.

    ``forward`` is traced into the exported graph with dynamic sizes: no data-dependent shapes, no in-place
    writes, float32 scores, no buffers. It returns indices; gathering, positions and caches are shared code.

    Attributes:
        sites: where the method can be used.
        needs_seed: whether the graph gets a ``seed`` input for this method.
        site: where this instance is used.
    """

    sites: ClassVar[tuple[Site, ...]] = ()
    needs_seed: ClassVar[bool] = False

    def __init__(self, config: MethodConfig, site: Site | None = None) -> None:
        """``site`` may be left out by methods with one site.

        Raises:
            UsageError: the method does not work at ``site``.
        """
        super().__init__()
        self.site = self.sites[0] if site is None else Site(site)
        if self.site not in self.sites:
            name = type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")
            raise UsageError(
                f"Method '{name}' does not work at the {self.site} site.",
                found=str(self.site),
                wanted=", ".join(map(str, self.sites)),
                mend="Run `foveate methods` for the sites of every method.",
            )

    def layers(self, num_layers: int, feature_layer: int) -> tuple[int, ...]:
        """Encoder layers whose raw query and key the method reads, ascending; none by default.

        ``feature_layer`` indexes ``[embeddings, layer 0's output, ...]`` (``num_layers + 1`` hidden states)
        and may be negative, as in the checkpoint's config.
        """
        return ()

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Order and count over the candidates (encoder) or over the whole chunk (decoder)."""
        raise NotImplementedError
