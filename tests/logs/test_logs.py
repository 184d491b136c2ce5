"""Other tools' logs: every format into one form; what does not fit is one clear line."""

import csv
import json
import zipfile

import pytest

from stepmend import InputError, logs

LM_EVAL = {
    "doc_id": 0,
    "doc": {"question": "1 + 1?", "level": "easy"},
    "resps": [["\\boxed{2}"]],
    "filtered_resps": ["2"],
    "filter": "none",
    "doc_hash": "a",
    "metrics": ["exact_match"],
    "exact_match": 1.0,
}


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def inspect_sample(number, value, epoch=1):
    return {
        "id": number,
        "epoch": epoch,
        "input": f"question {number}",
        "scores": {"match": {"value": value}},
        "output": {"choices": [{"message": {"content": "text"}}]},
    }


def test_lm_eval_samples(tmp_path):
    name = "samples_story_2026-01-01T00-00-00.0"
    rows = [LM_EVAL, {**LM_EVAL, "doc_id": 1, "doc_hash": "b", "exact_match": 0.0}]
    rows.append({**LM_EVAL, "doc_id": 2, "doc_hash": "c", "filtered_resps": ["[invalid]"], "exact_match": 0.0})
    rows += [{**row, "filter": "flexible-extract", "exact_match": 1.0} for row in rows]
    (tmp_path / "results_2026-01-01T00-00-00.0.json").write_text(json.dumps({"versions": {"story": 2}}))
    log = logs.read(jsonl(tmp_path / f"{name}.jsonl", rows))
    assert (log.format, log.task, log.version) == ("lm-eval", "story", "2")
    assert [s[0].correct for s in log.samples.values()] == [True, False, None]
    assert log.samples["a"][0] == logs.Sample(True, "\\boxed{2}", {"level": "easy"})


def test_lighteval_details(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"doc": {"query": f"q{i}", "id": str(i)}, "metric": {"extractive_match": float(i % 2)}, "model_response": {"text": [f"t{i}"]}}
        for i in range(4)
    ]
    file = tmp_path / "details_lighteval|math_500|0_2026-01-01T00-00-00.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    log = logs.read(file)
    assert (log.format, log.task) == ("lighteval", "lighteval|math_500|0")
    assert [(s[0].correct, s[0].text) for s in log.samples.values()] == [(False, "t0"), (True, "t1"), (False, "t2"), (True, "t3")]


@pytest.mark.parametrize("suffix", [".json", ".eval"])
def test_inspect_logs_with_epochs(tmp_path, suffix):
    head = {"version": 2, "eval": {"task": "story", "task_version": 3}}
    samples = [inspect_sample(1, "C"), inspect_sample(1, "I", 2), inspect_sample(2, "C"), inspect_sample(2, "N", 2)]
    file = tmp_path / f"log{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps({**head, "samples": samples}))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.json", json.dumps(head))
            for sample in samples:
                archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    log = logs.read(file)
    assert (log.format, log.task, log.version) == ("Inspect", "story", "3")
    assert [[s.correct for s in samples] for samples in log.samples.values()] == [[True, False], [True, None]]


def test_other_filters_and_equal_questions_of_lm_eval(tmp_path):
    rows = [{**LM_EVAL, "filter": name, "exact_match": value} for name, value in (("strict", 0.0), ("flexible", 1.0))]
    rows += [{**row, "doc_id": 1} for row in rows]
    log = logs.read(jsonl(tmp_path / "samples_a_2026-01-01T00-00-00.jsonl", rows))
    assert log.metric == "exact_match (strict)", "the benchmark's own order"
    assert log.others == ("exact_match (flexible)",)
    assert list(log.samples) == ["a", "a #2"]
    log = logs.read(tmp_path / "samples_a_2026-01-01T00-00-00.jsonl", logs.Fields(filter="flexible"))
    assert [s[0].correct for s in log.samples.values()] == [True, True]


def test_plain_tables_with_right_or_wrong(tmp_path):
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["name", "ok"], ["p", "True"], ["q", "0"], ["r", ""]])
    log = logs.read(file, logs.Fields(id="name", correct="ok"))
    assert {p: s[0].correct for p, s in log.samples.items()} == {"p": True, "q": False, "r": None}


def test_plain_tables_are_graded(tmp_path):
    rows = [{"id": i, "out": f"so \\boxed{{{i}}}", "gold": "#### 1"} for i in range(3)] + [{"id": 3, "out": "who can say", "gold": "1"}]
    log = logs.read(jsonl(tmp_path / "a.jsonl", rows), logs.Fields(answer="out", gold="gold"))
    assert {p: s[0].correct for p, s in log.samples.items()} == {"0": False, "1": True, "2": False, "3": None}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n\n", "holds no rows"),
        ("cut.jsonl", '{"id": 1, "correct"', "line 1: not valid JSON"),
        ("twice.jsonl", '{"id": 1, "correct": 1}\n{"id": 1, "correct": 0}\n', "'1' is there twice"),
        ("odd.jsonl", '{"id": 1, "correct": 0.37}\n', "0.37 is neither right nor wrong"),
        ("list.jsonl", "[1, 2]\n", "a record with named fields is needed"),
        ("fields.jsonl", '{"a": 1, "b": 2}\n', "needs --id-field; its fields: a, b"),
        ("short.csv", "id,correct\n1\n", "line 2: fewer values"),
        ("words.txt", "x", "files in .txt are not read"),
        ("log.eval", "no zip", "not an Inspect log"),
        ("table.parquet", "no parquet", "not a valid Parquet file"),
        ("object.json", '{"a": 1}', "a list of records is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        logs.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_choice_that_the_format_does_not_have_is_refused(tmp_path):
    table = jsonl(tmp_path / "a.jsonl", [{"id": 1, "correct": 1}])
    with pytest.raises(InputError, match="is of format table, which has no metric to choose"):
        logs.read(table, logs.Fields(metric="f1"))
    file = jsonl(tmp_path / "samples_a_2026-01-01T00-00-00.jsonl", [LM_EVAL])
    with pytest.raises(InputError, match="is of format lm-eval, which has no id to choose"):
        logs.read(file, logs.Fields(id="doc_id"))


def test_metrics_are_chosen_by_name(tmp_path):
    file = jsonl(tmp_path / "samples_a_2026-01-01T00-00-00.jsonl", [{**LM_EVAL, "metrics": ["f1", "bleu"], "f1": 1.0, "bleu": 0.0}])
    with pytest.raises(InputError, match="choose with --metric: f1, bleu"):
        logs.read(file)
    assert logs.read(file, logs.Fields(metric="f1")).samples["a"][0].correct is True
    with pytest.raises(InputError, match="no metric 'x'; available: f1, bleu"):
        logs.read(file, logs.Fields(metric="x"))
