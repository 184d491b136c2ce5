"""``stepmend watch`` on running, finished, stopped, killed, absent and foreign folders."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from stepmend import Recipe
from stepmend.progress import Stages, Update
from stepmend.rundir import RunDir
from stepmend.store import progress
from tests.command import stepmend
from tests.test_terminal import on_terminal


@contextmanager
def running(folder):
    """A run's folder, locked and with progress; yields what ends the run."""
    run, stages, end = RunDir(folder, Recipe.make({})), Stages(), threading.Event()
    recorder = progress.Recorder(folder)
    stages.listeners.append(recorder)
    stages.say("  the recipe has changed")
    started = threading.Event()

    def work():
        with stages.stage("full: solve test", 900, "problems", 400) as tick:
            time.sleep(progress.EVERY)
            tick(12, 1500)
            started.set()
            end.wait(60)
        recorder.close("finished")
        run.close()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        yield end.set
    finally:
        end.set()
        thread.join()


def contents(folder):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_an_update_is_one_line_with_rate_and_time_left():
    update = Update("full: solve test", 412, 900, "problems", 24_000, now=12, seconds=20.0)
    assert str(update) == "full: solve test: 412/900 problems, 1,200 tokens/s, 0:13:33 left"
    assert str(Update("full: solve test", 400, 900, "problems")) == "full: solve test: 400/900 problems"


def test_progress_is_written_at_most_every_second_and_at_each_stage_and_message(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    recorder = progress.Recorder(tmp_path)
    recorder(Update("one", 0, 10, "problems"))
    recorder(Update("one", 1, 10, "problems"))
    assert progress.read(tmp_path).update.done == 0
    now[0] += progress.EVERY
    recorder(Update("one", 2, 10, "problems", now=2, seconds=1.0))
    kept = progress.read(tmp_path).update
    assert (kept.done, kept.now, kept.seconds) == (2, 2, 1.0)
    recorder(Update("two", 0, 5, "problems"))
    assert progress.read(tmp_path).update.stage == "two"
    for i in range(9):
        recorder(Update(line=f"line {i} " + "x" * 999))
    kept = progress.read(tmp_path)
    assert [line[:6] for line in kept.lines] == [f"line {i}" for i in range(4, 9)]
    assert max(map(len, kept.lines)) == progress.LINE
    recorder.close("failed")
    assert progress.read(tmp_path).state == "failed"
    assert [file.name for file in tmp_path.iterdir()] == [progress.NAME]


def test_a_file_that_cannot_be_written_stops_no_run(tmp_path):
    recorder = progress.Recorder(tmp_path / "absent")
    recorder(Update("one", 0, 10, "problems"))
    recorder.close("finished")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"state": "no such"}', b"\xff\xfe", b" " * (1 << 17)])
def test_damaged_progress_is_none(tmp_path, damage):
    (tmp_path / progress.NAME).write_bytes(damage)
    assert progress.read(tmp_path) is None


def test_a_running_loop_in_a_log(tmp_path):
    with running(tmp_path / "run") as end:
        process = subprocess.Popen([sys.executable, "-m", "stepmend.cli", "watch", str(tmp_path / "run")], stdout=subprocess.PIPE)
        first = process.stdout.readline().decode()
        end()
        last = process.communicate(timeout=30)[0].decode()
    assert re.fullmatch(r"full: solve test: 412/900 problems, [\d,]+ tokens/s, \d+:\d\d:\d\d left\n", first)
    assert last == f"{tmp_path / 'run'}: finished; its figures: stepmend report {tmp_path / 'run'}\n"
    assert process.returncode == 0


@pytest.mark.parametrize("width", [40, 80])
def test_a_running_loop_on_a_terminal(tmp_path, monkeypatch, width):
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "run") as end:
        lines = on_terminal(width, "watch", "run", seen=lambda said: end() if b"recipe has changed" in said else None)
    assert max(map(len, lines)) <= width
    for wanted in ("run: running", "full: solve test", "412/900 problems", "tokens/s", "left", "the recipe has changed"):
        assert any(wanted in line for line in lines), lines
    assert "run: finished" in " ".join(lines[-3:])


def test_watching_changes_nothing(tmp_path):
    with RunDir(tmp_path / "run", Recipe.make({})):
        before = contents(tmp_path / "run")
        process = subprocess.Popen([sys.executable, "-m", "stepmend.cli", "watch", str(tmp_path / "run")], stdout=subprocess.PIPE)
        assert b"running; no stage has started yet" in process.stdout.readline()
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[0].decode()
        assert process.returncode == 0 and "the run continues" in rest
        assert contents(tmp_path / "run") == before


def test_a_run_that_starts_while_it_is_looked_at_gets_its_lock(tmp_path):
    RunDir(tmp_path / "run", Recipe.make({})).close()
    lock = os.open(tmp_path / "run" / ".lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [lock]).start()
    with RunDir(tmp_path / "run", Recipe.make({})):
        assert progress.is_running(tmp_path / "run")
    assert not progress.is_running(tmp_path / "run")


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("finished", "finished; its figures: stepmend report"),
        ("stopped", "stopped at full: solve test: 4/10 problems; the command that started it continues it"),
        ("failed", "failed at full: solve test: 4/10 problems; the command"),
        ("running", "stopped at full: solve test: 4/10 problems; the command"),  # killed: nobody could record the end
        (None, "not running, and no progress is recorded; its figures"),
    ],
)
def test_a_run_that_does_not_run_is_one_line(tmp_path, state, wanted):
    RunDir(tmp_path, Recipe.make({})).close()
    if state:
        made = progress.Progress(state=state, update=Update("full: solve test", 4, 10, "problems"))
        (tmp_path / progress.NAME).write_text(made.model_dump_json())
    done = stepmend("watch", tmp_path)
    (line,) = done.stdout.splitlines()
    assert done.returncode == 0 and wanted in line


def test_what_a_terminal_would_obey_is_written_out(tmp_path):
    RunDir(tmp_path, Recipe.make({})).close()
    made = progress.Progress(update=Update("\x1b[2Jstage", 4, 10, "problems"))
    (tmp_path / progress.NAME).write_text(made.model_dump_json())
    assert "\x1b" not in stepmend("watch", tmp_path).stdout


@pytest.mark.parametrize("kind", ["absent", "foreign", "file"])
def test_a_folder_that_holds_no_run_is_refused(tmp_path, kind):
    folder = tmp_path / "run"
    if kind == "foreign":
        folder.mkdir()
        (folder / "notes.txt").write_text("x")
    if kind == "file":
        folder.write_text("x")
    done = stepmend("watch", folder)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "holds no run" in line


def test_a_finished_run_has_recorded_its_end(finished_run):
    found = progress.read(finished_run)
    assert found.state == "finished" and found.update.total > 0
    assert progress.NAME not in (finished_run / "manifest.json").read_text()
    assert json.loads((finished_run / progress.NAME).read_text())["update"]["stage"]
