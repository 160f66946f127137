"""Kernels as nodes: a file per target, each with `FORMS`, kernel names to `Form`s; fp32 is no form."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from foveate.export.precision.form import Form


def find_forms(target: str) -> Mapping[str, Form]:
    """Returns the kernels of a target."""
    forms: Mapping[str, Form] = importlib.import_module(f"foveate.export.precision.forms.{target}").FORMS
    return forms
