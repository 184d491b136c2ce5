"""How a text finished, and what a cut does to its grade."""

import json

import pytest

from stepmend import InputError
from stepmend.grading import files, finish

EARLY = "Thus, the answer is 12. Wait, is it? " * 20


def test_a_cut_text_has_no_early_answer(tmp_path):
    rows = [{"a": EARLY, "g": "12", "why": why} for why in ("length", "stop", None, "MAX_TOKENS", "FinishReason.STOP")]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    graded = files.grade_file(file, "a", "g", finish_field="why")
    assert [one["outcome"] for one in graded] == ["unscored", "correct", "correct", "unscored", "correct"]
    assert [one["reason"] for one in graded] == ["truncated", None, None, "truncated", None]
    assert files.counts(graded)["cut_off"] == 2
    assert files.counts(files.grade_file(file, "a", "g"))["cut_off"] == 0, "the field was not named"


@pytest.mark.parametrize("usual", ["finish_reason", "stop_reason"])
def test_usual_fields_are_read(tmp_path, usual):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"a": EARLY, "g": "12", usual: "length"}) + "\n")
    assert files.grade_file(file, "a", "g")[0]["reason"] == "truncated"


@pytest.mark.parametrize(
    ("name", "value", "whole"),
    [
        ("truncated", True, False), ("truncated", "False", True), ("finished", 1, True), ("finished", False, False),
        ("why", ["length"], False),
        ("why", "eos_token", True), ("why", "model_length", False), ("why", "limit", False), ("why", "", True), ("why", "end_turn", True),
    ],
)  # fmt: skip
def test_words_for_how_a_text_finished(name, value, whole):
    assert finish.whole([{name: value}], name, ["here"]) == [whole]


def test_a_word_that_says_neither_is_refused():
    with pytest.raises(InputError, match="field 'why' holds 'purple', which says neither stop nor length"):
        finish.whole([{"why": "purple"}], "why", ["here"])


def test_empty_golds_and_null_answers_leave_their_record_unscored(tmp_path):
    rows = [{"a": "\\boxed{1}", "g": "1"}, {"a": None, "g": "1"}, {"a": "\\boxed{1}", "g": ""}, {"a": float("nan"), "g": ["1"]}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    graded = files.grade_file(file, "a", "g")
    assert [(one["outcome"], one["reason"]) for one in graded] == [
        ("correct", None), ("unscored", "no_answer"), ("unscored", "no_gold"), ("unscored", "no_answer"),
    ]  # fmt: skip
    file.write_text(json.dumps({"a": "1", "g": ""}) + "\n")
    with pytest.raises(InputError, match="field 'g' is empty in every record"):
        files.grade_file(file, "a", "g")
