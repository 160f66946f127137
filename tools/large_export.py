"""Exports a full-size model from its configuration alone, with generated weights; reports time and memory.

    python -m foveate.tools.large_export llava-1.5-7b

The weights are noise, written shard by shard, so that neither a download nor the model's size in memory is
needed; the plan is the family's default. What is measured is the exporter: wall and processor time, peak
resident memory of its process, bytes on disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foveate.runtime.errors import ExportError, UsageError
from foveate.tools.large_shapes import SHAPES

SHARD_BYTES: Final = 1_000_000_000
_NOISE: Final = 1 << 24
_CHILD: Final = """
import json, resource, sys, time
from pathlib import Path
from foveate.export import export_model
start = time.perf_counter()
export_model(Path(sys.argv[1]), Path(sys.argv[2]))
seconds = round(time.perf_counter() - start, 1)
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = round(used.ru_utime + used.ru_stime, 1)
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": used.ru_maxrss * 1024}))
"""


def write_checkpoint(config: Mapping[str, Any], folder: Path) -> int:
    """Writes a float16 checkpoint of `config` with noise for weights; returns the bytes written.

    Raises:
        ExportError: the disk has no room for the checkpoint and the float32 bundle made of it.
    """
    from foveate.export.blocks.text_models import tied_weights
    from foveate.export.families import find_family
    from foveate.export.pipeline import computed_weights, plan_stages
    from foveate.export.targets import find_target
    from foveate.export.trace import read_parameters
    from foveate.export.weights import merge_parameters
    from foveate.pruning.plan import parse_plan

    _, family = find_family(config)
    parsed = family.Config.read(config)
    plan = parse_plan(family.FACTS.default_plan)
    stages = plan_stages(family, parsed, plan, find_target("onnxruntime"))["fused"]
    parameters = merge_parameters(read_parameters(stage) for stage in stages)
    for name in (*computed_weights(family, parsed), *tied_weights(parsed.text)):
        parameters.pop(name, None)
    shapes = {p.source or name: p.source_shape for name, p in parameters.items()}
    needed = sum(int(np.prod(shape)) for shape in shapes.values()) * (2 + 4)
    free = shutil.disk_usage(folder.parent).free
    if free < needed * 1.05:
        raise ExportError(
            "not enough room on the disk",
            found=f"{free / 1e9:.0f} GB free",
            wanted=f"{needed / 1e9:.0f} GB: a float16 checkpoint and a float32 bundle",
            mend="give a roomier folder with --folder",
        )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    _write_processor(folder, parsed.image_token_id)
    return _write_shards(shapes, folder)


def _write_processor(folder: Path, image_token_id: int) -> None:
    """As much of a processor as the exporter looks at: nobody talks to noise."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<image>": image_token_id}, unk_token="<image>")).save(
        str(folder / "tokenizer.json")
    )
    (folder / "preprocessor_config.json").write_text("{}")


def _write_shards(shapes: Mapping[str, tuple[int, ...]], folder: Path) -> int:
    from safetensors.numpy import save_file

    noise = np.random.default_rng(0).standard_normal(_NOISE, dtype=np.float32).astype(np.float16)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(_shards(shapes), start=1):
        shard = f"model-{number:05d}.safetensors"
        tensors = {name: _noise(noise, shapes[name]) for name in names}
        save_file(tensors, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
        total += sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        names.append(name)
        size += 2 * int(np.prod(shape))
        if size >= SHARD_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def _noise(block: NDArray[np.float16], shape: tuple[int, ...]) -> NDArray[np.float16]:
    """A tensor of repeated noise, scaled so that activations neither vanish nor explode."""
    scale = np.float16(float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 1.0)
    return np.resize(block, shape) * scale


def measure(shape: str, folder: Path) -> dict[str, Any]:
    """Returns seconds, peak memory and sizes (bytes) of one export, run in a process of its own."""
    if shape not in SHAPES:
        raise UsageError("unknown shape", found=shape, wanted=f"one of {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory(prefix="large-export-", dir=folder) as name:
        checkpoint, bundle = Path(name) / "checkpoint", Path(name) / "bundle"
        start = time.perf_counter()
        checkpoint_bytes = write_checkpoint(SHAPES[shape], checkpoint)
        generated = time.perf_counter() - start
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(checkpoint), str(bundle)],
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            raise ExportError("the export failed", found=child.stderr.strip()[-800:])
        sizes = {p.name: p.stat().st_size for p in sorted((bundle / "onnx").iterdir())}
        return {
            "shape": shape,
            "generate_seconds": round(generated, 1),
            "checkpoint_bytes": checkpoint_bytes,
            **json.loads(child.stdout.splitlines()[-1]),
            "bundle_bytes": sum(sizes.values()),
            "files": sizes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room"
    )
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.shape, arguments.folder), indent=2))


if __name__ == "__main__":
    main()
