"""What nobody has seen TensorRT do yet, in order: six questions, each with an oracle that is not TensorRT.

The graphs are `first_graphs`'. They are parsed and built through polygraphy, as `foveate build` does, and run
through TensorRT's own calls; the oracle is the portable graph in float32 on ONNX Runtime's CPU provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from foveate.runtime.arrays import Array
from foveate.runtime.errors import BackendError
from foveate.tools.gpu_check.jobs import first_graphs as graphs
from foveate.tools.gpu_check.jobs.trt_session import Bounds, Session, build
from foveate.tools.gpu_check.records import Job

COSINE: Final = 0.999
"""Of half precision with the oracle's float32: the ladder's gate."""
BATCH, LONGEST = 2, 8
_NEVER: Final = -65504.0


class WrongError(AssertionError):
    """TensorRT took the graph and gave other numbers."""


def scatter(job: Job, decomposable: bool) -> dict[str, Any]:
    """TensorScatter and Attention with a mask, attention decomposable or not."""
    plan = build(graphs.decode("portable"), _decode_profile("portable", 1), decomposable=decomposable)
    return _decoded(Session(plan), "portable", 1, (4, 1, 1))


def native(job: Job) -> dict[str, Any]:
    """TRT_KVCacheUpdate and TRT_Attention with lengths, lower right."""
    plan = build(graphs.decode("native"), _decode_profile("native", 1))
    return _decoded(Session(plan), "native", 1, (4, 1, 1))


def nonzero(job: Job) -> dict[str, Any]:
    """A length that only the data tells, taken by an output allocator; no row at all, too."""
    model = graphs.nonzero_tail()
    session = Session(build(model, {"rows": _rows(), "score": ((1,), (24,), (64,))}))
    rng, counts = np.random.default_rng(0), []
    for limit in (0.0, 0.4, -9.0):
        feeds = {
            "rows": _normal(rng, 24),
            "score": rng.uniform(0, 1, 24).astype(np.float32) + np.float32(limit),
        }
        found = session.run(feeds)["kept"]
        _require_equal(found, _oracle(model, feeds)["kept"], f"scores + {limit}")
        counts.append(len(found))
    return {"rows kept": ", ".join(map(str, counts))}


def top_k(job: Job) -> dict[str, Any]:
    """K from a shape: equal rows, and whether a CUDA graph of it can be captured."""
    model = graphs.half_top_k()
    session = Session(build(model, {"rows": _rows(), "score": ((2,), (24,), (64,))}))
    rng = np.random.default_rng(1)
    for count in (24, 7):
        feeds = {"rows": _normal(rng, count), "score": rng.standard_normal(count, np.float32)}
        _require_equal(session.run(feeds)["kept"], _oracle(model, feeds)["kept"], f"{count} rows")
    feeds = {**feeds, "score": rng.standard_normal(7, np.float32)}
    try:
        graph = session.capture()
    except BackendError as error:
        return {"captured": False, "remark": f"its capture is refused: {str(error)[:200]}"}
    session.write(feeds)
    graph.launch()
    _require_equal(session.outputs()["kept"], _oracle(model, feeds)["kept"], "the captured graph")
    graph.close()
    return {"captured": True}


def carrier(job: Job) -> dict[str, Any]:
    """Two segments in one engine; the second one's length is that of an input."""
    model = graphs.carried_segments()
    session = Session(build(model, {"x": _rows(), "carrier": ((1,), (8,), (32,))}))
    rng, worst = np.random.default_rng(2), 0.0
    for count in (3, 17):
        feeds = {"x": _normal(rng, 40), "carrier": np.zeros(count, np.int32)}
        found, wanted = session.run(feeds)["y"], _oracle(model, feeds)["y"]
        if found.shape != wanted.shape:
            raise WrongError(f"{count} rows were asked for: {found.shape} instead of {wanted.shape}")
        worst = max(worst, float(np.abs(found - wanted).max()))
    if worst > 1e-3:
        raise WrongError(f"the largest difference is {worst:.2e}")
    return {"largest difference": worst}


def capture(job: Job) -> dict[str, Any]:
    """A decoding step of two groups of layers with lengths of their own, captured once and replayed."""
    plan = build(graphs.decode("native", groups=2), _decode_profile("native", 2))
    return _decoded(Session(plan), "native", 2, (1, 1, 1, 1), captured=True)


# --- decoding -------------------------------------------------------------------------------------------


