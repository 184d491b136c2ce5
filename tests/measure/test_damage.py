"""What quantization does to margins, on made-up margins whose damage is known."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from stepmend.measure import damage


def margins(ratio, noise, seed=0):
    rng = np.random.default_rng(seed)
    full = [rng.exponential(4.0, size=int(rng.integers(20, 60))) for _ in range(80)]
    return full, [ratio * f + rng.normal(0, noise, size=len(f)) for f in full]


@pytest.mark.parametrize("ratio", [0.86, 0.33, 0.0])
def test_the_ratio_is_found_again(ratio):
    full, quantized = margins(ratio, 0.5)
    found = damage.damage(full, quantized, [["digit"] * len(f) for f in full])
    assert found["ratio"]["low"] <= ratio <= found["ratio"]["high"]
    assert found["ratio"]["high"] - found["ratio"]["low"] < 0.05
    assert found["median"] == pytest.approx(ratio, abs=0.05)
    assert found["tokens"] == sum(map(len, full))
    assert found["kinds"]["digit"] == {"tokens": found["tokens"], "flips": found["flips"]}


def test_small_margins_foretell_flips():
    full, quantized = margins(0.9, 1.0)
    found = damage.damage(full, quantized, [["word"] * len(f) for f in full])
    mine, theirs = np.concatenate(full), np.concatenate(quantized)
    flipped, kept = mine[theirs <= 0], mine[theirs > 0]
    assert found["auc"] == pytest.approx(1 - mannwhitneyu(flipped, kept).statistic / (len(flipped) * len(kept)))
    assert damage.damage([[2.0, 3.0]], [[1.0, 1.0]], [["word", "word"]])["auc"] is None


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no margins"):
        damage.damage([[0.0]], [[1.0]], [["word"]])


@pytest.mark.parametrize(
    ("token", "kind"), [("12", "digit"), (" +", "operator"), ("=", "operator"), (" pens", "word"), ("\n", "other"), ("", "other")]
)
def test_kinds_of_tokens(token, kind):
    assert damage.kind(token) == kind
