"""What is shown of a stage where the output is no terminal."""

import io
import re

import pytest
from rich.console import Console

from stepmend import progress


def shown(monkeypatch, every: float, ticks: list[tuple[int, int]], done: int = 0) -> list[str]:
    monkeypatch.setattr(progress, "EVERY", every)
    console = Console(file=io.StringIO(), width=140)
    with progress.Stages(console).stage("full: solve test", 10, "problems", done) as tick:
        for count, tokens in ticks:
            tick(count, tokens)
    return console.file.getvalue().splitlines()


def test_a_line_now_and_then_says_how_far_it_is_how_fast_and_for_how_long(monkeypatch):
    first, second, end = shown(monkeypatch, 0.0, [(0, 50), (2, 100)], done=4)
    assert re.fullmatch(r"  full: solve test: 4/10 problems, [\d,]+ tokens/s", first)
    assert re.fullmatch(r"  full: solve test: 6/10 problems, [\d,]+ tokens/s, \d:\d\d:\d\d left", second)
    assert re.search(r"✓ full: solve test +6 problems +0\.0 s +[\d,]+ tokens/s", end)


def test_short_stages_say_one_line(monkeypatch):
    (end,) = shown(monkeypatch, 30.0, [(10, 0)])
    assert "10 problems" in end
    assert "tokens" not in end


def test_a_stage_that_has_nothing_left_is_shown_once():
    console = Console(file=io.StringIO(), width=140)
    stages = progress.Stages(console)
    for _ in range(3):
        with stages.stage("full: solve curate 1-900", 900, "problems", 900):
            pass
    assert len(console.file.getvalue().splitlines()) == 1


def test_lines_of_a_log_are_not_wrapped():
    console = Console(file=io.StringIO(), width=40)
    stages = progress.Stages(console)
    stages.say("  out of memory: from now on, 12 solutions are generated in parallel, for the rest of this run")
    with stages.stage("restored, round 2: solve curate problems 1801-2700", 10, "problems"):
        pass
    assert len(console.file.getvalue().splitlines()) == 2


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_bar_says_how_far_it_is_at_any_width(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, _environ={"TERM": "xterm"})
    with progress.Stages(console).stage("full: solve test", 10, "problems") as tick:
        tick(4)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert "full: solve test" in shown and "4/10" in shown


def test_hours_minutes_seconds():
    assert progress.clock(3 * 3600 + 65.4) == "3:01:05"
