"""Scaling mappings of AWQ and SmoothQuant: layers whose output is divided by factors, and the layers whose weights are multiplied by them.

Such a pair leaves the model's function unchanged only if nothing else reads that output. So a text is run through the model without weights
(on the meta device), and every use of a norm's output is recorded. llm-compressor's own mappings of a family are used if they agree with
this; otherwise the mappings found here are registered with it.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from stepmend.models import check
from stepmend.records import InputError

TOKENS = 4
"""Length of the text that is traced through a model."""
INNER, OUTER = 16, 8
"""Widths of the copy of a feed-forward block that is tested."""


@dataclass(frozen=True)
class Mapping:
    """The name of the layer whose output is divided, and those of the linear layers that are multiplied."""

    smooth: str
    balance: tuple[str, ...]


def of(model: Any, method: str) -> list[Mapping]:
    """The mappings of ``awq`` or ``smoothquant`` for a model on the meta device.

    Raises InputError, with what to do, if there is nothing that may be scaled.
    """
    if not (found := _of(model, method)):
        followed = readers(model) is not None
        why = "no norm's output goes into linear layers alone" if followed else "its layers cannot be followed before any work"
        raise InputError(f"scheme: {method} has nothing to scale in {model.config.model_type}: {why}; use rtn or gptq")
    return found


def _of(model: Any, method: str) -> list[Mapping]:
    read = readers(model) or {}
    known = _registered(model, method)
    norms = [one for one in known if not _is_linear(model, one.smooth)]
    if not norms or any(set(read.get(one.smooth, ())) != set(one.balance) for one in norms):
        norms = [Mapping(norm, tuple(linear)) for norm, linear in read.items()]
    if method == "smoothquant":
        return norms
    linear = [one for one in known if _is_linear(model, one.smooth) and _fits(model, one)]
    have = {one.balance for one in linear}
    return norms + linear + [one for one in _inside_blocks(model) if one.balance not in have]


def readers(model: Any) -> dict[str, list[str]] | None:
    """Norms of the decoder layers, each with the linear layers that read its output, where no other part of the model reads it.

    None if the model cannot be traced without weights.
    """
    stack = check.decoder_stack(model) + "."
    norms = {name: module for name, module in model.named_modules() if name.startswith(stack) and _divides(module)}
    follow = _Follow({id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Linear)})
    handles = [norm.register_forward_hook(follow.seen(name)) for name, norm in norms.items()]
    try:
        with torch.no_grad(), torch.device("meta"), _plain_experts(model), follow:
            model.eval()(input_ids=torch.zeros((1, TOKENS), dtype=torch.long), use_cache=False)
    except Exception:  # families fail without numbers in many ways: values that decide what is computed, kernels of their own
        return None
    finally:
        for handle in handles:
            handle.remove()
    quantized = {layer.name for layer in check.layers_of(model) if layer.quantized}
    alone = {name: linear for name, linear in follow.linear.items() if name not in follow.shared}
    return {name: linear for name, linear in alone.items() if quantized.intersection(linear)}


class _Follow(TorchFunctionMode):
    """Readers of norms' outputs: ``linear`` layers by norm, and ``shared`` norms, whose output something else reads too.

    Views of an output (other shapes of it) share its storage, by which it is known.
    """

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights = weights
        self.linear: dict[str, list[str]] = defaultdict(list)
        self.shared: set[str] = set()
        self._made: dict[int, tuple[str, torch.Tensor]] = {}  # held, so that no storage takes the place of another

    def seen(self, norm: str) -> Any:
        """A hook that takes note of a norm's output; a norm that is called twice is shared."""

        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            if any(name == norm for name, _ in self._made.values()):
                self.shared.add(norm)
            self._made[_storage(output)] = (norm, output)

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__:
            return True  # there are no numbers to decide by: masks ask whether all of a text is to be read
        result = func(*args, **(kwargs or {}))
        read = {self._made[key][0]: key for key in map(_storage, _tensors((args, kwargs))) if key in self._made}
        made = [_storage(one) for one in _tensors(result)]
        for norm, key in read.items():
            if not made or all(one == key for one in made):
                continue
            if func is nn.functional.linear and id(args[1]) in self.weights and _storage(args[0]) == key:
                self.linear[norm].append(self.weights[id(args[1])])
            else:
                self.shared.add(norm)
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


@contextmanager
def _plain_experts(model: Any) -> Iterator[None]:
    """In this context, experts of one tensor only read their input: which of them is chosen depends on numbers."""
    experts = [model.get_submodule(layer.name) for layer in check.layers_of(model) if layer.why == check.EXPERTS]
    for module in experts:
        module.forward = lambda states, *args, **kwargs: torch.relu(states)
    try:
        yield
    finally:
        for module in experts:
            del module.forward


