"""Type stubs of the bindings, written from their surface: mypy reads our TensorRT code against real names.

The signatures are the bindings' own. Three things they do not say are added here: which results may be None
(and then say why only in the log), which signature names its arguments the wrong way round, and that Dims
can be looped over.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from typing import Any

# Documented to give None when something fails; mypy then asks every caller to look.
NULLABLE = {
    *("Builder.build_serialized_network", "Builder.build_engine_with_config"),
    *("Runtime.deserialize_cuda_engine", "Runtime.load_runtime"),
    *(
        "ICudaEngine.create_execution_context",
        "ICudaEngine.get_aliased_input_tensor",
        "ICudaEngine.serialize",
    ),
    *("IBuilderConfig.create_timing_cache", "IBuilderConfig.get_timing_cache", "ILayer.get_input"),
}
CORRECTED = {
    # In the bindings the names of the arguments stand the wrong way round: (name: int, profile_index: str).
    "ICudaEngine.get_tensor_profile_values": (
        "(self, profile_index: typing.SupportsInt, name: str, /) -> list[list[int]]"
    ),
    # Written by applications; the bindings' text names the arguments without their types.
    "IOutputAllocator.reallocate_output_async": (
        "(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int"
    ),
    "IOutputAllocator.reallocate_output": (
        "(self, tensor_name: str, memory: int, size: int, alignment: int) -> int"
    ),
    "IOutputAllocator.notify_shape": "(self, tensor_name: str, shape: Dims) -> None",
}
# What nothing here uses: making layers one by one, plugins, and the enumerations of both.
LEFT_OUT = re.compile(
    r"Plugin|plugin|^I(?!Attention|KVCache|Rotary)\w+Layer$|^add_|Collective|Loop|Conditional|Refitter|MoE"
    r"|Operation$|^(?:Activation|Fill|Gather|Matrix|Padding|Pooling|Resize|Sample|Scatter|Interpolation)"
    r"|^(?:ISymExpr|IDimensionExpr|IExprBuilder|DimsExprs|Permutation|Weights|NodeIndices|KernelLaunch)"
    r"|^(?:ScaleMode|TripLimit|Fallback)"
    r"|^(?:APILanguage|TensorRTPhase|Tempfile|ErrorCodeTRT|BoundingBox|InterfaceInfo|TimingCache)"
)
# Sequence protocol by __getitem__ and __len__, which mypy does not take for an iterable.
ADDED = {"Dims": ["def __iter__(self) -> collections.abc.Iterator[int]: ..."]}
# Written where they are read as something else than what is given.
GENERIC = {"tuple": "tuple[typing.Any, ...]", "list": "list[typing.Any]", "object": "typing.Any"}
ENUM = """
class {name}:
    __members__: typing.ClassVar[dict[str, {path}]]
    def __init__(self, value: typing.SupportsInt) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...
