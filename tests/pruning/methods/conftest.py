"""`from twins import ...`: evidence for a method and the same facts for its oracle."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

# twins.py: helpers are not part of the package.
sys.path[:0] = [str(Path(__file__).parent)]

torch.set_num_threads(1)
