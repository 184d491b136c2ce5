"""How many completions are generated in parallel."""

from typing import Any

from stepmend.models import configs

MOST = 256
"""Maximum number of slots: with more, a GPU gains no throughput, and an interruption loses more work."""
SHARE = 0.4
"""Share of the free memory for the KV cache: two models are loaded as well, and forward passes need memory."""
PROMPT = 512
"""Assumed number of tokens of a prompt."""


def slots_for(config: Any, max_new_tokens: int, device: str) -> int:
    """The number of slots: 32 on a CPU, so that an interruption loses at most half a minute; on a GPU as many as fit into free memory.

    Args:
        config: The checkpoint's configuration.
        max_new_tokens: Tokens after which a completion is cut off.
        device: ``cpu`` or ``cuda``.
    """
    if device == "cpu":
        return 32
    import torch

    text = config.get_text_config()
    _, heads, width = configs.heads(text)
    place = 2 * text.num_hidden_layers * heads * width * 2  # keys and values, two bytes each
    tokens = SHARE * torch.cuda.mem_get_info()[0] / place
    count = int(tokens // (PROMPT + max_new_tokens))
    return max(8, min(MOST, count // 8 * 8))
