"""Detection of broken runs: texts that loop, are all the same, or are empty. Reported before any accuracy."""

import re
from collections import Counter
from collections.abc import Iterable

from stepmend.measure import behaviour

FEWEST = 5
"""Minimum number of texts for a verdict."""
BLOCK = re.compile(r"(.{1,8}?)\1{9,}", re.DOTALL)
"""One short block at least ten times over, such as ``0000000000``."""


def is_degenerate(text: str) -> bool:
    """Whether a text loops, or is nothing but one short block over and over."""
    start = text.strip()[:200]
    block = BLOCK.match(start)
    return behaviour.loops(text) or bool(block and len(start) - block.end() < len(block[1]))


def broken(texts: Iterable[str | None]) -> str | None:
    """What is wrong with a run, as the end of a sentence; None if nothing is, or if there are no texts.

    A run is broken where at least half of its texts loop or are empty, or four in five are the same and longer than an answer is.
    """
    known = [text for text in texts if text is not None]
    if len(known) < FEWEST:
        return None
    looping = sum(map(is_degenerate, known))
    empty = sum(not text.strip() for text in known)
    most, times = Counter(text.strip() for text in known).most_common(1)[0]
    if 2 * looping >= len(known):
        return f"{looping} of {len(known)} texts loop"
    if 2 * empty >= len(known):
        return f"{empty} of {len(known)} texts are empty"
    if 5 * times >= 4 * len(known) and len(most) > 40:
        return f"{times} of {len(known)} texts are the same"
    return None
