"""Profiles, the configuration, the timing cache, and the builder, whose failures only the logger tells."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import onnx

from doubles.tensorrt import device
from doubles.tensorrt.enums import (
    OF_10,
    BuilderFlag,
    DeviceType,
    EngineCapability,
    HardwareCompatibilityLevel,
    LayerType,
    MemoryPoolType,
    ProfilingVerbosity,
    RuntimePlatform,
    TilingOptimizationLevel,
)
from doubles.tensorrt.expand import NotModelledError
from doubles.tensorrt.network import INetworkDefinition
from doubles.tensorrt.plan import Header, Triple, write_plan
from doubles.tensorrt.values import Dims, IHostMemory, check_logger, host_memory
from doubles.tensorrt.version import version


def _triple(low: Iterable[int], best: Iterable[int], high: Iterable[int]) -> Triple:
    three = tuple(tuple(int(size) for size in entry) for entry in (low, best, high))
    ordered = all(a <= b <= c for a, b, c in zip(*three, strict=False))
    if len({len(entry) for entry in three}) != 1 or not ordered:
        raise ValueError(f"min <= opt <= max does not hold: {three}")
    return three  # type: ignore[return-value]


class IOptimizationProfile:
    """(min, opt, max) by input; shapes for execution tensors, values for shape tensors."""

    def __init__(self) -> None:
        self._shapes, self._values = dict[str, Triple](), dict[str, Triple]()
        self.extra_memory_target = 1.0

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        three = _triple(min, opt, max)
        if any(size < 0 for size in three[0]):
            raise ValueError(f"negative lengths for {input}: {three}")
        self._shapes[input] = three

    def get_shape(self, input: str) -> list[Dims]:
        return [Dims(shape) for shape in self._shapes.get(input, ())]

    def set_shape_input(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._values[input] = _triple(min, opt, max)

    def get_shape_input(self, input: str) -> list[list[int]]:
        return [list(values) for values in self._values.get(input, ())]

    def __bool__(self) -> bool:
        return bool(self._shapes or self._values)


class ITimingCache:
    """Timings by layer; good for the version and GPU that its header names."""

    def __init__(self, entries: set[str], made_for: tuple[str, tuple[int, int]]) -> None:
        self._entries, self._made_for = entries, made_for

    def serialize(self) -> IHostMemory:
        head = {
            "version": self._made_for[0],
            "capability": self._made_for[1],
            "entries": sorted(self._entries),
        }
        return host_memory(b"TRTTIMING" + json.dumps(head).encode())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if input_cache._made_for[0] != self._made_for[0]:
            return False
        if input_cache._made_for != self._made_for and not ignore_mismatch:
            return False
        self._entries |= input_cache._entries
        return True

    def reset(self) -> bool:
        self._entries.clear()
        return True


class IProgressMonitor:
    """What applications derive from; its methods are called from several threads."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise RuntimeError("phase_start() must be overridden")

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise RuntimeError("step_complete() must be overridden")

    def phase_finish(self, phase_name: str) -> None:
        raise RuntimeError("phase_finish() must be overridden")


