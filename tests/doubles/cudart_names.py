"""The constants of CUDA's runtime that its double has, with the numbers of CUDA 13."""

# ruff: noqa: N801, N815, N816

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

cudaStreamDefault, cudaStreamNonBlocking = 0, 1
cudaHostAllocDefault = 0
cudaEventDefault, cudaEventDisableTiming = 0, 2


class cudaError_t(IntEnum):
    """Codes, with the numbers of CUDA 13."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidPitchValue = 12
    cudaErrorInvalidMemcpyDirection = 21
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorSystemDriverMismatch = 803
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureUnmatched = 903
    cudaErrorStreamCaptureWrongThread = 908


class cudaMemcpyKind(IntEnum):
    """Directions."""

    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    """What other threads may do meanwhile."""

    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStreamCaptureStatus(IntEnum):
    """Whether a stream records."""

    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


class cudaDeviceAttr(IntEnum):
    """Of a GPU; the two that are asked for."""

    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


@dataclass(frozen=True)
class cudaDeviceProp:
    """Of a GPU; some of it."""

    name: bytes
    major: int
    minor: int
    totalGlobalMem: int
    multiProcessorCount: int
