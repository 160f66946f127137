"""Where shapes come from, on graphs small enough to follow by hand."""

from __future__ import annotations

import onnx
import pytest
from graphs import graph

from foveate.export.check import GraphReport, check_graph

# K of TopK from arithmetic on shapes: a ratio of the length, at least one.
RATIO = """s = Shape <start = 1> (x)
f = Cast <to = 1> (s)
h = Mul (f, half)
i = Cast <to = 7> (h)
k = Max (i, one)
[top] v, j = TopK (x, k)
"""
CONSTANTS = "float half = {0.5}, int64 one = {1}, int64[1] flat = {-1}"


def starts(report: GraphReport) -> list[tuple[str, str, int]]:
    return [(sync.start, sync.node, sync.level) for sync in report.sync_points]


def test_arithmetic_on_shapes_is_free() -> None:
    report = check_graph(graph("float[b,n] x", RATIO, CONSTANTS))
    assert starts(report) == []
    assert report.segments == 1
    assert report.capturable


def test_a_count_of_the_device_is_waited_for() -> None:
    nodes = """g = Greater (x, half)
    i = Cast <to = 7> (g)
    [sum] c = ReduceSum <keepdims = 0> (i)
    k = Reshape (c, flat)
    [top] v, j = TopK (y, k)"""
    report = check_graph(graph("float[n] x, float[n] y", nodes, CONSTANTS))
    # Summing is what the host could do, but not over so many: the wait starts at the sum.
    assert starts(report) == [("sum", "top", 0)]
    assert report.segments == 2
    assert not report.capturable
    assert "top" in report.why_not[0]


def test_small_arithmetic_behind_the_device_is_the_hosts() -> None:
    """The wait starts where the device alone can compute, not at the last of the host's steps."""
    nodes = """[best] a = ArgMax <keepdims = 0> (x)
    b = Add (a, one)
    c = Max (b, one)
    k = Reshape (c, flat)
    [top] v, j = TopK (x, k)"""
    report = check_graph(graph("float[9] x", nodes, CONSTANTS))
    assert starts(report) == [("best", "top", 0)]


def test_one_copy_serves_several_shapes() -> None:
    nodes = """[best] a = ArgMax <keepdims = 1> (x)
    [first] v, i = TopK (x, a)
    [second] w, j = TopK (y, a)"""
    report = check_graph(graph("float[9] x, float[9] y", nodes))
    assert starts(report) == [("best", "first", 0)]
    assert report.segments == 2


def test_waits_behind_one_another_cut_the_engine_twice() -> None:
    nodes = """[one] i = NonZero (x)
    j = Reshape (i, flat)
    k = Gather (y, j)
    b = Cast <to = 9> (k)
    [two] z = NonZero (b)"""
    report = check_graph(graph("bool[n] x, float[n] y", nodes, CONSTANTS))
    assert starts(report) == [("one", "one", 0), ("two", "two", 1)]
    assert report.segments == 3


def test_waits_beside_one_another_cut_it_once() -> None:
    report = check_graph(graph("bool[n] x, bool[m] y", "[one] i = NonZero (x)\n [two] j = NonZero (y)"))
    assert starts(report) == [("one", "one", 0), ("two", "two", 0)]
    assert report.segments == 2


def test_the_shape_of_a_counted_tensor_needs_no_second_wait() -> None:
    nodes = """[one] i = NonZero (x)
    s = Shape <start = 1> (i)
    [top] v, j = TopK (y, s)"""
    report = check_graph(graph("bool[n] x, float[n] y", nodes))
    assert starts(report) == [("one", "one", 0)]
    assert report.segments == 2


def test_lengths_handed_in_as_shapes_are_free_and_as_numbers_are_not() -> None:
    carrier = graph("float[n] x, int64[k] kept", "k = Shape (kept)\n [top] v, j = TopK (x, k)")
    number = graph("float[n] x, int64[1] k", "[top] v, j = TopK (x, k)")
    open_number = graph("float[n] x, int64[b] k", "m = ReduceMax (k)\n [top] v, j = TopK (x, m)")
    assert check_graph(carrier).sync_points == ()
    rules = [finding.rule for finding in check_graph(number).findings]
    assert "graph.host-input" in rules  # its values are part of the profile; nothing waits
    assert check_graph(number).capturable
    (sync,) = check_graph(open_number).sync_points  # of unknown length: it stays on the device
    assert sync.start_op == "ReduceMax"


def test_a_single_number_handed_in_lies_on_the_host_too() -> None:
    """Shape inputs may have no axis at all."""
    nodes = """m = Unsqueeze (k, zero)
    [top] v, j = TopK (x, m)"""
    report = check_graph(graph("float[n] x, int64 k", nodes, "int64[1] zero = {0}"))
    assert report.sync_points == ()
    assert report.capturable
    assert "graph.host-input" in {finding.rule for finding in report.findings}


