"""`import tensorrt` in a child process of a test gives the double; its version is in TENSORRT_DOUBLE."""

import os
import sys

from doubles.tensorrt.install import VERSIONS, module

sys.modules[__name__] = module(os.environ.get("TENSORRT_DOUBLE", VERSIONS[0]))
