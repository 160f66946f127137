"""The machine that engines are built on: TensorRT's version, the GPU and its driver."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.runtime.cuda.device import Device
from foveate.runtime.engines import Machine
from foveate.runtime.tensorrt.library import open_library


@dataclass(frozen=True)
class Here:
    """What engines will be tied to, and the bytes of the GPU's memory."""

    machine: Machine
    memory: int

    @property
    def tensorrt_major(self) -> int:
        """11 of "11.4.0"."""
        return int(self.machine.tensorrt.partition(".")[0])


def look_around() -> Here:
    """This machine.

    Raises:
        MissingDependencyError: TensorRT or cuda-bindings is not installed; with the line that installs it.
        BackendError: there is no GPU or no driver, or TensorRT is too old.
    """
    library = open_library()
    device = Device()
    driver = device.driver_version
    machine = Machine(
        tensorrt=library.version,
        compute_capability=".".join(map(str, device.compute_capability)),
        gpu=device.name,
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
    )
    return Here(machine, device.total_bytes)
