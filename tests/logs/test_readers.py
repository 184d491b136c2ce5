"""Logs as they are found: what is scored, what is not, which metric is read, and what is said of a log itself."""

import gzip
import json
import zipfile

import pytest

from stepmend import InputError, logs
from stepmend.logs import Fields
from tests.logs.test_logs import LM_EVAL, inspect_sample, jsonl


def outcomes(log):
    return {problem: [s.value for s in samples] for problem, samples in log.samples.items()}


def lm_eval(file, **changes):
    return jsonl(file, [{**LM_EVAL, **changes}])


NAME = "samples_gsm8k_2026-01-01T00-00-00.0.jsonl"


def test_the_metric_and_filter_that_are_read(tmp_path):
    both = {"metrics": ["exact_match", "math_verify"], "exact_match": 0.0, "math_verify": 1.0}
    log = logs.read(lm_eval(tmp_path / NAME, **both))
    assert (log.metric, log.others) == ("math_verify (none)", ("exact_match (none)",))
    arc = {"metrics": ["acc", "acc_norm"], "acc": 0.0, "acc_norm": 1.0}
    assert logs.read(lm_eval(tmp_path / "samples_arc_challenge_2026-01-01T00-00-00.0.jsonl", **arc)).metric == "acc_norm (none)"
    for names, read in (
        (["flexible-extract", "strict-match"], "strict-match"),
        (["maj@64", "score-first", "maj@8"], "score-first"),
        (["maj@64", "other"], "other"),
    ):
        file = jsonl(tmp_path / NAME, [{**LM_EVAL, "filter": name} for name in names])
        assert logs.read(file).metric == f"exact_match ({read})"
        assert logs.read(file, Fields(filter=names[0])).metric == f"exact_match ({names[0]})"


def test_what_lm_eval_says_of_its_run(tmp_path):
    results = {
        "versions": {"gsm8k": 3},
        "n-shot": {"gsm8k": 8},
        "n-samples": {"gsm8k": {"original": 1319, "effective": 100}},
        "config": {"model": "vllm", "model_dtype": "bfloat16"},
    }
    (tmp_path / "results_2026-01-01T00-00-00.0.json").write_text(json.dumps(results))
    log = logs.read(lm_eval(tmp_path / NAME, prompt_hash="p", target="2"))
    assert log.about == {"few-shot examples": "8", "engine": "vllm", "dtype": "bfloat16"}
    assert log.notes == ("100 of the benchmark's 1319 problems were asked (--limit)",)
    assert (log.samples["a"][0].prompt, log.samples["a"][0].gold) == ("p", "2")


def test_a_json_list_under_the_name_of_json_lines(tmp_path):
    for indent in (None, 1):
        (tmp_path / NAME).write_text(json.dumps([LM_EVAL, {**LM_EVAL, "doc_id": 1, "doc_hash": "b"}], indent=indent))
        assert list(logs.read(tmp_path / NAME).samples) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_gzip(tmp_path, name):
    content = {"a.jsonl.gz": '{"id": 1, "correct": 1}\n', "a.csv.gz": "id,correct\n1,1\n", "a.json.gz": '[{"id": 1, "correct": true}]'}[
        name
    ]
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert outcomes(logs.read(tmp_path / name)) == {"1": [1.0]}
    (tmp_path / name).write_bytes(gzip.compress(content.encode())[:-9])
    with pytest.raises(InputError, match="not a valid gzip file"):
        logs.read(tmp_path / name)
    (tmp_path / name).write_text("no gzip")
    with pytest.raises(InputError, match="not a valid gzip file"):
        logs.read(tmp_path / name)


