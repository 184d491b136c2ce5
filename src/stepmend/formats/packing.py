"""Shared by the layouts: checks of a configuration's values and of tensors' shapes, with one-line errors that name the layer."""

from collections.abc import Sequence
from typing import Any

from stepmend.formats.tensors import Tensors
from stepmend.records import InputError

BITS = range(2, 9)
"""Bits of a code that are read."""


def wrong(tensors: Tensors, what: str) -> InputError:
    """The error for a checkpoint that is not what its configuration says, or that cannot be restored."""
    return InputError(f"quantized: {tensors.folder}: {what}")


def bits_of(tensors: Tensors, value: Any, allowed: Sequence[int]) -> int:
    """The number of bits that a configuration names. Raises InputError for what is not allowed."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        raise wrong(tensors, f"codes of {str(value)[:40]} bits; allowed: {', '.join(map(str, allowed))}")
    return value


def named(tensors: Tensors) -> list[str]:
    """The layers with packed codes, ``NAME.qweight`` in AWQ and GPTQ checkpoints. Raises InputError if there are none."""
    names = [name.removesuffix(".qweight") for name in tensors.headers if name.endswith(".qweight")]
    if not names:
        raise wrong(tensors, "no tensor holds codes (NAME.qweight)")
    return sorted(names)


def need(tensors: Tensors, name: str, kinds: Sequence[str], shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """The shape of a tensor of two dimensions. Raises InputError if there is none, or one of another dtype or shape."""
    found, kind = tensors.shape(name), tensors.kind(name)
    if not kind:
        raise wrong(tensors, f"there is no tensor {name[:160]}")
    if kind not in kinds or len(found) != 2 or 0 in found or (shape is not None and found != tuple(shape)):
        wanted = f"{' or '.join(kinds)}{f' {list(shape)}' if shape is not None else ' of two dimensions'}"
        raise wrong(tensors, f"{name[:160]} is {kind} {list(found)}; {wanted} is needed")
    return found


FLOATS = ("F16", "BF16", "F32")
"""Dtypes of scales."""
