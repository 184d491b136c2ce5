"""Reusing another run: records, facts and checkpoints with the needed digest are copied from it. It is never written to."""

import fcntl
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from stepmend.facts import F, Facts
from stepmend.files import copy_tree, make_folder
from stepmend.records import InputError, Made, Problem, Record
from stepmend.store.folder import check_files, file_of, read_facts, superseded
from stepmend.store.log import Log, MadeLog

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=Made)


class Other:
    """Another run's folder, locked against changes while it is read. ``taken`` counts the copied items by kind."""

    def __init__(self, folder: Path, out: Path, problems: Iterable[Problem]) -> None:
        """Raises InputError if the folder holds no run, or a link; is, or holds, the run ``out``; is in use; or knows one of
        ``problems`` with another question or answer: its grades would be wrong here."""
        if not (folder / "recipe.json").is_file():
            raise InputError(f"reuse: {folder} holds no run (there is no recipe.json)")
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"reuse: {out} is this run's own folder, or is inside {folder}; use another run")
        check_files(folder, "reuse")
        for path in folder.rglob("*"):
            if path.is_symlink():
                raise InputError(f"reuse: {path} is a symbolic link, which is not followed: remove it or copy the file")
        self.folder, self.taken = folder, Counter[str]()
        self._lock = _lock(folder)
        try:
            self._check(problems)
            self._facts = Facts(read_facts(folder, keep=False))
        except BaseException:
            self.close()
            raise
        self._logs: dict[type[Made], list[MadeLog[Any]]] = {}

    def _check(self, problems: Iterable[Problem]) -> None:
        wanted, file = {problem.id: problem for problem in problems}, file_of(self.folder, Problem)
        with warnings.catch_warnings(action="ignore"):  # damaged lines are that run's own affair
            for theirs in (*Log(file, Problem, keep=False), *Log(superseded(file), Problem, keep=False)):
                mine = wanted.get(theirs.id, theirs)
                if (mine.question, mine.answer) != (theirs.question, theirs.answer):
                    raise InputError(f"reuse: {self.folder} was made with other problems (the data has changed, for example {theirs.id})")

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            os.close(self._lock)

    def of(self, kind: type[M], made_by: str) -> Mapping[str, M]:
        """The records of one digest, by problem, including ones that are no longer current there."""
        if kind not in self._logs:
            file = file_of(self.folder, kind)
            self._logs[kind] = [MadeLog(one, kind, keep=False) for one in (superseded(file), file)]
        return {problem: record for log in self._logs[kind] for problem, record in log.of(made_by).items()}

    def all(self, kind: type[R]) -> list[R]:
        """All records of a kind."""
        return list(Log(file_of(self.folder, kind), kind, keep=False))

    def fact(self, kind: type[F], arm: str, made_by: str | None = None) -> F | None:
        """The last fact of a kind about an arm; where a digest is given, the last one with it."""
        return self._facts.get(kind, arm, None if made_by is None else {made_by})

    def take(self, folder: Path, fits: Callable[[Path], bool]) -> bool:
        """Copy the checkpoint with the name of ``folder`` there, if it is suitable; whether it was copied."""
        source = self.folder / folder.name
        with suppress(InputError, ValueError):  # a damaged one does not fit
            if source.is_dir() and fits(source):
                make_folder(folder, lambda part: copy_tree(source, part))
                self.taken["checkpoint"] += 1
                return True
        return False

    @property
    def summary(self) -> str:
        """What was copied, in words."""
        counts = ", ".join(f"{n:,} {name}{'s' * (n != 1)}" for name, n in self.taken.items() if n)
        return f"reused from {self.folder}: {counts or 'nothing (no result there has the same inputs)'}"


def _lock(folder: Path) -> int | None:
    """A shared lock: others may read, and none may write. None if the folder has no lock file, and so no running process.

    Raises InputError if a process works on the folder.
    """
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"reuse: {folder} is in use by another stepmend process; wait until it has ended") from None
    return lock
