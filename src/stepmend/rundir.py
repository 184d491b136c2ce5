"""A run's folder: logs of records, facts of stages, the recipe they belong to, and what makes a killed run continue.

Records are written in whole lines and flushed to disk. Nothing is deleted because it cannot be read: such lines are moved to
``NAME.rejected``, and what they held is made again. Which records count is what ``store/manifest.py`` says.
"""

import fcntl
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from stepmend.facts import F, Fact, Facts
from stepmend.files import append_lines as append_lines  # its users of old import these from here
from stepmend.files import appending as appending
from stepmend.files import make_folder as make_folder
from stepmend.files import replace as replace
from stepmend.files import write_text as write_text
from stepmend.recipe import Recipe
from stepmend.records import Bullet, InputError, Made, Problem, Record, digest
from stepmend.store import notes
from stepmend.store.log import Log, MadeLog, Records, lines, set_aside
from stepmend.store.manifest import Manifest

T = TypeVar("T", bound=Record)
M = TypeVar("M", bound=Made)

FACTS = "facts.jsonl"


class RunDir:
    """The folder of one run. Opening it takes a lock that other processes respect and that ends with this process."""

    def __init__(self, path: Path, recipe: Recipe, problems: Iterable[Problem] = ()) -> None:
        """Raises InputError where the folder belongs to another model, is not a run's, or is in use by another process; and where one of
        ``problems`` is another one than is kept under its id. Then nothing is changed."""
        self.path = path
        if path.exists() and not path.is_dir():
            raise InputError(f"out: {path} is a file; a folder is needed")
        kept = path / "recipe.json"
        if path.exists() and any(path.iterdir()) and not kept.exists() and not (path / ".lock").exists():
            raise InputError(f"out: {path} holds something that is no run; choose another folder or empty this one")
        path.mkdir(parents=True, exist_ok=True)
        check_files(path, "out")
        self._lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(f"out: {path} is in use by another stepmend process") from None
        try:
            self._check_problems({problem.id: problem for problem in problems})
            self.changed = self._claim(kept, recipe)
            self.manifest = Manifest(path)
            self._facts = Facts(read_facts(path, keep=True))
        except BaseException:
            self.close()
            raise
        self._logs: dict[type[Record], Log[Any]] = {}

    def _check_problems(self, wanted: Mapping[str, Problem]) -> None:
        """Raises InputError where a problem that is kept has another question or answer under the same id: its grades would be wrong."""
        with warnings.catch_warnings(action="ignore"):  # damaged lines are said when the problems are kept
            kept = {problem.id: problem for problem in Log(self._file(Problem), Problem, keep=False)}
        for name in kept.keys() & wanted.keys():
            if kept[name] not in (wanted[name], _unsolved(wanted[name])):
                raise InputError(
                    f"out: {self.path} was made with other problems (the benchmark's data has changed, as {name} has); choose another --out"
                )

    def _claim(self, kept: Path, recipe: Recipe) -> list[str]:
        """The keys in which the recipe differs from the one that the folder was last used with; from now on it is this one's."""
        changed: list[str] = []
        if kept.exists():
            changed = recipe.differences(before := Recipe.from_json(kept))
            if before.model != recipe.model:
                raise InputError(f"out: {self.path} belongs to another model ({before.model}); choose another --out")
        if changed or not kept.exists():
            write_text(kept, recipe.model_dump_json(indent=2) + "\n")
        return changed

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def announce(self, label: str, made_by: str) -> None:
        """Say that a stage is next, before its first work: from now on its records count, and none that an earlier state of it made."""
        if self.manifest.announce(label, made_by):
            self._sort_bullets()

    def _sort_bullets(self) -> None:
        """Keep in ``bullets.jsonl``, which others read as a dataset, the bullets that count, and the others in a file beside it."""
        file, counts = self._file(Bullet), self.manifest.digests
        aside = _superseded(file)
        for source, out, leaves in ((file, aside, lambda of: of not in counts), (aside, file, lambda of: of in counts)):
            leaving = {digest for digest in MadeLog(source, Bullet).digests if leaves(digest)}
            if leaving:
                set_aside(source, out, lambda _, line, leaving=leaving: any(f'"made_by":"{of}"'.encode() in line for of in leaving))
                self._logs.pop(Bullet, None)

    def log(self, kind: type[M]) -> MadeLog[M]:
        """The log of a kind of record; it is indexed when it is first asked for."""
        if kind not in self._logs:
            self._logs[kind] = MadeLog(self._file(kind), kind)
        log = self._logs[kind]
        assert isinstance(log, MadeLog)
        return log

    def of(self, kind: type[M], made_by: str) -> Records[M]:
        """The records of one digest, by problem, parsed when they are asked for; damaged ones are said, set aside, and so made again."""
        return self.log(kind).of(made_by)

    def load(self, kind: type[T], made_by: str | None = None) -> list[T]:
        """All records of one kind, or those of one digest; damaged lines are said, set aside, and so made again."""
        if issubclass(kind, Made):
            return list(self.log(kind) if made_by is None else self.of(kind, made_by).values())
        return list(Log(self._file(kind), kind))

    def append(self, records: Iterable[Record]) -> None:
        """Write records of one kind behind the others, whole, and flush them to disk."""
        records = list(records)
        if records:
            kind = type(records[0])
            log: Log[Any] = self.log(kind) if issubclass(kind, Made) else Log(self._file(kind), kind)
            log.append(records)

    def settle(self, kind: type[M], made_by: str, order: Sequence[str]) -> None:
        """Bring the records of one digest, which were kept as they came, into the order of these problem ids."""
        self.log(kind).settle(made_by, order)

    def drop(self, kind: type[Record]) -> None:
        """Remove all records of a kind that is needed no more."""
        self._file(kind).unlink(missing_ok=True)

    def keep_problems(self, problems: Iterable[Problem]) -> None:
        """Keep the problems of this run, so that a report needs nothing but the folder. Those of another recipe are kept beside them.

        Raises InputError where a problem that is kept has another question or answer under the same id: its grades would be wrong.
        """
        file, problems = self._file(Problem), list(problems)
        kept, wanted = {problem.id: problem for problem in self.load(Problem)}, {problem.id: problem for problem in problems}
        self._check_problems(wanted)
        self.announce("problems", digest(list(wanted)))
        if kept and list(kept) == list(wanted):
            return
        if others := kept.keys() - wanted.keys():
            Log(_superseded(file), Problem).append([kept[name] for name in others])
        write_text(file, "".join(problem.model_dump_json() + "\n" for problem in problems))

    def keep(self, fact: Fact) -> None:
        """Keep a fact of a stage; where the last one of its kind and arm says the same, nothing is written."""
        if self.fact(type(fact), fact.arm) != fact:
            Log(self.path / FACTS, type(fact)).append([fact])
            self._facts.put(fact)

    def fact(self, kind: type[F], arm: str = "", *made_by: str) -> F | None:
        """The last fact of a kind about an arm that counts; where digests are given, that with the first of them that any has."""
        if not made_by:
            return self._facts.get(kind, arm, self.manifest.digests | {""})
        return next((fact for digest in made_by if (fact := self._facts.get(kind, arm, {digest}))), None)

    def latest(self, kind: type[F], arm: str) -> F | None:
        """The last fact of a kind about an arm, whether it counts or not."""
        return self._facts.get(kind, arm)

    def _file(self, kind: type[Record]) -> Path:
        return file_of(self.path, kind)


