"""File formats of low-bit checkpoints: which one a folder is in, the codes and floats of its layers, and writing a changed copy.

``base.Format`` is the protocol; each format is in one file. Quantizing, loading, restoring and exporting know formats only
through it.
"""

from pathlib import Path
from typing import Any

from stepmend.formats import awq, compressed, gguf, gptq
from stepmend.formats.base import Format
from stepmend.formats.refusals import refusal
from stepmend.formats.tensors import Tensors, quantization_of
from stepmend.records import InputError

FORMATS: dict[str, Any] = {"compressed-tensors": compressed.Compressed, "awq": awq.Awq, "gptq": gptq.Gptq, "gguf": gguf.Gguf}
"""Method, as a checkpoint's configuration names it -> the class that reads it."""
TENSORS: dict[str, type[Tensors]] = {"gguf": gguf.GgufTensors}
"""Method -> the class that reads its tensors, where these are in no safetensors files."""
UNPACKED = frozenset({"awq", "gptq", "gguf"})
"""Methods whose packages transformers needs and we do without: their layers are dequantized when they are loaded."""


def method_of(folder: str | Path) -> str:
    """The method that a checkpoint's configuration names; empty for full precision.

    Raises InputError if it is not a method's name.
    """
    config = quantization_of(Path(folder))
    if not config:
        return ""
    name = config.get("quant_method") or ("compressed-tensors" if "config_groups" in config else "")
    if not isinstance(name, str) or not name:
        raise InputError(f"quantized: {folder}: quantization_config names no method (quant_method); one of {', '.join(FORMATS)} is needed")
    return name.lower().replace("_", "-")


def detect(folder: str | Path) -> Format | None:
    """The format of a low-bit checkpoint; None for a full-precision one.

    Raises InputError, with what to do, for a format that is not restored, and for files that are not what the configuration says.
    """
    method = method_of(folder)
    if not method:
        return None
    if method not in FORMATS:
        raise InputError(f"quantized: {folder}: {refusal(method)}")
    return FORMATS[method](TENSORS.get(method, Tensors)(Path(folder)), quantization_of(Path(folder)))


def unpacked(folder: str | Path) -> Format | None:
    """The format of a checkpoint that is dequantized when it is loaded; None if transformers reads it as it is."""
    return detect(folder) if method_of(folder) in UNPACKED else None