"""


def write_stubs(surface: dict[str, Any], version: str) -> str:
    """The text of `tensorrt/__init__.pyi`."""
    head = [
        f'"""Names and signatures of TensorRT {version}, read from its bindings by .ci/tensorrt_stubs.py."""',
        "import collections.abc",
        "import typing",
        "",
        "import typing_extensions",
        "",
        "__version__: str",
    ]
    surface = {name: entry for name, entry in surface.items() if not LEFT_OUT.search(name)}
    known = {name for name, entry in surface.items() if entry["kind"] in ("class", "enum")}
    lines = [line for name in _ordered(surface) for line in _entry(name, surface[name], known, name)]
    return "\n".join([*head, *lines]) + "\n"


def _ordered(surface: dict[str, Any]) -> list[str]:
    """Bases before what derives from them."""
    order: list[str] = []

    def add(name: str) -> None:
        for base in surface[name].get("bases", []):
            if base in surface:
                add(base)
        if name not in order:
            order.append(name)

    for name in sorted(surface):
        add(name)
    return order


def _entry(name: str, entry: dict[str, Any], known: set[str], path: str) -> Iterator[str]:
    if entry["kind"] == "enum":
        yield from ENUM.format(name=name, path=path).rstrip().splitlines()
        for member in entry["members"]:
            if member.isidentifier() and not keyword.iskeyword(member):
                yield f"    {member}: typing.ClassVar[{path}]"
    elif entry["kind"] == "class":
        bases = [base for base in entry["bases"] if base in known]
        yield ""
        yield f"class {name}({bases[0]}):" if bases else f"class {name}:"
        body = [line for member in _members(entry, known, path) for line in member]
        yield from (f"    {line}" for line in body or ["..."])
    elif entry["kind"] == "callable":
        yield from _callable(name, entry, known, name)
    elif name not in (
        "bool",
        "value",
        "attr",
    ):  # leftovers of loops in the bindings; `bool` would hide Python's
        kind = entry["type"] if entry["type"] in known else "typing.Any"
        yield f"{name}: {kind}"


def _members(entry: dict[str, Any], known: set[str], path: str) -> Iterator[list[str]]:
    for name, member in entry["members"].items():
        if LEFT_OUT.search(name):
            continue
        where = f"{path}.{name}"
        if member["kind"] == "callable":
            yield list(_callable(name, member, known, where, method=True))
        elif member["kind"] == "property":
            kind = _type(member["type"], known)
            yield ["@property", f"def {name}(self) -> {kind}: ..."]
            if member["writable"]:
                yield [f"@{name}.setter", f"def {name}(self, value: {_accepted(kind)}) -> None: ..."]
        elif member["kind"] == "value":
            owner = path if member["type"] in ("", path) else _nested(member["type"], path)
            yield [f"{name}: typing.ClassVar[{owner}]"]
        else:
            yield list(_entry(name, member, known, where))
    yield [*ADDED.get(path, [])]


def _nested(kind: str, path: str) -> str:
    """ILogger.Severity's members are also ILogger's own."""
    return (
        "ILogger.Severity"
        if kind == "Severity"
        else path
        if kind == path.rpartition(".")[2]
        else "typing.Any"
    )


def _callable(
    name: str, entry: dict[str, Any], known: set[str], path: str, *, method: bool = False
) -> Iterator[str]:
    if path in CORRECTED:
        yield f"def {name}{CORRECTED[path]}: ..."
        return
    signatures = entry["signatures"]
    if not signatures and name == "__init__":
        return  # made by others only
    if not signatures:
        first = "self, " if method else ""
        yield f"def {name}({first}*args: typing.Any, **kwargs: typing.Any) -> typing.Any: ..."
    for signature in signatures:
        if len(signatures) > 1:
            yield "@typing.overload"
        returns = "None" if name == "__init__" else _type(signature["returns"], known)
        if path in NULLABLE:
            returns = f"{returns} | None"
        yield f"def {name}({_arguments(signature, known)}) -> {returns}: ..."


def _arguments(signature: dict[str, Any], known: set[str]) -> str:
    """Once an argument has a default all that follow get one: the bindings have such a place."""
    texts, optional = [], False
    for parameter in signature["parameters"]:
        if parameter["name"] == "self":
            texts.append("self")
            continue
        optional = optional or parameter["default"] is not None
        kind = _accepted(_type(parameter["type"], known))
        kind = f"{kind} | None" if parameter["default"] == "None" else kind
        mark = parameter["kind"]
        given = parameter["name"] + "_" * keyword.iskeyword(parameter["name"])
        texts.append(f"{mark}{given}: {kind}" + (" = ..." if optional and not mark else ""))
    return ", ".join(texts)


def _accepted(kind: str) -> str:
    """What may be given for a type: any sequence for Dims, None for objects that can be taken away again."""
    if kind == "Dims":
        return "Dims | collections.abc.Sequence[typing.SupportsInt]"
    return f"{kind} | None" if kind in ("IOutputAllocator", "IProgressMonitor", "IExecutionContext") else kind


def _type(text: str, known: set[str]) -> str:
    """A type of the bindings as the stubs write it; what cannot be said (capsules, C++ names) is Any."""
    text = re.sub(r"tensorrt_bindings\.tensorrt\.", "", text)
    text = re.sub(r"(?:nvinfer1|nvonnxparser)::(?:v_\d_\d::)?I?(\w+)", lambda m: _cpp(m[1], known), text)
    text = re.sub(r"(collections\.abc\.\w+)(?![\w\[])", r"\1[typing.Any]", text)
    if "::" in text or "Capsule" in text or text in ("Any", "handle"):
        return "typing.Any"
    names = set(re.findall(r"(?<![\w.])([A-Z]\w+)", text)) - known - {"None"}
    return "typing.Any" if names else GENERIC.get(text, text)


def _cpp(name: str, known: set[str]) -> str:
    """nvinfer1::ICudaEngine is ICudaEngine here, and nvinfer1::IBuilder is Builder."""
    return next((each for each in (f"I{name}", name) if each in known), "typing.Any")