def test_more_elements_than_64_bits_count_are_not_few() -> None:
    """2^32 x 2^32 of them: that is zero, where one counts with int64."""
    model = graph(
        "float[9] x, int64[4294967296,4294967296] k", "m = ReduceMax (k)\n [top] v, j = TopK (x, m)"
    )
    (sync,) = check_graph(model).sync_points
    assert sync.start_op == "ReduceMax"


def test_gathering_by_positions_of_the_device_is_no_wait() -> None:
    report = check_graph(graph("float[n,8] x, int64[k] kept", "[it] z = Gather (x, kept)"))
    assert report.sync_points == ()
    assert report.capturable


def test_outputs_of_open_shape_are_named() -> None:
    report = check_graph(graph("bool[n] x, float[n,8] y", "i = NonZero (x)\n j = Reshape (i, flat)\n"
                               "z = Gather (y, j)", CONSTANTS))  # fmt: skip
    found = [finding for finding in report.findings if finding.rule == "graph.open-output"]
    assert [finding.node for finding in found] == ["z"]


@pytest.mark.parametrize(("trips", "waits"), [("n", 0), ("top", 1)])
def test_loops_run_on_the_device(trips: str, waits: int) -> None:
    nodes = f"""m = ArgMax <keepdims = 0> (x)
    s = Shape (x)
    n = Squeeze (s)
    top = Identity (m)
    [loop] z = Loop <body = a (int64 i, bool on, float[9] v) => (bool o, float[9] w)
        {{ o = Identity (on) w = Neg (v) }}> ({trips}, , x)"""
    report = check_graph(graph("float[9] x", nodes))
    assert len(report.sync_points) == waits
    assert not report.capturable
    assert any("Loop loop" in reason for reason in report.why_not)


def test_waits_inside_bodies_are_found() -> None:
    nodes = """[if] z = If <then_branch = a () => (int64[1,p] p) { [inner] p = NonZero (x) },
        else_branch = b () => (int64[1,q] q) { [other] q = NonZero (y) }> (on)"""
    report = check_graph(graph("bool on, bool[n] x, bool[n] y", nodes))
    assert {sync.node for sync in report.sync_points} == {"inner", "other"}


def test_what_a_body_waits_for_its_readers_wait_for() -> None:
    nodes = """[if] z = If <then_branch = a () => (int64[1,p] p) { [inner] p = NonZero (x) },
        else_branch = b () => (int64[1,q] q) { [other] q = NonZero (y) }> (on)
    k = Cast <to = 9> (z)
    [after] w = NonZero (k)"""
    report = check_graph(graph("bool on, bool[n] x, bool[n] y", nodes))
    assert {(sync.node, sync.level) for sync in report.sync_points} == {
        ("inner", 0),
        ("other", 0),
        ("after", 1),
    }
    assert report.segments == 3
    assert "graph.open-output" in {finding.rule for finding in report.findings}


@pytest.mark.parametrize("on", [0, 1])
def test_of_a_branch_that_a_constant_decides_one_side_is_read(on: int) -> None:
    """The parser does not look at the other."""
    nodes = """[if] z = If <then_branch = a () => (float[2,2] p) { [taken] p = Inverse (x) },
        else_branch = b () => (float[2,2] q) { q = Neg (x) }> (on)"""
    report = check_graph(graph("float[2,2] x", nodes, f"bool on = {{{on}}}"))
    assert report.refused is bool(on)
    assert report.capturable


def test_a_length_of_minus_one_is_an_open_one() -> None:
    """As some exporters write it; `Squeeze` without axes wants to know all of them."""
    model = graph("float[2,1] x", "[it] z = Squeeze (x)")
    assert not check_graph(model).refused
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert "Squeeze.axes" in {finding.rule for finding in check_graph(model).findings}


def test_local_functions_are_looked_into() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 24, "own" : 1]>\n'
        "g (bool[n] x) => (int64[1,m] z) { [call] z = own.count (x) }\n"
        '<opset_import: ["" : 24], domain: "own"> count (a) => (r) { b = Not (a) [inside] r = NonZero (b) }'
    )
    (sync,) = check_graph(model).sync_points
    assert sync.op == "NonZero"


def test_a_model_in_memory_is_left_as_it_is() -> None:
    model = graph("float[2,3] x", "[it] z = com.microsoft.Gelu (x)")
    before = model.SerializeToString()
    assert check_graph(model).refused
    assert model.SerializeToString() == before
