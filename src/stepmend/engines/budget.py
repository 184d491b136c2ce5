"""How many completions are generated at once."""

from typing import Any

from stepmend.models import configs

MOST = 256
"""Slots at the most: beyond, a GPU is busy and a stop loses more."""
SHARE = 0.4
"""Share of the free memory that is given to the cache: two models are loaded as well, and passes need room."""
PROMPT = 512
"""Tokens of a prompt that are reckoned with."""


def slots_for(config: Any, max_new_tokens: int, device: str) -> int:
    """The number of slots: 32 on a CPU, where more would lose more than half a minute to a stop; on a GPU what its free memory holds.

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
