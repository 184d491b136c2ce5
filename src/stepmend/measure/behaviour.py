"""Other differences of a quantized model's texts: length, loops."""

from collections.abc import Mapping

import numpy as np

NGRAM = 4
WINDOW = 256
"""Number of words at the end of a text that are examined."""
LEAST = 40
"""Words below which a text cannot be told to loop."""
REPEATED = 0.5


def repetition(text: str) -> float:
    """Share of repeated 4-grams among the last 256 words: 1 - distinct / all (seq-rep-4 of Welleck et al., 1908.04319, section 6).

    A text of fewer than 40 words has none.
    """
    words = text.split()[-WINDOW:]
    if len(words) < LEAST:
        return 0.0
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams)


def loops(text: str) -> bool:
    """Whether a text loops at its end: at least half of the 4-grams of its last 256 words have been there before.

    Text without spaces that repeats itself (``ababab…``) loops as well: its last 2,000 characters are mostly one short period.
    """
    return repetition(text) >= REPEATED or _periodic(text[-2000:])


def _periodic(tail: str, longest: int = 64) -> bool:
    """Whether a long tail is one block of at most ``longest`` characters over and over."""
    if len(tail) < 8 * longest:
        return False
    codes = np.frombuffer(tail.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return any((codes[:-period] == codes[period:]).mean() >= 0.95 for period in range(1, longest + 1))


def length_ratio(texts: Mapping[str, str | None], reference: Mapping[str, str | None]) -> float | None:
    """Characters of an arm's texts over the reference arm's, on the problems that both have; None if there is no such text."""
    shared = [p for p in texts if texts[p] and reference.get(p)]
    whole = sum(len(reference[p] or "") for p in shared)
    return sum(len(texts[p] or "") for p in shared) / whole if whole else None
