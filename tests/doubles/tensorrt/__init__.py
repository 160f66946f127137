"""A behavioural double of the `tensorrt` module: what passes on it has NOT run on TensorRT.

It follows the documented rules (what the importer refuses, what returns False or None and says why only in
the log, shapes before addresses, profile limits, aliases, allocators, compatibility of plans) and computes
with ONNX Runtime on the CPU, over the memory of the double of the CUDA runtime. Its names are a part of
those of 11.4 and 10.16, which tests/tensorrt holds against the real bindings. `install` puts it in the
place of `tensorrt`.
"""

from doubles.tensorrt.builder import (
    Builder,
    IBuilderConfig,
    IOptimizationProfile,
    IProgressMonitor,
    ITimingCache,
)
from doubles.tensorrt.context import IExecutionContext, IOutputAllocator
from doubles.tensorrt.engine import EngineInspector, ICudaEngine, IRuntimeConfig, Runtime
from doubles.tensorrt.enums import (
    AttentionIOForm,
    AttentionNormalizationOp,
    BuilderFlag,
    CausalMaskKind,
    DataType,
    DeviceType,
    EngineCapability,
    ErrorCode,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    KVCacheMode,
    LayerInformationFormat,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    OnnxParserFlag,
    PreviewFeature,
    ProfilingVerbosity,
    RuntimePlatform,
    TacticSource,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    TilingOptimizationLevel,
)
from doubles.tensorrt.network import (
    IAttention,
    IAttentionBoundaryLayer,
    IAttentionInputLayer,
    IAttentionOutputLayer,
    ILayer,
    INetworkDefinition,
    ITensor,
    OnnxParser,
    ParserError,
)
from doubles.tensorrt.values import Dims, IHostMemory, ILogger, Logger, nptype, volume
from doubles.tensorrt.version import version as _version

float32, float16, bfloat16 = DataType.FLOAT, DataType.HALF, DataType.BF16
int8, int32, int64, uint8, bool = (
    DataType.INT8,
    DataType.INT32,
    DataType.INT64,
    DataType.UINT8,
    DataType.BOOL,
)


def init_libnvinfer_plugins(logger: object, namespace: str) -> object:
    """Registers the plugins that come with TensorRT; here there are none."""
    return True


def __getattr__(name: str) -> str:
    if name == "__version__":
        return _version()
    raise AttributeError(f"the double of tensorrt has no {name}")


__all__ = [
    "AttentionIOForm",
    "AttentionNormalizationOp",
    "Builder",
    "BuilderFlag",
    "CausalMaskKind",
    "DataType",
    "DeviceType",
    "Dims",
    "EngineCapability",
    "EngineInspector",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IAttention",
    "IAttentionBoundaryLayer",
    "IAttentionInputLayer",
    "IAttentionOutputLayer",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IOutputAllocator",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "KVCacheMode",
    "LayerInformationFormat",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserFlag",
    "ParserError",
    "PreviewFeature",
    "ProfilingVerbosity",
    "Runtime",
    "RuntimePlatform",
    "TacticSource",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "TilingOptimizationLevel",
    "bfloat16",
    "bool",
    "float16",
    "float32",
    "init_libnvinfer_plugins",
    "int8",
    "int32",
    "int64",
    "nptype",
    "uint8",
    "volume",
]
