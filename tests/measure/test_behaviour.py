"""Loops and lengths."""

import pytest

from stepmend import tables
from stepmend.benchmarks import story
from stepmend.measure import behaviour


@pytest.mark.parametrize(
    "text", ["So the number is 2. " * 100, "Think first. " * 3 + "2 " * 400, "a proper beginning " + "4" * 3000, "wait, no, " * 80]
)
def test_loops(text):
    assert behaviour.loops(text)


@pytest.mark.parametrize("text", ["", "short", "again and again " * 5, " ".join(f"step {i} gives {i * i}" for i in range(200))])
def test_no_loops(text):
    assert not behaviour.loops(text)


def test_right_solutions_do_not_loop():
    for level in story.LEVELS:
        problems = story.problems("train", level, seed=5)
        assert not any(behaviour.loops(story.program_of(next(problems)).solution()) for _ in range(100))


def test_real_solutions(shared_data):
    rows = tables.read(shared_data / "solutions/r1-distill-1.5b-quantized/gptq_w3_wrong_w4_right_math500.csv")
    looping = [behaviour.loops(row["full_text_3bit"]) for row in rows]
    endless = [row["has_boxed_3bit"] == "False" for row in rows]
    assert all(loop for loop, end in zip(looping, endless, strict=True) if end), "every text that never came to an answer"
    assert sum(behaviour.loops(row["full_text_4bit"]) for row in rows) <= 1


def test_length_ratio():
    assert behaviour.length_ratio({"a": "xxxx", "b": "x"}, {"a": "xx", "c": "x"}) == 2.0
    assert behaviour.length_ratio({"a": None}, {"a": "x"}) is None
