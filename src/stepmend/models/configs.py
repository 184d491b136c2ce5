"""Numbers of a configuration, whose layers may have numbers of their own."""

from typing import Any


def number(config: Any, name: str) -> int | None:
    """A whole number of a configuration, the largest of its layers' where these differ; None where it has none."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # what transformers raises where layers differ in it
        found = max(getattr(layer, name) for layer in config.per_layer_config)
    return found if isinstance(found, int) else None


def heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key/value heads and the width of one; state-space models name theirs otherwise, or have one."""
    queries = number(config, "num_attention_heads") or number(config, "num_heads") or 1
    return queries, number(config, "num_key_value_heads") or queries, number(config, "head_dim") or config.hidden_size // queries


def inner(config: Any) -> int:
    """The width inside a feed-forward layer; four times the model's where none is named."""
    return number(config, "intermediate_size") or 4 * config.hidden_size
