"""Whole files graded, against labels where the real data is there."""

import pytest

from stepmend import tables
from stepmend.grading import files


def test_gsm8k_golds_are_right_against_themselves(shared_data):
    counted = files.counts(files.grade_file(shared_data / "gsm8k/test.jsonl", "answer", "answer", kind="number"))
    assert counted["correct"] == counted["n"] == 1319


def test_math500_solutions_are_right(shared_data):
    counted = files.counts(files.grade_file(shared_data / "math/math500_test.jsonl", "solution", "answer"))
    assert counted["correct"] >= 498


@pytest.mark.parametrize("model", ["6b_finetuning", "175b_verification"])
def test_openai_labels(shared_data, model):
    file = shared_data / "solutions/gsm8k-openai/example_model_solutions.jsonl"
    labels = [row[model]["is_correct"] for row in tables.read(file)]
    graded = files.grade_file(file, f"{model}.solution", "ground_truth", kind="number")
    agreed = sum((grade["outcome"] == "correct") == label for grade, label in zip(graded, labels, strict=True))
    assert agreed / len(labels) >= 0.998


def test_real_traces(shared_data):
    file = shared_data / "solutions/r1-distill-1.5b-quantized/smoothquant_w8a8kv8_math100.json"
    graded = files.grade_file(file, "generated_text", "gold")
    labels = [row["metrics"]["extractive_match"] == 1 for row in tables.read(file)]
    assert sum((grade["outcome"] == "correct") == label for grade, label in zip(graded, labels, strict=True)) >= 97