class IBuilderConfig:
    """Options of a build."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._flags = {"TF32"}  # by name: the numbers moved between 10 and 11
        self._profiles = list[IOptimizationProfile]()
        self._pools = dict.fromkeys(MemoryPoolType, 0)
        self._pools[MemoryPoolType.WORKSPACE] = 1 << 40
        self._preview = set[str]()
        self._cache: ITimingCache | None = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.builder_optimization_level, self.max_aux_streams, self.avg_timing_iterations = 3, -1, 1
        self.max_num_tactics, self.l2_limit_for_tiling = -1, 0
        self.engine_capability, self.runtime_platform = (
            EngineCapability.STANDARD,
            RuntimePlatform.SAME_AS_BUILD,
        )
        self.default_device_type, self.DLA_core = DeviceType.GPU, -1
        self.tiling_optimization_level = TilingOptimizationLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None
        self.profile_stream, self.plugins_to_serialize = 0, list[str]()

    num_optimization_profiles = property(lambda self: len(self._profiles))

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._flags

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        (self._preview.add if enable else self._preview.discard)(feature.name)

    def get_preview_feature(self, feature: Any) -> bool:
        return feature.name in self._preview

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = int(pool_size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools[pool]

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        self._tactics = int(tactic_sources)
        return True

    def get_tactic_sources(self) -> int:
        return getattr(self, "_tactics", 3)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile:
            self._logger.log(self._logger.ERROR, "addOptimizationProfile: the profile is not valid")
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        data = bytes(serialized_timing_cache)
        if not data:
            return ITimingCache(set(), (version(), device.capability()))
        try:
            head = json.loads(data.removeprefix(b"TRTTIMING"))
            made_for = (head["version"], tuple(head["capability"]))
            return ITimingCache(set(head["entries"]), made_for)
        except (ValueError, KeyError):
            self._logger.log(self._logger.ERROR, "createTimingCache: the cache cannot be read")
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        here = (version(), device.capability())
        if cache._made_for[0] != here[0] or (cache._made_for != here and not ignore_mismatch):
            self._logger.log(self._logger.ERROR, "setTimingCache: the cache was made for another environment")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    """Makes networks, configurations and plans."""

    def __init__(self, logger: Any) -> None:
        self.logger = check_logger(logger)
        self.max_threads = 1

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(int(flags))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        return next(_faults(network, config), None) is None

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        """The plan, or None; the reason is only logged.

        Raises:
            NotModelledError: 10 without STRONGLY_TYPED chooses the types itself; nobody here means that.
        """
        if version().startswith("10.") and not network.get_flag(
            OF_10["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]
        ):
            raise NotModelledError("a network that is not strongly typed")
        for fault in _faults(network, config):
            self.logger.log(self.logger.ERROR, f"buildSerializedNetwork: {fault}")
            return None
        reason = _time_layers(network, config) or _report(config.progress_monitor, len(network))
        if reason:
            self.logger.log(self.logger.ERROR, f"buildSerializedNetwork: {reason}")
            return None
        assert network._model is not None
        model = network._model.SerializeToString()
        return host_memory(write_plan(_header(network, config), model))


def _header(network: INetworkDefinition, config: IBuilderConfig) -> Header:
    assert network._model is not None
    weights = sum(len(tensor.SerializeToString()) for tensor in network._model.graph.initializer)
    return Header(
        version=version(),
        capability=device.capability(),
        name=network.name,
        hardware=config.hardware_compatibility_level.name,
        version_compatible=config.get_flag(BuilderFlag.VERSION_COMPATIBLE),
        lean_runtime=not config.get_flag(BuilderFlag.EXCLUDE_LEAN_RUNTIME),
        weight_streaming=config.get_flag(BuilderFlag.WEIGHT_STREAMING),
        refittable=config.get_flag(BuilderFlag.REFIT),
        verbosity=config.profiling_verbosity.name,
        weights=weights,
        aux_streams=max(config.max_aux_streams, 0),
        shapes=[dict(profile._shapes) for profile in config._profiles] or [{}],
        values=[dict(profile._values) for profile in config._profiles] or [{}],
    )


def _faults(network: INetworkDefinition, config: IBuilderConfig) -> Iterator[str]:
    """What makes a build fail, each as the logger would say it."""
    model = network._model
    if model is None or not network.num_outputs:
        yield "the network has no outputs"
        return
    for name in sorted(network._facts.unfit):
        yield f"{name} is read as a shape: a shape tensor input must be INT32 or INT64 with 0 or 1 dimensions"
    yield from _profile_faults(network, config)
    yield from _cache_faults(network, model)
    for layer in network._layers:
        attention = layer._attention
        if layer.type is not LayerType.ATTENTION_INPUT or attention is None:
            continue
        if not attention._fused and not attention.decomposable:
            yield f"{layer.name}: attention is not supported by a dedicated kernel, and is not decomposable"


def _profile_faults(network: INetworkDefinition, config: IBuilderConfig) -> Iterator[str]:
    for tensor in network._inputs:
        sizes = tuple(tensor.shape)
        dynamic = -1 in sizes
        if (dynamic or tensor.is_shape_tensor) and not config._profiles:
            what = "network has dynamic or shape inputs, but no optimization profile has been defined"
            yield f"{what} ({tensor.name})"
            return
        for index, profile in enumerate(config._profiles):
            if tensor.is_shape_tensor:
                if tensor.name not in profile._values:
                    yield f"profile {index}: no values for the shape tensor {tensor.name}"
                continue
            if tensor.name in profile._values:
                yield f"profile {index}: values given for {tensor.name}, which is no shape tensor"
            three = profile._shapes.get(tensor.name)
            if three is None:
                if dynamic:
                    yield f"profile {index}: no shapes for the dynamic input {tensor.name}"
            elif any(len(shape) != len(sizes) for shape in three):
                yield f"profile {index}: {tensor.name} has rank {len(sizes)}, the profile {three[0]}"
            elif any(
                have not in (-1, size) for shape in three for have, size in zip(sizes, shape, strict=True)
            ):
                yield f"profile {index}: {tensor.name} is {sizes} in the network, {three} in the profile"


def _cache_faults(network: INetworkDefinition, model: onnx.ModelProto) -> Iterator[str]:
    """The cache of an update is a network input with a fixed number of slots, its output a network output."""
    inputs = {tensor.name: tensor for tensor in network._inputs}
    outputs = {tensor.name for tensor in network._outputs}
    for out, cache in network._facts.aliases.items():
        if cache not in inputs:
            yield f"KVCacheUpdate: the cache {cache} must be a network input"
        elif tuple(inputs[cache].shape)[2] == -1:
            yield f"KVCacheUpdate: the sequence length of {cache} must be static"
        if out not in outputs:
            yield f"KVCacheUpdate: {out} must be a network output"


def _time_layers(network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    """Fill the timing cache; the reason for which a strict build stops, or None."""
    assert network._model is not None
    keys = {
        hashlib.sha256(f"{node.op_type}{list(node.attribute)}".encode()).hexdigest()[:16]
        for node in network._model.graph.node
    }
    cache = config._cache
    if config.get_flag(BuilderFlag.ERROR_ON_TIMING_CACHE_MISS) and (
        cache is None or not keys <= cache._entries
    ):
        return "a layer is missing from the timing cache"
    if cache is not None and not config.get_flag(BuilderFlag.DISABLE_TIMING_CACHE):
        cache._entries |= keys
    return None


def _report(monitor: IProgressMonitor | None, layers: int) -> str | None:
    """Tell the monitor of two phases, the inner one from another thread; None, or why the build stopped."""
    if monitor is None:
        return None
    steps, going = max(1, min(layers, 8)), [True]

    def tactics() -> None:
        monitor.phase_start("Tactic selection", "Building engine", steps)
        for step in range(steps):
            if not monitor.step_complete("Tactic selection", step):
                going[0] = False
                break
        monitor.phase_finish("Tactic selection")

    monitor.phase_start("Building engine", None, 2)
    worker = threading.Thread(target=tactics)
    worker.start()
    worker.join()
    for step in range(2):
        going[0] = going[0] and bool(monitor.step_complete("Building engine", step))
    monitor.phase_finish("Building engine")
    return None if going[0] else "the build was cancelled by the progress monitor"
