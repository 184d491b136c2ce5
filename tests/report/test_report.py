"""Figures and page of a real run."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from stepmend.benchmarks import oracle, story
from stepmend.report import page, summary, terminal
from tests.conftest import LOSSY, WITHOUT_HEAVY

RESTORED = f"{LOSSY}+restored"


@pytest.fixture(scope="module")
def found(finished_run):
    return summary.read(finished_run)


def test_figures_have_their_shape_and_add_up(found):
    figures = summary.figures(found)
    assert set(figures) == {"arms", "schemes"}
    assert next(iter(figures["arms"])) == "full"
    assert {"gptq-w4a16-g128", LOSSY, RESTORED} <= set(figures["arms"])
    for arm in figures["arms"].values():
        assert arm["correct"] + arm["wrong"] + arm["unscored"] == arm["n"] == 72
        assert arm["accuracy"] == arm["correct"] / arm["n"]
        assert arm["accuracy_kept"] == pytest.approx(arm["correct"] / figures["arms"]["full"]["correct"])
    assert figures["arms"]["full"]["step_format"] == 1.0
    for scheme in figures["schemes"].values():
        assert set(scheme) == {
            *("recovery", "loss_recovered", "accuracy_kept", "mcnemar_p", "bullets", "restore_seconds", "regressions_located"),
            *("oracle_agreement", "holm"),
        }
        assert scheme["loss_recovered"] == scheme["recovery"]
        assert set(scheme["recovery"]) == {"value", "low", "high", "reason"}
        assert (scheme["recovery"]["value"] is None) == (scheme["recovery"]["reason"] is not None)


def test_a_loss_within_noise_is_undefined_and_says_so(found):
    four = summary.figures(found)["schemes"]["gptq-w4a16-g128"]
    assert four["recovery"]["value"] is None
    assert "within noise" in four["recovery"]["reason"]


def test_bullets_come_from_curate_problems_and_are_verified(found):
    bullets = found.bullets[LOSSY]
    assert 0 < len(bullets) <= 12
    for bullet in bullets:
        problem = found.problems[bullet.problem]
        program = story.program_of(problem)
        assert problem.split == "curate"
        assert bullet.prefix + bullet.rejected + bullet.rejected_rest == found.traces[LOSSY][bullet.problem].text
        assert bullet.continuation.rstrip().endswith(f"\\boxed{{{problem.answer}}}") or f"\\boxed{{{problem.answer}}}" in bullet.chosen
        assert oracle.judge(program, bullet.prefix + bullet.rejected).step is not None


def test_faults_that_a_model_made_anew_no_longer_has_do_not_count(finished_run, found, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    arm, fault = next((arm, fault) for arm, of in found.faults.items() for fault in of.values() if arm != "full")
    right = next(p for p, grade in found.grades[arm].items() if grade.outcome == "correct")
    for made_by in ("before", fault.made_by):  # the second as a run of a version without a manifest would show it
        with (tmp_path / "run" / "faults.jsonl").open("a") as file:
            file.write(fault.model_copy(update={"problem": right, "made_by": made_by}).model_dump_json() + "\n")
    assert summary.read(tmp_path / "run").faults == found.faults


def test_frontiers_lie_in_the_faulty_step(found):
    faults = [f for f in found.faults[LOSSY].values() if f.frontier is not None]
    assert faults
    for fault in faults:
        begin, end = fault.span
        place = fault.token_ends[fault.frontier - 1] if fault.frontier else 0
        assert begin <= place <= end
        assert fault.margins[fault.frontier] <= 0
        assert fault.token_ends[-1] == len(found.traces[LOSSY][fault.problem].text)


def test_the_page_is_one_file_that_needs_no_network(finished_run):
    text = (finished_run / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://""", text)
    (blob,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert {"full", LOSSY, RESTORED} <= {arm["name"] for arm in json.loads(blob)["accuracy"]["arms"]}
    for heading in ("Accuracy", "Changed outcomes", "Error classes", "Position of the first fault", "Examples", "Run card"):
        assert heading in text
    assert 'class="step faulty"' in text
    assert "token frontier" in text


def test_one_level_alone_is_not_shown_beside_all(found):
    assert len(found.levels) > 1
    problems = {name: problem.model_copy(update={"level": "only"}) for name, problem in found.problems.items()}
    same = replace(found, problems=problems)
    assert same.levels == []
    names = [str(column.header) for column in terminal.table(same).columns]
    assert names.count("all") == 1
    assert "only" not in names
    assert "<summary>by level" in page.html(found)
    assert "<summary>by level" not in page.html(same)


def test_nothing_a_model_writes_can_break_the_page(found):
    trap = "</script><script>alert(1)</script><b>&amp;"
    fault = next(iter(found.faults[LOSSY].values()))
    found.traces["full"] = {**found.traces["full"], fault.problem: found.traces["full"][fault.problem].model_copy(update={"text": trap})}
    for arm in (LOSSY, RESTORED):
        texts = {p: trap + trace.text[len(trap) :] for p, trace in found.traces[arm].items()}
        found.traces[arm] = {p: trace.model_copy(update={"text": texts[p]}) for p, trace in found.traces[arm].items()}
    text = page.html(found)
    assert "<script>alert" not in text
    assert "</script><b>" not in text


def test_report_needs_no_torch(finished_run):
    code = f"{WITHOUT_HEAVY}\nsys.argv = ['stepmend', 'report', {str(finished_run)!r}, '--json']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"]["full"]["n"] == 72
