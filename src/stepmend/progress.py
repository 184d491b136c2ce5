"""Live progress: on a terminal a bar with rate and time left for every stage; elsewhere a line every half minute, and one a stage."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between lines where the output is no terminal."""
WIDE = 110
"""Columns that a bar with all that belongs to it needs."""


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Text with its control characters written out: what data holds is shown on a terminal, and not obeyed by it."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Tick(Protocol):
    """Counts units of work that are done, and the tokens that they took."""

    def __call__(self, count: int, tokens: int = 0, /) -> None: ...


def silent(count: int, tokens: int = 0, /) -> None:
    """A tick that nobody sees."""


@dataclass(frozen=True)
class Update:
    """How far a stage is, or a line between two stages.

    Attributes:
        stage: The stage's name; empty for a line.
        done: Units of work that are done, in earlier calls too.
        total: Units of work in all.
        unit: What is counted, as in "problems".
        tokens: Tokens written in this stage by this call.
        line: The line; empty for a stage.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0
    line: str = ""


Listener = Callable[[Update], None]


class Stages:
    """Shows one stage after another. A stage that an earlier call finished is shown too; one that this call has shown is not.

    ``listener`` is told the same: at a stage's beginning, with every batch of it, and each line.
    """

    def __init__(self, console: Console | None = None, listener: Listener | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=True)
        self.listener = listener
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Tick]:
        """A stage of ``total`` units of work, ``done`` of them earlier; call what it gives with the numbers of units and tokens done."""
        start = said = time.perf_counter()
        made = written = 0
        columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
        if self.console.width >= WIDE:
            columns = (
                TextColumn("{task.description:<34}"),
                BarColumn(24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:>16}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
        terminal = self.console.is_terminal
        self._tell(Update(name, done, total, unit))
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as bar:
            task = bar.add_task(name, total=total, completed=done, rate="")

            def tick(count: int, tokens: int = 0, /) -> None:
                nonlocal made, written, said
                made, written, now = made + count, written + tokens, time.perf_counter()
                self._tell(Update(name, done + made, total, unit, written))
                passed = max(now - start, 1e-9)
                rate = f"{written / passed:,.0f} tokens/s" if written else f"{made / passed:,.1f} {unit}/s"
                bar.update(task, completed=done + made, rate=rate)
                if not terminal and now - said >= EVERY:
                    said = now
                    left = f", {_clock((total - done - made) * passed / made)} left" if made else ""
                    self._print(f"  {name}: {done + made}/{total} {unit}, {rate}{left}")

            yield tick
        passed, again = time.perf_counter() - start, name in self.seconds
        self.seconds[name] = self.seconds.get(name, 0.0) + passed
        if again and not made:
            return
        rate = f" {written / max(passed, 1e-9):8,.0f} tokens/s" if written else ""
        line = f"[green]✓[/] {escape(visible(name)):<44} {done + made:>6} {unit:<9} {passed:7.1f} s{rate}"
        self.console.print(line, highlight=False, soft_wrap=not terminal)

    def say(self, text: str) -> None:
        """One line between stages."""
        self._tell(Update(line=text.strip()))
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(visible(text), highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def _tell(self, update: Update) -> None:
        if self.listener:
            self.listener(update)


def _clock(seconds: float) -> str:
    """``h:mm:ss``."""
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60 // 1:02.0f}"
