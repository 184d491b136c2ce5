"""The header of a GGUF file, read safely: every length is checked against the file size before it is used.

Layout (github.com/ggml-org/ggml, docs/gguf.md): the magic, a version, how many tensors and values; the values, each a key, a type and what
it holds; of each tensor its name, dimensions (the fastest first), type and offset; then, from the next multiple of ``general.alignment``
on, the tensors.
"""

import mmap
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from stepmend import inputs
from stepmend.records import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER = 256 << 20
"""Bytes of a header, at most: real ones, with the vocabulary, have up to some tens of millions."""
DIMENSIONS = 4
"""Dimensions of a tensor, at most (GGML_MAX_DIMS)."""
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of a value -> how ``struct`` reads it."""
STRING, ARRAY = 8, 9
ALIGNMENT = 32
"""The alignment of a file that names none."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its type by ggml's name, its shape (rows first), its first byte, and the byte after the last."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass
class Header:
    """A file's metadata: values by key (arrays as lists), and its tensors in order."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp."""
        return str(self.values.get("general.architecture", ""))


class DamagedError(Exception):
    """A damaged file; the message says what is wrong."""


class _Cursor:
    """A read position in a file's header."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.end, self.at = data, min(len(data), HEADER), 0

    def bytes(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise DamagedError("its header ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return self.bytes(self.number("<Q")).decode(errors="replace")

    def many(self, count: int, least: int) -> int:
        """A count of items of at least this many bytes each. Raises DamagedError if there is no room for them."""
        if count * least > self.end - self.at:
            raise DamagedError(f"its header names {count} entries, which it has no room for")
        return count

    def value(self) -> Any:
        """A value after its type."""
        kind = self.number("<I")
        if kind == ARRAY:
            kind = self.number("<I")
            if kind in SCALARS:
                size = struct.calcsize(SCALARS[kind])
                count = self.many(self.number("<Q"), size)
                return list(struct.unpack(f"<{count}{SCALARS[kind][1]}", self.bytes(count * size)))
            if kind == STRING:
                return [self.text() for _ in range(self.many(self.number("<Q"), 8))]
        elif kind == STRING:
            return self.text()
        elif kind in SCALARS:
            return self.number(SCALARS[kind])
        raise DamagedError(f"a value of type {kind} is not known")


def need() -> Any:
    """The package ``gguf``. Raises InputError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError("GGUF files are read with the package gguf: pip install 'stepmend[gguf]'") from None
    return gguf


def read(file: Path) -> Header:
    """The header of a GGUF file.

    Raises InputError if the file is not a GGUF file, is truncated or damaged, has the other byte order, is one part of a split model, or
    holds a tensor of a type unknown to ggml.
    """
    inputs.regular(file)
    found = file.stat()
    return _read(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, size: int, changed: int) -> Header:
    if size < 24:
        raise InputError(f"{file} is not a GGUF file")
    need()
    with inputs.opened(file, None) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _parse(file, _Cursor(data), size)
        except DamagedError as error:
            raise InputError(f"{file}: {error}; copy the file again") from None


def _parse(file: Path, cursor: _Cursor, size: int) -> Header:
    if cursor.bytes(4) != MAGIC:
        raise InputError(f"{file} is not a GGUF file")
    version = cursor.number("<I")
    if version not in VERSIONS:
        order = " (or it is in big-endian order)" if version & 0xFFFF == 0 else ""
        raise InputError(f"{file}: version {version} of GGUF{order} is not supported; allowed: {', '.join(map(str, VERSIONS))}")
    tensors, values = cursor.many(cursor.number("<Q"), 1), cursor.many(cursor.number("<Q"), 1)
    cursor.many(values * 13 + tensors * 24, 1)
    header = Header(file)
    for _ in range(values):
        key = cursor.text()
        header.values[key] = cursor.value()
    if header.values.get("split.count", 0) not in (0, 1):
        raise InputError(f"{file} is one of {header.values['split.count']} parts of a model; join them (llama-gguf-split --merge)")
    entries = [_entry(cursor) for _ in range(tensors)]
    alignment = header.values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & alignment - 1:
        raise DamagedError(f"an alignment of {str(alignment)[:20]} is not possible")
    begin = -(-cursor.at // alignment) * alignment
    header.tensors = [_placed(*entry, begin, alignment, size) for entry in entries]
    _check_places(header)
    return header


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, dimensions (fastest first), type and offset."""
    name, count = cursor.text(), cursor.number("<I")
    if not name or not 1 <= count <= DIMENSIONS:
        raise DamagedError(f"{name[:100]!r} has {count} dimensions")
    dims = struct.unpack(f"<{count}Q", cursor.bytes(8 * count))
    return name, dims, cursor.number("<I"), cursor.number("<Q")


def _placed(name: str, dims: tuple[int, ...], number: int, offset: int, begin: int, alignment: int, size: int) -> Tensor:
    package = need()
    try:
        kind = package.GGMLQuantizationType(number)
        columns, width = package.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise InputError(f"tensor {name[:100]}: type {number} is not known; a newer release of the package gguf may know it") from None
    if min(dims) < 1 or dims[0] % columns:
        raise DamagedError(f"{name[:100]} has {dims[0]} columns, no whole number of {kind.name}'s blocks of {columns}")
    start = begin + offset
    end = start + prod(dims) // columns * width
    if offset % alignment or end > size:
        raise DamagedError(f"{name[:100]} lies outside of the file" if end > size else f"{name[:100]} is not aligned to {alignment} bytes")
    return Tensor(name, kind.name, tuple(reversed(dims)), start, end)


def _check_places(header: Header) -> None:
    """Raises DamagedError if two tensors have one name or share bytes."""
    names: set[str] = set()
    last = None
    for tensor in sorted(header.tensors, key=lambda one: one.start):
        if tensor.name in names:
            raise DamagedError(f"it holds {tensor.name[:100]} twice")
        if last and tensor.start < last.end:
            raise DamagedError(f"{tensor.name[:100]} and {last.name[:100]} overlap")
        names.add(tensor.name)
        last = tensor
