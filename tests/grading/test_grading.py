"""Grades: never silently wrong, whatever the text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmend import Problem, Trace, grading
from stepmend.grading import verify

PROBLEM = Problem(id="p", benchmark="math", split="test", level="easy", question="?", answer="12")


@pytest.fixture(scope="module")
def verifier():
    with verify.Verifier() as made:
        yield made


def graded(verifier, text: str, finish: str = "stop", answer: str = "12"):
    trace = Trace(problem="p", arm="full", made_by="a", text=text, tokens=(), finish=finish)
    return grading.grade_all([trace], [PROBLEM.model_copy(update={"answer": answer})], "b", verifier)[0]


@pytest.mark.parametrize(
    ("text", "answer", "form"),
    [
        ("\\boxed{12}", "12", "boxed"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "boxed"),
        ("\\boxed{7} \\boxed{8", None, None),
        ("\\boxed{\\boxed{7}}", "\\boxed{7}", "boxed"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "boxed"),
        ("a } b \\boxed{7}", "7", "boxed"),
        ("so\n#### 1,200", "1,200", "marked"),
        ("A: 18", "18", "marked"),
        ("The answer is 18.", "18", "marked"),
        ("**Final answer:** 18", "18", "marked"),
        ("She has $x+1$ apples", "x+1", "loose"),
        ("She pays $5 and 12 more", "12", "loose"),
        ("The answer is:\n18", "18", "marked"),
        ("#### 18\nthe answer is a nice number", "18", "marked"),
        ("Two cost $2 each, so she makes 9 * $2 = $18 every day.", "$18", "loose"),
        ("He pays $10 and gets $5 back, so the profit is $5.", "$5", "loose"),
        ("She pays $1,200 - $200 = $1000", "$1000", "loose"),
        ("She pays $5, and he then pays 7$", "7", "loose"),
        ("costs ($10)+($5)", "$5", "loose"),
        ("in all $$x = 7$$", "x = 7", "loose"),
        ("The answer is 18. This is because 9 * 2 = 18.", "18", "marked"),
        ("The answer is 3.5, which is 7 / 2", "3.5", "marked"),
        ("Final Answer: The final answer is $18$. I hope it is correct.", "$18$", "marked"),
        ("the answer is:\n\\[\nx = 5\n\\]", "x = 5", "marked"),
        ("none", None, None),
        ("\\boxed{", None, None),
    ],
)
def test_where_the_answer_stands(text, answer, form):
    found = grading.extract(text)
    assert (found.answer, found.form) == (answer, form) if answer else found is None


def test_grades(verifier):
    assert graded(verifier, "\\boxed{12}").outcome == "correct"
    assert graded(verifier, "\\boxed{12.0}").outcome == "correct"
    assert graded(verifier, "\\boxed{\\frac{24}{2}}").outcome == "correct"
    assert (graded(verifier, "\\boxed{13}").outcome, graded(verifier, "\\boxed{13}").extracted) == ("wrong", "13")
    assert (graded(verifier, "who knows").outcome, graded(verifier, "who knows").reason) == ("unscored", "no_answer")
    assert graded(verifier, "Step 1: 3 + 9 = 12", "length").reason == "truncated"


def test_a_format_failure_is_no_reasoning_failure(verifier):
    grade = graded(verifier, "So there are 12 apples.")
    assert (grade.outcome, grade.strict, grade.form) == ("correct", "unscored", "loose")
    assert graded(verifier, "\\boxed{12}").strict == "correct"


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "verdict"),
    [
        ("1,000", "1000", "math", "equal"),
        ("$18", "18.00", "math", "equal"),
        ("18", "81", "math", "different"),
        ("\\frac12", "0.5", "math", None),
        ("0.33333333", "0.3333333", "math", None),
        ("18 dollars", "18", "number", "equal"),
        ("\\$1{,}000", "1000", "number", "equal"),
        ("5 + 3 = 8", "8", "number", "equal"),
        ("−5", "-5", "number", "equal"),
        ("no idea", "18", "number", "different"),
        ("1/2", "0.5", "number", "equal"),
        ("1.5 million", "1500000", "number", "equal"),
        ("1.5 million", "1.5", "number", "different"),
        ("41.472+", "92", "number", "different"),
        ("\\frac{1}{2}", "1", "number", None),
        ("1/2", "1", "number", "different"),
        ("5x+3", "5", "number", "different"),
        ("70, 80", "70", "number", None),
        ("\\text{18 dollars}", "18", "number", "equal"),
        ("5 \\text{ million}", "5000000", "number", "equal"),
        ("12 \\text{ cm}^2", "12", "number", "equal"),
        ("60 km/h", "60", "number", "equal"),
        ("5 m", "5", "number", "equal"),
        ("5 x", "5", "number", "different"),
        ("USD 18", "18", "number", "equal"),
        ("Janet makes $18 every day", "18", "number", "equal"),
        ("Janet makes $18 every day", "17", "number", "different"),
        ("between 5 and 6", "5", "number", "different"),
        ("more than 3 apples + 2", "3", "number", "different"),
        ("5 apples / 3", "5", "number", "different"),
        ("2:30", "2", "number", None),
    ],
)
def test_plain_numbers_are_decided_at_once(answer, gold, kind, verdict):
    assert verify.quick(answer, gold, kind) == verdict


HOSTILE = {
    "unclosed box": "\\boxed{" * 50_000,
    "nested braces": "\\boxed{" + "{" * 1000 + "1" + "}" * 1000 + "}",
    "digits": "\\boxed{" + "7" * 100_000 + "}",
    "digits of a usual length": "\\boxed{" + "7" * 1_900 + "}",
    "tower": "\\boxed{9^9^9^9}",
    "tower in braces": "\\boxed{9^{9^{9^{9}}}}",
    "factorials": "\\boxed{100000!!!}",
    "nul": "\\boxed{1\x002}",
    "right to left": "\\boxed{\u202e12\u202c}",
    "long": "so 1 + 1 = 2, " * 80_000,
    "lone fraction": "\\boxed{\\frac}",
    "marks": "the answer is " * 50_000,
    "unit": "\\boxed{5 " + "a" * 1_900 + "!}",
    "dollars": "$1 " * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_graded_or_unscored_in_time(verifier, name):
    graded(verifier, "\\boxed{\\frac{24}{2}}")  # the workers are there
    begin = time.monotonic()
    grade = graded(verifier, HOSTILE[name])
    assert time.monotonic() - begin < 5
    assert grade.outcome in {"wrong", "unscored"} or name == "right to left"
    assert graded(verifier, "\\boxed{\\frac{24}{2}}").outcome == "correct", "the workers still are"


def test_what_hangs_disturbs_nothing_else(verifier):
    pairs = [("\\frac{24}{2}", "12"), ("9^{9^{9^{9}}}", "x"), ("x+1", "1+x"), ("2x", "x"), ("100000!!!", "\\pi")]
    verdicts = verifier.decide(pairs)
    assert verdicts[0] == verdicts[2] == "equal"
    assert verdicts[3] == "different"
    assert {verdicts[1], verdicts[4]} <= {"timeout", "parser", "different"}


@given(st.text(max_size=300))
def test_extraction_never_fails(text):
    found = grading.extract(text)
    assert found is None or found.answer
    inner = grading.boxed(text + "\n\\boxed{42}")
    assert inner is not None
    assert "42" in inner


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=3))
def test_a_number_equals_itself_however_it_is_written(value):
    assert verify.quick(f"{value:,}", str(value), "math") == "equal"
    assert verify.quick(f"{value:f}", f"{value + 1}", "number") == "different"
