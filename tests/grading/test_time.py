"""Everything that reads a model's text takes time in proportion to it: a hundred times the text, about a hundred times the seconds."""

import json
import time

import pytest

from stepmend import grading
from stepmend.grading import files, verify

SMALL, LARGE = 10_000, 1_000_000
HOSTILE = {
    "letters": "x",
    "digits": "7",
    "blanks": " ",
    "tabs": "\t",
    "lines": "\n",
    "blank lines": " \n",
    "braces": "{",
    "closed braces": "}",
    "backslashes": "\\",
    "boxes": "\\boxed{",
    "closed boxes": "\\boxed{1}",
    "boxes of blanks": "\\boxed   ",
    "boxes in a row": "\\boxed{1}, ",
    "marks": "the answer is ",
    "empty marks": "####\n",
    "marks of blanks": "####        ",
    "answers": "Answer: \n",
    "answers of stars": "answer: **** ",
    "answer to": "answer to x ",
    "answer to one": "the answer to the first one ",
    "thoughts": "<think>",
    "closed thoughts": "</think>",
    "thought pairs": "<think>a</think>",
    "channels": "<|channel|>analysis<|message|>",
    "half channels": "<|channel|>",
    "special": "<|im_end|>",
    "half special": "<|",
    "half tags": "</",
    "headings": "Question: 1\n",
    "answered headings": "#### 1\nQuestion: 2\n",
    "bare headings": "Q\n",
    "stars": "*",
    "number signs": "#",
    "bold": "**answer**\n",
    "dollars": "$",
    "money": "$1 ",
    "formulas": "\\(1\\)",
    "opened": "\\(",
    "displayed": "\\[",
    "words": "and so on ",
    "sentences": "It is so. ",
    "commas": "1,",
    "thousands": "1,234,",
    "brackets": "(1, ",
    "roots": "√",
    "options": "(A) ",
    "is correct": "A is ",
    "quotes": '"answer": ',
    "glued": "assistantfinal",
    "minus": "-",
    "e": "1e5",
    "dots": ".",
    "cjk": "答案是",
    "nul": "\x00",
}
AROUND = ("It is \\boxed{{12}}. {}", "analysisWe {}", "{}\\boxed{{12}}", "#### 12\n{}")


def seconds(read, text: str) -> float:
    """Processor seconds of one reading."""
    begin = time.process_time()
    read(text)
    return time.process_time() - begin


@pytest.mark.parametrize("name", HOSTILE)
def test_reading_is_linear(name):
    small, large = ((HOSTILE[name] * size)[:size] for size in (SMALL, LARGE))
    quickest = min(seconds(grading.extract, small) for _ in range(5))
    assert seconds(grading.extract, large) < 3 * LARGE / SMALL * quickest + 0.5


@pytest.mark.parametrize("name", HOSTILE)
def test_every_way_to_read_is_quick(name):
    text = (HOSTILE[name] * 40_000)[:40_000]
    for around in AROUND:
        assert seconds(lambda whole: grading.extract(whole, loose=False), around.format(text)) < 1
    for read in (grading.bare, grading.boxed, grading.gold_of):
        assert seconds(read, text) < 1


@pytest.mark.parametrize("kind", ["math", "number"])
@pytest.mark.parametrize("name", HOSTILE)
def test_equality_is_decided_or_left_to_workers_quickly(name, kind):
    answer = (HOSTILE[name] * 2_000)[:2_000]
    assert (
        seconds(lambda said: (verify.quick(said, "12", kind), verify.quick("12", said, kind), verify.quick("C", said, kind)), answer) < 0.5
    )


def test_a_megabyte_of_one_letter_is_graded(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"a": "x" * 1_000_000 + "\\boxed{12}", "g": "12"}) + "\n")
    begin = time.process_time()
    assert files.grade_file(file, "a", "g")[0]["outcome"] == "correct"
    assert time.process_time() - begin < 3
