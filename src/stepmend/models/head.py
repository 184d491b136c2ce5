"""The two parts of any causal model: the body, which computes hidden states, and the head, which computes logits from them.

The head is the model's own forward pass with the body taken out, so that scales, caps, biases and further layers after the body are in
it, whatever a family calls them. Tensor names carry their shape: B rows, T tokens, N places, V vocabulary, H hidden width.
"""

import copy
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from stepmend.records import InputError

_paths: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


class _Hidden(BaseModelOutputWithPast):
    """What a body returns: hidden states, and None for all that a head may ask for besides."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Replaces the body: returns the given hidden states, and has the body's simple attributes."""

    hidden_1NH: torch.Tensor | None = None

    def __init__(self, body: Any) -> None:
        super().__init__()
        for name, value in vars(body).items():
            if not name.startswith("_") and (name == "config" or isinstance(value, int | float | str | None)):
                setattr(self, name, value)

    def forward(self, *_: Any, **__: Any) -> _Hidden:
        return _Hidden(last_hidden_state=self.hidden_1NH)  # pyright: ignore[reportArgumentType]


class _Found(Exception):  # noqa: N818
    """Raised to end the pass that finds the body."""


class Head:
    """Logits of last hidden states; holds only the head's tensors."""

    def __init__(self, model: Any) -> None:
        """Raises InputError if the model's body is not to be found."""
        base = unwrapped(model)
        self.shell, self.given = _without(base, path_of(base)), _Given(base.get_submodule(path_of(base)))
        *parents, name = path_of(base).split(".")
        self.shell.get_submodule(".".join(parents))._modules[name] = self.given

    def __call__(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Float32 logits [N, V]."""
        self.given.hidden_1NH = hidden_NH[None]
        ids_1N = torch.zeros((1, len(hidden_NH)), dtype=torch.long, device=hidden_NH.device)
        try:
            return self.shell(input_ids=ids_1N, use_cache=False).logits[0].float()
        finally:
            self.given.hidden_1NH = None

    def parameters(self) -> list[nn.Parameter]:
        """The head's tensors."""
        return list(self.shell.parameters())


def unwrapped(model: Any) -> Any:
    """The model inside an adapter's wrapper, or the model."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def body_of(model: Any) -> Any:
    """The module that makes the last hidden states, after the final norm. Raises InputError if it is not to be found."""
    base = unwrapped(model)
    return base.get_submodule(path_of(base))


def path_of(base: Any) -> str:
    """The name of the body: the first module below the model that is called and returns hidden states (``model``, ``model.decoder``)."""
    if base not in _paths:
        prefix = base.base_model_prefix
        called = _first_called(base)
        if called is None and isinstance(getattr(base, prefix, None), nn.Module):
            called = prefix
        if called is None:
            raise InputError(f"model: {type(base).__name__} has no module that makes hidden states; a decoder with a head is needed")
        _paths[base] = called
    return _paths[base]


def _first_called(base: Any) -> str | None:
    """The first module with layers of its own that a pass over one token calls; the pass ends there."""
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            found.append(name)
            raise _Found

        return hook

    bodies = [(name, m) for name, m in base.named_modules() if name and any(isinstance(child, nn.ModuleList) for child in m.modules())]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in bodies]
    try:
        with torch.no_grad(), suppress(Exception):
            base(input_ids=torch.zeros((1, 1), dtype=torch.long, device=base.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _without(base: Any, path: str) -> Any:
    """A copy of the model whose modules are the same, except those that lead to ``path``, which are copies too."""
    shell = copy.copy(base)
    shell._modules = dict(base._modules)
    first, _, rest = path.partition(".")
    shell._modules[first] = _without(shell._modules[first], rest) if rest else nn.Identity()
    return shell
