"""The base of every pruning method: a small torch module that only chooses."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape, ModelShape
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Site
from foveate.runtime.errors import UsageError


class PruningMethod(nn.Module):
    """Chooses tokens at one site. Subclasses set ``sites`` and write ``forward``.

    ``forward`` is traced into the exported graph with dynamic sizes: no data-dependent shapes, no in-place
    writes, float32 scores, no buffers. It returns indices, and rewritten rows where the method merges;
    gathering, positions and caches are shared code.

    A method with weights creates them in ``build`` (``nn.Parameter`` and the blocks of ``foveate.pruning``,
    ``requires_grad`` off); ``foveate train`` fills them into an adapter, ``export --adapter`` reads it.

    Attributes:
        sites: where the method can be used.
        needs_seed: whether the graph gets a ``seed`` input for this method.
        ranks: whether its selections carry ``score``, the candidate scores that it ranks by (encoder site).
        needs_projected: reads ``EncoderEvidence.projected``.
        needs_text: reads ``EncoderEvidence.text``.
        needs_entered: reads ``DecoderEvidence.entered``.
        needs_embedded: reads ``DecoderEvidence.embedded``.
        trained: has weights, and cannot be exported without an adapter.
        weight_options: options that its weights were trained for; an adapter with others does not fit.
        site: where this instance is used.
    """

    sites: ClassVar[tuple[Site, ...]] = ()
    needs_seed: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    needs_projected: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    needs_entered: ClassVar[bool] = False
    needs_embedded: ClassVar[bool] = False
    trained: ClassVar[bool] = False
    weight_options: ClassVar[tuple[str, ...]] = ()

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

    @property
    def needs_pooled(self) -> bool:
        """Whether the method reads ``EncoderEvidence.pooled``."""
        return False

    @property
    def needs_prompt(self) -> bool:
        """Whether the method reads ``EncoderEvidence.prompt`` and ``projected``."""
        return False

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """Encoder layers whose query and key the method reads, ascending; none by default.

        Asked once, before tracing: this is where a method refuses an encoder that it cannot score.

        Raises:
            UsageError: the encoder lacks what the method needs.
        """
        return ()

    def build(self, shape: ModelShape) -> None:
        """Creates the method's weights for a model's sizes; nothing by default. Called before tracing.

        Raises:
            UsageError: the method cannot work with such a model.
        """

    def hidden_layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """Hidden states of the encoder that the method reads (0: the embeddings); none by default.

        Raises:
            UsageError: the encoder lacks what the method needs.
        """
        return ()

    def extra_tokens(self) -> Tensor | None:
        """Tokens ``[m, w]`` that run through the encoder beside the patches: they see the patches and each
        other, and no patch sees them. None by default.
        """
        return None

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Order and count over the candidates (encoder) or over the whole chunk (decoder)."""
        raise NotImplementedError
