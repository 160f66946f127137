"""What an encoder's attention costs per target: `python tests/export/attention_cost.py [--patches 4096]`.

One layer's attention of 16 heads of width 80 over random numbers, exported for each target and run by ONNX
Runtime on one thread, each in a process of its own. Prints processor seconds and what the run added to the
peak of resident memory, the median of three runs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

HEADS, HEAD_WIDTH, ROUNDS = 16, 80, 3


def run(target_name: str, patches: int) -> None:
    """Prints seconds and megabytes of one run."""
    import numpy as np
    import onnx_ir as ir
    import onnxruntime
    from torch import Tensor

    from foveate.export.blocks.attention_ops import full_attention
    from foveate.export.stage import Stage, StageModule, TensorSpec
    from foveate.export.targets import find_target
    from foveate.export.trace import trace_stage

    shape = ("batch", "patches", HEADS * HEAD_WIDTH)
    inputs = tuple(TensorSpec(name, "float32", shape) for name in ("query", "key", "value"))
    outputs = (TensorSpec("mixed", "float32", shape),)

    class Attention(StageModule):
        def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"mixed": full_attention(feeds["query"], feeds["key"], feeds["value"], HEADS)}

    stage = Stage("attention", inputs, outputs, lambda: Attention(inputs, outputs))
    model = trace_stage(stage, find_target(target_name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    draw = np.random.default_rng(0).standard_normal
    feeds = {spec.name: draw((1, patches, HEADS * HEAD_WIDTH), dtype=np.float32) for spec in inputs}
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    session.run(None, feeds)
    seconds = time.process_time() - start
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--patches", type=int, default=4096)
    parser.add_argument("--target", help="run this one here and now; without it, all are run and compared")
    given = parser.parse_args()
    if given.target:
        run(given.target, given.patches)
        return
    from foveate.export.targets import list_targets

    for target in list_targets():
        command = [sys.executable, __file__, "--patches", str(given.patches), "--target", target]
        done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(ROUNDS)]
        figures = [tuple(map(float, one.stdout.splitlines()[-1].split())) for one in done]
        seconds, memory = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{target}: {seconds:.2f} s, {memory:.0f} MB more at the peak ({given.patches} patches)")


if __name__ == "__main__":
    main()
