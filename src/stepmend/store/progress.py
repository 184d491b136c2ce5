"""The progress of a run, recorded in its folder for ``stepmend watch``. It decides no result and is part of no digest."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stepmend import inputs
from stepmend.files import write_text
from stepmend.progress import Update
from stepmend.records import InputError

NAME = "progress.json"
LARGEST = 1 << 16
"""Bytes of the file that are read; the run writes far fewer."""
EVERY = 1.0
"""Seconds between two writes, at least."""
LINES = 5
"""Messages that are kept."""
LINE = 200
"""Characters of a message that are kept."""

State = Literal["running", "finished", "stopped", "failed"]


class Progress(BaseModel):
    """What the file holds: the last update of a stage, the last messages, and when they were written (Unix time)."""

    model_config = ConfigDict(frozen=True)

    state: State = "running"
    update: Update = Update()
    lines: tuple[str, ...] = ()
    written: float = 0.0


class Recorder:
    """A progress listener that keeps the file up to date. A file that cannot be written stops no run."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / NAME
        self._last = Progress()
        self._write()

    def __call__(self, update: Update) -> None:
        """Record an update; ticks within ``EVERY`` seconds of the last write wait for the next one."""
        before = self._last
        if update.line:
            self._last = before.model_copy(update={"lines": (*before.lines, update.line[:LINE])[-LINES:]})
        else:
            self._last = before.model_copy(update={"update": update})
        if update.line or update.stage != before.update.stage or time.time() - before.written >= EVERY:
            self._write()

    def close(self, state: State) -> None:
        """Record how the run ended."""
        self._last = self._last.model_copy(update={"state": state})
        self._write()

    def _write(self) -> None:
        self._last = self._last.model_copy(update={"written": time.time()})
        with suppress(OSError):
            write_text(self._file, self._last.model_dump_json() + "\n")


def read(folder: Path) -> Progress | None:
    """The recorded progress of a run; None if there is none, as in a run of an earlier version, or if it cannot be read."""
    try:
        return Progress.model_validate_json(inputs.content(folder / NAME, LARGEST))
    except (InputError, ValidationError):
        return None


def is_running(folder: Path) -> bool:
    """Whether a process works on the run in this folder, that is, holds its lock."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
