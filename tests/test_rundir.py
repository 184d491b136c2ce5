"""A run's folder: what is whole, what is dropped, what is refused."""

import errno
import os

import pytest

from stepmend import Grade, InputError, Problem, Recipe
from stepmend.facts import Gate, Placement
from stepmend.rundir import RunDir, appending, make_folder, write_text

RECIPE = Recipe.make({})


@pytest.fixture
def folder(tmp_path):
    with RunDir(tmp_path / "run", RECIPE) as opened:
        yield opened


def grade(problem: str, made_by: str = "a") -> Grade:
    return Grade(problem=problem, arm="full", made_by=made_by, outcome="correct")


def test_records_come_back_by_digest(folder):
    folder.append([grade("p1"), grade("p2")])
    folder.append([grade("p1", "b")])
    assert [r.problem for r in folder.load(Grade)] == ["p1", "p2", "p1"]
    assert folder.load(Grade, "b") == [grade("p1", "b")]


@pytest.mark.parametrize("damage", ["cut", "middle"])
def test_a_cut_line_is_said_and_dropped(folder, tmp_path, damage):
    folder.append([grade("p1"), grade("p2"), grade("p3")])
    file = tmp_path / "run" / "grades.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], lines[1], lines[2][:20]] if damage == "cut" else [lines[0], lines[1][:30] + b"\n", lines[2]]))
    with pytest.warns(UserWarning, match="1 damaged line"):
        kept = [record.problem for record in folder.load(Grade)]
    assert kept == (["p1", "p2"] if damage == "cut" else ["p1", "p3"])
    folder.append([grade("p4")])
    assert [record.problem for record in folder.load(Grade)] == [*kept, "p4"]


def test_an_unknown_field_is_no_record(folder, tmp_path):
    (tmp_path / "run" / "grades.jsonl").write_text(grade("p1").model_dump_json()[:-1] + ',"mood":"good"}\n')
    with pytest.warns(UserWarning, match="damaged"):
        assert folder.load(Grade) == []


@pytest.fixture
def theirs(tmp_path):
    """Somebody's file outside of the run, which nothing may change."""
    file = tmp_path / "theirs"
    file.write_text("theirs")
    yield file
    assert file.read_text() == "theirs"


def test_nothing_is_written_into_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "answers.jsonl")
    for path in (tmp_path / "answers.jsonl", tmp_path):
        with pytest.raises(InputError, match="not a regular file"):
            appending(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_damaged_note_is_said_and_left_out(tmp_path, content):
    RunDir(tmp_path / "run", RECIPE).close()
    (tmp_path / "run" / "notes").mkdir()
    (tmp_path / "run" / "notes" / "gate-w4.json").write_text('{"why": "so"}')
    (tmp_path / "run" / "notes" / "placement.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"placement\.json: damaged"), RunDir(tmp_path / "run", RECIPE) as opened:
        assert (opened.fact(Placement), opened.fact(Gate, "w4").why) == (None, "so")
    assert (tmp_path / "run" / "notes" / "placement.json").read_bytes() == content


@pytest.mark.parametrize("name", ["grades.jsonl", ".lock", "recipe.json", "notes", "notes/card.json", "w4-restored"])
def test_a_folder_with_a_link_is_refused(tmp_path, theirs, name):
    RunDir(tmp_path / "run", RECIPE).close()
    link = tmp_path / "run" / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(theirs)
    with pytest.raises(InputError, match=rf"out: .*{link.name} is a symbolic link"):
        RunDir(tmp_path / "run", RECIPE)


def test_nothing_is_written_through_a_link(tmp_path, theirs):
    for name in ("report.html", "report.html.part", "low.part", "low"):
        (tmp_path / name).symlink_to(theirs)
    write_text(tmp_path / "report.html", "ours")
    make_folder(tmp_path / "low", lambda part: write_text(part / "config.json", "{}"))
    assert not (tmp_path / "report.html").is_symlink() and (tmp_path / "report.html").read_text() == "ours"
    assert (tmp_path / "low" / "config.json").read_text() == "{}"
    (tmp_path / "answers.jsonl").symlink_to(theirs)
    with pytest.raises(InputError, match="does not write through links"):
        appending(tmp_path / "answers.jsonl")


def test_another_model_is_refused_and_named_and_another_recipe_is_taken_and_its_difference_known(tmp_path):
    RunDir(tmp_path / "run", RECIPE).close()
    with pytest.raises(InputError, match=r"belongs to another model \(builtin:qwen2\)"):
        RunDir(tmp_path / "run", Recipe.make({"model": "builtin:llama"}))
    for changed in (["restore.steps"], []):
        with RunDir(tmp_path / "run", Recipe.make({"restore": {"steps": 7}})) as opened:
            assert opened.changed == changed


def test_other_problems_are_refused(folder):
    problem = Problem(id="p", benchmark="jsonl", split="test", level="all", question="1 + 1?", answer="2")
    folder.keep_problems([problem])
    folder.keep_problems([problem])
    with pytest.raises(InputError, match="made with other problems"):
        folder.keep_problems([problem.model_copy(update={"answer": "3"})])


def test_problems_that_are_refused_change_nothing(tmp_path):
    problem = Problem(id="p", benchmark="jsonl", split="test", level="all", question="1 + 1?", answer="2")
    with RunDir(tmp_path / "run", Recipe()) as opened:
        opened.announce("recipe", "1")
        opened.keep_problems([problem])
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="made with other problems"):
        RunDir(tmp_path / "run", Recipe.make({"seed": 3}), [problem.model_copy(update={"answer": "3"})])
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}


def test_a_folder_made_before_worked_solutions_were_kept_goes_on(folder):
    old = Problem(id="p", benchmark="gsm8k", split="test", level="all", question="q", answer="3")
    folder.keep_problems([old])
    folder.keep_problems([old.model_copy(update={"solution": "1 + 2 = 3"})])
    with pytest.raises(InputError, match="other problems"):
        folder.keep_problems([old.model_copy(update={"solution": "1 + 2 = 3", "answer": "4"})])


def test_a_folder_in_use_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="in use by another"):
        RunDir(tmp_path / "run", RECIPE)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no run"):
        RunDir(tmp_path, RECIPE)
    with pytest.raises(InputError, match="is a file"):
        RunDir(tmp_path / "notes.txt", RECIPE)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_nothing_half_written(folder, tmp_path, monkeypatch):
    folder.append([grade("p1")])
    before = (tmp_path / "run" / "grades.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stepmend.rundir.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.append([grade("p2")])
    assert (tmp_path / "run" / "grades.jsonl").read_bytes() == before


def test_folders_and_files_appear_whole_or_not_at_all(tmp_path):
    def fill(part):
        (part / "weights").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        make_folder(tmp_path / "checkpoint", fill)
    write_text(tmp_path / "page.html", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_records_kept_as_they_came_are_brought_into_order(folder, tmp_path):
    folder.append([grade("p9", "other"), grade("p2"), grade("p3")])
    folder.append([grade("p8", "other"), grade("p1")])
    file = tmp_path / "run" / "grades.jsonl"
    kept = sorted(file.read_bytes().splitlines())
    folder.settle(Grade, "a", ["p1", "p2", "p3"])
    assert [r.problem for r in folder.load(Grade)] == ["p9", "p1", "p2", "p8", "p3"]
    assert sorted(file.read_bytes().splitlines()) == kept
    stamp = file.stat().st_mtime_ns
    folder.settle(Grade, "a", ["p1", "p2", "p3"])
    assert file.stat().st_mtime_ns == stamp
