"""Helpers of this folder and tiny checkpoints are not part of the package."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