def file_of(folder: Path, kind: type[Record]) -> Path:
    """The file of a kind of record, in a run's folder."""
    return folder / f"{kind.__name__.lower()}s.jsonl"


def _superseded(file: Path) -> Path:
    return file.with_name(file.name + ".superseded")


def check_files(folder: Path, what: str) -> None:
    """Whether a run's folder holds nothing but files and folders. Raises InputError for a link, FIFO, socket or device."""
    for path in (*folder.iterdir(), *(folder / "notes").glob("*")):
        if path.is_symlink():
            raise InputError(f"{what}: {path} is a symbolic link; a run reads and writes files of its own folder only")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{what}: {path} is not a regular file")


def read_facts(folder: Path, *, keep: bool) -> list[Mapping[str, Any]]:
    """What a run has kept of its stages, in its order, notes of earlier versions first.

    Lines that are no fact are said, and moved aside where ``keep`` is set.
    """
    named, damaged = notes.read(folder)
    for line in damaged:
        warnings.warn(f"{line}; what it held is made again", stacklevel=2)
    found, bad = list[Mapping[str, Any]](notes.as_facts(named)), set[int]()
    log = Log(folder / FACTS, Fact, keep=keep)
    for start, line in lines(log.file):
        values = _values(line)
        if values is None:
            bad.add(start)
        elif isinstance(values.get("version"), int) and values["version"] > 1:
            raise InputError(f"{log.file}: holds facts of a newer version of stepmend; install that one")
        else:
            found.append(values)
    log.reject(bad)
    return found


def _values(line: bytes) -> dict[str, Any] | None:
    """What a line says of a fact; None where it is none."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    whole = (
        isinstance(values, dict) and all(isinstance(values.get(key, ""), str) for key in ("fact", "arm", "made_by")) and values.get("fact")
    )
    return values if whole else None


def _unsolved(problem: Problem) -> Problem:
    """A problem as folders have it that were made before worked solutions were kept."""
    return problem.model_copy(update={"solution": ""})
