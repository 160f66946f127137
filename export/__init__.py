"""Exporters: a Hugging Face checkpoint in, a bundle of pruned ONNX graphs out.

    from foveate.export import export_model
    from foveate.pruning.plan import parse_plan

    export_model(Path("llava-1.5-7b-hf"), Path("bundle"), plan=parse_plan(["cls-knee", "text-relevance@2"]))

Importing this package is cheap; torch is imported by the first export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.export.pipeline import export_model

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    if name == "export_model":
        from foveate.export.pipeline import export_model

        return export_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
