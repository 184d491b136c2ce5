"""The effect of quantization on margins: their scaling factor, which tokens flip, and whether small margins predict flips."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from stepmend.measure import statistics

PUBLISHED = {4: 0.86, 3: 0.33, 2: 0.0}
"""Damage ratio by weight bits, as "multiplicative damage" (2608.06564) states it."""


def kind(token: str) -> str:
    """What kind of token this is: ``digit``, ``operator``, ``word``, or ``other`` (blanks, marks of the format, the end)."""
    text = token.strip()
    if re.search(r"\d", text):
        return "digit"
    if text and re.fullmatch(r"[-+*/=^%<>×÷·−()]+", text):
        return "operator"
    return "word" if re.search(r"[^\W\d_]", text) else "other"


def damage(full: Sequence[Sequence[float]], quantized: Sequence[Sequence[float]], kinds: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Figures over full precision's own traces; each argument holds one sequence per trace, one value per token.

    ``full`` and ``quantized`` are both models' margins (natural-log units) of full precision's token. ``ratio`` is the least-squares slope
    of the one over the other through the origin, with a bootstrap interval over traces; ``median`` that of the tokens' own ratios. A token
    flips where the quantized margin is not positive. ``auc`` measures how well a small full-precision margin alone predicts a flip (area
    under the ROC curve; None without flips, or with nothing else). Raises ValueError if there is no token.
    """
    products = np.array([np.dot(a, b) for a, b in zip(full, quantized, strict=True)])
    squares = np.array([np.dot(a, a) for a in full])
    if not squares.sum():
        raise ValueError("damage: no margins to compare")
    rng = np.random.default_rng(0)
    counts_RN = rng.multinomial(len(squares), np.full(len(squares), 1 / len(squares)), size=statistics.RESAMPLES)
    slopes = counts_RN @ products / np.maximum(counts_RN @ squares, 1e-12)
    low, high = np.quantile(slopes, [0.025, 0.975])
    mine, theirs = np.concatenate([np.asarray(a) for a in full]), np.concatenate([np.asarray(b) for b in quantized])
    flips = theirs <= 0
    named = np.array([name for of in kinds for name in of])
    return {
        "traces": len(squares),
        "tokens": len(mine),
        "flips": int(flips.sum()),
        "ratio": {"value": float(products.sum() / squares.sum()), "low": float(low), "high": float(high)},
        "median": float(np.median(theirs[mine > 0] / mine[mine > 0])) if (mine > 0).any() else None,
        "auc": _auc(-mine, flips),
        "kinds": {
            name: {"tokens": int((named == name).sum()), "flips": int(flips[named == name].sum())}
            for name in ("digit", "operator", "word", "other")
        },
    }


def _auc(scores: np.ndarray, flips: np.ndarray) -> float | None:
    """Probability that a flipped token scores higher than one that did not, ties half (Mann and Whitney, 1947)."""
    if not flips.any() or flips.all():
        return None
    from scipy.stats import rankdata

    ranks, count = rankdata(scores), int(flips.sum())
    return float((ranks[flips].sum() - count * (count + 1) / 2) / (count * (len(flips) - count)))
