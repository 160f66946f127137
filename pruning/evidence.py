"""What a method may look at when it chooses. Filled by the families, read by the methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


class EncoderShape(NamedTuple):
    """What a method has to know about an encoder before it asks for layers.

    Attributes:
        num_layers: layers of the checkpoint's encoder.
        feature_layer: the hidden state that becomes the features, 0 (embeddings) to ``num_layers``.
        global_layers: layers in which every patch of a tile sees every other one, ascending. Window attention
            says nothing about the whole picture.
        has_cls: whether row 0 of a tile is a CLS token.
        has_pool: whether the checkpoint has an attention-pooling head (SigLIP's).
        has_taps: whether the encoder gives the hidden state of any layer, and lets extra tokens run along
            (CLIP on one square picture).
        grid: rows and columns of the candidates where an item is one square tile of patches; None elsewhere.
    """

    num_layers: int
    feature_layer: int
    global_layers: tuple[int, ...]
    has_cls: bool
    has_pool: bool = False
    has_taps: bool = False
    grid: tuple[int, int] | None = None


class ModelShape(NamedTuple):
    """The sizes that a method with weights of its own is built for.

    Attributes:
        encoder: the vision encoder.
        encoder_width: width ``w`` of the encoder's hidden states.
        feature_width: width ``c`` of a candidate's row, which the connector takes.
        hidden_size: the decoder's width ``d``.
        num_layers: the decoder's layers.
        candidates: visual tokens of an item that can be dropped; None where it depends on the item.
    """

    encoder: EncoderShape
    encoder_width: int
    feature_width: int
    hidden_size: int
    num_layers: int
    candidates: int | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """The encoder's grid of candidates, see `EncoderShape`."""
        return self.encoder.grid


class EncoderEvidence(NamedTuple):
    """After the vision encoder, before the connector.

    ``b`` items (images or videos), ``n`` candidates of an item; the encoder sees ``t`` tiles (crops, frames)
    of ``p`` patches. Where each patch is a candidate of its own, ``t = b`` and ``p = n``; elsewhere ``pool``
    says how patches become candidates.

    Attributes:
        features: ``[b, n, c]`` the candidates: what the connector takes.
        patches: ``[t, p, w]`` the hidden state that the features are made of, CLS removed.
        cls: ``[t, w]`` the CLS row of the same hidden state; None without one.
        query: layer -> ``[t, r, width]``, as it enters the dot product (bias, norms and rotation applied,
            heads concatenated) of each layer that the method asked for by ``layers()``; ``r`` is ``p``, or
            ``p + 1`` with CLS first.
        key: layer -> the same of the keys.
        num_heads: attention heads of the encoder.
        pool: patch scores ``[t, p]`` to candidate scores ``[b, n]``; higher is better on both sides.
        tile: int64 ``[b, n]``: which crop or frame a candidate shows; 0 for one-tile items.
        pooled: ``[t, p]`` probabilities of the pooling head's query, mean over heads; None if not asked for.
        leading: ``[b, m, c]`` feature rows before the candidates that always stay; None for none.
        prompt: ``[b, d]`` mean embedding of the user's words; None when not asked for.
        projected: ``[b, n, d]`` all candidates in the decoder's space; None when not asked for.
        ends: for scores ``[b, n]`` that did not come from ``pool``: each line end's is replaced by the best
            of its line; None where no candidate is a line end.
        hidden: layer -> ``[b, r, w]`` hidden state, 0 the embeddings, rows as in ``query``; of the layers
            that the method asked for by ``hidden_layers()``.
        extra: ``[b, m, w]`` the method's extra tokens at the feature layer; None without any.
        text: ``[b, d]`` the language model's last hidden state of the user's words alone, behind the final
            norm, at their last token; None when not asked for.
    """

    features: Tensor
    patches: Tensor
    cls: Tensor | None
    query: dict[int, Tensor]
    key: dict[int, Tensor]
    num_heads: int
    pool: Callable[[Tensor], Tensor]
    tile: Tensor
    pooled: Tensor | None = None
    leading: Tensor | None = None
    prompt: Tensor | None = None
    projected: Tensor | None = None
    ends: Callable[[Tensor], Tensor] | None = None
    hidden: Mapping[int, Tensor] = MappingProxyType({})
    extra: Tensor | None = None
    text: Tensor | None = None


class DecoderEvidence(NamedTuple):
    """After a decoder layer, over the chunk that is being prefilled.

    Keys of earlier turns are not part of it: the softmax runs over this chunk only.

    Attributes:
        query: ``[b, h, s, head_dim]`` of the layer that ran last, rotated.
        key: ``[b, g, s, head_dim]`` of the same layer, rotated; query head ``i`` reads key
            head ``i // (h / g)``.
        query_plain: ``[b, h, s, head_dim]`` before the rotation.
        key_plain: ``[b, g, s, head_dim]`` before the rotation.
        hidden: ``[b, s, d]`` output of that layer.
        token_role: int64 ``[b, s]``: 0 protected, 1 visual, 2 question text that may be pruned.
        query_index: int64 ``[b, t]``: rows of the text that defines relevance; -1 is padding.
        length: int64 ``[b]``: valid tokens; rows beyond are right padding.
        scale: softmax scale of the model's attention.
        entered: int64 ``[b]``: visual tokens of the chunk that entered the decoder, before any cut in it;
            None when not asked for.
        embedded: ``[b, s, d]`` what entered the decoder at these rows; None when not asked for.
    """

    query: Tensor
    key: Tensor
    query_plain: Tensor
    key_plain: Tensor
    hidden: Tensor
    token_role: Tensor
    query_index: Tensor
    length: Tensor
    scale: float
    entered: Tensor | None = None
    embedded: Tensor | None = None


ROLE_FIXED, ROLE_VISUAL, ROLE_TEXT = 0, 1, 2
"""Values of ``token_role``."""
