"""What a method may look at when it chooses. Filled by the families, read by the methods."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EncoderEvidence(NamedTuple):
    """After the vision encoder, before the projector.

    Attributes:
        features: ``[b, n, c]`` the candidates, CLS removed (the hidden state that the projector would take).
        cls: ``[b, c]`` the CLS row of the same hidden state.
        query: layer -> ``[b, n+1, c]``, the raw ``q_proj`` output (bias included, heads concatenated, CLS
            first) of each layer that the method asked for by ``layers()``.
        key: layer -> the same of ``k_proj``.
        num_heads: attention heads of the encoder.
    """

    features: Tensor
    cls: Tensor
    query: dict[int, Tensor]
    key: dict[int, Tensor]
    num_heads: int


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


ROLE_FIXED, ROLE_VISUAL, ROLE_TEXT = 0, 1, 2
"""Values of ``token_role``."""