def _divides(module: nn.Module) -> bool:
    """Whether a module is a norm whose output is divided where its weight (and bias) are; tried on numbers.

    llm-compressor itself brings norms that multiply by 1 + weight into this form, if it knows them.
    """
    from llmcompressor.modeling.offset_norm import NormCalibrationModule, _is_registered

    weight = getattr(module, "weight", None)
    if "norm" not in type(module).__name__.lower() or not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return False
    known: Any = NormCalibrationModule
    if _is_registered(type(module).__name__, known):
        return True
    kept = {name: torch.linspace(0.5, 1.5, p.numel()).view(p.shape) for name, p in module.named_parameters()}
    states, factors = torch.linspace(-2, 2, weight.numel())[None, None], torch.linspace(0.5, 2, weight.numel())
    try:
        plain, divided = (functional_call(copy.copy(module), held, (states,)) for held in (kept, {n: p / factors for n, p in kept.items()}))
    except Exception:  # a norm that takes more than hidden states
        return False
    return isinstance(plain, torch.Tensor) and torch.allclose(plain / factors, divided, atol=1e-5)


def _registered(model: Any, method: str) -> list[Mapping]:
    """llm-compressor's own mappings of a family by the names of its modules, if it has such modules."""
    from compressed_tensors.utils import match_modules_set
    from llmcompressor.modifiers.transform.awq import dynamic_mappings as awq
    from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.smoothquant import dynamic_mappings as smoothquant
    from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY

    tables: tuple[Any, ...] = (AWQ_MAPPING_REGISTRY, awq.AWQ_DYNAMIC_MAPPING_REGISTRY)
    if method == "smoothquant":
        tables = (MAPPINGS_REGISTRY, smoothquant.SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY)
    if not any(type(model).__name__ in table for table in tables):
        return []
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    own: list[Any] = (smoothquant if method == "smoothquant" else awq).get_layer_mappings_from_model(model)
    for one in own:
        smooth = one.smooth_layers if method == "smoothquant" else one.smooth_layer
        try:
            for (first,), *rest in match_modules_set(model, (smooth, *one.balance_layers)):
                found.append(Mapping(names[id(first)], tuple(names[id(m)] for group in rest for m in group)))
        except ValueError:  # modules that this model does not have
            continue
    return found


def _is_linear(model: Any, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.Linear)


def _fits(model: Any, one: Mapping) -> bool:
    """Whether the output of the first layer, or of a part of it, is what goes into the others: as many columns as rows, or a fused part."""
    rows, columns = model.get_submodule(one.smooth).out_features, {model.get_submodule(name).in_features for name in one.balance}
    fused = {"qkv_proj": 3, "gate_up_proj": 2}.get(one.smooth.rpartition(".")[2], 1)
    return {rows} == {fused * count for count in columns}


def _inside_blocks(model: Any) -> list[Mapping]:
    """Feed-forward blocks whose last linear layer reads a product with another's output: found by trying a small copy of each."""
    stack, found = check.decoder_stack(model) + ".", []
    for name, block in model.named_modules():
        linear = {child: m for child, m in block.named_children() if isinstance(m, nn.Linear)}
        if name.startswith(stack) and 2 <= len(linear) <= 3:
            *others, last = linear
            found += [Mapping(f"{name}.{one}", (f"{name}.{last}",)) for one in others if _passes(block, one, last)][:1]
    return found


def _passes(block: Any, first: str, last: str) -> bool:
    """Whether a block computes the same when the last rows of one linear layer are divided by what the columns of another are multiplied
    with."""
    width, inner = block.get_submodule(last).out_features, block.get_submodule(last).in_features
    try:
        small = copy.deepcopy(block)
        for child, module in block.named_children():
            if isinstance(module, nn.Linear):
                size = (INNER, OUTER) if child == last else (OUTER, INNER * module.out_features // inner)
                assert child == last or (module.in_features == width and module.out_features % inner == 0)
                setattr(small, child, nn.Linear(*size, bias=module.bias is not None))
        generator = torch.Generator().manual_seed(0)
        for parameter in small.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        states, factors = torch.randn((1, 3, OUTER), generator=generator), torch.linspace(0.5, 2, INNER)
        with torch.no_grad():
            before = small(states)
            smooth: Any = small.get_submodule(first)
            balance: Any = small.get_submodule(last)
            if smooth.bias is not None and smooth.out_features != INNER:
                return False  # llm-compressor divides the whole bias
            for tensor in (smooth.weight, smooth.bias):
                if tensor is not None:
                    tensor.data[-INNER:] /= factors.view(-1, *[1] * (tensor.ndim - 1))
            balance.weight.data *= factors
            return bool(torch.allclose(before, small(states), rtol=1e-4, atol=1e-4 * float(before.abs().max())))
    except Exception:  # a block that takes more than hidden states, or holds more than linear layers
        return False