def test_lighteval_shares(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for metric, value, fields in (
        ("avg@n:n=64", 0.25, None),
        ("math_pass@1:4_samples", 0.75, None),
        ("pass@k:k=1", 1.0, None),
        ("some_metric", 1.0, None),
        ("math_pass@1:4_samples", 0.75, Fields(metric="math_pass@1:4_samples")),
    ):
        file = tmp_path / "details_aime_2026-01-01T00-00-00.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([{"doc": {"query": "q"}, "metric": {metric: value}}]), file)
        log = logs.read(file, fields)
        assert (log.metric, [s.value for (s,) in log.samples.values()]) == (metric, [value])
        assert [s.value for (s,) in logs.read(file, Fields(threshold=0.5)).samples.values()] == [float(value >= 0.5)]


def inspect_log(file, samples, **head):
    about = {"task": "t", "dataset": {"samples": 3}}
    file.write_text(json.dumps({"version": 2, "status": "success", "eval": about, **head, "samples": samples}))
    return file


def test_inspect_logs_that_nobody_scored_or_that_were_cancelled(tmp_path):
    unscored = [{**inspect_sample(i, "C"), "scores": None} for i in range(3)]
    assert {v for values in outcomes(logs.read(inspect_log(tmp_path / "a.json", unscored))).values() for v in values} == {None}
    log = logs.read(inspect_log(tmp_path / "a.json", [inspect_sample(1, "C")], status="cancelled"))
    assert log.notes == ("its run was cancelled: 1 of 3 samples are there, those that finished first",)
    log = logs.read(inspect_log(tmp_path / "a.json", [inspect_sample(1, "C")]))
    assert log.notes == ("1 of 3 samples are there",)
    failed = {**inspect_sample(1, "C"), "scores": {}, "error": {"message": "x"}}
    assert [s.value for (s,) in logs.read(inspect_log(tmp_path / "a.json", [failed, inspect_sample(2, "I")])).samples.values()] == [
        None,
        0.0,
    ]


def test_inspect_partial_grades_need_a_threshold(tmp_path):
    file = inspect_log(tmp_path / "a.json", [inspect_sample(1, "P"), inspect_sample(2, 0.65), inspect_sample(3, "C")])
    with pytest.raises(InputError, match=r"'P' is neither right nor wrong.*--threshold says from which score on it is right"):
        logs.read(file)
    assert [s.value for (s,) in logs.read(file, Fields(threshold=0.6)).samples.values()] == [0.0, 1.0, 1.0]


def test_a_damaged_inspect_log_is_one_line(tmp_path):
    file = tmp_path / "a.eval"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": {"task": "t"}}))
        archive.writestr("samples/1_epoch_1.json", json.dumps(inspect_sample(1, "C")) * 50)
    content = bytearray(file.read_bytes())
    content[120:140] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(InputError, match="not an Inspect log, or damaged"):
        logs.read(file)


def test_llama_eval_states(tmp_path):
    cases = {
        "gsm8k_000_001": {"status": "ok", "correct": True, "expected": "4", "response": "4", "prompt": "2+2"},
        "gsm8k_001_001": {"status": "ok", "correct": False, "expected": "4", "response": "5", "prompt": "2+2"},
        "gsm8k_000_002": {"status": "error: connection refused", "correct": False, "expected": "5", "response": None, "prompt": "2+3"},
        "gsm8k_000_003": {"status": "pending", "correct": False, "expected": "6", "response": None, "prompt": "3+3"},
    }
    state = {"id": "gsm8k", "model_name": "m", "tasks": list(cases), "task_states": {"total": 4, "correct": 1, "cases": cases}}
    (tmp_path / "a.json").write_text(json.dumps({**state, "sampling_config": {"temperature": 0.6, "top_k": None}}))
    log = logs.read(tmp_path / "a.json")
    assert (log.format, log.task, log.about) == ("llama-eval", "gsm8k", {"temperature": "0.6"})
    assert outcomes(log) == {"001": [1.0, 0.0], "002": [None], "003": [None]}
    assert log.notes == ("2 of 4 cases have no answer (pending, or the request failed)",)


def test_every_eval_ever_records(tmp_path):
    record = {
        "schema_version": "instance_level_eval_0.2.1", "evaluation_id": "e", "model_id": "m", "evaluation_name": "GSM8K", "sample_id": "1",
        "interaction_type": "single_turn", "input": {"raw": "2+2?", "reference": ["4"]}, "output": {"raw": ["It is 4"]},
        "answer_attribution": [], "evaluation": {"score": 1.0, "is_correct": True},
    }  # fmt: skip
    failed = {**record, "sample_id": "2", "error": "timeout", "output": None, "evaluation": {"score": 0, "is_correct": False}}
    partial = {**record, "sample_id": "3", "evaluation": {"score": 0.4, "is_correct": False}}
    log = logs.read(jsonl(tmp_path / "a.jsonl", [record, failed, partial]))
    assert (log.format, log.task, outcomes(log)) == ("every_eval_ever", "GSM8K", {"1": [1.0], "2": [None], "3": [0.0]})
    assert (log.samples["1"][0].gold, log.samples["1"][0].text) == ("4", "It is 4")
    assert outcomes(logs.read(tmp_path / "a.jsonl", Fields(threshold=0.3)))["3"] == [1.0]


def test_helm_statistics(tmp_path):
    stats = [{"name": {"name": "exact_match"}, "mean": 1.0}, {"name": {"name": "f1"}, "mean": 0.4}]
    (tmp_path / "per_instance_stats.json").write_text(json.dumps([{"instance_id": "id1", "train_trial_index": 0, "stats": stats}]))
    log = logs.read(tmp_path / "per_instance_stats.json")
    assert (log.metric, log.others, outcomes(log)) == ("exact_match", ("f1",), {"id1": [1.0]})
    assert outcomes(logs.read(tmp_path / "per_instance_stats.json", Fields(metric="f1"))) == {"id1": [0.4]}


@pytest.mark.parametrize(
    ("content", "fields", "found"),
    [
        ({"results": [{"id": 1, "correct": True}]}, Fields(), {"1": [1.0]}),
        ({"0": {"correct": True}, "1": {"correct": False}, "type": "GEN"}, Fields(), {"0": [1.0], "1": [0.0]}),
        ({"accuracy": 50, "details": {"0": {"correct": True}}}, Fields(), {"0": [1.0]}),
        ({"eval": {"HumanEval/0": [{"base_status": "pass"}]}}, Fields(correct="base_status"), {"HumanEval/0": [1.0]}),
        ({"eval": {"a": [{"ok": "pass"}, {"ok": "fail"}]}}, Fields(correct="ok", sample="sample"), {"a": [1.0, 0.0]}),
        ({"id": [1, 2], "correct": [True, None], "note": "x"}, Fields(), {"1": [1.0], "2": [None]}),
        ([{"id": 1, "results": [{"pass": True}, {"pass": False}]}], Fields(correct="results.pass"), {"1": [0.5]}),
        ([{"id": 1, "results": [{"pass": True}]}], Fields(correct="results.pass"), {"1": [1.0]}),
        ([{"id": 1, "r": [{"pass": False}, {"pass": True}]}], Fields(correct="r.1.pass"), {"1": [1.0]}),
        ([{"id": i, "result": word} for i, word in enumerate(["passed", "failed", "timeout", "failed: KeyError", "error", None])],
         Fields(correct="result"), {"0": [1.0], "1": [0.0], "2": [0.0], "3": [0.0], "4": [None], "5": [None]}),
        ([{"id": 1, "correct": None}, {"id": 2, "correct": 1}], Fields(), {"1": [None], "2": [1.0]}),
        ([{"id": 1, "s": 0.65}, {"id": 2, "s": 0.2}], Fields(correct="s", threshold=0.5), {"1": [1.0], "2": [0.0]}),
        ([{"id": 1, "k": k, "correct": k == 1} for k in (1, 2)], Fields(sample="k"), {"1": [1.0, 0.0]}),
        ([{"id": 1, "a": None, "g": "1"}, {"id": 2, "a": "1", "g": ""}, {"id": 3, "a": "1", "g": "1"},
          {"id": 4, "a": float("nan"), "g": "1"}],
         Fields(answer="a", gold="g"), {"1": [None], "2": [None], "3": [1.0], "4": [None]}),
        ([{"id": 1, "a": "The answer is 1. Wait, is it?", "g": "1", "why": "length"}],
         Fields(answer="a", gold="g", finish="why"), {"1": [None]}),
    ],
)  # fmt: skip
def test_tables_of_other_shapes(tmp_path, content, fields, found):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert outcomes(logs.read(tmp_path / "a.json", fields)) == found


def test_doubled_ids(tmp_path):
    same = [{"id": 1, "correct": 1}, {"id": 1, "correct": 1}, {"id": 2, "correct": 0}]
    log = logs.read(jsonl(tmp_path / "a.jsonl", same))
    assert (outcomes(log), log.notes) == ({"1": [1.0], "2": [0.0]}, ("1 record(s) are there twice, and were read once",))
    with pytest.raises(InputError, match=r"problem '1' is there twice, with different outcomes.*--sample-field or --arm-field"):
        logs.read(jsonl(tmp_path / "a.jsonl", [*same, {"id": 1, "correct": 0}]))


def test_several_arms_in_one_table(tmp_path):
    rows = [{"id": i, "model": model, "correct": i == 1 or model == "full"} for model in ("full", "w4") for i in (1, 2)]
    file = jsonl(tmp_path / "a.jsonl", rows)
    assert [(log.name, outcomes(log)) for log in logs.read_all(file, Fields(arm="model"))] == [
        ("full", {"1": [1.0], "2": [1.0]}),
        ("w4", {"1": [1.0], "2": [0.0]}),
    ]


def test_a_folder_of_subtasks_is_one_log(tmp_path):
    folder = tmp_path / "w4" / "model"
    folder.mkdir(parents=True)
    for task, value in (("mmlu_law", 1.0), ("mmlu_math", 0.0)):
        jsonl(folder / f"samples_{task}_2026-01-01T00-00-00.0.jsonl", [{**LM_EVAL, "exact_match": value}])
    jsonl(folder / "samples_mmlu_math_2026-02-01T00-00-00.0.jsonl", [{**LM_EVAL, "exact_match": 1.0}])
    log = logs.read(tmp_path / "w4")
    assert outcomes(log) == {"mmlu_law: a": [1.0], "mmlu_math: a": [1.0]}
    assert log.samples["mmlu_law: a"][0].groups == {"subtask": "mmlu_law", "level": "easy"}
    assert log.notes == ("mmlu_math is there twice; the newer log was read",)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no logs"):
        logs.read(tmp_path / "none")
