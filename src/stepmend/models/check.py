"""Checks before any work: which modules of a model would be quantized and tuned, which are left alone and why, and what is refused.

All of it is read from a model without weights (the meta device), so it takes seconds and reads no weights.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from stepmend.models import causal, head
from stepmend.quantize.schemes import Scheme, check_widths
from stepmend.records import InputError

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Names of routers, the small linear layers that choose experts; rounding them changes the routing (llm-compressor's examples exclude them
too)."""
NARROW = 16
"""Linear layers with fewer rows or columns are left alone: they hold almost no parameters, and such narrow gates have a large effect."""
APART = ("nvfp4a16", "mxfp8a16")
"""Weight-only presets in which transformers does not load experts: it leaves out the scale of all scales, and reads exponents as scales."""
EXPERTS = "experts in one tensor"


@dataclass(frozen=True)
class Layer:
    """One module that holds matrices: its name and class, rows and columns (of one expert, if it holds many), numbers in it, and
    whether it is quantized and its codes and scales tuned; ``why`` says why not."""

    name: str
    kind: str
    rows: int
    columns: int
    numbers: int
    quantized: bool
    tuned: bool
    why: str = ""


def layers_of(model: Any) -> list[Layer]:
    """Every module of a model that holds matrices of its own, in its order; ``model`` may be on the meta device."""
    outputs, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    tied = outputs is not None and outputs.weight is inputs.weight
    body = head.path_of(model)
    stack = decoder_stack(model)
    found: list[Layer] = []
    for name, module in model.named_modules():
        held = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
        if held and (module is not inputs or not tied):
            # Of experts the tensor whose columns the fewest groups divide.
            rows, columns = min((p.shape[-2:] for p in held), key=lambda shape: shape[1] & -shape[1])
            why = _why_not(name, module, module is outputs, body, stack)
            experts = why == EXPERTS
            size = sum(p.numel() for p in held)
            found.append(Layer(name, type(module).__name__, rows, columns, size, experts or not why, not why, why))
    return found


def decoder_stack(model: Any) -> str:
    """The name of the module list that holds most of the body's linear layers, such as ``model.layers``."""
    prefix = head.path_of(model) + "."
    sizes: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.startswith(prefix) and not any(name.startswith(one + ".") for one in sizes):
            sizes[name] = sum(p.numel() for p in module.parameters())
    text = {name: size for name, size in sizes.items() if not _is_seeing(name)}
    return max(text or sizes, key=lambda name: sizes[name], default=prefix)


def _is_seeing(name: str) -> bool:
    return any(word in name for word in ("vision", "visual", "audio", "image", "speech"))


def _why_not(name: str, module: Any, is_head: bool, body: str, stack: str) -> str:
    """Why a module's codes and scales are not tuned; empty if they are."""
    if is_head:
        return "the head"
    if isinstance(module, nn.Embedding):
        return "an embedding"
    if not (name.startswith(f"{body}.") and name.startswith(f"{stack}.")):
        return "outside of the decoder layers"
    if isinstance(module, nn.Linear):
        if type(module) is not nn.Linear:
            return f"{type(module).__name__} computes something else than a linear layer"
        if name.rpartition(".")[2] in ROUTERS:
            return "it chooses experts"
        return "" if min(module.out_features, module.in_features) >= NARROW else f"narrower than {NARROW}"
    if type(module).__name__ == "Conv1D":
        return "Conv1D, a linear layer stored the other way round"
    if "experts" in name.rpartition(".")[2].lower() and any(p.ndim == 3 for p in module.parameters(recurse=False)):
        return EXPERTS
    return "no linear layer"


def ignored(layers: Sequence[Layer]) -> list[str]:
    """Names of the linear layers that a scheme leaves alone."""
    return [layer.name for layer in layers if not layer.quantized]


def refuse(model: Any, scheme: Scheme, layers: Sequence[Layer]) -> None:
    """Raises InputError, with what to do, if a scheme does not suit a model."""
    causal.refuse(model)
    quantized = [layer for layer in layers if layer.quantized]
    if not quantized:
        kinds = Counter(layer.why for layer in layers if layer.why not in ("the head", "an embedding", "no linear layer"))
        why = f": {kinds.most_common(1)[0][0]}" if kinds else ""
        raise InputError(f"model: {model.config.model_type} has no linear layer in its decoder that can be quantized{why}")
    left = sum(layer.numbers for layer in layers if layer.why.startswith(("Conv1D", "Bit")) or "something else" in layer.why)
    if left > sum(layer.numbers for layer in quantized):
        why = next(layer.why for layer in layers if layer.why.startswith("Conv1D") or "something else" in layer.why)
        raise InputError(f"model: most linear layers of {model.config.model_type} cannot be quantized ({why})")
    check_widths(scheme, {layer.name: (layer.rows, layer.columns) for layer in quantized})
    if any(layer.why == EXPERTS for layer in layers):
        _refuse_experts(model, scheme)
    if scheme.kv_bits and _states(model):
        raise InputError(f"scheme: {scheme.name}: layers of {model.config.model_type} have a recurrent state and no KV cache; remove -kv8")


def _states(model: Any) -> bool:
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    return any("attention" not in kind or "linear" in kind for kind in kinds)


def _refuse_experts(model: Any, scheme: Scheme) -> None:
    """transformers fuses experts when it loads them, and has to be able to take low-bit ones apart."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    family = model.config.model_type
    converters = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightConverter)]
    fused = [one for one in converters if all("experts" in p and p.endswith(".weight") for p in one.source_patterns)]
    if not fused:
        raise InputError(f"model: experts of {family} are stored in one tensor, which transformers cannot load again when it is quantized")
    if scheme.activation_bits != 16 or not scheme.symmetric or scheme.preset in APART:
        allowed = "symmetric, weight-only schemes of integers or MXFP4"
        raise InputError(f"scheme: {scheme.name}: experts of {family} can be loaded only with {allowed}; use w3a16, w4a16 or mxfp4a16")


def summary(layers: Sequence[Layer]) -> dict[str, Any]:
    """Counts, and the share of all matrices that is quantized and that is tuned; what is left alone by reason."""
    total = sum(layer.numbers for layer in layers)
    left = Counter[str]()
    for layer in layers:
        if layer.why:
            left[layer.why] += 1
    return {
        "quantized": sum(layer.quantized for layer in layers),
        "tuned": sum(layer.tuned for layer in layers),
        "numbers": total,
        "share quantized": sum(layer.numbers for layer in layers if layer.quantized) / max(total, 1),
        "share tuned": sum(layer.numbers for layer in layers if layer.tuned) / max(total, 1),
        "left alone": dict(left),
    }


def memory(model: Any, layers: Sequence[Layer], texts: int, batch: int, tokens: int, element: int) -> dict[str, float]:
    """Bytes that tuning is expected to need by purpose, as ``restore.memory.estimate`` counts them, for bullets of ``tokens`` tokens,
    in numbers of ``element`` bytes, with groups of 128."""
    from stepmend.restore import memory as estimates

    config = model.config.get_text_config()
    held = element * sum(prod(p.shape) for p in model.parameters())
    width, depth = config.hidden_size, config.num_hidden_layers
    tuned = sum(layer.numbers for layer in layers if layer.tuned)
    return {
        "model": held,
        "optimizer": 12 * tuned / 128,
        "teacher": element * width * (config.vocab_size + texts * tokens),
        "activations": element * (batch * tokens * depth * (estimates.STATES * width + 4 * estimates.inner_width(model)) + tuned),
        "logits": 4 * 6 * min(batch * tokens * config.vocab_size, estimates.LOGITS),
    }
