"""kill -9 at ten moments, each stage included, then the same command: the records are those of an unbroken run."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import LOSSY, command

KINDS = ("traces", "grades", "faults", "bullets")


def lines(out: Path, kind: str) -> list[bytes]:
    """The whole lines of one kind of record."""
    file = out / f"{kind}.jsonl"
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if file.exists() else []


def has(kind: str, text: str, count: int) -> Callable[[Path], bool]:
    return lambda out: sum(text.encode() in line for line in lines(out, kind)) >= count


def exists(name: str) -> Callable[[Path], bool]:
    return lambda out: (out / name).exists()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "calibrating": has("traces", '"arm":"full"', 1),
    "quantizing": has("traces", '"arm":"full"', 9),
    "between two checkpoints": exists("gptq-w4a16-g128"),
    "measuring full": has("traces", '"arm":"full"', 30),
    "measuring the first scheme": has("traces", '"arm":"gptq-w4a16-g128"', 24),
    "locating": has("faults", "arm", 1),
    "solving curate problems": has("traces", f'"arm":"{LOSSY}"', 90),
    "curating": has("bullets", "arm", 1),
    "restoring": exists(f"{LOSSY}-restored.state"),
    "measuring the restored": has("traces", f'"arm":"{LOSSY}+restored"', 12),
}


def run_until(out: Path, reached: Callable[[Path], bool]) -> None:
    """Start the command, and kill it as soon as the moment is reached."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 900
    while not reached(out):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            message = process.communicate()[1].decode()[-2000:]
            pytest.fail(f"the run ended before the moment was reached:\n{message}")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def finish(out: Path) -> None:
    done = subprocess.run(command(out), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.slow
def test_killed_ten_times_is_as_good_as_unbroken(finished_run, tmp_path):
    whole, broken = finished_run, tmp_path / "broken"
    assert len(MOMENTS) == 10
    for moment, reached in MOMENTS.items():
        before = {kind: lines(broken, kind) for kind in KINDS}
        run_until(broken, reached)
        for kind in KINDS:
            after = Counter(lines(broken, kind))  # a finished stage brings its records, kept as they came, into the problems' order
            assert all(after[line] == count for line, count in Counter(before[kind]).items()), f"{moment}: finished {kind} were made again"
    # A line that a crash cut, as well.
    with (broken / "traces.jsonl").open("ab") as stream:
        stream.write(b'{"version":1,"problem":"sto')
    finish(broken)
    for kind in KINDS:
        assert lines(broken, kind) == lines(whole, kind), kind
    for name in ("gptq-w4a16-g128", LOSSY, f"{LOSSY}-restored"):
        assert (broken / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()
    assert not [p.name for p in broken.iterdir() if p.name.endswith((".part", ".state"))]
    stamp = {p: p.stat().st_mtime_ns for p in broken.glob("*.jsonl")}
    finish(broken)
    assert {p: p.stat().st_mtime_ns for p in broken.glob("*.jsonl")} == stamp, "a finished run was written to again"
