"""What transformers takes from gguf-py, from a header that was read already, and made once.

gguf-py's reader needs half a minute for the vocabulary of a real file, and transformers has it read the file three times; it also makes
the map of names once for every module of a model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from stepmend.formats.gguf_header import ARRAY, STRING, Header, Tensor, need

BOOLEAN, DOUBLE, LONG = 7, 12, 11
"""Numbers of types in a file (``gguf_header.SCALARS``): one for each of Python's."""


class Field(NamedTuple):
    """A value as gguf-py's ``ReaderField`` has it: what it is made of, the places of its entries there, and its types."""

    parts: list[Any]
    data: range
    types: list[int]


class Reader:
    """A header as gguf-py's ``GGUFReader`` has it: fields by key, and tensors with their names."""

    def __init__(self, header: Header) -> None:
        self.fields: dict[str, Field] = {key: _field(value) for key, value in header.values.items()}
        self.tensors: list[Tensor] = header.tensors


def _field(value: Any) -> Field:
    if isinstance(value, list):
        return Field([_part(one) for one in value], range(len(value)), [ARRAY, *([_type(value[0])] if value else [])])
    return Field([_part(value)], range(1), [_type(value)])


def _part(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else (value,)


def _type(value: Any) -> int:
    kinds = {str: STRING, bool: BOOLEAN, int: LONG, float: DOUBLE}
    return kinds[type(value)]


@contextmanager
def of(header: Header) -> Iterator[None]:
    """Inside, whoever reads a file by gguf-py gets this header, and its maps of names are kept."""
    package = need()
    reader, mapped = package.GGUFReader, package.get_tensor_name_map
    package.GGUFReader, package.get_tensor_name_map = lambda path: Reader(header), cache(mapped)
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = reader, mapped
