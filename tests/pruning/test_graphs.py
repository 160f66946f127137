"""The exported graphs choose exactly what the torch modules and the loop-written oracles choose.

Order and count are compared for equality, over random and adversarial inputs. Nothing is skipped for being a
near tie: the oracle's policy (see its module docstring) is the graphs' policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from foveate.tools.parity import counts, oracles

Arrays = dict[str, np.ndarray]

# What the methods may use of the operators that ONNX Runtime and TensorRT (onnx-tensorrt 11.1) both have.
ALLOWED_OPS = {
    *("Abs", "Add", "And", "Ceil", "Clip", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less"),
    *(
        "LessOrEqual",
        "LogSoftmax",
        "MatMul",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Softmax",
        "Sqrt",
        "Sub",
        "Where",
    ),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "TopK", "Gather", "GatherElements", "Range"),
    *("Cast", "CastLike", "Concat", "Constant", "Expand", "Identity", "Reshape", "Shape", "Slice", "Split"),
    *("Squeeze", "Transpose", "Unsqueeze"),
}
FLOAT_ONLY_OPS = {"Clip", "Floor", "Ceil", "Sqrt", "Softmax", "LogSoftmax", "MatMul"}


@pytest.mark.parametrize("name", ["knees", "encoder", "decoder"])
def test_graphs_use_only_what_every_backend_has(name: str, request: pytest.FixtureRequest) -> None:
    graph = request.getfixturevalue(name).proto.graph
    assert {node.op_type for node in graph.node} <= ALLOWED_OPS
    assert all(node.domain == "" for node in graph.node)
    inferred = onnx.shape_inference.infer_shapes(request.getfixturevalue(name).proto, strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.input]
    }
    for node in graph.node:
        if node.op_type in FLOAT_ONLY_OPS:
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.op_type
        if node.op_type == "Mod":
            assert not any(attribute.name == "fmod" and attribute.i for attribute in node.attribute)


def test_no_size_is_baked_in(encoder: Any, decoder: Any, knees: Any) -> None:
    for traced, size in ((encoder, 19), (decoder, 17), (knees, 21)):
        for node in traced.proto.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    assert size not in onnx.numpy_helper.to_array(attribute.t)


# Knees


def curves() -> Iterator[tuple[str, np.ndarray]]:
    """Falling curves, one row each time."""
    draw = np.random.default_rng(11)
    for m in (1, 2, 3, 4, 5, 8, 16, 33):
        yield "equal", np.full(m, 0.25)
        yield "zero", np.zeros(m)
        yield "straight", np.arange(m, 0, -1) / 10
        yield "step", np.where(np.arange(m) < (m + 1) // 2, 1.0, 0.0)
        yield "one above", np.where(np.arange(m) < 1, 1.0, 0.1)
        yield "one below", np.where(np.arange(m) < m - 1, 1.0, 0.1)
        yield "bulging", np.sqrt(np.arange(m, 0, -1))
        yield "hyperbola", 1 / (1 + np.arange(m))
        yield "halves", 0.5 ** np.arange(m)
        yield "negative", -(np.arange(m) ** 2.0)
        yield "nearly flat", 1.0 - 1e-7 * np.arange(m)
        for _ in range(6):
            yield "few levels", draw.integers(0, 4, m) / 10
            yield "whole numbers", draw.integers(0, 30, m).astype(float)
            yield "long tail", draw.lognormal(0, 1.0, m)
            yield "softmax", draw.dirichlet(np.full(m, 0.3)) if m > 1 else np.ones(1)
            yield "signed", draw.normal(size=m)


def test_knees(knees: Any, knee_options: dict[str, dict[str, object]]) -> None:
    draw = np.random.default_rng(3)
    rows = [(name, np.sort(curve.astype(np.float32))[::-1]) for name, curve in curves()]
    assert len(rows) > 300
    for start in range(0, len(rows), 8):  # batches of rows of unequal size
        batch = rows[start : start + 8]
        width = max(len(row) for _, row in batch) + int(draw.integers(0, 3))
        padded = np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for _, row in batch])
        size = np.array([len(row) for _, row in batch])
        count = draw.integers(1, width + 1, len(batch))
        index = draw.integers(-1, width, (len(batch), 4))
        *found, order, moved = knees.run(padded.astype(np.float32), size, count, index)
        for options, got in zip(knee_options.values(), found, strict=True):
            wanted = [counts.knee_count([float(x) for x in row], options) for _, row in batch]
            assert got.tolist() == wanted, (options, [name for name, _ in batch])
        for b in range(len(batch)):
            ranking = np.argsort(-padded[b], kind="stable").tolist()
            kept = sorted(ranking[: count[b]])
            assert order[b].tolist() == kept + sorted(ranking[count[b] :])
            assert moved[b].tolist() == [kept.index(i) if i in kept else -1 for i in index[b]]


# Encoder


def encoder_inputs(draw: np.random.Generator, b: int, n: int, kind: str) -> Arrays:
    c = 8
    values = {
        "features": draw.normal(size=(b, n, c)),
        "cls": draw.normal(size=(b, c)),
        "query": draw.normal(size=(2, b, n + 1, c)) * draw.choice([0.3, 1.0, 3.0]),
        "key": draw.normal(size=(2, b, n + 1, c)),
        "pooled": draw.dirichlet(np.full(n, 0.5), size=b),
        "prompt": draw.normal(size=(b, c)),
    }
    if kind == "ties":  # few distinct patches, bit for bit
        pick = draw.integers(0, min(3, n), n)
        values["features"], values["pooled"] = values["features"][:, pick], values["pooled"][:, pick]
        values["key"] = np.concatenate([values["key"][:, :, :1], values["key"][:, :, 1 + pick]], axis=2)
        # Eighths have exact products: no matrix product may part equals by the order of its sums.
        values |= {name: np.round(values[name] * 8) / 8 for name in ("query", "key")}
    if kind == "equal":
        values["features"] = np.repeat(values["features"][:, :1], n, axis=1)
        values["key"] = np.repeat(values["key"][:, :, :1], n + 1, axis=2)
    if kind == "zero":
        values = {name: np.zeros_like(value) for name, value in values.items()}
    if kind == "sharp":  # cls_full's probabilities underflow float32 (not float64), its logits still differ
        values["query"][0] = draw.normal(size=(b, n + 1, c)) * 40
    arrays = {name: value.astype(np.float32) for name, value in values.items()}
    return {**arrays, **budgets(draw, b, n, kind)}


def budgets(draw: np.random.Generator, b: int, n: int, kind: str) -> Arrays:
    ratio, tokens = np.zeros(b, np.float32), np.zeros(b, np.int64)
    if kind == "ratio":
        ratio = draw.choice([0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.5], b).astype(np.float32)
    if kind == "tokens":
        tokens, ratio = draw.integers(0, n + 3, b), draw.choice([0, 0.5], b).astype(np.float32)
    if kind == "keep all":
        ratio = np.ones(b, np.float32)
    return {"keep_ratio": ratio, "keep_tokens": tokens, "seed": draw.integers(0, 2**40, b)}


ENCODER_KINDS = ["random", "ties", "equal", "zero", "sharp", "ratio", "tokens", "keep all"]


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_encoder_methods(encoder: Any, encoder_options: dict[str, dict[str, object]], kind: str) -> None:
    draw = np.random.default_rng(ENCODER_KINDS.index(kind))
    for n in (1, 2, 3, 7, 16, 24, 40):
        for b in (1, 4):
            inputs = encoder_inputs(draw, b, n, kind)
            outputs = encoder.run(*inputs.values())
            scores = [[encoder_score(inputs, i, each) for i in range(b)] for each in encoder_options.values()]
            given = [each for each in outputs if each.dtype == np.float32]
            np.testing.assert_allclose(given, scores, rtol=2e-5, atol=1e-6)
            expected = [
                [oracles.encoder_order(row, each, **budget_of(inputs, i)) for i, row in enumerate(rows)]
                for rows, each in zip(scores, encoder_options.values(), strict=True)
            ]
            assert_choices(
                [each for each in outputs if each.dtype != np.float32],
                [*expected, [random_choice(inputs, i, range(n), (), n, 5) for i in range(b)]],
            )


def encoder_score(inputs: Arrays, i: int, options: dict[str, object]) -> list[float]:
    kind = str(options.get("score", "cls_full"))
    if kind == "received":
        return oracles.received_scores(inputs["query"][0, i], inputs["key"][0, i], 2, skip=1)
    if kind == "pooled":
        return [float(each) for each in inputs["pooled"][i]]
    if kind == "prompt":
        return oracles.prompt_scores(inputs["features"][i], inputs["prompt"][i])
    layers = {"cls_full": (0,), "cls_mean": (0, 1)}.get(kind, ())
    return oracles.encoder_scores(
        kind,
        features=inputs["features"][i],
        cls=inputs["cls"][i],
        query={layer: inputs["query"][layer, i] for layer in layers},
        key={layer: inputs["key"][layer, i] for layer in layers},
        num_heads=2,
    )


def random_choice(
    inputs: Arrays, i: int, candidates: Any, others: Any, size: int, baked: int
) -> oracles.Choice:
    seed = int(inputs["seed"][i])
    budget = budget_of(inputs, i)
    return oracles.random_order(list(candidates), list(others), size, {"seed": baked}, seed=seed, **budget)


def budget_of(inputs: Arrays, i: int) -> dict[str, Any]:
    return {"keep_ratio": float(inputs["keep_ratio"][i]), "keep_tokens": int(inputs["keep_tokens"][i])}


def assert_choices(outputs: list[np.ndarray], expected: list[list[oracles.Choice]]) -> None:
    """``outputs`` alternate order and count; ``expected`` is method by method, row by row."""
    assert len(outputs) == 2 * len(expected)
    for number, rows in enumerate(expected):
        order, count = outputs[2 * number], outputs[2 * number + 1]
        assert count.tolist() == [row.count for row in rows], f"method {number}"
        assert order.tolist() == [row.order for row in rows], f"method {number}"


# Decoder

HEAD_DIM, HEADS, GROUPS, SCALE = 4, 6, 2, 0.35


def prompt(draw: np.random.Generator, images: int, text: int, patches: int) -> tuple[list[int], list[int]]:
    """Roles and question rows of one prompt: BOS, (image, text) parts, a protected tail that also asks."""
    roles, rows = [0], []
    for part in range(max(images, 1)):
        if part < images:
            roles += [1] * int(draw.integers(1, patches + 1)) + [0]
        for _ in range(int(draw.integers(1, text + 1))):
            rows.append(len(roles))
            roles.append(2)
    rows.append(len(roles))
    return [*roles, 0], rows


def decoder_inputs(draw: np.random.Generator, b: int, kind: str) -> Arrays:
    images = {"text only": 0, "several images": 3}.get(kind, 1)
    prompts = [prompt(draw, images, 5, 12) for _ in range(b)]
    if kind == "mixed batch" and b > 1:
        prompts[0] = prompt(draw, 0, 5, 1)
        prompts[1] = prompt(draw, 2, 2, 3)
    if kind == "decode":
        prompts = [([0], []) for _ in range(b)]
    if kind == "blind question":  # an image that no question row can see, in every other sequence
        prompts[::2] = [
            ([*([0] * len(rows)), *roles], list(range(len(rows)))) for roles, rows in prompts[::2]
        ]
    length = np.array([len(roles) for roles, _ in prompts])
    s = int(length.max() + draw.integers(0, 4) * (kind != "decode"))
    t = max(1, max(len(rows) for _, rows in prompts) + int(draw.integers(0, 3)))
    shapes = {"query": HEADS, "key": GROUPS, "query_plain": HEADS, "key_plain": GROUPS}
    values = {name: draw.normal(size=(b, heads, s, HEAD_DIM)) for name, heads in shapes.items()}
    values["query"] *= draw.choice([0.3, 2.0, 6.0])
    if kind == "equal":  # attention is uniform: every visual token of a sequence ties
        values["query"], values["query_plain"] = (np.zeros((b, HEADS, s, HEAD_DIM)) for _ in range(2))
    # Junk beyond the length, to prove that it is never read.
    roles = np.stack([np.pad(roles, (0, s - len(roles)), constant_values=1) for roles, _ in prompts])
    rows = np.stack([np.pad(rows, (0, t - len(rows)), constant_values=-1) for _, rows in prompts])
    arrays = {name: value.astype(np.float32) for name, value in values.items()}
    arrays |= {"token_role": roles.astype(np.int64), "query_index": rows.astype(np.int64), "length": length}
    return {**arrays, **budgets(draw, b, 12, kind)}


DECODER_KINDS = [
    *("random", "several images", "mixed batch", "text only", "decode", "blind question"),
    *("ratio", "tokens", "keep all"),
]


@pytest.mark.parametrize("kind", DECODER_KINDS)
def test_decoder_methods(decoder: Any, decoder_options: dict[str, dict[str, object]], kind: str) -> None:
    draw = np.random.default_rng(100 + DECODER_KINDS.index(kind))
    for b in (1, 1, 2, 3, 5, 1, 2, 4):
        inputs = decoder_inputs(draw, b, kind)
        outputs = decoder.run(*inputs.values())
        expected = [
            [decoder_choice(inputs, i, options) for i in range(b)] for options in decoder_options.values()
        ]
        assert_choices(outputs, [*expected, [random_rows(inputs, i) for i in range(b)]])


def decoder_choice(inputs: Arrays, i: int, options: dict[str, object]) -> oracles.Choice:
    suffix = "_plain" if options.get("rope_free") else ""
    return oracles.decoder_order(
        inputs[f"query{suffix}"][i],
        inputs[f"key{suffix}"][i],
        inputs["token_role"][i].tolist(),
        inputs["query_index"][i].tolist(),
        int(inputs["length"][i]),
        SCALE,
        options,
        **budget_of(inputs, i),
    )


def random_rows(inputs: Arrays, i: int) -> oracles.Choice:
    roles = inputs["token_role"][i]
    valid = range(int(inputs["length"][i]))
    visual = [j for j in valid if roles[j] == 1]
    return random_choice(inputs, i, visual, [j for j in valid if roles[j] != 1], len(roles), 0)


def test_uniform_attention_keeps_the_lower_index(decoder: Any) -> None:
    """One question row and all-zero queries: scores tie exactly, in float32 too."""
    draw = np.random.default_rng(0)
    inputs = decoder_inputs(draw, 1, "equal")
    roles = np.array([[0, 1, 1, 1, 1, 1, 1, 0]])
    inputs |= {"token_role": roles, "query_index": np.array([[7]]), "length": np.array([8])}
    for name in ("query", "key", "query_plain", "key_plain"):
        inputs[name] = (
            inputs[name][:, :, :8]
            if inputs[name].shape[2] >= 8
            else np.zeros((1, inputs[name].shape[1], 8, HEAD_DIM), np.float32)
        )
    order, count, *_ = decoder.run(*inputs.values())
    assert count.tolist() == [5]
    assert order.tolist() == [[0, 1, 2, 3, 7, 4, 5, 6]]