def _decoded(
    session: Session, form: str, groups: int, steps: tuple[int, ...], *, captured: bool = False
) -> dict[str, Any]:
    """Steps of so many rows each, every one beside the oracle's; all but the first by a captured graph."""
    model, closest, graph = graphs.decode("portable", groups=groups, kind="FLOAT"), 1.0, None
    caches = _caches()
    wanted = {name: value.astype(np.float32) for name, value in caches.items()}
    for number, (feeds, asked) in enumerate(_steps(form, groups, steps)):
        if number == 0:
            found = session.run({**feeds, **caches})
        elif captured:
            graph = graph or session.capture()
            session.write(feeds)
            graph.launch()
            found = session.outputs()
        else:
            found = session.run(feeds)  # the caches lie in the session
        expected = _oracle(model, {**asked, **wanted})
        wanted = {name.removesuffix("_out"): each for name, each in expected.items() if name != "y"}
        for name, value in expected.items():
            closest = min(closest, _cosine(found[name], value, f"step {number}, {name}"))
    if graph is not None:
        graph.close()
    return {"steps": len(steps), "lowest cosine": closest, "captured": captured}


def _steps(
    form: str, groups: int, steps: tuple[int, ...]
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Feeds of the session and of the oracle; group 1's caches are shorter, as behind a cut."""
    rng = np.random.default_rng(5)
    starts = [np.array([5, 3]), np.array([2, 1])][:groups]
    for rows in steps:
        x = rng.standard_normal((BATCH, rows, graphs.HIDDEN)).astype(np.float16)
        feeds: dict[str, Array] = {"x": x}
        asked: dict[str, Array] = {"x": x.astype(np.float32)}
        for group, start in enumerate(starts):
            mask = _mask(start, rows)
            asked |= {f"write_index_{group}": start.astype(np.int64), f"mask_{group}": mask}
            if form == "portable":
                feeds |= {
                    f"write_index_{group}": start.astype(np.int64),
                    f"mask_{group}": mask.astype(np.float16),
                }
            else:
                feeds[f"write_index_{group}"] = start.astype(np.int32)
                feeds[f"key_length_{group}"] = (start + rows).astype(np.int32)
            starts[group] = start + rows
        yield feeds, asked


def _mask(start: Array, rows: int) -> Array:
    """Row `i` of a call that begins at slot `start` sees the slots up to `start + i`: 0, else never."""
    last = start[:, None, None, None] + np.arange(rows)[None, None, :, None]
    return np.where(np.arange(graphs.SLOTS) <= last, 0.0, _NEVER).astype(np.float32)


def _caches() -> dict[str, Array]:
    """Caches with something in every slot, so that a slot that must not be seen shows if it is."""
    rng = np.random.default_rng(11)
    shape = (BATCH, graphs.GROUPS, graphs.SLOTS, graphs.WIDTH)
    names = [f"cache_{name}{layer}" for layer in range(2) for name in "kv"]
    return {name: rng.standard_normal(shape).astype(np.float16) for name in names}


def _decode_profile(form: str, groups: int) -> dict[str, Bounds]:
    batch: Bounds = ((1,), (BATCH,), (BATCH,))
    shape = (graphs.GROUPS, graphs.SLOTS, graphs.WIDTH)
    found: dict[str, Bounds] = {"x": _bounds((graphs.HIDDEN,))}
    for group in range(groups):
        found[f"write_index_{group}"] = batch
        if form == "native":
            found[f"key_length_{group}"] = batch
        else:
            masks = [(b, 1, s, graphs.SLOTS) for b, s in ((1, 1), (BATCH, 1), (BATCH, LONGEST))]
            found[f"mask_{group}"] = (masks[0], masks[1], masks[2])
    names = [f"cache_{name}{layer}" for layer in range(2) for name in "kv"]
    return {**found, **dict.fromkeys(names, ((1, *shape), (BATCH, *shape), (BATCH, *shape)))}


def _bounds(rest: tuple[int, ...]) -> Bounds:
    return ((1, 1, *rest), (BATCH, 1, *rest), (BATCH, LONGEST, *rest))


def _rows() -> Bounds:
    return ((2, graphs.HIDDEN), (24, graphs.HIDDEN), (64, graphs.HIDDEN))


# --- the oracle -----------------------------------------------------------------------------------------


def _oracle(model: bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph on ONNX Runtime's CPU provider."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def _normal(rng: np.random.Generator, rows: int) -> Array:
    drawn: Array = rng.standard_normal((rows, graphs.HIDDEN), np.float32)
    return drawn


def _cosine(found: Array, wanted: Array, what: str) -> float:
    one, two = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    if found.shape != wanted.shape or not np.isfinite(one).all():
        raise WrongError(
            f"{what}: {found.shape} for {wanted.shape}, {int((~np.isfinite(one)).sum())} not finite"
        )
    cosine = float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))
    if cosine < COSINE:
        raise WrongError(f"{what}: cosine {cosine:.5f} with the oracle, wanted {COSINE}")
    return cosine


def _require_equal(found: Array, wanted: Array, what: str) -> None:
    if found.shape != wanted.shape:
        raise WrongError(f"{what}: {found.shape[0]} rows instead of {wanted.shape[0]}")
    if not np.array_equal(found, wanted):
        raise WrongError(f"{what}: other rows than the oracle's")
