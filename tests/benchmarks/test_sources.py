"""Benchmarks from files, of the real schemas where the real data is there."""

import json

import pytest

from stepmend import InputError
from stepmend.benchmarks import sources


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_real_gsm8k(shared_data):
    data = sources.Data("gsm8k", str(shared_data / "gsm8k"))
    test = data.problems("test", None, 0)
    assert len(test) == 1319
    assert (test[0].answer, test[0].level, test[0].split) == ("18", "all", "test")
    assert all(p.solution.rstrip().endswith(p.answer) for p in test[:20])
    tuned = [data.problems(split, None, 0) for split in ("calibration", "curate", "train")]
    assert sum(map(len, tuned)) == len({p.id for part in tuned for p in part}) == 7473
    assert [round(len(part) / 7473, 1) for part in tuned] == [0.1, 0.5, 0.4]
    assert len(data.problems("test", 10, 0)) == 10


def test_a_worked_solution_is_kept_where_there_is_one(tmp_path):
    rows = [{"question": "q1", "answer": "3", "solution": "1 + 2 = 3"}, {"question": "q2", "answer": "4"}]
    found = sources.Data("jsonl", jsonl(tmp_path / "test.jsonl", rows[:1])).problems("test", None, 0)
    assert [p.solution for p in found] == ["1 + 2 = 3"]
    found = sources.Data("jsonl", jsonl(tmp_path / "test.jsonl", rows[::-1])).problems("test", None, 0)
    assert [p.solution for p in found] == ["", "1 + 2 = 3"]


def test_real_math500(shared_data):
    test = sources.Data("math", str(shared_data / "math" / "math500_test.jsonl")).problems("test", None, 0)
    assert len(test) == 500
    assert {p.level for p in test} == {"1", "2", "3", "4", "5"}
    assert len({p.subject for p in test}) == 7


def test_any_file(tmp_path):
    file = jsonl(tmp_path / "mine.jsonl", [{"q": "1 + 1?", "a": 2}, {"q": "2 + 2?", "a": "\\boxed{4}"}, {"q": "1 + 1?", "a": 2}])
    found = sources.Data("jsonl", file, "q", "a").problems("test", None, 0)
    assert [(p.question, p.answer) for p in found] == [("1 + 1?", "2"), ("2 + 2?", "4")], "the same question is one problem"


def test_story_is_as_before():
    found = sources.Data("story").problems("test", 7, 0)
    assert [p.level for p in found] == ["easy", "medium", "hard"] * 3


@pytest.mark.parametrize(
    ("name", "rows", "split", "said"),
    [
        ("gsm8k", [{"question": "q", "answer": "1"}], "test", "holds 1 records; gsm8k test has 1,319"),
        ("aime", [{"problem": f"q{i}"} for i in range(30)], "test", "no field 'answer' or 'Answer'; available: problem"),
        ("jsonl", [{"q": "q", "answer": "1"}], "test", "no field 'question' or 'problem'; available: q, answer"),
        ("jsonl", [{"question": "q", "answer": None}], "test", "record 1: field 'answer' holds NoneType"),
        ("jsonl", [{"question": "q", "answer": "1"}], "curate", "give a folder with train.jsonl and test.jsonl"),
        ("jsonl", [], "test", "holds no rows"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, name, rows, split, said):
    file = jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(InputError, match=said) as caught:
        sources.Data(name, file).problems(split, None, 0)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_split(tmp_path):
    with pytest.raises(InputError, match="jsonl has no test split; give one with --data"):
        sources.Data("jsonl").problems("test", None, 0)
    with pytest.raises(InputError, match="aime has no train split"):
        sources.Data("aime").problems("curate", None, 0)
    with pytest.raises(InputError, match="holds 0 files for test"):
        sources.Data("gsm8k", str(tmp_path)).problems("test", None, 0)
    with pytest.raises(InputError, match="no such file or folder"):
        sources.Data("gsm8k", str(tmp_path / "none")).problems("test", None, 0)


def test_the_table():
    listed = {row[0]: row for row in sources.listing()}
    assert set(listed) == set(sources.NAMES)
    assert "test 1,319" in listed["gsm8k"][1]
