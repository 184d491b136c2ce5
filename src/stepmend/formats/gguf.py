"""GGUF checkpoints, llama.cpp's format: a folder with one such file, and the configuration and tokenizer of its model.

Tensors have the names that transformers has for them, by transformers' own map, and their rows are in the model's order: files of the
architecture ``llama`` hold the rows of queries and keys in another one. A layer's blocks are two tensors here, ``NAME.scale``, float16, a
scale d of every block, and ``NAME.codes``; ``gguf_blocks`` knows their offsets in the file. What has no codes to restore (embeddings,
the head) is given dequantized and never written.

Restored are d and, except in K-quants, the codes. What else a block holds (minima, factors of groups) keeps its bytes.
"""

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmend.files import make_folder
from stepmend.formats import gguf_blocks, gguf_header, gguf_names
from stepmend.formats.base import Codes, Layer
from stepmend.formats.gguf_blocks import KINDS
from stepmend.formats.tensors import Header, Tensors
from stepmend.records import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

FLOATS = ("F32", "F16", "BF16")
"""Types of tensors without blocks that are read."""
PARTS = ("codes", "scale")
"""The ends of the names of the tensors that a layer's blocks are."""
STACK = "blk."
"""The start of the names of the decoder layers' tensors."""


class GgufTensors(Tensors):
    """The tensors of a folder with a GGUF file; see ``Tensors``.

    Raises InputError if the folder holds no such file or several, and if a tensor does not fit the model, with its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = file_in(folder)
        self.header = gguf_header.read(self.file.resolve())  # the user's own, if this is a link to it
        self.layers: dict[str, gguf_header.Tensor] = {}
        self.stored: dict[str, gguf_header.Tensor] = {}
        self.headers: dict[str, Header] = {}
        self.places = gguf_names.places(folder, self.header)
        for tensor in self.header.tensors:
            if (place := self.places.get(tensor.name)) is None:
                continue
            if tensor.kind not in KINDS and tensor.kind not in FLOATS:
                allowed = ", ".join([*FLOATS, *KINDS])
                raise InputError(
                    f"{self.header.file}: {tensor.name[:100]} is of type {tensor.kind}, which is not supported; allowed: {allowed}"
                )
            self._place(tensor, place.name)

    def _place(self, tensor: gguf_header.Tensor, name: str) -> None:
        """List a tensor by its name in the model."""
        if tensor.kind in KINDS and tensor.name.startswith(STACK) and len(tensor.shape) == 2 and name.endswith(".weight"):
            layer, blocks = name.removesuffix(".weight"), tensor.shape[1] // KINDS[tensor.kind].columns
            self.layers[layer] = tensor
            self.headers[f"{layer}.codes"] = Header(self.file, "I8", tensor.shape, tensor.start, tensor.end)
            self.headers[f"{layer}.scale"] = Header(self.file, "F16", (tensor.shape[0], blocks), tensor.start, tensor.end)
        else:
            self.stored[name] = tensor
            self.headers[name] = Header(self.file, tensor.kind, tensor.shape, tensor.start, tensor.end)

    def dtype(self, name: str) -> "torch.dtype":
        """A tensor's dtype; float32 for one that is given dequantized."""
        import torch

        return {"F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}.get(self.headers[name].dtype, torch.float32)

    def read(self, name: str) -> "torch.Tensor":
        """A tensor in the model's order of rows, dequantized if it has blocks."""
        layer, _, part = name.rpartition(".")
        if layer in self.layers and part in PARTS:
            kind, blocks_MBW = self.blocks(layer)
            return kind.codes(blocks_MBW).flatten(1) if part == "codes" else gguf_blocks.float16(blocks_MBW, kind.scale)
        tensor = self.stored[name]
        place = self.places[tensor.name]
        found = place.ordered(self._values(self.file, tensor, tensor.shape[0]))
        return found + place.added if place.added else found

    def rows(self, name: str, count: int) -> "torch.Tensor":
        """The first rows of a tensor, at most ``count``."""
        tensor = self.stored.get(name)
        if tensor is None or self.places[tensor.name].order is not None:
            return self.read(name)[:count]
        return self._values(self.file, tensor, min(count, tensor.shape[0]))

    def blocks(self, layer: str) -> "tuple[gguf_blocks.Kind, torch.Tensor]":
        """The blocks of a layer in the model's order of rows, uint8 [M, B, W], and their type."""
        tensor = self.layers[layer]
        kind = KINDS[tensor.kind]
        return kind, self.places[tensor.name].ordered(_bytes(self.file, tensor, tensor.shape[0]).view(tensor.shape[0], -1, kind.width))

    def _values(self, file: Path, tensor: gguf_header.Tensor, rows: int) -> "torch.Tensor":
        """The first rows of a tensor that is no layer's, as the file has them."""
        import torch

        raw = _bytes(file, tensor, rows)
        if kind := KINDS.get(tensor.kind):
            flat = gguf_blocks.dequantize(kind, raw.view(-1, tensor.shape[-1] // kind.columns, kind.width))
        else:
            flat = raw.view({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.kind])
        return flat.view(rows, *tensor.shape[1:])

    def write(self, out: Path, values: "Mapping[str, torch.Tensor]") -> None:
        """Copy the folder to ``out`` atomically, with these tensors replaced; every other byte is the same."""

        def fill(part: Path) -> None:
            for file in sorted(self.folder.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, part / file.name)
            for name, value in values.items():
                self._put(part / self.file.name, name, value.detach().cpu())

        make_folder(out, fill)

    def _put(self, file: Path, name: str, value: "torch.Tensor") -> None:
        import torch

        assert tuple(value.shape) == self.headers[name].shape, f"{name}: {tuple(value.shape)}"
        layer, _, part = name.rpartition(".")
        if layer in self.layers and part in PARTS:
            tensor = self.layers[layer]
            kind, value = KINDS[tensor.kind], self.places[tensor.name].as_filed(value)
            raw_MBW = _bytes(file, tensor, tensor.shape[0]).view(tensor.shape[0], -1, kind.width)
            if part == "scale":
                gguf_blocks.put_float16(raw_MBW, kind.scale, value)
            else:
                assert kind.put is not None, f"{name}: codes of {tensor.kind} stay as they are"
                kind.put(raw_MBW, value.unflatten(1, (-1, kind.columns)))
            data = raw_MBW
        else:
            tensor = self.stored[name]
            assert tensor.kind in FLOATS, f"{name}: {tensor.kind} is not written"
            place, raw = self.places[tensor.name], self._values(file, tensor, tensor.shape[0])
            new = place.as_filed(value.to(raw.dtype) != self.read(name))
            data = torch.where(new, (place.as_filed(value) - place.added).to(raw.dtype), raw)  # what did not change keeps its bytes
        with file.open("r+b") as stream:
            stream.seek(tensor.start)
            stream.write(data.contiguous().view(torch.uint8).numpy().tobytes())


def file_in(folder: Path) -> Path:
    """The GGUF file of a folder. Raises InputError if there is none, or more than one."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf")
    if len(found) != 1:
        what = f"{len(found)} GGUF files; name one of them" if found else "no GGUF file"
        raise InputError(f"{folder} holds {what}")
    return found[0]


def _bytes(file: Path, tensor: gguf_header.Tensor, rows: int) -> "torch.Tensor":
    """The bytes of a tensor's first rows."""
    import torch

    with file.open("rb") as stream:
        stream.seek(tensor.start)
        return torch.frombuffer(bytearray(stream.read((tensor.end - tensor.start) // tensor.shape[0] * rows)), dtype=torch.uint8)


class Gguf:
    """A folder with a GGUF file; see ``base.Format``."""

    name = "gguf"
    rounded = False

    def __init__(self, tensors: GgufTensors, config: dict[str, Any]) -> None:
        self.tensors = tensors

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every layer with codes."""
        return {name: self._layer(tensor) for name, tensor in sorted(self.tensors.layers.items())}

    def _layer(self, tensor: gguf_header.Tensor) -> Layer:
        kind, (rows, columns) = KINDS[tensor.kind], tensor.shape
        return Layer(rows, columns, kind.bits, columns // kind.columns * kind.groups, not kind.offsets, kind=tensor.kind)

    def codes(self, layer: str) -> Codes:
        """The codes, scales, factors and offsets of a layer."""
        import torch

        kind, blocks_MBW = self.tensors.blocks(layer)
        scale_MB = gguf_blocks.float16(blocks_MBW, kind.scale)
        of = self.layers[layer]
        zeros_MG = torch.full((of.rows, of.groups), kind.zero, dtype=torch.int8) if kind.zero else None
        factor_MG = kind.factors(blocks_MBW).flatten(1) if kind.factors else None
        offset_MG = kind.offsets(blocks_MBW).flatten(1) if kind.offsets else None
        return Codes(kind.codes(blocks_MBW).flatten(1), scale_MB, zeros_MG, of.bits, factor_MG=factor_MG, offset_MG=offset_MG)

    def scale(self, layer: str) -> "torch.Tensor":
        """The scales of a layer's blocks. Raises InputError if another float of a block is no number."""
        import torch

        kind, blocks_MBW = self.tensors.blocks(layer)
        if kind.offsets and not bool(torch.isfinite(gguf_blocks.float16(blocks_MBW, 2)).all()):
            name = self.tensors.layers[layer].name[:100]
            raise InputError(f"{self.tensors.header.file}: a minimum of {name} is not finite; the file is damaged")
        return gguf_blocks.float16(blocks_MBW, kind.scale)

    def packed(self, layer: str, codes_MN: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """The codes, as they are: packing them is part of writing."""
        return {f"{layer}.codes": codes_MN}

    def scaled(self, layer: str, scale_MG: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """The scales of blocks."""
        return {f"{layer}.scale": scale_MG}

    def held(self, layer: str) -> tuple[str, ...]:
        """The names of the tensors that stand for a layer's weight."""
        return f"{layer}.codes", f"{layer}.scale"

    @property
    def multiplied_in(self) -> "torch.dtype":
        """float32, as in ggml: what is loaded is rounded once, from the exact product."""
        import torch

        return torch.float32

    @property
    def loads_in(self) -> str:
        """Where such a checkpoint loads."""
        return "llama.cpp and what builds on it (llama-cpp-python, Ollama, LM Studio)"
