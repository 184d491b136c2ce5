"""Linear layers with quantized inputs, and running them without input rounding.

Logits of two copies of a model cannot be compared after many such layers: at a rounding boundary, a difference of 1e-7 becomes a step of 6
% in FP8, and soon reaches the full noise of rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def layers(model: Any) -> dict[str, Any]:
    """The linear layers whose inputs are rounded by compressed-tensors' scheme, by name."""
    schemes: dict[str, Any] = {name: getattr(module, "quantization_scheme", None) for name, module in model.named_modules()}
    return {name: model.get_submodule(name) for name, of in schemes.items() if of and of.weights and of.input_activations}


def keys(model: Any) -> bool:
    """Whether the KV cache is rounded: attention then has a scheme, which is of no weights."""
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    return any(of is not None and of.weights is None for of in schemes)


@contextmanager
def exact_inputs(*models: Any) -> Iterator[None]:
    """In this context, inputs of linear layers are not rounded; their weights are, as before."""
    changed = [(layer, layer.quantization_scheme) for model in models for layer in layers(model).values()]
    for layer, scheme in changed:
        layer.quantization_scheme = scheme.model_copy(update={"input_activations": None})
    try:
        yield
    finally:
        for layer, scheme in changed:
            layer.quantization_scheme = scheme
