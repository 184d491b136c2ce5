"""Build an engine from its ``Spec``, in any process."""

from collections.abc import Callable
from typing import Any

from stepmend.engines.base import Engine
from stepmend.engines.local import LocalEngine
from stepmend.engines.named import Spec
from stepmend.engines.openai import ServerEngine
from stepmend.engines.vllm import VLLMEngine
from stepmend.models import load


def make(spec: Spec, tokenizer: Any = None, written: Callable[[int], None] = lambda count: None) -> Engine:
    """The engine; ``tokenizer`` is the loaded one of ``spec.tokenizer``, and ``written`` is called with numbers of tokens as they come.

    Raises InputError if a checkpoint cannot be loaded.
    """
    tokenizer = tokenizer or load.load_tokenizer(spec.tokenizer)
    if spec.server:
        return ServerEngine(*spec.server, tokenizer, spec.max_new_tokens, what="engine", written=written)
    if spec.kind == "vllm":
        return VLLMEngine(spec.checkpoint, tokenizer, spec.max_new_tokens, spec.dtype, written)
    return LocalEngine(load.load_model(spec.checkpoint, spec.dtype), tokenizer, spec.max_new_tokens, spec.slots, written=written)
