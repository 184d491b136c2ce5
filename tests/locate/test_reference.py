"""The locator by reference: which step leaves the values of a right solution."""

import pytest

from stepmend.locate import quantities, reference

SOLUTION = "Each bag brings 8-4=$<<8-4=4>>4.\nSo 30 bags bring 30*4=$<<30*4=120>>120.\n#### 120"


def step_of(solution, *steps, answer="120"):
    return reference.locate(solution, answer, steps).step


def test_the_first_value_that_no_right_solution_has():
    assert step_of(SOLUTION, "We begin.\n", "8 - 4 = 4\n", "30 + 4 = 34\n", "34 * 2 = 68") == 2


def test_no_solution_no_calculation_no_vote():
    assert step_of("", "8 - 4 = 3") is None
    assert step_of("#### 120", "8 - 4 = 3") is None
    assert step_of(SOLUTION, "it is 3") is None


def test_right_values_are_no_fault():
    assert step_of(SOLUTION, "8 - 4 = 4", "4 * 30 = 120", "so \\boxed{120}") is None


def test_another_order_of_the_same_work_is_no_fault():
    """Revenue less cost, in place of profit times bags; and sums in any order."""
    assert step_of(SOLUTION, "30 * 8 = 240", "30 * 4 = 120", "240 - 120 = 120") is None
    assert step_of("18+21+15 = 54\n72-54 = 18", "21 + 15 = 36", "36 + 18 = 54", "72 - 54 = 18", answer="18") is None
    assert step_of("40*30 = 1200\n40*20 = 800\n1200+800 = 2000", "30 + 20 = 50", "50 * 40 = 2000", answer="2000") is None


def test_a_route_that_comes_back_is_no_fault():
    """Minutes on the way to hours: the value is none of the reference's, what follows from it is."""
    assert step_of("3*4 = 12\n12+5 = 17", "12 * 60 = 720", "720 / 60 = 12", "12 + 5 = 17", answer="17") is None


def test_a_share_and_its_percentage_are_one_value():
    assert step_of("30/100 = 0.3\n0.3*50 = 15", "30 / 100 * 100 = 30", "30 * 50 / 100 = 15", answer="15") is None


@pytest.mark.parametrize(
    ("solution", "others"),
    [
        ("8-4 = 4\n30*4 = 120", {8 * 30, 4 * 30}),
        ("8+4 = 12\n12/2 = 6", {8 / 2, 4 / 2}),
        ("40*30 = 1200\n40*20 = 800", {30 + 20, 30 - 20}),
        ("18+21+15 = 54", {18 + 21, 18 + 15, 21 + 15}),
    ],
)
def test_what_another_order_of_the_same_work_computes(solution, others):
    assert others <= reference.values(quantities.calculations(solution))


def test_a_share_is_no_more_than_one_and_a_half():
    assert reference.among(1.5, [150])
    assert reference.among(150, [1.5])
    assert not reference.among(1.51, [151])
    assert not reference.among(151, [1.51])


def test_sums_of_factors_are_no_values():
    assert step_of("2*3*4 = 24", "2 + 3 = 5", "20 + 4 = 24", answer="24") == 0


def test_the_answer_itself_is_a_value():
    assert step_of("8 - 4 = 4, and there are 30", "8 - 4 = 4\n", "60 + 60 = 120\n") is None


def test_the_item_of_a_plan_that_orders_the_wrong_operation():
    steps = ["1. Find the profit of a bag.\n", "2. Subtract the profit from the bags.\n", "Step 1: 8 - 4 = 4\n", "Step 2: 30 - 4 = 26\n"]
    assert step_of(SOLUTION, *steps) == 1


def test_the_item_is_not_blamed_where_the_arithmetic_is_false():
    steps = ["1. Find the profit of a bag.\n", "2. Multiply the profit by the bags.\n", "Step 1: 8 - 4 = 4\n", "Step 2: 30 * 4 = 130\n"]
    assert step_of(SOLUTION, *steps) == 3


def test_a_value_on_the_way_is_no_answer():
    vote = reference.locate(SOLUTION, "120", ["8 - 4 = 4\n", "That is all.\n", "\\boxed{4}"])
    assert vote.step == 1
    assert "on the way" in vote.evidence


@pytest.mark.parametrize("name", [reference.LOCATOR, reference.OWN])
def test_it_votes_under_its_name(name):
    assert reference.locate(SOLUTION, "120", ["8 - 4 = 3"], name).locator == name


def test_gold_solutions_agree_with_themselves(shared_data):
    """No value of a gold solution is outside that solution."""
    from stepmend import grading, tables

    rows = tables.read(shared_data / "gsm8k" / "test.jsonl")[:400]
    alarms = sum(reference.locate(r["answer"], grading.gold_of(r["answer"]), r["answer"].split("\n")).step is not None for r in rows)
    assert alarms <= 8
