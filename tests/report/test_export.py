"""A run's solutions as other tools' logs: read back, they say what the run says."""

import json
import os
import shutil

import pytest

from stepmend import InputError, logs
from stepmend.grading.visible import visible
from stepmend.measure import behaviour
from stepmend.measure.compare import compare
from stepmend.records import Grade, Problem, Trace
from stepmend.report import export, summary
from tests.command import stepmend
from tests.conftest import LOSSY

TOOLS = ("inspect", "every-eval-ever")
REQUIRED = {
    "schema_version", "evaluation_id", "model_id", "evaluation_name", "sample_id", "interaction_type", "input", "output",
    "answer_attribution", "evaluation",
}  # fmt: skip
"""What every_eval_ever 0.3.0 asks of each record."""


def a_run(folder):
    """The folder of a run of four problems, with an unscored solution, a cut-off one, and two that changed sides."""
    endings = {
        "full": [("correct", "stop"), ("correct", "stop"), ("wrong", "stop"), ("correct", "stop")],
        LOSSY: [("correct", "stop"), ("unscored", "length"), ("correct", "stop"), ("wrong", "stop")],
    }
    problems = [
        Problem(id=f"p{i}", benchmark="story", split="test", level="1" if i < 2 else "2", question=f"{i} + 1?", answer=str(i + 1))
        for i in range(4)
    ]
    traces, grades = [], []
    for arm, ends in endings.items():
        for i, (outcome, finish) in enumerate(ends):
            text = "<think>so 1 + 1 is " * 40 if finish == "length" else f"Step 1: it is {i + 1}.\n\\boxed{{{i + 1}}} — “done”\u2028"
            traces.append(Trace(problem=f"p{i}", arm=arm, made_by=f"t {arm}", text=text, tokens=(1, 2), finish=finish))
            extracted = None if outcome == "unscored" else str(i + 1)
            reason = "truncated" if outcome == "unscored" else None
            grades.append(
                Grade(problem=f"p{i}", arm=arm, made_by=f"g {arm}", outcome=outcome, extracted=extracted, form="boxed", reason=reason)
            )
    folder.mkdir()
    (folder / "recipe.json").write_text(summary.Recipe.make({"schemes": [LOSSY]}).model_dump_json())
    for name, records in (("problems", problems), ("traces", traces), ("grades", grades)):
        (folder / f"{name}.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    return folder


@pytest.mark.parametrize("tool", TOOLS)
def test_the_logs_say_what_the_run_says(tmp_path, tool):
    run = a_run(tmp_path / "run")
    full, low = map(logs.read, export.write(summary.read(run), run, tool, tmp_path / "out"))
    (pair,) = compare([full, low])
    assert (pair.paired.both_right, pair.paired.only_first, pair.paired.only_second, pair.unscored) == (1, 2, 1, 1)
    assert [one.value for (one,) in low.samples.values()] == [1, None, 1, 0]
    assert (pair.unpaired, pair.differences, full.notes, low.notes) == (0, [], (), ())
    assert {of.name: (of.problems, of.first, of.second) for of in pair.endings} == {
        "loops": (4, 0.0, 0.25), "cut_off": (4, 0.0, 0.25), "unclosed": (4, 0.0, 0.25),
    }  # fmt: skip
    assert [s.groups["level"] for (s,) in full.samples.values()] == ["1", "1", "2", "2"]
    assert [s.gold for (s,) in full.samples.values()] == ["1", "2", "3", "4"]
    assert next(iter(full.samples.values()))[0].text.endswith("“done”\u2028")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_finished_runs_logs_say_what_it_says(finished_run, tmp_path, tool):
    found = summary.read(finished_run)
    written = export.write(found, finished_run, tool, tmp_path / "out")
    read = [logs.read(file) for file in written]
    assert len(read) == len(found.arms)
    figures = summary.figures(found)["arms"]
    for arm, pair in zip(found.arms[1:], compare(read), strict=False):  # those with the first arm come first
        said = figures[arm]["against_full"]
        assert pair.difference.value == pytest.approx(said["value"])
        assert (pair.difference.low, pair.difference.high, pair.p) == pytest.approx((said["low"], said["high"], said["mcnemar_p"]))
        traces = [found.traces[arm][p.id] for p in found.test]
        shares = {of.name: of.second for of in pair.endings}
        assert shares["cut_off"] == pytest.approx(sum(t.finish == "length" for t in traces) / len(traces))
        assert shares["loops"] >= sum(behaviour.loops(t.text) for t in traces) / len(traces) - 1e-9
        assert shares["unclosed"] == pytest.approx(sum(not visible(t.text).whole for t in traces) / len(traces))
        assert sum(s.value is None for (s,) in pair.second.samples.values()) == figures[arm]["unscored"]


def test_every_record_has_what_its_format_asks_for(tmp_path):
    run = a_run(tmp_path / "run")
    found = summary.read(run)
    file = export.write(found, run, "every-eval-ever", tmp_path / "eee")[1]
    whole = json.loads(file.with_name(f"{LOSSY}.json").read_text())
    records = [json.loads(line) for line in file.read_text().split("\n") if line]
    for record in records:
        assert record.keys() >= REQUIRED
        assert all(isinstance(value, str) for value in record["metadata"].values())
        assert isinstance(record["evaluation"]["is_correct"], bool)
        assert (record["evaluation_id"], record["model_id"]) == (whole["evaluation_id"], whole["model_info"]["id"])
    assert whole["evaluation_results"][0]["score_details"]["score"] == 0.5
    assert records[1]["metadata"]["outcome"] == "unscored"
    log = json.loads(export.write(found, run, "inspect", tmp_path / "inspect")[1].read_text())
    assert log["eval"].keys() >= {"created", "task", "dataset", "model", "config"}
    assert [s["scores"]["stepmend"]["value"] for s in log["samples"]] == ["C", "N", "C", "I"]
    assert [s["output"]["choices"][0]["stop_reason"] for s in log["samples"]] == ["stop", "max_tokens", "stop", "stop"]
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5


def test_a_local_models_path_stays_at_home(tmp_path):
    run = a_run(tmp_path / "run")
    (run / "recipe.json").write_text(summary.Recipe.make({"schemes": [LOSSY], "model": "/home/me/my-model/"}).model_dump_json())
    text = "".join(f.read_text() for tool in TOOLS for f in export.write(summary.read(run), run, tool, tmp_path / tool))
    assert "/home/me" not in text
    assert f"stepmend/my-model-{LOSSY}" in text


def test_nothing_is_overwritten_or_left_half_written(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run")
    found = summary.read(run)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (run, tmp_path / "link"):
        with pytest.raises(InputError, match="exists already"):
            export.write(found, run, "inspect", out)
    monkeypatch.setitem(export.FILES, "inspect", lambda arm: {"full.json": "x"} if arm.name == "full" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.write(found, run, "inspect", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_the_command(tmp_path):
    run = a_run(tmp_path / "run")

    def export(*words):
        return stepmend("export", *words, env={**os.environ, "COLUMNS": "400"})

    done = export("--to", "inspect", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "run-inspect").iterdir()) == ["full.json", f"{LOSSY}.json"]
    assert done.stdout.splitlines()[-1] == f"Next: stepmend compare {tmp_path}/run-inspect/full.json {tmp_path}/run-inspect/{LOSSY}.json"
    shutil.rmtree(tmp_path / "run-inspect")
    (tmp_path / "there").mkdir()
    for words, said in (
        (("--to", "inspect", tmp_path / "none"), "holds no run"),
        (("--to", "csv", run), "'inspect', 'every-eval-ever'"),
        ((run,), "Missing option '--to'"),
        (("--to", "inspect", run, "--out", tmp_path / "there"), "exists already"),
        (("--to", "inspect", run, "--out", run / "recipe.json" / "x"), "cannot write into"),
    ):
        done = export(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert said in done.stderr
