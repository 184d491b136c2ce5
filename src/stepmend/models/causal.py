"""Whether a model's attention is causal: its logits at a token must not depend on later tokens.

An encoder's checkpoint can be loaded as a causal model although it attends in both directions. Scoring a text would then leak the answer.
"""

from typing import Any

import torch

from stepmend.records import InputError

TOKENS, PREFIX = 24, 15
"""Tokens of the text that is tried, and those that are read alone as well."""
SHARE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Root-mean-square difference of the prefix's logits, in their standard deviations, by dtype …"""
LOW = 0.05
"""… and in 16 bits."""
BOTH_WAYS = {
    "xlnet": "it attends to later tokens",
    "cpmant": "it attends to its whole prompt",
    "prophetnet": "its logits at a token depend on the length of the text",
    "xlstm": "its logits at a token depend on the length of the text",
    "doge": "transformers gives it no causal mask",
}
"""Types whose configuration does not show that they are not causal (found by benchmarks/families.py), and why."""
WHAT = "a causal language model is needed"


def refuse(model: Any) -> None:
    """Raises InputError if a model, which may be on the meta device, is known not to be causal."""
    kind = model.config.model_type
    if why := BOTH_WAYS.get(kind):
        raise InputError(f"model: {kind} is not causal ({why}); {WHAT}")
    if getattr(model.config, "causal", None) is False:
        raise InputError(f"model: {kind} attends to later tokens (config.json: causal is false); {WHAT}")
    sides = {getattr(module, name, None) for module in model.modules() for name in ("is_decoder", "is_causal")}
    if getattr(model.config, "is_decoder", None) is False and False in sides:
        raise InputError(f"model: {kind} is an encoder here (config.json: is_decoder is false) and attends to later tokens; {WHAT}")


@torch.inference_mode()
def check(model: Any) -> None:
    """Raises InputError if a loaded model's logits depend on later tokens; tested on random tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        whole_PV, alone_PV = (model(input_ids=ids).logits[0, :PREFIX].float() for ids in (ids_1T, ids_1T[:, :PREFIX]))
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"model: {model.config.model_type} cannot be computed in this release of transformers ({first})") from None
    difference, scale = (whole_PV - alone_PV).square().mean().sqrt(), alone_PV.std()
    if not difference <= SHARE.get(model.dtype, LOW) * scale:
        raise InputError(f"model: {model.config.model_type} is not causal ({difference / scale:.2g} off); {WHAT}")
