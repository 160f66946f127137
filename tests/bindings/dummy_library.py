"""An empty shared library, written byte by byte: what TensorRT's bindings need to be imported, and no more.

The bindings are linked against libnvinfer, libnvinfer_plugin and libnvonnxparser and take a handful of
functions from them. A library that holds these names lets `import tensorrt_bindings` succeed on a machine
with no GPU, no TensorRT and no compiler; every function in it returns 0, so nothing may be called that
reaches one.

The file has three parts: a read-only page with the tables and the code, a writable page with the dynamic
section (the loader relocates it in place), and the headers. (ELF: System V gABI, chapters 4 and 5.)
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from pathlib import Path

PAGE = 0x10000  # both architectures' largest page
# Machine number of the header, and the code of a function that returns 0.
MACHINES = {
    "x86_64": (62, bytes.fromhex("31c0c390")),  # xor eax, eax; ret; nop
    "aarch64": (183, bytes.fromhex("000080d2c0035fd6")),  # mov x0, #0; ret
}
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551
READ, WRITE, RUN = 4, 2, 1
HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME = 4, 5, 6, 10, 11, 14
HEADER, SEGMENT, SYMBOL = 64, 56, 24


def write_library(path: Path, symbols: Sequence[str]) -> None:
    """Write a shared library named after its file that exports `symbols`, each a function returning 0.

    Raises:
        NotImplementedError: on a processor whose code is not in the table.
    """
    if platform.machine() not in MACHINES:
        raise NotImplementedError(f"no code for {platform.machine()}; known: {sorted(MACHINES)}")
    machine, code = MACHINES[platform.machine()]

    names = [path.name, *symbols]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    offsets = [strings.index(b"\0" + name.encode() + b"\0") + 1 for name in names]

    code_at = HEADER + 4 * SEGMENT
    symbols_at = code_at + 16
    hash_at = symbols_at + SYMBOL * len(names)
    # One bucket that chains all symbols: the loader compares names until one fits.
    count = len(names)  # the null symbol stands in for the library's own name
    chain = [0, *range(2, count), 0] if symbols else [0]
    table = struct.pack(f"<{3 + count}I", 1, count, min(1, count - 1), *chain[:count])
    strings_at = hash_at + len(table)

    entries = bytes(SYMBOL) + b"".join(
        struct.pack("<IBBHQQ", offset, 0x12, 0, 1, code_at, len(code)) for offset in offsets[1:]
    )
    dynamic = b"".join(
        struct.pack("<qQ", tag, value)
        for tag, value in (
            (HASH, hash_at),
            (SYMTAB, symbols_at),
            (STRTAB, strings_at),
            (STRSZ, len(strings)),
            (SYMENT, SYMBOL),
            (SONAME, offsets[0]),
            (0, 0),
        )
    )
    text = (code.ljust(16, b"\0") + entries + table + strings).ljust(PAGE - code_at, b"\0")
    path.write_bytes(_headers(machine, len(dynamic)) + text + dynamic)


def _headers(machine: int, dynamic: int) -> bytes:
    """ELF header and program headers; `dynamic` is the length in bytes of the section at PAGE."""

    def segment(kind: int, flags: int, offset: int, size: int, align: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, size, size, align)

    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    header = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, HEADER, 0, 0, HEADER, SEGMENT, 4, 64, 0, 0)
    return b"".join(
        (
            identity,
            header,
            segment(LOAD, READ | RUN, 0, PAGE, PAGE),
            segment(LOAD, READ | WRITE, PAGE, dynamic, PAGE),
            segment(DYNAMIC, READ | WRITE, PAGE, dynamic, 8),
            segment(STACK, READ | WRITE, 0, 0, 16),  # without it newer loaders ask for a stack that runs code
        )
    )
