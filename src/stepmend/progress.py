"""Live progress: on a terminal a bar with rate and time left for each stage; elsewhere a line every 30 s, and one per finished stage."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between lines where the output is not a terminal."""
WIDE = 110
"""Columns that a bar with rate and times needs."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Text with its control characters escaped, so that data cannot control the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Tick(Protocol):
    """Counts units of work that are done, and the tokens that they took."""

    def __call__(self, count: int, tokens: int = 0, /) -> None: ...


def silent(count: int, tokens: int = 0, /) -> None:
    """A tick that shows nothing."""


@dataclass(frozen=True)
class Update:
    """The progress of a stage, or a message between two stages.

    Attributes:
        stage: The stage's name; empty for a message.
        done: Finished units of work, those of earlier calls included.
        total: Units of work in total.
        unit: What is counted, as in "problems".
        tokens: Tokens generated in this stage by this call.
        line: The message; empty for a stage.
        now: Units of work finished by this call.
        seconds: Seconds since this call started the stage.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0
    line: str = ""
    now: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def rate(self) -> str:
        """Tokens per second, or units per second if no tokens are counted; empty before the first unit."""
        passed = max(self.seconds, 1e-9)
        if self.tokens:
            return f"{self.tokens / passed:,.0f} tokens/s"
        return f"{self.now / passed:,.1f} {self.unit}/s" if self.now else ""

    @property
    def left(self) -> str:
        """The time left at this rate, as ``h:mm:ss``; empty before the first unit."""
        return clock((self.total - self.done) * self.seconds / self.now) if self.now else ""

    def __str__(self) -> str:
        """One line: the stage, done and total, rate and time left."""
        shown = (f"{self.stage}: {self.done}/{self.total} {self.unit}", self.rate, self.left and f"{self.left} left")
        return ", ".join(filter(None, shown))


Listener = Callable[[Update], None]


class Stages:
    """Shows one stage after another. A stage that an earlier call finished is shown too, but only once per call.

    Each of ``listeners`` is called with the same updates: at a stage's start, after each batch, and for each message.
    """

    def __init__(self, console: Console | None = None, listener: Listener | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=True)
        self.listeners: list[Listener] = [listener] if listener else []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Tick]:
        """A stage of ``total`` units of work, ``done`` of them by earlier calls. Yields a ``Tick`` to count further units and tokens."""
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
                update = Update(name, done + made, total, unit, written, now=made, seconds=now - start)
                self._tell(update)
                bar.update(task, completed=done + made, rate=update.rate)
                if not terminal and now - said >= EVERY:
                    said = now
                    self._print(f"  {update}")

            yield tick
        passed, again = time.perf_counter() - start, name in self.seconds
        self.seconds[name] = self.seconds.get(name, 0.0) + (passed if made else 0.0)
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
        for listener in self.listeners:
            listener(update)


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60 // 1:02.0f}"
