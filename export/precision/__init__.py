"""How linear layers are stored and multiplied: precisions, the kernel of each layer, and their graphs.

A *precision* (fp32, fp16, bf16, int8, fp8, int4) is a stage's word; a *kernel* is what one layer runs. What
a word means depends on the target (`words`). Layers that a stage's precision would harm keep another kernel,
and the manifest says which (`PrecisionPlan`).
"""

from foveate.export.precision.layers import LinearLayer, find_layers
from foveate.export.precision.plan import (
    AUTO,
    PRECISIONS,
    PrecisionPlan,
    nothing_to_choose,
    parse_precision,
)
from foveate.export.precision.words import KERNELS, STAGES, dialect

__all__ = [
    "AUTO",
    "KERNELS",
    "PRECISIONS",
    "STAGES",
    "LinearLayer",
    "PrecisionPlan",
    "dialect",
    "find_layers",
    "nothing_to_choose",
    "parse_precision",
]
