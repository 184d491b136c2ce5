"""``stepmend blame`` on a finished run: scores, rescue and proposal are kept, found again, and shown; what cannot be done is one line."""

import json
import shutil
from pathlib import Path

import pytest

from stepmend.facts import Blamed, Mixed, Rescue
from stepmend.report import page, summary
from stepmend.report.sections import blame
from tests.conftest import LOSSY
from tests.test_cli import refused, stepmend

ARGUMENTS = ("--scheme", LOSSY, "--seeds", "1", "--others", "3", "--budget", "3.6")


@pytest.fixture(scope="module")
def blamed_run(finished_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("blamed") / "run"
    shutil.copytree(finished_run, out)
    done = stepmend("blame", out, *ARGUMENTS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{LOSSY}: blamed most, by" in done.stderr
    assert "Next: " in done.stderr.splitlines()[-1]
    return out


def test_all_modules_are_scored_and_choices_tried(blamed_run):
    found = summary.read(blamed_run)
    fact = found.facts.get(Blamed, LOSSY)
    assert fact
    assert fact.faults > 0
    assert len(fact.modules) == 28
    assert len(fact.tried) == 6
    assert all(row.low <= row.score <= row.high for row in fact.modules)
    rescues = list(found.facts.all(Rescue).values())
    assert {(one.choice, one.share) for one in rescues} == {(c, s) for c in ("blame", "error", "relative", "random") for s in (5, 10, 20)}
    total = sum(row.weights for row in fact.modules)
    assert all(one.weights <= one.share / 100 * total for one in rescues)
    of = blame.blamed(found, LOSSY)
    assert of
    assert [row["n"] for row in of.curve] == [len(rescues[0].regressions)] * 12
    assert [test["choice"] for test in of.tests] == ["random", "error", "relative"]
    assert all(test["holm"] >= test["p"] for test in of.tests)


def test_proposal_and_peers_are_measured_within_the_budget(blamed_run):
    found = summary.read(blamed_run)
    facts = {one.choice: one for one in found.facts.all(Mixed).values()}
    assert set(facts) == {"mixed", "mixed-error", "uniform"}
    assert all(one.size <= one.budget == 3.6 for one in facts.values())
    assert facts["mixed"].wide
    assert facts["uniform"].made == "rtn-w3a16-g32"
    (block,) = blame.mixed(found, LOSSY)
    offered = blamed_run / "blame" / f"{LOSSY}-3.6" / "recipe.yaml"
    assert offered.exists() == block["wins"]
    assert not any((blamed_run / name).exists() for one in facts.values() for name in [one.arm.replace("+", "-")])  # no checkpoint is kept


def test_the_same_command_finds_all_of_it(blamed_run):
    files = [blamed_run / name for name in ("blames.jsonl", "facts.jsonl", "traces.jsonl", "grades.jsonl", "manifest.json")]
    before = [file.read_bytes() for file in files]
    done = stepmend("blame", blamed_run, *ARGUMENTS, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [file.read_bytes() for file in files] == before
    assert json.loads(done.stdout)[LOSSY]["faults"] > 0


def test_the_page_shows_it(blamed_run, finished_run):
    shown = page.html(summary.read(blamed_run))
    assert f"Which modules caused the faults: {LOSSY}" in shown
    assert shown.count("color-mix") == 28
    assert "lost problems solved again" in shown
    assert "Which modules caused" not in page.html(summary.read(finished_run))


def test_a_run_that_lost_nothing_is_shown_without_a_curve(blamed_run):
    found = summary.read(blamed_run)
    for fact in found.facts.all(Rescue).values():
        found.facts.put(fact.model_copy(update={"regressions": (), "frontiers": (0, 0)}))
    of = blame.blamed(found, LOSSY)
    assert of
    assert of.tests == []
    assert {row["rescued"] for row in of.curve} == {row["frontiers"] for row in of.curve} == {None}
    shown = page.html(found)
    assert "Which modules caused the faults" in shown
    assert "lost problems solved again" not in shown


def test_what_cannot_be_done_is_one_line(finished_run, tmp_path):
    assert "holds no run" in refused("blame", tmp_path)
    assert "has no scheme 'rtn-w8a16'" in refused("blame", finished_run, "--scheme", "rtn-w8a16")
    shutil.copytree(finished_run, out := tmp_path / "run")
    (out / "faults.jsonl").write_text("")
    assert "no located fault with a frontier" in refused("blame", out)
    assert f"--budget 2: must be above {LOSSY}'s own" in refused("blame", finished_run, "--scheme", LOSSY, "--budget", "2")
