"""Steps join back to the text, character for character, and never cut a formula."""

import json

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
    for formula in steps.FORMULA.finditer(text):
        assert not any(formula.start() < begin < formula.end() for begin, _ in spans)


def test_the_step_of_a_continuation_is_of_the_text_s_own_kind():
    paragraphs = "First we add. It is 9.\n\n"
    assert steps.first(paragraphs, "Then 16 - 7 = 9. So she makes 18.\n\nDone.") == len("Then 16 - 7 = 9. So she makes 18.\n\n")
    assert steps.first(paragraphs, "Then 16 - 7 = 9. So she makes 18.") == len("Then 16 - 7 = 9. So she makes 18.")
    assert steps.first("First we add.", " Then we stop. And rest.") == len(" Then we stop.")
    assert steps.first("", "Step 1: a\nStep 2: b") == len("Step 1: a\n")


def test_processbench_steps_come_back(shared_data):
    """Most labelled boundaries are found again when steps are joined as paragraphs."""
    records = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())
    same = sum(joined("\n\n".join(r["steps"])) == [*(s + "\n\n" for s in r["steps"][:-1]), r["steps"][-1]] for r in records)
    assert same >= 0.97 * len(records)


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
