"""Ties that are exact in float32 and in double precision, so that nothing excuses another choice."""

from __future__ import annotations

import torch

from foveate.pruning.evidence import EncoderEvidence

TIES = ("ties", "equal", "zero")
"""Kinds of `twins.encoder_evidence` with equal patches."""


def exact(evidence: EncoderEvidence) -> EncoderEvidence:
    """Keys that are one axis or nothing: cosines are 0 or 1 whatever the order of a product's sums."""
    axes = {}
    for layer, key in evidence.key.items():
        top = key.abs().argmax(dim=-1, keepdim=True)
        axes[layer] = torch.zeros_like(key).scatter(2, top, 1.0) * (key.abs().amax(-1, keepdim=True) > 0)
    return evidence._replace(key=axes)
