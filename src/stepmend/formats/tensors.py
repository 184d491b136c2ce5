"""The tensors of a checkpoint's safetensors files: their headers, reading one, and a copy of the folder with some of them changed.

A copy keeps every other byte: tensors are written into copies of the files, at their own places (format: an 8-byte length, a JSON
header of that length, the tensors; huggingface.co/docs/safetensors).
"""

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmend import inputs
from stepmend.files import copy_tree, make_folder
from stepmend.records import InputError

if TYPE_CHECKING:
    import torch

HEADER = 100_000_000
"""Bytes of a safetensors header (the format's own limit) or of a configuration, at most."""
WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
          "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}  # fmt: skip
"""Bytes of an element by its dtype's name in a header."""
DUPLICATES = "consolidated"
"""The start of file names that hold the same weights in their maker's own format."""


def quantization_of(folder: Path) -> dict[str, Any]:
    """The quantization section of a checkpoint's configuration; empty for full precision.

    Older GPTQ checkpoints have it in ``quantize_config.json``. Raises InputError if either file is no JSON object.
    """
    config = json_object(folder / "config.json")
    found = config.get("quantization_config")
    if found is None and isinstance(config.get("text_config"), dict):
        found = config["text_config"].get("quantization_config")
    if found is None and (folder / "quantize_config.json").exists():
        found = {"quant_method": "gptq"} | json_object(folder / "quantize_config.json")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"quantized: {folder / 'config.json'}: quantization_config is not a JSON object; the checkpoint is damaged")
    return found


def json_object(file: Path) -> dict[str, Any]:
    """What a JSON file of a checkpoint holds. Raises InputError if that is not an object, or no regular file."""
    try:
        found = json.loads(inputs.content(file, HEADER))
    except InputError as error:
        raise InputError(f"model: {error}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"model: {file} is not a valid JSON object; the checkpoint is damaged")
    return found


@dataclass(frozen=True)
class Header:
    """The location of a tensor: its file, dtype by its name there, shape, first byte, and the byte after the last."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Tensors:
    """All tensors of a checkpoint's folder, by name. Raises InputError if a header is damaged or a name is there twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.headers: dict[str, Header] = {}
        for file in sorted(folder.glob("*.safetensors")):
            if file.name.startswith(DUPLICATES):
                continue
            for name, header in headers_of(file):
                if name in self.headers:
                    raise InputError(f"model: {file} holds {name[:160]}, which {self.headers[name].file.name} holds too")
                self.headers[name] = header

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; empty if there is none of that name."""
        return self.headers[name].shape if name in self.headers else ()

    def kind(self, name: str) -> str:
        """A tensor's dtype by its name in the header; empty if there is none."""
        return self.headers[name].dtype if name in self.headers else ""

    def dtype(self, name: str) -> "torch.dtype":
        """A tensor's dtype."""
        from safetensors import safe_open

        with safe_open(self.headers[name].file, "pt") as opened:
            return opened.get_slice(name)[:0].dtype

    def read(self, name: str) -> "torch.Tensor":
        """A tensor as it is stored."""
        from safetensors import safe_open

        with safe_open(self.headers[name].file, "pt") as opened:
            return opened.get_tensor(name)

    def rows(self, name: str, count: int) -> "torch.Tensor":
        """The first rows of a tensor, at most ``count``."""
        from safetensors import safe_open

        with safe_open(self.headers[name].file, "pt") as opened:
            return opened.get_slice(name)[:count]

    def write(self, out: Path, values: Mapping[str, "torch.Tensor"]) -> None:
        """Copy the folder to ``out`` atomically, with these tensors replaced; every other byte is the same.

        Values are brought to the dtype of the tensor that they replace. Folders inside are not copied.
        """

        def fill(part: Path) -> None:
            for file in sorted(self.folder.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, part / file.name)
            for name, value in values.items():
                _put(self.headers[name], part, name, value, self.dtype(name))

        make_folder(out, fill)


def _put(header: Header, part: Path, name: str, value: "torch.Tensor", dtype: "torch.dtype") -> None:
    import torch

    assert tuple(value.shape) == header.shape, f"{name}: {tuple(value.shape)}, {header.shape} in {header.file.name}"
    data = value.to(dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    assert len(data) == header.end - header.start, name
    with (part / header.file.name).open("r+b") as stream:
        stream.seek(header.start)
        stream.write(data)


def copy(folder: Path, out: Path) -> None:
    """Copy a checkpoint into a folder that is there: regular files, what links point to, and folders inside; nothing hidden."""

    def left(place: str, names: list[str]) -> list[str]:
        found = {name: Path(place, name) for name in names}
        return [name for name, path in found.items() if name.startswith(".") or not (path.is_file() or _is_folder(path))]

    copy_tree(folder, out, left)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()  # a link may lead round in a circle


def headers_of(file: Path) -> list[tuple[str, Header]]:
    """Every tensor of a safetensors file. Raises InputError if the file is not as long as its header says, or has none."""
    from safetensors import SafetensorError, safe_open

    size = inputs.regular(file)
    found = []
    try:
        with inputs.opened(file, None) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            listed = json.loads(stream.read(length)) if length < min(size, HEADER) else None
        for name, of in listed.items():  # pyright: ignore[reportOptionalMemberAccess]
            if name == "__metadata__":
                continue
            start, end = (8 + length + int(place) for place in of["data_offsets"])
            shape, dtype = tuple(map(int, of["shape"])), str(of["dtype"])
            whole = WIDTHS.get(dtype, 0) * prod(shape) in (0, end - start)
            if not (whole and 8 + length <= start <= end <= size and min(shape, default=0) >= 0):
                raise ValueError(name)
            found.append((name, Header(file, dtype, shape, start, end)))
        if max((header.end for _, header in found), default=8 + length) != size:
            raise ValueError("length")
        with safe_open(file, "np"):  # what the library itself refuses
            pass
    except (SafetensorError, struct.error, ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError, OverflowError):
        raise InputError(f"model: {file} is truncated or damaged; copy the checkpoint again") from None
    return found
