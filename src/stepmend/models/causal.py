"""Whether a model reads from left to right: what it says of a place must not depend on what follows.

An encoder's checkpoint loads as a causal model and reads both ways. Texts that are read would show it the answer, and what it writes is not
what it was measured on.
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
    "xlnet": "it attends to what follows, too",
    "cpmant": "it attends to the whole of its prompt at once",
    "prophetnet": "what it says of a place depends on the text's length",
    "xlstm": "what it says of a place depends on the text's length",
    "doge": "transformers gives it no causal mask",
}
"""Types that do not show it in their configuration (benchmarks/families.py), and why."""
WHAT = "one that continues a text from left to right is needed"


def refuse(model: Any) -> None:
    """Raises InputError where a model, which may be on the meta device, is known to look at what follows."""
    kind = model.config.model_type
    if why := BOTH_WAYS.get(kind):
        raise InputError(f"model: {kind} does not read from left to right ({why}); {WHAT}")
    if getattr(model.config, "causal", None) is False:
        raise InputError(f"model: {kind} attends to what follows, too (config.json: causal is false); {WHAT}")
    sides = {getattr(module, name, None) for module in model.modules() for name in ("is_decoder", "is_causal")}
    if getattr(model.config, "is_decoder", None) is False and False in sides:
        raise InputError(f"model: {kind} is an encoder here (config.json: is_decoder is false) and attends to what follows, too; {WHAT}")


@torch.inference_mode()
def check(model: Any) -> None:
    """Raises InputError where a loaded model's logits depend on what follows; tried on random tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        whole_PV, alone_PV = (model(input_ids=ids).logits[0, :PREFIX].float() for ids in (ids_1T, ids_1T[:, :PREFIX]))
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"model: {model.config.model_type} cannot be computed in this release of transformers ({first})") from None
    difference, scale = (whole_PV - alone_PV).square().mean().sqrt(), alone_PV.std()
    if not difference <= SHARE.get(model.dtype, LOW) * scale:
        raise InputError(f"model: {model.config.model_type} does not read from left to right ({difference / scale:.2g} off); {WHAT}")
