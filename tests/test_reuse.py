"""``--reuse RUN``: what was made from the same inputs is taken from another run, which is only read."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stepmend import InputError, Problem
from stepmend.facts import Gate
from stepmend.recipe import Recipe
from stepmend.records import Bullet, Grade, Judgement
from stepmend.rundir import RunDir
from tests.conftest import LOSSY, command

RECIPE = Recipe.make({"model": "builtin:qwen2", "schemes": ["rtn-w4a16-g128"]})
PROBLEM = Problem(id="p1", benchmark="story", split="test", level="one", question="How many?", answer="3")


def grade(problem: str, made_by: str = "a") -> Grade:
    return Grade(problem=problem, arm="full", made_by=made_by, outcome="correct")


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder: its bytes, and when it was last written."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def other(tmp_path) -> Path:
    """A run with grades of two digests, a fact, and a checkpoint."""
    with RunDir(tmp_path / "other", RECIPE, [PROBLEM]) as run:
        run.keep_problems([PROBLEM])
        run.append([grade("p1"), grade("p2"), grade("p1", "b")])
        run.append([Judgement(asked="q", judge="one", model="m", content="{}", tokens=3)])
        run.keep(Gate(arm="w4", made_by="g", why="so"))
    (tmp_path / "other" / "w4").mkdir()
    (tmp_path / "other" / "w4" / "config.json").write_text("{}")
    return tmp_path / "other"


def taking(tmp_path: Path, *others: Path, problems=(PROBLEM,)) -> RunDir:
    return RunDir(tmp_path / "run", RECIPE, problems, others)


def test_what_is_missing_and_of_the_same_digest_is_taken_once_and_counted(other, tmp_path):
    before = content(other)
    for asked in range(2):  # the second time, the run holds all by itself
        with taking(tmp_path, other) as run:
            if not asked:
                run.append([grade("p2")])
            assert [*run.of(Grade, "a")] == ["p2", "p1"]
            assert not run.of(Grade, "c")
            assert run.fact(Gate, "w4", "other", "g").why == "so"
            assert run.fact(Gate, "w4", "other") is None
            assert len(run.adopt(Judgement, lambda one: one.judge == "one")) == 1
            assert dict(run.others[0].taken) == ({} if asked else {"grade": 1, "fact": 1, "judgement": 1}) | dict.fromkeys(
                ["grade", "judgement"] if asked else [], 0
            )
    with RunDir(tmp_path / "run", RECIPE) as run:
        assert [*run.of(Grade, "a")] == ["p2", "p1"]
        assert run.load(Grade, "b") == []
    assert content(other) == before


def test_the_first_of_several_runs_that_has_something_gives_it(other, tmp_path):
    second = tmp_path / "second"
    with RunDir(second, RECIPE) as run:
        run.append([grade("p1"), grade("p3")])
    with taking(tmp_path, other, second) as run:
        assert [*run.of(Grade, "a")] == ["p1", "p2", "p3"]
        assert [dict(of.taken) for of in run.others] == [{"grade": 2}, {"grade": 1}]
        assert run.others[1].summary == f"reused from {second}: 1 grade"


def test_records_that_no_longer_count_there_may_count_here(other, tmp_path):
    empty = dict.fromkeys(("prompt", "prefix", "chosen", "rejected", "continuation", "rejected_rest", "solution"), "")
    bullet = Bullet(problem="p1", arm="w4", made_by="x", place=(0, 0), step=0, error_class=None, **empty)
    with RunDir(other, RECIPE) as run:
        run.announce("w4: curated", "x")
        run.append([bullet])
        run.announce("w4: curated", "y")
    assert not (other / "bullets.jsonl").read_bytes()
    with taking(tmp_path, other) as run:
        run.announce("w4: curated", "x")
        assert run.load(Bullet, "x") == [bullet]


def test_a_checkpoint_is_copied_whole_where_it_fits(other, tmp_path):
    with taking(tmp_path, other) as run:
        assert not run.take(run.path / "w4", lambda folder: False)
        assert not run.take(run.path / "w3", lambda folder: True)
        assert run.take(run.path / "w4", lambda folder: (folder / "config.json").read_text() == "{}")
        copied = run.path / "w4" / "config.json"
        copied.write_text("changed")
    assert (other / "w4" / "config.json").read_text() == "{}"


def test_a_run_in_use_is_refused_and_so_is_its_own_folder(other, tmp_path):
    with RunDir(other, RECIPE), pytest.raises(InputError, match="in use"):
        taking(tmp_path, other)
    with taking(tmp_path, other), pytest.raises(InputError, match="in use"):
        RunDir(other, RECIPE)
    for out in (other, other / "inside", tmp_path / "x" / ".." / "other"):
        with pytest.raises(InputError, match="use another run"):
            RunDir(out, RECIPE, reuse=[other])
    assert not (other / "inside").exists()
    with pytest.raises(InputError, match=r"reuse: .* holds no run"):
        RunDir(tmp_path / "new", RECIPE, reuse=[tmp_path])
    assert not (tmp_path / "new").exists()


def test_two_runs_may_take_from_one_and_from_one_that_cannot_be_written(other, tmp_path):
    os.chmod(other / ".lock", 0o400)
    with taking(tmp_path, other), RunDir(tmp_path / "third", RECIPE, reuse=[other]) as run:
        assert len(run.of(Grade, "a")) == 2
    (other / ".lock").unlink()  # a copy may lack it
    with taking(tmp_path, other) as run:
        assert len(run.of(Grade, "b")) == 1
    assert not (other / ".lock").exists()


@pytest.mark.parametrize("name", ["traces.jsonl", "recipe.json", ".lock", "w3", "w4/model.safetensors", "w4/deep"])
def test_links_are_refused_wherever_they_stand(other, tmp_path, name):
    theirs = tmp_path / "theirs"
    theirs.write_text("{}")
    (other / name).unlink(missing_ok=True)
    (other / name).symlink_to(theirs)
    with pytest.raises(InputError, match="symbolic link"):
        taking(tmp_path, other)
    assert not (tmp_path / "run").exists()


def test_another_answer_under_the_same_id_is_refused(other, tmp_path):
    changed = PROBLEM.model_copy(update={"answer": "4"})
    with pytest.raises(InputError, match="other problems"):
        taking(tmp_path, other, problems=[changed])
    with RunDir(other, RECIPE) as run:
        run.keep_problems([PROBLEM.model_copy(update={"id": "p9"})])  # what no longer counts there was graded all the same
    with pytest.raises(InputError, match="other problems"):
        taking(tmp_path, other, problems=[changed])


def test_a_run_that_changes_one_key_takes_the_rest(finished_run, tmp_path):
    """The whole command: everything is taken but what the key decides, the records are the same, and RUN is as it was."""
    before = content(finished_run)
    wanted = [*command(tmp_path / "run"), "--set", "locate.own_failures=1", "--reuse", str(finished_run)]
    done = subprocess.run(wanted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (said,) = [line for line in done.stderr.splitlines() if "reused from" in line]
    for part in (" traces, ", " grades, ", " faults, ", " bullets", " checkpoints"):
        assert part in said
    for name in ("bullets.jsonl", f"{LOSSY}-restored/model.safetensors", "gptq-w4a16-g128/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished_run / name).read_bytes()
    for name in ("traces.jsonl", "grades.jsonl"):  # but for calibration problems, whose checkpoint is there
        taken, had = ((folder / name).read_bytes().splitlines() for folder in (tmp_path / "run", finished_run))
        assert taken == [line for line in had if line in {*taken}]
        assert len(had) - len(taken) == 9
    assert content(finished_run) == before
    with (finished_run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(tmp_path / "run")
