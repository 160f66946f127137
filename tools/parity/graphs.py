"""Running a bundle's graphs directly, with their inside in view.

The ladder does not go through the runtime where it looks for a fault: it feeds a stage itself, and makes the
outputs of its layers graph outputs. The exporter names those values `layer_{i}.hidden` and
`vision.layer_{i}.hidden`; the projections of encoders like CLIP, which pruning methods read as they are, are
found by their weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]

_LAYER = re.compile(r"^(vision\.)?layer_(\d+)\.hidden$")
_PROJECTION = re.compile(r"^vision\..*\blayers\.(\d+)\.self_attn\.([qk])_proj\.(weight|bias)$")


class Graph:
    """One ONNX file in an ONNX Runtime CPU session. With `probe`, the layers' outputs come out as well.

    `layers` maps a layer's number to the name of its output value. Probing stops the optimiser from merging
    nodes across layers, so outputs are judged on the graph as it is, and the probed one only says where a
    fault lies.
    """

    def __init__(self, path: Path, *, probe: bool = False, threads: int = 1) -> None:
        """Load a graph whose weights lie next to it. Raises ONNX Runtime's errors."""
        model = onnx.load(str(path), load_external_data=False)
        self.layers = layer_values(model)
        self.projections = projection_values(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        source: bytes | str = str(path)
        if probe:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
            )
            inside = [*self.layers.values(), *self.projections.values()]
            source = with_outputs(model, inside).SerializeToString()
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs = {item.name: item for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name. Feeds that the graph does not take are left out."""
        wanted = {name: value for name, value in feeds.items() if name in self.inputs}
        values = self._session.run(self.outputs, wanted)
        return dict(zip(self.outputs, values, strict=True))


def layer_values(model: onnx.ModelProto) -> dict[int, str]:
    """Layer number -> name of the value that holds its output, in ascending order."""
    names = [name for node in model.graph.node for name in node.output]
    found = {int(match[2]): name for name in names if (match := _LAYER.match(name))}
    return dict(sorted(found.items()))


def projection_values(model: onnx.ModelProto) -> dict[tuple[int, str], str]:
    """(encoder layer, "query" or "key") -> name of the value that holds that projection, bias included."""
    found: dict[tuple[int, str], str] = {}
    for node in model.graph.node:  # in the order of the computation, so the bias comes after the product
        for match in filter(None, map(_PROJECTION.match, node.input)):
            found[int(match[1]), {"q": "query", "k": "key"}[match[2]]] = node.output[0]
    return dict(sorted(found.items()))


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with these float values added to its outputs."""
    present = {item.name for item in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model
