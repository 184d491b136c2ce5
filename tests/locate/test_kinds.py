"""What a step is, and which item of a plan orders it."""

import pytest

from stepmend.locate import kinds


@pytest.mark.parametrize(
    ("step", "first", "kind"),
    [
        ("To solve this, we follow these steps:\n", True, "introduction"),
        ("1. Calculate the cost of the lamp.\n", False, "plan"),
        ("Step 2: Sum the costs from step 1.\n", False, "plan"),
        ("- There are 20 pencils in the box.\n", False, "statement"),
        ("There are 15 boys and 10 girls.\n", True, "statement"),
        ("7 - 4 = 3\n", False, "calculation"),
        ("Step 1: 7 - 4 = 3\n", True, "calculation"),
        ("Therefore, it is \\(\\boxed{10}\\).", False, "answer"),
        ("#### 10", False, "answer"),
        ("\\[\\boxed{7 + 3 = 10}\\]", False, "calculation"),
    ],
)
def test_kinds(step, first, kind):
    assert kinds.kind(step, first=first) == kind


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Step 1: 3 * 4 = 12\nStep 2: 12 + 5 = 17\n\\boxed{17}", "steps"),
        ("Step 1: 3 * 4 = 12\nStep 2: 12 +", "steps"),
        ("1. **Calculate:** 3 * 4 = 12\n\nTherefore 17.", "free"),
        ("We find that\nStep 1: 3 * 4 = 12\n\\boxed{12}", "free"),
        ("Step 1: 3 * 4 = 12\nIt is so.\nSo it is 12.", "free"),
        ("", "free"),
    ],
)
def test_how_a_text_is_written(text, written):
    assert kinds.written(text) == written


PLAN = ["To find it:\n", "1. Find the cost of the lamp.\n", "2. Add the costs of lamp and bulb.\n", "The lamp is 7.\n"]


@pytest.mark.parametrize(
    ("step", "item"),
    [
        ("2. Add the costs: 7 + 3 = 10\n", 2),
        ("Now we add the costs of the lamp and the bulb: 7 + 3 = 10\n", 2),
        ("Step 1: 7 + 3 = 10\n", None),
        ("2. Multiply: 7 * 3 = 21\n", None),
        ("The rest is 7 + 3 = 10\n", None),
        ("2. 7 + 3 = 10, then 10 + 2 = 12\n", None),
        ("2. Add.\n", None),
    ],
)
def test_what_a_plan_orders(step, item):
    assert kinds.ordered_by([*PLAN, step], 4) == item
