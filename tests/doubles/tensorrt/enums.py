"""TensorRT's enumerations with the names and numbers of 11.4; tests/tensorrt holds them against the bindings.

Like pybind11's they have `name`, `value`, `__members__`, `int()`, and no order and no equality with numbers.
"""

from __future__ import annotations

import enum


class _Number(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


def _enum(name: str, members: str | dict[str, int]) -> type[_Number]:
    numbered = members if isinstance(members, dict) else {m: i for i, m in enumerate(members.split())}
    made: type[_Number] = _Number(name, numbered, module=__name__)  # type: ignore[assignment, call-overload]
    return made


AttentionIOForm = _enum("AttentionIOForm", "PADDED_BHND PACKED_NHD")
AttentionNormalizationOp = _enum("AttentionNormalizationOp", "NONE SOFTMAX")
BuilderFlag = _enum(
    "BuilderFlag",
    {
        **{"DEBUG": 2, "GPU_FALLBACK": 3, "REFIT": 4, "DISABLE_TIMING_CACHE": 5, "EDITABLE_TIMING_CACHE": 26},
        **{"TF32": 6, "SPARSE_WEIGHTS": 7, "SAFETY_SCOPE": 8, "DIRECT_IO": 11, "VERSION_COMPATIBLE": 12},
        **{"EXCLUDE_LEAN_RUNTIME": 13, "ERROR_ON_TIMING_CACHE_MISS": 15, "DISABLE_COMPILATION_CACHE": 17},
        **{"STRIP_PLAN": 18, "REFIT_IDENTICAL": 19, "WEIGHT_STREAMING": 20, "REFIT_INDIVIDUAL": 22},
        **{"STRICT_NANS": 23, "MONITOR_MEMORY": 24, "DISTRIBUTIVE_INDEPENDENCE": 27},
    },
)
CausalMaskKind = _enum("CausalMaskKind", "NONE UPPER_LEFT LOWER_RIGHT")
DataType = _enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4 FP4 E8M0")
DeviceType = _enum("DeviceType", "GPU DLA")
EngineCapability = _enum("EngineCapability", "STANDARD SAFETY DLA_STANDALONE")
ErrorCode = _enum(
    "ErrorCode",
    "SUCCESS INTERNAL_ERROR MEM_ALLOC_FAILED MODEL_DESERIALIZE_FAILED INVALID_VALUE INVALID_GRAPH "
    "INVALID_NODE UNSUPPORTED_GRAPH UNSUPPORTED_NODE UNSUPPORTED_NODE_ATTR UNSUPPORTED_NODE_INPUT "
    "UNSUPPORTED_NODE_DATATYPE "
    "UNSUPPORTED_NODE_DYNAMIC UNSUPPORTED_NODE_SHAPE REFIT_FAILED",
)
ExecutionContextAllocationStrategy = _enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY")
KVCacheMode = _enum("KVCacheMode", "LINEAR")
LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE JSON")
LayerType = _enum(
    "LayerType",
    "CONVOLUTION CAST ACTIVATION POOLING LRN SCALE SOFTMAX DECONVOLUTION CONCATENATION ELEMENTWISE PLUGIN "
    "UNARY PADDING SHUFFLE REDUCE TOPK GATHER MATRIX_MULTIPLY RAGGED_SOFTMAX CONSTANT IDENTITY PLUGIN_V2 "
    "SLICE SHAPE PARAMETRIC_RELU RESIZE TRIP_LIMIT RECURRENCE ITERATOR LOOP_OUTPUT SELECT FILL QUANTIZE "
    "DEQUANTIZE CONDITION CONDITIONAL_INPUT CONDITIONAL_OUTPUT SCATTER EINSUM ASSERTION ONE_HOT NON_ZERO "
    "GRID_SAMPLE NMS REVERSE_SEQUENCE NORMALIZATION PLUGIN_V3 SQUEEZE UNSQUEEZE CUMULATIVE "
    "DYNAMIC_QUANTIZE ATTENTION_INPUT "
    "ATTENTION_OUTPUT ROTARY_EMBEDDING KV_CACHE_UPDATE MOE DIST_COLLECTIVE",
)
MemoryPoolType = _enum(
    "MemoryPoolType",
    "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_DRAM TACTIC_SHARED_MEMORY",
)
NetworkDefinitionCreationFlag = _enum(
    "NetworkDefinitionCreationFlag", "STRONGLY_TYPED PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS"
)
OnnxParserFlag = _enum(
    "OnnxParserFlag",
    "NATIVE_INSTANCENORM ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA REPORT_CAPABILITY_DLA "
    "ENABLE_PLUGIN_OVERRIDE ADJUST_FOR_DLA",
)
PreviewFeature = _enum("PreviewFeature", "ALIASED_PLUGIN_IO_10_03 RUNTIME_ACTIVATION_RESIZE_10_10")
ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
RuntimePlatform = _enum("RuntimePlatform", "SAME_AS_BUILD WINDOWS_AMD64")
Severity = _enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
TacticSource = _enum("TacticSource", "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS")
TensorFormat = _enum(
    "TensorFormat", "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC DLA_LINEAR DLA_HWC4 HWC16 DHWC"
)
TensorIOMode = _enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = _enum("TensorLocation", "DEVICE HOST")
TilingOptimizationLevel = _enum("TilingOptimizationLevel", "NONE FAST MODERATE FULL")

# Where 10.16 has other members or other numbers; code that goes by names does not notice.
OF_10 = {
    "BuilderFlag": _enum(
        "BuilderFlag",
        "FP16 INT8 DEBUG GPU_FALLBACK REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS SAFETY_SCOPE "
        "OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS "
        "VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME FP8 ERROR_ON_TIMING_CACHE_MISS BF16 "
        "DISABLE_COMPILATION_CACHE STRIP_PLAN REFIT_IDENTICAL WEIGHT_STREAMING INT4 REFIT_INDIVIDUAL "
        "STRICT_NANS MONITOR_MEMORY FP4 "
        "EDITABLE_TIMING_CACHE DISTRIBUTIVE_INDEPENDENCE",
    ),
    "NetworkDefinitionCreationFlag": _enum(
        "NetworkDefinitionCreationFlag",
        "EXPLICIT_BATCH STRONGLY_TYPED PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS",
    ),
    "PreviewFeature": _enum(
        "PreviewFeature",
        "PROFILE_SHARING_0806 ALIASED_PLUGIN_IO_10_03 RUNTIME_ACTIVATION_RESIZE_10_10 "
        "MULTIDEVICE_RUNTIME_10_16",
    ),
    "TacticSource": _enum("TacticSource", "CUBLAS CUBLAS_LT CUDNN EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"),
}
