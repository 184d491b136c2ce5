"""Steps join back to the text, character for character, and never cut a formula."""

import itertools
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmend.locate import steps

PIECES = [
    *["Step 1: a\n", "Step 22: 1 + 1 = 2", "**Step 3:** y\n", "\n", "\n\n", " ", "\\boxed{3}", "x. Y", "1. ", "\\[", "\\]", "$$", "\\("],
    *["\u2028", "é\r\n", "\\begin{align}", "\\end{align}", "\x00"],
]


def joined(text: str) -> list[str]:
    return [text[a:b] for a, b in steps.split(text)]


@pytest.mark.parametrize(
    "parts",
    [
        ["Step 1: 4 * 12 = 48\n", "Step 2: 29 + 48 = 77\n", "\\boxed{77}"],
        ["So:\nStep 1: we add\n2 + 2 = 4\n", "Step 2: done \\boxed{4}"],
        ["## Step 1: First\nwe add.\n\n", "**Step 2:** Then\n\nwe stop.\n\n", "The answer is \\boxed{4}"],
        ["First we add.\nIt is 4.\n\n", "Step 2 of the plan is to stop. So we do.\n\n", "\\boxed{4}"],
        ["Step 6: we add\nand stop\n"],
        ["a = 1\n", "b = 2\n"],
        ["Let me write:\n\n\\[\nx = 1\n\n+ 2\n\\]\n\n", "So it is 3."],
        ["It is\n\\[ x = 1 \\]\n", "and so on"],
        ["Mr. Li has 3.5 pounds.", " He eats 1.", " \\(x = 3. A\\) is left!", " No. 5 stays."],
        ["It costs $5.", " Then $6."],
        ["1. First add.", " Then stop."],
        ["First:\n", "  - we add\n", "  - we stop"],
        ["We add.\n \n\n", "  We stop."],
        ["We write.  \\[ x = 1 \\] So it is 3."],
        ["J. Smith adds.", " He stops."],
        ["We add.", " 2. Then stop."],
        ["one sentence only"],
        [" \n\n  lead"],
        ["\\[ never closed. And so on\n", "to the end"],
    ],
)
def test_where_steps_begin(parts):
    assert joined("".join(parts)) == parts


@given(st.lists(st.sampled_from(PIECES)) | st.text())
def test_spans_cover_the_text(parts):
    text = "".join(parts)
    assert "".join(joined(text)) == text
    assert all(begin < end for begin, end in steps.split(text))


@given(st.lists(st.sampled_from(["a. B", "\n", "\n\n", "Step 1: x", "\\[ a. B\n\nC \\]", "\\( d. E \\)", "$$ f\ng $$"]), min_size=1))
def test_no_step_begins_inside_a_formula(parts):
    text = " ".join(parts)
    spans = steps.split(text)
    for formula in steps.formulas(text):
        assert not any(formula[0] < begin < formula[1] for begin, _ in spans)


def test_a_formula_that_begins_in_another_one_and_ends_behind_it_is_none():
    text = "\\( a \\[ b \\) c \\]"
    assert [text[a:b] for a, b in steps.formulas(text)] == ["\\( a \\[ b \\)"]
    assert steps.formulas("\\( x \\) " + text) == [(0, 7), (8, 20)]
    assert steps.formulas("\\[ \\( a \\) \\] \\( b \\)") == [(0, 13), (14, 21)]


def test_the_step_of_a_continuation_is_of_the_text_s_own_kind():
    paragraphs = "First we add. It is 9.\n\n"
    assert steps.first(paragraphs, "Then 16 - 7 = 9. So she makes 18.\n\nDone.") == len("Then 16 - 7 = 9. So she makes 18.\n\n")
    assert steps.first(paragraphs, "Then 16 - 7 = 9. So she makes 18.") == len("Then 16 - 7 = 9. So she makes 18.")
    assert steps.first("First we add.", " Then we stop. And rest.") == len(" Then we stop.")
    assert steps.first("", "Step 1: a\nStep 2: b") == len("Step 1: a\n")


def test_processbench_steps_come_back(shared_data):
    """Labelled boundaries are found again when steps are joined as paragraphs; steps of several calculations are cut further."""
    records = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())
    found = 0
    for record in records:
        ends = set(itertools.accumulate(len(step) + 2 for step in record["steps"][:-1]))
        found += ends <= {begin for begin, _ in steps.split("\n\n".join(record["steps"]))}
    assert found >= 0.97 * len(records)


