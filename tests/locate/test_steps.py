"""Steps join back to the text, character for character."""

from hypothesis import given
from hypothesis import strategies as st

from stepmend.locate import steps

TEXT = "Step 1: 4 * 12 = 48\nStep 2: 29 + 48 = 77\n\\boxed{77}"


def joined(text: str) -> list[str]:
    return [text[a:b] for a, b in steps.split(text)]


def test_marked_steps_and_the_answer():
    assert joined(TEXT) == ["Step 1: 4 * 12 = 48\n", "Step 2: 29 + 48 = 77\n", "\\boxed{77}"]


def test_a_marked_step_may_take_several_lines():
    assert joined("So:\nStep 1: we add\n2 + 2 = 4\nStep 2: done \\boxed{4}") == [
        "So:\nStep 1: we add\n2 + 2 = 4\n",
        "Step 2: done \\boxed{4}",
    ]


def test_lines_without_markers_are_steps():
    assert joined("a = 1\n\nb = 2\n") == ["a = 1\n\n", "b = 2\n"]


@given(
    st.lists(st.sampled_from(["Step 1: a\n", "Step 22: 1 + 1 = 2", "\n", " ", "\\boxed{3}", "x\n", "**Step 3:** y\n", "\u2028", "é\r\n"]))
)
def test_spans_cover_the_text(parts):
    text = "".join(parts)
    assert "".join(joined(text)) == text


def test_equations():
    found = steps.equations("3 * 4 = 12, 12 / 5 = 2.4 and 7 - 9 = 2")
    assert [(e.left, e.op, e.right, e.result) for e in found] == [(3, "*", 4, 12), (12, "/", 5, 2.4), (7, "-", 9, 2)]
