"""Checks of a given low-bit checkpoint before any work: whether it belongs to the full-precision model, and whether it can be restored.

Differences that would make the comparison meaningless are refused: architecture, shapes, vocabulary. Differences that may be intended give
a warning: settings, chat template, embeddings, a card that names another base model.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepmend import formats, inputs
from stepmend.arms import of_folder
from stepmend.formats.base import Format, Layer
from stepmend.formats.packing import FLOATS
from stepmend.formats.tensors import Tensors
from stepmend.models import causal, check, gguf, load, names
from stepmend.records import InputError

ROWS = 256
"""Rows of the embeddings that are compared."""
NEAR = 0.02
"""Maximum relative difference of embeddings: rounding to another dtype changes them by at most 0.4 % …"""
ROUNDED = 0.3
"""… and rounding them to 4 bits and more by a tenth."""
ZEROS = frozenset({"gguf"})
"""Formats in which a group of zeros has the scale 0."""
CARD = 1 << 20
"""Bytes of a model card that are read."""
OWN = frozenset({
    "quantization_config", "dtype", "torch_dtype", "_name_or_path", "transformers_version", "use_cache", "architectures", "pad_token_id",
    "bos_token_id", "eos_token_id", "tie_word_embeddings",
})  # fmt: skip
"""Settings that may differ without changing the computation, or that are checked separately."""


@dataclass(frozen=True)
class Given:
    """A checked checkpoint: its arm's name, folder and format, what is done with its layers, and warnings."""

    name: str
    folder: str
    low_bit: Format
    layers: tuple[check.Layer, ...]
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """The facts that a run stores about it, as about a checkpoint that it made itself."""
        counts = {**check.summary(self.layers), "codes": len(self.low_bit.layers)}
        told = {"format": self.low_bit.name, "loads_in": self.low_bit.loads_in, "holds": self.holds(), "warnings": list(self.warnings)}
        return {"layers": counts, "given": told}

    def holds(self) -> str:
        """The blocks of its layers, or their bits, groups and zero points; most layers first."""
        counts: dict[str, int] = {}
        for layer in self.low_bit.layers.values():
            kind = layer.kind or f"{layer.code}{layer.bits}, {_scales(layer)}"
            if layer.code == "int" and not layer.kind:
                kind += f", {'no zero points' if layer.symmetric else 'zero points'}"
            counts[kind] = counts.get(kind, 0) + 1
        return "; ".join(f"{count} layers {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def _scales(layer: Layer) -> str:
    """Of what size the blocks are that share a scale, and in what it is stored if that is 8 bits."""
    width, kind = layer.columns // layer.groups, "" if layer.scale == "float" else f" in {layer.scale}"
    if layer.tall == layer.rows and layer.groups == 1:
        return f"a scale{kind}"
    if layer.tall > 1:
        return f"a scale{kind} {layer.tall} x {width}"
    return f"a scale{kind} {'a row' if layer.groups == 1 else f'{width} columns'}"


def look(parent: str, model: str, path: str) -> Given:
    """Check a low-bit checkpoint against its full-precision model, before any work; reads scales and a few rows of weights.

    Args:
        parent: The folder of the full-precision checkpoint.
        model: Its name as the user gave it.
        path: The low-bit checkpoint: a folder, a name on the hub, or a GGUF file.

    Raises:
        InputError: if it is not of this model, holds nothing that can be restored, or is damaged.
    """
    if formats.method_of(parent):
        raise InputError(f"model: {parent} is quantized already; give its full-precision parent, and this one as --quantized")
    folder = located(path, parent)
    try:
        low_bit = formats.detect(folder)
        if low_bit is None:
            raise InputError(f"{folder} is in full precision (its config.json has no quantization_config)")
        full, low = (load.skeleton(load.config_of(one)) for one in (parent, folder))
        causal.refuse(full)
        _check_shapes(full, low, low_bit, folder)
        layers = _layers(low, low_bit)
        _check_scales(low_bit)
        texts = [load.read_tokenizer(one) for one in (parent, folder)]
    except InputError as error:
        raise InputError(f"quantized: {str(error).removeprefix('model: ').removeprefix('quantized: ')}") from None
    _check_vocabulary(texts[0], texts[1], folder)
    warnings = [
        *_other_settings(full.config, low.config),
        *_other_texts(texts[0], texts[1]),
        *_other_ends(parent, folder),
        *_other_base(folder, model),
        *_other_embeddings(parent, low, low_bit),
    ]
    return Given(str(of_folder(path)), folder, low_bit, tuple(layers), tuple(warnings))


def located(path: str, parent: str) -> str:
    """The folder of a low-bit checkpoint; that of a GGUF file has the configuration and tokenizer of ``parent``.

    Raises InputError if there is none.
    """
    try:
        file = gguf.named(path)
        return gguf.beside(file, parent) if file else load.locate(path)
    except InputError as error:
        raise InputError(f"quantized: {str(error).removeprefix('model: ')}") from None


def _check_shapes(full: Any, low: Any, low_bit: Format, folder: str) -> None:
    """Raises InputError if both models do not have the same parameters, or a file holds another shape."""
    if full.config.model_type != low.config.model_type:
        raise InputError(f"{folder} is of type {low.config.model_type!r}, and the full-precision model {full.config.model_type!r}")
    heads = {name for model in (full, low) for name, module in model.named_modules() if module is model.get_output_embeddings()}
    mine, other = ({name: tuple(p.shape) for name, p in model.named_parameters()} for model in (full, low))
    for name in [*mine, *other]:
        if mine.get(name) != other.get(name) and not (name.rpartition(".")[0] in heads and None in (mine.get(name), other.get(name))):
            wanted, found = (str(list(of[name])) if name in of else "missing" for of in (mine, other))
            raise InputError(f"{folder}: {name} is {found}, and {wanted} in the full-precision model; they belong to different models")
    for name, shape in other.items():
        if name in low_bit.tensors and name.removesuffix(".weight") not in low_bit.layers and low_bit.tensors.shape(name) != shape:
            raise InputError(f"{folder}: {name} is {list(low_bit.tensors.shape(name))}; by config.json it is {list(shape)}")


def _layers(low: Any, low_bit: Format) -> Iterator[check.Layer]:
    """What is done with every layer. Raises InputError, with the layer's name, for one whose codes cannot be restored."""
    named, head = names.layers(low, low_bit), low.get_output_embeddings()
    stack, layers = check.decoder_stack(low), check.layers_of(low)
    for name, file in named.items():
        module, of = low.get_submodule(name), low_bit.layers[file]
        if (module.out_features, module.in_features) != (of.rows, of.columns):
            shape = f"{of.rows} x {of.columns}"
            raise InputError(f"{file} holds {shape} codes, and by config.json it is {module.out_features} x {module.in_features}")
        if module is head or not name.startswith(f"{stack}."):
            raise InputError(f"{file} holds codes but is not a layer of the decoder; only decoder layers are restored")
    experts = any(layer.why == check.EXPERTS for layer in layers)
    for file in low_bit.layers.keys() - set(named.values()):
        if not (experts and ".experts." in file and low_bit.name == "compressed-tensors"):
            raise InputError(f"{file} holds codes but is not a linear layer of the model ({low_bit.name}); such layers are not restored")
        of = low_bit.layers[file]
        if low_bit.rounded or not of.symmetric or of.scale == "E4M3" or (of.scale == "E8M0" and of.bits == 8):
            raise InputError(
                f"{file}: experts in one tensor can be loaded only with symmetric weight-only codes, and not as NVFP4 or MXFP8"
            )
    return (_left(layer, layer.name in named) for layer in layers)


def _left(layer: check.Layer, codes: bool) -> check.Layer:
    """A layer as the checkpoint has it: with codes, or left alone."""
    if codes:
        return replace(layer, quantized=True, tuned=True, why="")
    return layer if layer.why else replace(layer, quantized=False, tuned=False, why="left in full precision by its maker")


def _check_scales(low_bit: Format) -> None:
    for layer in low_bit.layers:
        stored_MG = low_bit.scale(layer)
        scale_MG = stored_MG.float()
        # Small scales become zero when they are rounded to E4M3; in 8 bits there is no sign to use.
        allowed_MG = scale_MG >= 0 if stored_MG.dtype == torch.float8_e4m3fn else (scale_MG != 0) | (low_bit.name in ZEROS)
        if not bool((torch.isfinite(scale_MG) & allowed_MG).all()):
            raise InputError(f"{low_bit.tensors.folder}: a scale of {layer} is zero or not finite; the checkpoint is damaged")


def _check_vocabulary(full: Any, low: Any, folder: str) -> None:
    mine, other = full.get_vocab(), low.get_vocab()
    if differing := sorted(token for token in mine.keys() | other.keys() if mine.get(token) != other.get(token)):
        token = differing[0]
        ids = f"{token[:40]!a} is {other.get(token, 'missing')}, and {mine.get(token, 'missing')} in full precision's"
        raise InputError(
            f"quantized: {folder}: the vocabulary differs in {len(differing)} tokens ({ids}); give the model that it was made from"
        )


def _other_settings(full: Any, low: Any) -> Iterator[str]:
    mine, other = full.to_dict(), low.to_dict()
    if differing := sorted(key for key in (mine.keys() | other.keys()) - OWN if mine.get(key) != other.get(key)):
        yield f"config.json differs from full precision's in {', '.join(differing)[:200]}"


def _other_texts(full: Any, low: Any) -> Iterator[str]:
    if full.chat_template != low.chat_template:
        missing = "" if low.chat_template else " (it has none)"
        yield f"its chat template is not full precision's{missing}; all arms are asked by full precision's"
    mine, other = (_splitting(tokenizer) for tokenizer in (full, low))
    if mine != other:
        yield "its tokenizer.json is not full precision's, though the vocabulary is; all arms are given full precision's tokens"


def _splitting(tokenizer: Any) -> Any:
    """How a tokenizer splits texts, except padding and truncation; None if it does not say."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kept = json.loads(backend.to_str()) if backend is not None else {}
    return {key: value for key, value in kept.items() if key not in ("padding", "truncation", "version")} or None


def _other_ends(parent: str, folder: str) -> Iterator[str]:
    mine, other = load.ends_of(parent), load.ends_of(folder)
    if mine != other:
        yield f"answers end with tokens {sorted(other)}, and {sorted(mine)} in full precision (generation_config.json)"


def _other_base(folder: str, model: str) -> Iterator[str]:
    """What the card names as the base model, if that is not the last part of the model's name."""
    try:
        card = inputs.text(Path(folder) / "README.md", CARD)
    except InputError:
        return
    head = card.split("\n---", 1)[0] if card.startswith("---") else ""
    found = re.search(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([\w./-]+)", head, re.MULTILINE)
    if found and found[1].rpartition("/")[2].lower() != Path(model).name.lower():
        yield f"its card names {found[1][:100]} as the base model, and not {model[:100]}"


def _other_embeddings(parent: str, low: Any, low_bit: Format) -> Iterator[str]:
    """Quantizers keep embeddings, or round them: a larger difference means that the checkpoint was made from another model, or trained
    further."""
    embeddings = low.get_input_embeddings()
    name = next((f"{name}.weight" for name, module in low.named_modules() if module is embeddings), "")
    full = Tensors(Path(parent))
    if not (isinstance(embeddings, nn.Embedding) and name in full and name in low_bit.tensors):
        return
    mine_RH, other_RH = (tensors.rows(name, ROWS).float() for tensors in (full, low_bit.tensors))
    near = NEAR if low_bit.tensors.kind(name) in FLOATS else ROUNDED
    if not float((mine_RH - other_RH).norm()) <= near * float(mine_RH.norm()):
        yield "its embeddings are not full precision's: it may be of another model of this size, or trained on"
