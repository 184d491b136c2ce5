"""Written arithmetic: false where every reading is, silent when unsure."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmend.benchmarks import story
from stepmend.locate import equations

FALSE = [
    "Step 1: 31 + 90 = 122",
    "so \\(18 - 6 = 11\\) are left",
    "3 plates × $6.00/plate = $19.00",
    "\\[ \\frac{111 \\text{ feet}}{1.5 \\text{ feet}} = 75 \\]",
    "25% of $2,000.00 = $400",
    "7995 (total cookies) - 2595 (rainbow cookies) = 4500",
    "Total earnings = $3.00 + $3.00 + $1.50 + $1.50. Total earnings = $8.00.",
    "2^3 = 6",
    "5 + 3 = 8 + 1 = 10",
    "10 / 4 = 2.4",
    "$50 - 10% = $44",
    "$4.20 + $9.45 + $1.35 = $14.99",
]
TRUE = [
    "Step 1: 31 + 90 = 121",
    "5 + 3 = 8 * 2 = 16",
    "10 / 3 = 3.33",
    "10 / 3 = 3",
    "200 / 3 ≈ 67",
    "25% of 80 = 20",
    "5 / 20 * 100 = 25%",
    "1/4 * 100% = 25%",
    "2000 / 2/3 = 3000",
    "3 * 50 cents = $1.50",
    "1,000 + 250 = 1250",
    "((1/2)*(3+5)) = 4",
    "33.33 + 33.33 + 33.33 = 100",
    "4.20 + 9.45 + 1.35 ≈ 14.99",
    "$50 - 10% = $45",
    "200 + 5% = 210",
]
SILENT = [
    "x = 5 + 3",
    "2x + 3 = 12",
    "n / 4 = 20",
    "price * 3 = 12",
    "in 20 years = $20,000 * 20",
    "25 pupils + his 1 teacher + 1 = 27",
    "11 PM - 8 AM = 3",
    "6th + 2 = 9th",
    "1 and 1/4 + 1 = 3",
    "0900 - 0130 = 0730",
    "2 dozen * 3 = 72",
    "4 pounds - 6 ounces = 58 ounces",
    "30 = 45",
    "3 + 4 >= 8",
    "= = =",
    "1 / 0 = 0",
    "a_1 + 2 = 5",
    "$x_1 + 4 = 10$",
    "\\frac12 + 1 = 1.5",
    "\\tfrac12 \\cdot 10 = 5",
    "\\log_{10} 100 + 1 = 3",
    "sqrt(16) + 3 = 7",
    "√16 + 3 = 7",
    "log 100 + 1 = 3",
    "cos(60) * 10 = 5",
    "120 / 1 = 5!",
    "5! / 2 = 60",
]


@pytest.mark.parametrize("text", FALSE)
def test_false_equations(text):
    assert [claim.holds for claim in equations.claims(text)].count(False) == 1


@pytest.mark.parametrize("text", TRUE)
def test_true_equations(text):
    found = equations.claims(text)
    assert found
    assert all(claim.holds for claim in found)


@pytest.mark.parametrize("text", SILENT)
def test_silent_when_unsure(text):
    assert all(claim.holds for claim in equations.claims(text))


@given(st.text(alphabet="0123456789+-*/()=%.,$\\ abx^:[]{}\n≈", max_size=80))
def test_any_text_is_read(text):
    equations.claims(text)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from("+-*"))
def test_whole_numbers_exactly(a, b, sign):
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    (right,) = equations.claims(f"{a} {sign} {b} = {value}")
    (wrong,) = equations.claims(f"{a} {sign} {b} = {value + 1}")
    assert right.holds
    assert not wrong.holds or value < 0


def test_right_story_solutions_have_no_alarm():
    for level in story.LEVELS:
        problems = story.problems("train", level, seed=3)
        for _ in range(100):
            solution = story.program_of(next(problems)).solution()
            found = equations.claims(solution)
            assert len(found) == solution.count("=")
            assert all(claim.holds for claim in found)


def test_real_gold_solutions(shared_data):
    with (shared_data / "gsm8k" / "test.jsonl").open() as stream:
        answers = [json.loads(line)["answer"] for line in stream]
    alarms = sum(any(not claim.holds for claim in equations.claims(answer)) for answer in answers)
    assert alarms <= 0.003 * len(answers)
