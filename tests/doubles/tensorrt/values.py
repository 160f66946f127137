"""Dims, element types, host memory and loggers: the small things that the double passes around."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from doubles.tensorrt.enums import DataType, Severity

# ONNX element type -> TensorRT's (tensorrt.md B.0: DOUBLE is cast to FP32 on the way in).
FROM_ONNX = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.DOUBLE: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT8: DataType.INT8,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.UINT8: DataType.UINT8,
    onnx.TensorProto.FLOAT8E4M3FN: DataType.FP8,
    onnx.TensorProto.INT4: DataType.INT4,
}
# How an element lies in memory; bfloat16 is the upper half of a float32.
NUMPY = {
    DataType.FLOAT: np.dtype("float32"),
    DataType.HALF: np.dtype("float16"),
    DataType.BF16: np.dtype("uint16"),
    DataType.INT8: np.dtype("int8"),
    DataType.INT32: np.dtype("int32"),
    DataType.INT64: np.dtype("int64"),
    DataType.BOOL: np.dtype("bool"),
    DataType.UINT8: np.dtype("uint8"),
}


def nptype(trt_type: Any) -> type:
    """NumPy's type for a DataType; TypeError for those that NumPy has not."""
    if trt_type not in NUMPY or trt_type is DataType.BF16:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return NUMPY[trt_type].type


def volume(iterable: Iterable[int]) -> int:
    """Product of the numbers, 1 for none."""
    return int(np.prod(list(iterable), dtype=np.int64))


class Dims:
    """A shape. As in the bindings it equals tuples and lists, cannot be hashed, and refuses another Dims."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Iterable[int] = ()) -> None:
        self._sizes = [int(size) for size in shape]

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._sizes[index]) if isinstance(index, slice) else self._sizes[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._sizes[index] = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError("__eq__(): incompatible function arguments.")
        return self._sizes == list(other)

    def __repr__(self) -> str:
        return repr(tuple(self._sizes))


class IHostMemory(ctypes.Structure):
    """Bytes of the library: readable through the buffer protocol, without length or index."""

    @property
    def nbytes(self) -> int:
        return ctypes.sizeof(self)

    @property
    def dtype(self) -> Any:
        return DataType.INT8

    def __enter__(self) -> IHostMemory:
        warnings.warn("Context managers for TensorRT types are deprecated.", DeprecationWarning, stacklevel=2)
        return self

    def __exit__(self, *_: object) -> None:
        pass


def host_memory(data: bytes) -> IHostMemory:
    kind = type("IHostMemory", (IHostMemory,), {"_fields_": [("_data", ctypes.c_ubyte * len(data))]})
    memory: IHostMemory = kind.from_buffer_copy(data)
    return memory


class ILogger:
    """What applications derive from; `log` is called for every message."""

    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Any, msg: str) -> None:
        raise RuntimeError("log() must be overridden")


class Logger(ILogger):
    """Prints messages of at least `min_severity` to stdout."""

    def __init__(self, min_severity: Any = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Any, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            sys.stdout.write(f"[TRT] [{severity.name[0]}] {msg}\n")


def check_logger(logger: object) -> ILogger:
    """The logger; TypeError for anything else, and for a subclass that forgot the base's __init__."""
    if not isinstance(logger, ILogger) or not getattr(logger, "_made", False):
        raise TypeError("incompatible constructor arguments: an ILogger whose __init__ has run is wanted")
    return logger
