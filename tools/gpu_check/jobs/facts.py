"""What the machine is: the doctor's words, the GPU's facts, its ceilings."""

from __future__ import annotations

import json
from typing import Any

from foveate.tools.bench import device, device_ceilings
from foveate.tools.gpu_check.jobs.command import foveate
from foveate.tools.gpu_check.records import Job

CEILINGS = "ceilings.json"


def doctor(job: Job) -> dict[str, Any]:
    """`foveate doctor`: which extras are complete."""
    found = foveate(job, "doctor")
    incomplete = [each["name"] for each in found["extras"] if not each["complete"]]
    return {
        "ready": found["ready"],
        "onnxruntime": found["onnxruntime"]["version"],
        "providers": ", ".join(found["onnxruntime"]["providers"]),
        "incomplete extras": ", ".join(incomplete) or "none",
    }


def memory(job: Job) -> dict[str, Any]:
    """Our own layer on CUDA: memory there and back, a stream, a view, a captured copy replayed."""
    import numpy as np

    from foveate.runtime.cuda.device import Device

    gpu = Device(0)
    sent = np.random.default_rng(0).standard_normal((64, 257), np.float32)
    one, two = gpu.upload(sent), gpu.allocate(sent.shape, "float32")
    two[...] = 0
    two[:, 1:100] = one[:, 1:100]
    (back,) = gpu.download(two)
    wanted = np.zeros_like(sent)
    wanted[:, 1:100] = sent[:, 1:100]
    _require_equal(back, wanted, "a strided copy on the device")
    with gpu.stream.capture() as captured:
        two[...] = one
    graph = captured.taken()
    gpu.write(one, sent + 1)
    graph.launch()
    (back,) = gpu.download(two)
    graph.close()
    _require_equal(back, sent + 1, "a captured copy, replayed on new values")
    found = device.gpus()[0]
    return {
        "name": found.name,
        "driver": found.driver,
        "compute capability": found.compute_capability,
        "free GiB": gpu.free_bytes / 2**30,
        "total GiB": gpu.total_bytes / 2**30,
    }


def ceilings(job: Job) -> dict[str, Any]:
    """TFLOP/s of products and TB/s of reading, kept for the rows that set figures beside them."""
    measured = device_ceilings.measure(lambda done, total: job.say(f"{done} of {total}"))
    (job.work / CEILINGS).write_text(measured.model_dump_json(), encoding="utf-8")
    return {
        **{f"{kind} TFLOP/s": value / 1e3 for kind, value in measured.gflops.items()},
        **{f"{name} TB/s": value / 1e3 for name, value in measured.gbytes.items()},
    }


def kept_ceilings(job: Job) -> dict[str, Any]:
    """What `ceilings` found; empty where that row has not run."""
    path = job.work / CEILINGS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _require_equal(found: Any, wanted: Any, what: str) -> None:
    import numpy as np

    if not np.array_equal(found, wanted):
        raise AssertionError(f"{what}: {int((found != wanted).sum())} of {wanted.size} values are wrong")
