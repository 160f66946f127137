"""Items of several tiles: the exported graphs choose what the torch modules and the oracles choose.

Tiles of unequal size, tokens that are means of patches, newline tokens, candidates that were cut away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from foveate.tools.parity import choose

Arrays = dict[str, np.ndarray]

KINDS = ["random", "ties", "equal", "zero", "sharp", "ratio", "tokens", "keep all", "tile numbers"]
# Two patches are one token here, and the mean of two probabilities is 1/2, up to noise: p = 2 says nothing.
SIZES = [(1, 4), (1, 16), (2, 4), (2, 8), (3, 4), (5, 6), (9, 4)]


def tiled_inputs(draw: np.random.Generator, t: int, p: int, kind: str) -> Arrays:
    c, m = 8, p // 2
    values = {
        "patches": draw.normal(size=(t, p, c)),
        "cls": draw.normal(size=(t, c)),
        "query": draw.normal(size=(2, t, p + 1, c)) * draw.choice([0.3, 1.0, 3.0]),
        "key": draw.normal(size=(2, t, p + 1, c)),
        "pooled": draw.dirichlet(np.full(p, 0.5), size=t),
        "prompt": draw.normal(size=(1, c)),
    }
    if kind == "ties":  # few distinct tokens, both patches of a token alike, bit for bit
        pick = np.repeat(draw.integers(0, min(3, p), m), 2)
        values["patches"], values["pooled"] = values["patches"][:, pick], values["pooled"][:, pick]
        values["key"] = np.concatenate([values["key"][:, :, :1], values["key"][:, :, 1 + pick]], axis=2)
        # Eighths have exact products: no matrix product may part equals by the order of its sums.
        values |= {name: np.round(values[name] * 8) / 8 for name in ("query", "key")}
    if kind == "equal":
        values = {
            name: np.broadcast_to(value[:, :1, :1] if value.ndim > 2 else value[:1, :1], value.shape)
            for name, value in values.items()
        }
    if kind == "zero":
        values = {name: np.zeros_like(value) for name, value in values.items()}
    if kind == "sharp":
        values["query"] = values["query"] * 10
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}
    # Unpadding: some tokens of each tile are no candidates, and some tiles have one only.
    chosen = [
        row * (m + 1) + place
        for row in range(t)
        for place in sorted(draw.permutation(m + 1)[: draw.integers(1, m + 2)])
    ]
    arrays["pick"] = np.array(chosen, np.int64)
    n = len(chosen)
    tile = arrays["pick"] // (m + 1)
    if kind == "tile numbers":  # any numbers below n, in any order
        tile = draw.integers(0, n, n)
    arrays["tile"] = tile[None]
    ratio, tokens = np.zeros(1, np.float32), np.zeros(1, np.int64)
    if kind in ("ratio", "equal", "tile numbers"):
        ratio[0] = draw.choice([0.001, 0.2, 0.5, 0.7, 1.0])
    if kind == "tokens":
        tokens[0] = draw.integers(1, n + 2)
    if kind == "keep all":
        ratio[0] = 1
    return {**arrays, "keep_ratio": ratio, "keep_tokens": tokens}


def facts_of(inputs: Arrays, has_cls: bool) -> choose.EncoderFacts:
    """The same evidence for the oracle, with the pooling in loops."""
    patches, pick = inputs["patches"], inputs["pick"].tolist()
    p, first = patches.shape[1], 0 if has_cls else 1

    def pool(score: np.ndarray) -> list[float]:
        tokens = [[(row[i] + row[i + 1]) / 2 for i in range(0, p, 2)] for row in score.tolist()]
        flat = [value for row in tokens for value in [*row, max(row)]]
        return [flat[i] for i in pick]

    rows = [row for tile in patches for row in [*tile[::2], tile[-1]]]
    return choose.EncoderFacts(
        patches=patches,
        cls=inputs["cls"] if has_cls else None,
        query={i: inputs["query"][i, :, first:] for i in range(2)},
        key={i: inputs["key"][i, :, first:] for i in range(2)},
        num_heads=2,
        num_layers=2,
        feature_layer=2,
        global_layers=(0,),
        pool=pool,
        tile=inputs["tile"][0],
        pooled=inputs["pooled"],
        projected=np.array([rows[i] for i in pick]),
        prompt=inputs["prompt"][0],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tiled_items(tiled: Any, kind: str) -> None:
    draw = np.random.default_rng(KINDS.index(kind))
    for t, p in SIZES * 2:
        inputs = tiled_inputs(draw, t, p, kind)
        outputs = tiled.run(*inputs.values())
        n = len(inputs["pick"])
        facts = facts_of(inputs, tiled.module.has_cls)
        budget = choose.Budget(float(inputs["keep_ratio"][0]), int(inputs["keep_tokens"][0]))
        options: dict[str, Any]
        for number, options in enumerate(tiled.module.options):
            saliency = options["score"] in ("received", "pooled", "prompt")
            wanted = choose.choose_encoder(
                "saliency-knee" if saliency else "cls-knee", options, facts, budget
            )
            (order,), (count,), (score,) = outputs[3 * number : 3 * number + 3]
            assert tuple(order[:count]) == wanted.kept, (options, t, p)
            assert sorted(order) == list(range(n))
            assert (np.diff(order[count:]) > 0).all()
            assert score.shape == (n,)


def test_tiles_keep_their_shares(tiled: Any) -> None:
    """With a budget and `spread=tile`, no tile is more than one candidate away from its share."""
    draw = np.random.default_rng(5)
    for t, p in ((4, 16), (9, 6), (2, 30)):
        inputs = tiled_inputs(draw, t, p, "random")
        inputs["keep_ratio"][:] = 0.5
        outputs = tiled.run(*inputs.values())
        tile = inputs["tile"][0]
        for number, options in enumerate(tiled.module.options):
            if options.get("spread") != "tile":
                continue
            (order,), (count,), _ = outputs[3 * number : 3 * number + 3]
            kept = np.bincount(tile[order[:count]], minlength=t)
            assert np.abs(kept - np.bincount(tile, minlength=t) * count / len(tile)).max() <= 1


def test_only_what_every_backend_has(tiled: Any) -> None:
    ops = {node.op_type for node in tiled.proto.graph.node}
    assert not ops & {"CumSum", "ScatterElements", "ScatterND", "NonZero", "Unique", "Loop", "Scan", "If"}
    assert all(node.domain == "" for node in tiled.proto.graph.node)
    inferred = onnx.shape_inference.infer_shapes(tiled.proto, strict_mode=True).graph
    types = {each.name: each.type.tensor_type.elem_type for each in [*inferred.value_info, *inferred.input]}
    for node in tiled.proto.graph.node:
        if node.op_type == "Floor":  # shares of tiles are divided as whole numbers, not rounded floats
            assert types[node.input[0]] == onnx.TensorProto.FLOAT
    for node in tiled.proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                assert not np.isin(onnx.numpy_helper.to_array(attribute.t), (23, 14)).any()
