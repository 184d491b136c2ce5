"""Live progress: a bar with rate and time left for every stage on a terminal, one line a stage elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[[int], None]


class Stages:
    """Shows one stage after another; a stage that was finished before says so and takes no time."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Tick]:
        """A stage of ``total`` units of work; call what it gives with the number of units done."""
        begin, done = time.perf_counter(), 0
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>16}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(name, total=total, rate="")

            def tick(count: int) -> None:
                nonlocal done
                done += count
                rate = done / max(time.perf_counter() - begin, 1e-9)
                bar.update(task, completed=done, rate=f"{rate:,.1f} {unit}/s")

            yield tick
        passed = time.perf_counter() - begin
        self.seconds[name] = passed
        self.console.print(f"[green]✓[/] {escape(name):<44} {done:>6} {unit:<9} {passed:7.1f} s", highlight=False)

    def say(self, text: str) -> None:
        """One line between stages."""
        self.console.print(text, highlight=False, markup=False)
