"""Which tensor of a model each tensor of a GGUF file is, by transformers' map, and what its converter did to it.

llama.cpp's converter writes the rows of some tensors in another order (queries and keys of Llama), and adds 1 to some norms (Gemma).
transformers' readers undo this; applying them to numbered rows reveals the permutation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmend.formats import gguf_reader
from stepmend.formats.gguf_header import Header, Tensor, need
from stepmend.records import InputError

if TYPE_CHECKING:
    import torch

UNUSED = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that hold what a model's configuration says as well."""
EXPERTS = "_exps."
"""What the names of tensors have that hold the weights of several experts."""
HEAD = "output.weight"
"""The head's tensor, which a file of a model with tied embeddings may lack."""


@dataclass(frozen=True)
class Place:
    """A tensor's name in the model; the file's row for each of its rows, None if they are in the same order; and the offset to add to the
    file's values."""

    name: str
    order: "torch.Tensor | None" = None
    added: float = 0.0

    def ordered(self, rows: "torch.Tensor") -> "torch.Tensor":
        """A file's rows in the model's order."""
        return rows if self.order is None else rows[self.order]

    def as_filed(self, rows: "torch.Tensor") -> "torch.Tensor":
        """The model's rows in the file's order."""
        return rows if self.order is None else rows[self.order.argsort()]


def places(folder: Path, header: Header) -> dict[str, Place]:
    """The place of each tensor of a file in the model that ``config.json`` describes.

    Raises InputError, with the tensor's name, if the file lacks one, holds one that is none of the model's or of another shape, or one
    that is not read.
    """
    model, processor, names = _mapped(folder, header)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {}
    for tensor in header.tensors:
        if EXPERTS in tensor.name:
            raise InputError(f"{header.file}: {tensor.name[:100]} holds several experts in one tensor; these are not restored")
        if tensor.name in UNUSED:
            continue
        name = names.get(tensor.name)
        if name is None:
            raise InputError(f"{header.file} holds {tensor.name[:100]}, which is not a tensor of the model")
        if shapes[name] != tensor.shape:
            raise InputError(f"{header.file}: {tensor.name[:100]} is {list(tensor.shape)}, and in the model {list(shapes[name])}")
        found[tensor.name] = _place(header, tensor, name, processor)
    tied = {HEAD} if model.config.get_text_config().tie_word_embeddings else set[str]()
    for name in names.keys() - found.keys() - tied:
        raise InputError(f"{header.file} lacks {name}, the model's {names[name]}")
    if unnamed := sorted(shapes.keys() - set(names.values())):
        raise InputError(f"{header.file}: no GGUF name is known for the model's {unnamed[0]}")
    return found


def _mapped(folder: Path, header: Header) -> tuple[Any, Any, dict[str, str]]:
    """The model without weights, transformers' reader of its architecture, and the model's name of each tensor."""
    need()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import (
        GGUF_SUPPORTED_ARCHITECTURES,
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )  # fmt: skip

    kind = header.architecture
    if kind not in GGUF_SUPPORTED_ARCHITECTURES:
        raise InputError(f"{header.file}: transformers cannot read GGUF files of the architecture {kind[:40]!r}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        processor = TENSOR_PROCESSORS.get(kind, TensorProcessor)(config=config.to_dict())
        with gguf_reader.of(header):
            return model, processor, get_gguf_hf_weights_map(model, processor, model_type=kind)
    except Exception as error:  # transformers and a configuration's own values raise many kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{header.file}: its architecture {kind[:40]!r} does not go with the model's configuration ({first})") from None


def _place(header: Header, tensor: Tensor, name: str, processor: Any) -> Place:
    """The place of a tensor in the model, from the effect of transformers' reader on numbered rows."""
    import numpy as np
    import torch

    rows = tensor.shape[0]
    index_M = np.arange(rows, dtype=np.float64)
    numbered = index_M.reshape(rows, *(1 for _ in tensor.shape[1:]))
    try:
        made = processor.process(weights=numbered, name=tensor.name, tensor_key_mapping={}, parsed_parameters={"tensors": {}})
        moved_M = np.asarray(made.weights).reshape(-1)
        same = made.name == tensor.name and np.shape(made.weights) == numbered.shape
    except Exception:  # a reader that needs the real tensor
        same, moved_M = False, index_M
    if same and np.array_equal(moved_M, index_M):
        return Place(name)
    if same and np.array_equal(np.sort(moved_M), index_M):
        return Place(name, torch.from_numpy(moved_M.astype(np.int64)))
    if same and len(set(moved_M - index_M)) == 1:
        return Place(name, added=float(moved_M[0]))
    raise InputError(f"{header.file}: {tensor.name[:100]} is stored in a way that is not restored ({header.architecture[:40]})")