@pytest.mark.parametrize(
    "parts",
    [
        [
            "We add twice.\n\n",
            "Step 1: Add.\nIt is\n\\[ 1 + 1 = 2 \\]\n",
            "and then\n\\[ 2 + 2 = 4 \\]\n",
            "Step 2: Stop.\n\n",
            "Thus \\boxed{4}.",
        ],
        ["Steps to take:\n\n", "1. Add.\n", "2. Stop.\n\n", "Step 1: 1 + 1 = 2\n", "Step 2: Stop.\n", "So it is:\n\\[ \\boxed{2} \\]"],
        [
            "To solve it:\n\n",
            "1. **Add:**\n   - one\n   - so: \\(1 + 1 = 2\\)\n",
            "   - and \\(2 + 2 = 4\\)\n\n",
            "2. **Stop.**\n\n",
            "So 4.",
        ],
        ["\\[ 1 + 1 = 2 \\]\n", "\\[ 2 + 2 = 4 \\]"],
        ["He has 1 + 1 = 2 pens,", " and 2 + 2 = 4 caps."],
        ["It is 3 + 4 = 5 + 2 = 7.\n\n", "Done."],
        ["It is 3 + 4\n= 7.\n", "Done."],
        ["## Adding\n\nWe add.\n\n", "The sum is:\n\n1 + 1 = 2\n\n", "Done."],
        ["Step 1: 1 + 1 = 2\n\n", "Therefore it is 2."],
        ["\\begin{align} a &= 1 + 1 \\\\ b &= 2 + 2 \\end{align}\n", "Done."],
    ],
)
def test_a_step_holds_one_calculation(parts):
    assert joined("".join(parts)) == parts


def test_labelled_segments_with_a_calculation_share_no_step(shared_data):
    records = json.loads((shared_data / "real" / "first_faults_60.json").read_text())
    shared = total = 0
    for record in records:
        ends = list(itertools.accumulate(map(len, record["steps"]), initial=0))
        middles = [(a + b) / 2 for (a, b), step in zip(itertools.pairwise(ends), record["steps"], strict=True) if re.search(r"=.*\d", step)]
        held = [sum(begin <= middle < end for middle in middles) for begin, end in steps.split("".join(record["steps"]))]
        shared, total = shared + sum(n > 1 for n in held), total + len(held)
    assert shared <= 0.05 * total
    assert total <= 10 * len(records)


@pytest.mark.parametrize("count", [0, 1, 5, 24, 25, 500])
def test_sections_are_of_whole_steps(count):
    text = "".join(f"Wait, {i} + 1 is {i + 1}.\n\n" if i % 7 == 3 else f"So it is {i}.\n\n" for i in range(count))
    found = steps.sections(text)
    assert "".join(text[a:b] for a, b in found) == text
    assert {a for a, _ in found} <= {a for a, _ in steps.split(text)}
    assert len(found) <= 2 * steps.SECTIONS
    if count == 500:
        assert all(text[a:b].startswith("Wait") for a, b in found[1:])
        assert len(found) >= steps.SECTIONS / 2


@pytest.mark.parametrize(
    "piece", ["a", "\n", " ", "$", "=", ".", "\\", "\\[", "\\[1=1\\]\n", "Step 1: ", "1. ", "\n1. ", "e.g. A", "# a\n\n", "a:\n\n", "1=1, "]
)
def test_time_is_linear_in_the_text(piece):
    text = (piece * 1_000_000)[:1_000_000]
    begin = time.process_time()
    spans = steps.split(text)
    assert time.process_time() - begin < 5
    assert spans[-1][1] == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Step 1: 1 + 1 = 2\nStep 2: 2 + 2 = 4\n\\boxed{4}", True),
        ("Step 1: 1 + 1 = 2\n\nStep 2: So it is \\boxed{2}\n", True),
        ("Step 1: 1 + 1 = 2\nStep 3: 2 + 2 = 4\n\\boxed{4}", False),
        ("First we add.\nStep 1: 1 + 1 = 2\n\\boxed{2}", False),
        ("Step 1: 1 + 1 = 2\nThe answer is 2.", False),
        ("**Step 1:** 1 + 1 = 2\n\\boxed{2}", False),
        ("\\boxed{2}", False),
        ("", False),
    ],
)
def test_the_step_format(text, expected):
    assert steps.in_format(text) is expected


def test_equations():
    found = steps.equations("3 * 4 = 12, 12 / 5 = 2.4 and 7 - 9 = 2")
    assert [(e.left, e.op, e.right, e.result) for e in found] == [(3, "*", 4, 12), (12, "/", 5, 2.4), (7, "-", 9, 2)]
