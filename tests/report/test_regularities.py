"""The paper's two regularities, on made-up runs in which the answer is known."""

import numpy as np
import pytest

from stepmend import Fault, Grade, Problem
from stepmend.facts import Facts
from stepmend.recipe import Recipe
from stepmend.report.sections.regularities import regularities
from stepmend.report.summary import Found

N = 400


def fault(name, arm, step, error_class):
    common = {"made_by": "t", "outcome": "located", "span": (0, 1), "votes": ()}
    return Fault(problem=name, arm=arm, step=step, steps=11, error_class=error_class, **common)


def run(regressions, own):
    """A run in which ``regressions`` and ``own`` are lists of (step, class), on different problems."""
    names = [f"p{i}" for i in range(N)]
    problems = {n: Problem(id=n, benchmark="story", split="test", level="easy", question="q", answer="1") for n in names}
    faults = {
        "q": {n: fault(n, "q", *of) for n, of in zip(names, regressions, strict=False)},
        "full": {n: fault(n, "full", *of) for n, of in zip(names[::-1], own, strict=False)},
    }
    grades = {
        arm: {n: Grade(problem=n, arm=arm, made_by="t", outcome="wrong" if n in faults[arm] else "correct", extracted="1") for n in names}
        for arm in faults
    }
    return Found(Recipe(), Facts(), problems, {}, grades, faults, {})


def spread(center, count, seed=0):
    return np.clip(np.random.default_rng(seed).normal(center, 2, count).round(), 0, 10).astype(int).tolist()


@pytest.mark.parametrize(("theirs", "mine", "said"), [(2, 7, "earlier"), (7, 2, "later"), (5, 5, "not significant")])
def test_faults_are_early_late_or_neither(theirs, mine, said):
    of = regularities(run([(s, None) for s in spread(theirs, 60)], [(s, None) for s in spread(mine, 60, 1)]), "q")["early"]
    assert said in of["sentence"]
    assert (of["n"], of["n_full"]) == (60, 60)
    assert of["difference"]["value"] == pytest.approx((theirs - mine) / 10, abs=0.06)
    assert (of["p"] < 0.001) == (theirs != mine)


@pytest.mark.parametrize(
    ("regressions", "own", "said"),
    [
        ({"computational": 30, "procedural": 20, "contextual_oversight": 5}, {}, "Method and execution faults are raised more"),
        ({"contextual_oversight": 50, "computational": 5}, {}, "Conceptual faults are raised more"),
        ({"computational": 30, "contextual_oversight": 28}, {}, "is not significant"),
        ({"computational": 40, "contextual_oversight": 10}, {"computational": 30}, "is not significant"),
        ({"computational": 3}, {}, "Too few classified"),
    ],
)
def test_which_classes_are_raised(regressions, own, said):
    made = [[(1, name) for name, count in of.items() for _ in range(count)] for of in (regressions, own)]
    assert said in regularities(run(*made), "q")["classes"]["sentence"]


def test_too_few_faults_prove_nothing():
    of = regularities(run([(1, None)] * 5, [(9, None)] * 50), "q")["early"]
    assert of["difference"] is None
    assert "Too few" in of["sentence"]
