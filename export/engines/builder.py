"""One graph to one plan: all that is said to TensorRT's builder, by way of polygraphy's loaders.

Nothing here decides anything, for only a machine with TensorRT can run it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from foveate.export.engines.progress import Phases, make_monitor
from foveate.runtime.engines import BuildOptions, ProfileRecord
from foveate.runtime.errors import ExportError

_HARDWARE: Final = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
_LONGEST: Final = 900  # characters of TensorRT's reasons in an error
# What TensorRT says of a failure, and what a user can do about it; the first that is found counts.
_MENDS: Final = (
    ("could not parse", "see foveate check BUNDLE --target tensorrt, which names rule and mend"),
    ("dedicated kernel", "build without --fused-only, or with --attention portable"),
    ("memory", "close other programs on the GPU, or build with a smaller --profile or --workspace"),
    ("could not find any implementation", "give more --workspace, or a smaller --profile"),
)


@dataclass
class Order:
    """What to build.

    Attributes:
        graph: the flavoured file, its weights beside it.
        timings: what earlier builds measured; None or unreadable: nothing.
        timings_out: where to write that, and what this build measured.
        warnings: filled while building.
    """

    stage: str
    graph: Path
    profiles: Sequence[ProfileRecord]
    options: BuildOptions
    timings: Path
    timings_out: Path
    warnings: list[str] = field(default_factory=list)


def build_plan(order: Order, phases: Phases) -> Any:
    """The plan, an object with the buffer protocol.

    Raises:
        ExportError: the parser or the builder refused, with its node and its reason.
        KeyboardInterrupt: `phases` was stopped.
    """
    from polygraphy.backend.trt import (
        EngineBytesFromNetwork,
        NetworkFromOnnxPath,
        SetDecomposableAttentions,
    )
    from polygraphy.exception import PolygraphyException

    network = NetworkFromOnnxPath(str(order.graph), strongly_typed=True)
    if order.options.attention == "portable" and not order.options.fused_only:
        network = SetDecomposableAttentions(network)
    with _listening() as said:
        try:
            config = _config(order, phases)
            plan = EngineBytesFromNetwork(network, config, save_timing_cache=str(order.timings_out))()
        except PolygraphyException as error:
            if phases.stopped:
                raise KeyboardInterrupt from error
            raise _refused(order, str(error), said.errors) from error
        finally:
            order.warnings += said.warnings
    return plan


def _config(order: Order, phases: Phases) -> Any:
    """A callable `(builder, network)` that gives the builder's configuration."""
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig
    from polygraphy.backend.trt import Profile as Shapes

    options, shapes = order.options, []
    for record in order.profiles:
        each = Shapes()
        for name, bounds in record.inputs.items():
            each.add(name, bounds.min, bounds.opt, bounds.max)
        shapes.append(each)
    limits = None if options.workspace is None else {trt.MemoryPoolType.WORKSPACE: options.workspace}
    hardware = _HARDWARE.get(options.hardware)
    create = CreateConfig(
        profiles=shapes,
        tf32=options.tf32,
        memory_pool_limits=limits,
        builder_optimization_level=options.level,
        hardware_compatibility_level=hardware and getattr(trt.HardwareCompatibilityLevel, hardware),
        version_compatible=options.version_compatible,
        weight_streaming=options.weight_streaming,
        refittable=options.refit,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        progress_monitor=make_monitor(trt, phases),
        max_aux_streams=0,  # the runtime has one stream
    )

    def make(builder: Any, network: Any) -> Any:
        config = create(builder, network)
        if config.num_optimization_profiles != len(shapes):
            took = f"{config.num_optimization_profiles} of {len(shapes)}"
            raise ExportError(f"TensorRT took {took} profiles of stage '{order.stage}'")
        _remember(config, order)
        return config

    return make


def _remember(config: Any, order: Order) -> None:
    """Gives the builder what earlier builds measured; what it cannot use is a warning."""
    if not order.timings.is_file():
        return
    data = order.timings.read_bytes()
    # Of nothing at all it would make an empty cache without a word.
    cache = config.create_timing_cache(data) if data else None
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # Polygraphy has set an empty one, which stays.
        order.warnings.append(f"{order.timings.name} is of another machine or damaged, and starts anew")


def _refused(order: Order, message: str, errors: Sequence[str]) -> ExportError:
    reasons = [line for line in dict.fromkeys(errors) if line != message]
    found = "; ".join(reasons)[:_LONGEST] or message
    said = f"{message} {found}".lower()
    mend = next((mend for word, mend in _MENDS if word in said), "")
    return ExportError(f"TensorRT did not build stage '{order.stage}'", found=found, mend=mend)


class _Said(logging.Handler):
    """Keeps what polygraphy and TensorRT say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split()).removeprefix("[E] ").removeprefix("[W] ")
        (self.errors if record.levelno >= logging.ERROR else self.warnings).append(text.removeprefix("[!] "))


@contextmanager
def _listening() -> Iterator[_Said]:
    """Polygraphy's messages, TensorRT's among them, are kept instead of printed."""
    from polygraphy.logger import G_LOGGER

    said, before = _Said(), (G_LOGGER.use_python_logging_system, G_LOGGER.colors)
    # With colours it would say on stdout that a package for them is missing.
    G_LOGGER.use_python_logging_system, G_LOGGER.colors = True, False
    logger = G_LOGGER.python_logger
    passed_on, logger.propagate = logger.propagate, False
    logger.addHandler(said)
    try:
        with G_LOGGER.verbosity(G_LOGGER.WARNING):
            yield said
    finally:
        logger.removeHandler(said)
        logger.propagate = passed_on
        G_LOGGER.use_python_logging_system, G_LOGGER.colors = before
