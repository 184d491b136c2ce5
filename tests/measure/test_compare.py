"""Arms that others measured, paired by problem."""

from dataclasses import replace

import numpy as np
import pytest

from stepmend import InputError
from stepmend.measure import statistics
from stepmend.measure.compare import compare, named
from stepmend.measure.logs import Log, Sample
from stepmend.report import compared


def log(name, outcomes, *, task=None, version=None):
    """A log of problems p0, p1, …; an outcome may be a list of samples."""
    samples = {f"p{i}": [Sample(o) for o in (one if isinstance(one, list) else [one])] for i, one in enumerate(outcomes)}
    return Log(name, "table", task, version, None, samples)


def test_figures_of_a_pair():
    first, second = log("a", [True] * 6 + [False] * 2), log("b", [True, False, False, None, True, True, True, False, True])
    figures = compare([first, second])[0].figures()
    assert figures["pairs"] == 8
    assert figures["unpaired"] == 1
    assert [figures[k] for k in ("both_right", "only_first", "only_second", "both_wrong", "unscored")] == [3, 3, 1, 1, 1]
    assert figures["mcnemar_p"] == pytest.approx(0.625)
    assert figures["difference"]["value"] == pytest.approx(-0.25)
    assert figures["difference"]["low"] < -0.25 < figures["difference"]["high"]


def test_every_two_arms_the_first_ones_first():
    pairs = compare([log(name, [True, False]) for name in "abc"])
    assert [(p.first.name, p.second.name) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_logs_of_two_formats_name_their_problems_differently():
    with pytest.raises(InputError, match="has format 'table', b has 'Inspect'; both must be of the same format"):
        compare([log("a", [True]), replace(log("b", [True]), format="Inspect")])


def test_several_samples_a_problem():
    pair = compare([log("a", [[True, True, False], [False, False, True]]), log("b", [[True] * 3, [False] * 3])])[0]
    assert pair.paired.both_right == pair.paired.both_wrong == 1
    assert pair.difference.value == pytest.approx(0.0)


def test_the_page_shows_shares_of_samples_not_majorities():
    shown = compared.blob(compare([log("full", [[True, False]] * 10), log("w4", [[True, False, False, False]] * 10)]))
    assert [arm["accuracy"]["value"] for arm in shown["arms"]] == [0.5, 0.25]
    (one,) = compared.blob(compare([log("a", [True, False]), log("b", [True, True])]))["arms"][:1]
    assert one["accuracy"] == vars(statistics.accuracy(np.array([True, False])))


def test_the_sentence_follows_the_shares_not_the_majorities():
    first = [[True] * 3 + [False]] * 10 + [[False] * 4] * 10
    second = [[True] * 2 + [False] * 2] * 20
    pair = compare([log("full", first), log("w4", second)])[0]
    assert pair.difference.value == pytest.approx(0.125)
    assert "loses" not in pair.sentence()
    assert pair.p > 0.05


def test_what_may_be_concluded():
    clear = compare([log("a", [True] * 100), log("b", [True] * 60 + [False] * 40)])[0]
    assert clear.sentence().startswith("b loses 40.0 points (")
    close = compare([log("a", [True] * 90 + [False] * 10), log("b", [True] * 89 + [False] * 11)])[0]
    assert "is shown (−1.0 points; with 100 problems" in close.sentence()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Log("b", "table", None, None, None, {"x": [Sample(True)]}), "no problem in common"),
        (log("b", [True], task="other"), "has task 'math', b has 'other'"),
        (log("b", [True], task="math", version="2"), "has version '1', b has '2'"),
    ],
)
def test_logs_that_do_not_belong_together(second, said):
    with pytest.raises(InputError, match=said):
        compare([log("a", [True], task="math", version="1"), second])


def test_names_are_told_apart():
    two = [log("samples", [True]), log("samples", [True])]
    assert [one.name for one in named(two, [], ["full", "w3"])] == ["full/samples", "w3/samples"]
    assert [one.name for one in named(two, [], ["x", "x"])] == ["x/samples (1)", "x/samples (2)"]
    assert [one.name for one in named(two, ["bf16", "3 bits"], ["x", "x"])] == ["bf16", "3 bits"]
