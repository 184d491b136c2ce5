"""Error classes in free text, beside a right solution."""

import pytest

from stepmend import Problem, Trace
from stepmend.locate import taxonomy

QUESTION = "A bag costs $4 and is sold for $8. What is the profit of 30 bags?"
SOLUTION = "Each bag brings 8-4=$<<8-4=4>>4.\nSo 30 bags bring 30*4=$<<30*4=120>>120.\n#### 120"


def classify(faulty, before="Let us see.\n\n", rest="\n\nSo it is \\boxed{9}.", worked=True, chosen=None, finish="stop"):
    text = before + faulty + rest
    problem = Problem(id="p", benchmark="gsm8k", split="curate", level="all", question=QUESTION, answer="120", solution=SOLUTION)
    trace = Trace(problem="p", arm="a", made_by="m", text=text, tokens=(), finish=finish)
    return taxonomy.classify(problem, trace, (len(before), len(before + faulty)), chosen, "" if chosen else None, worked=worked)


@pytest.mark.parametrize(
    ("faulty", "error_class"),
    [
        ("The profit is 8 - 4 = 5 dollars.", "computational"),
        ("The profit is 8 + 4 = 12 dollars.", "procedural"),
        ("30 bags are 30 + 8 = 38 dollars.", "procedural"),
        ("2. Divide the profit by the number of bags.", "procedural"),
        ("2. Multiply the price by the number of bags.", "contextual_oversight"),
        ("The profit is 9 - 4 = 5 dollars.", "contextual_oversight"),
        ("30 bags are 30 * 8 = 240 dollars.", "contextual_oversight"),
        ("There are 8 bags.", "contextual_oversight"),
        ("So the answer is \\boxed{4}.", "contextual_oversight"),
    ],
)
def test_by_the_worked_solution(faulty, error_class):
    assert classify(faulty) == error_class


def test_by_full_precisions_own_steps_where_the_worked_solution_is_not_looked_at():
    assert classify("The profit is 8 + 4 = 12 dollars.", worked=False, chosen="8 - 4 = 4, 4 * 30 = 120") == "procedural"
    assert classify("The profit is 8 + 4 = 12 dollars.", worked=False) is None


def test_false_arithmetic_needs_no_right_solution():
    assert classify("The profit is 8 - 4 = 5 dollars.", worked=False) == "computational"


def test_a_loop_is_degenerate_from_where_it_begins_only():
    loop = "There are 40 bags / 40 bags = 1 bag. " * 30
    assert classify("There are 40 bags / 40 bags = 1 bag. ", rest=loop, finish="length") == "degenerate"
    far = "Now we look at other things: " + " ".join(f"the word number {k} is {k * k % 97}" for k in range(40)) + loop
    assert classify("The profit is 8 + 4 = 12 dollars. ", rest=far, finish="length") == "procedural"


def test_a_solution_that_is_cut_off_still_has_a_class_for_its_step():
    assert classify("The profit is 8 - 4 = 5 dollars.", rest=" Then", finish="length") == "computational"
