"""Grades: never silently wrong."""

import pytest

from stepmend import Problem, Trace, grading

PROBLEM = Problem(id="p", benchmark="story", split="test", level="easy", question="?", answer="12")


def graded(text: str, finish: str = "stop"):
    trace = Trace(problem="p", arm="full", made_by="a", text=text, tokens=(), finish=finish)
    return grading.grade(trace, PROBLEM, "b")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{12}", "12"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{7} \\boxed{8", "7"),
        ("none", None),
        ("\\boxed{", None),
    ],
)
def test_the_last_complete_box_counts(text, answer):
    assert grading.extract(text) == answer


def test_grades():
    assert graded("\\boxed{12}").outcome == "correct"
    assert graded("\\boxed{12.0}").outcome == "correct"
    assert (graded("\\boxed{13}").outcome, graded("\\boxed{13}").extracted) == ("wrong", "13")
    assert (graded("12").outcome, graded("12").reason) == ("unscored", "no_answer")
    assert graded("Step 1: 3 + 9 = 12", "length").reason == "truncated"


def test_numbers_compare_as_numbers_and_the_rest_as_text():
    assert grading.equal("1,000", "1000")
    assert grading.equal("x+1", "x+1")
    assert not grading.equal("", "12")
