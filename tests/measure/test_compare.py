"""Arms that others measured, paired by problem."""

from dataclasses import replace

import numpy as np
import pytest

from stepmend import InputError
from stepmend.logs import Log, Sample
from stepmend.measure import statistics
from stepmend.measure.compare import compare, named
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
    assert (figures["verdict"], figures["margin"]) == ("not shown", 1.0)


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


def test_the_interval_does_not_contradict_the_sentence():
    few = compare([log("a", [True] * 40 + [False] * 10), log("b", [True] * 44 + [False] * 6)])[0]  # 4 gained, none lost
    assert few.p == 0.125
    assert few.difference.low < 0 < few.difference.high
    assert compare([log("a", [True] * 5), log("b", [True] * 5)])[0].difference.low < 0


def test_not_worse_is_said_with_its_margin():
    many = [log("a", [True] * 900 + [False] * 100), log("b", [True] * 898 + [False] * 102)]
    said = compare(many)[0].sentence()
    assert "is shown (−0.2 points; with 1000 problems" in said
    assert said.endswith("b is not worse by more than 1.0 points (−0.9 to +0.4, 95 %).")
    strict = compare(many, margin=0.5)[0]
    assert (strict.figures()["verdict"], "not worse" in strict.sentence()) == ("not shown", False)


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


def test_what_nobody_scored_is_no_arm():
    with pytest.raises(InputError, match="b is not scored: none of its 2 problems is right or wrong"):
        compare([log("a", [True, False]), log("b", [None, None])])


def test_pairs_are_pairs():
    first = Log("a", "table", None, None, None, {"p": [Sample(True, gold="4", question="x")], "q": [Sample(True, gold="7")]})
    for changed, said in (
        (Sample(False, gold="5", question="x"), "problem 'p' has the right answer '4' in a and '5' in b"),
        (Sample(False, gold="4", question="y"), "problem 'p' has one question in a and another in b"),
    ):
        second = replace(first, name="b", samples={**first.samples, "p": [changed]})
        with pytest.raises(InputError, match=said):
            compare([first, second])
    written = replace(first, name="b", samples={"p": [Sample(False, gold=" 4.0", question="x")], "q": [Sample(True)]})
    assert compare([first, written])[0].paired.only_first == 1


def test_what_was_not_measured_alike_is_said():
    def arm(name, prompt, **changes):
        found = {f"p{i}": [Sample(True, prompt=f"{prompt} {i}")] for i in range(3)}
        return Log(name, "lm-eval", "gsm8k", None, changes.pop("metric", "exact_match (strict)"), found, **changes)

    first = arm("full", "8-shot", about={"few-shot examples": "8", "dtype": "bfloat16"}, others=("acc (none)",))
    second = arm(
        "w4", "0-shot", about={"few-shot examples": "0", "dtype": "bfloat16"}, metric="exact_match (flexible)", notes=("cancelled",)
    )
    (pair,) = compare([first, second])
    assert pair.differences == [
        "the metric: exact_match (strict) against exact_match (flexible)",
        "few-shot examples: 8 against 0",
        "the prompt, in 3 of 3 pairs",
    ]
    said = " ".join(compared.notices([pair]))
    for part in (*pair.differences, "full: read: exact_match (strict); there are also acc (none).", "w4: cancelled."):
        assert part in said
    figures = pair.figures()
    assert figures["metrics"] == {"first": "exact_match (strict)", "second": "exact_match (flexible)"}
    assert (figures["differences"], figures["notes"]["second"]) == (pair.differences, ["cancelled"])
    assert compared.blob([pair])["sentences"] == compared.notices([pair])


def test_unscored_ones_are_read_in_both_ways():
    first = log("full", [True] * 60 + [False] * 40)
    second = log("w4", [None] * 20 + [True] * 40 + [False] * 40)
    (pair,) = compare([first, second])
    assert pair.difference.value == pytest.approx(-0.2)
    assert (pair.left_out.difference.value, len(pair.left_out.problems), pair.left_out.p) == (0.0, 80, 1.0)
    assert pair.sentence().startswith("w4 loses 20.0 points")
    assert "with unscored ones counted as wrong. Left out instead: +0.0 points" in pair.sentence()
    assert "80 pairs, p = 1" in pair.sentence()
    assert pair.figures()["left_out"]["pairs"] == 80
    (alike,) = compare([log("a", [None, True, True]), log("b", [None, True, False])])
    assert "Left out" not in alike.sentence(), "both arms have as many"


def test_shares_are_paired_as_shares():
    def arm(name, shares):
        return Log(name, "lighteval", None, None, "avg@n:n=4", {f"p{i}": [Sample(None, share=share)] for i, share in enumerate(shares)})

    (pair,) = compare([arm("a", [0.75] * 20), arm("b", [0.5] * 20)])
    assert pair.difference.value == pytest.approx(-0.25)
    assert pair.p < 0.01
    assert [one["accuracy"]["value"] for one in compared.blob([pair])["arms"]] == [0.75, 0.5]


def test_subtasks_have_tests_of_their_own():
    def arm(name, law):
        found = {f"{task}: {i}": [Sample(task != "law" or law, None, {"subtask": task})] for task in ("law", "math") for i in range(20)}
        return Log(name, "lm-eval", None, None, "acc (none)", found)

    pairs = compare([arm("full", True), arm("w4", False)])
    rows = compared.blob(pairs)["groups"]["subtask"]
    assert [(row["group"], row["n"], row["holm"] < 0.05) for row in rows] == [("law", 20, True), ("math", 20, False)]
    assert any(line.startswith("w4 by subtask, of 2: law −100.0") for line in compared.notices(pairs))


def test_a_broken_run_is_called_one_first():
    texts = ["0" * 50] * 8 + ["It is \\boxed{1}."] * 2
    second = Log("w2", "table", None, None, None, {f"p{i}": [Sample(False, text)] for i, text in enumerate(texts)})
    lines = compared.notices(compare([log("full", [True] * 10), second]))
    assert lines[0] == "w2 is a broken run: 8 of 10 texts loop. Its accuracy is not meaningful."
