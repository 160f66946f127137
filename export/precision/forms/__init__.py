"""Kernels as nodes: a file per target, each with `FORMS`, kernel names to `Form`s; fp32 is no form."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping

from foveate.export.precision.form import Form
from foveate.export.precision.layers import LinearLayer
from foveate.export.precision.plan import PrecisionPlan
from foveate.export.precision.typed_forms import tune


def find_forms(target: str) -> Mapping[str, Form]:
    """Returns the kernels of a target."""
    forms: Mapping[str, Form] = importlib.import_module(f"foveate.export.precision.forms.{target}").FORMS
    return forms


def plan_forms(plan: PrecisionPlan, layers: Iterable[LinearLayer], target: str) -> dict[str, Form]:
    """The form of each layer that does not stay as it is, by name of its weight."""
    known, found = find_forms(target), {}
    for layer in layers:
        kernel = plan.kernel(layer)
        if kernel != "fp32":
            found[layer.weight] = tune(known[kernel], plan.half(layer.stage), plan.ranges.get(layer.name))
    return found
