"""A run's folder: logs of records, facts of stages, their recipe, and the state from which a killed run resumes.

Records are written in whole lines and flushed to disk. Unreadable lines are never deleted, but moved to ``NAME.rejected``, and their
content is generated again. ``store/manifest.py`` defines which records are current.
"""

import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
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
from stepmend.store.folder import FACTS, check_files, file_of, read_facts, superseded
from stepmend.store.log import Log, MadeLog, Records, set_aside
from stepmend.store.manifest import Manifest
from stepmend.store.reuse import Other

T = TypeVar("T", bound=Record)
M = TypeVar("M", bound=Made)


class RunDir:
    """The folder of one run. Opening it takes a lock that keeps other processes out, and that ends with this process."""

    def __init__(self, path: Path, recipe: Recipe, problems: Sequence[Problem] = (), reuse: Sequence[Path] = ()) -> None:
        """``reuse``: other runs, from which missing results with the same inputs are copied.

        Raises InputError if the folder belongs to another model, is not a run's, or is in use by another process; if one of ``problems``
        differs from the stored problem with its id; and if one of ``reuse`` cannot be used. Then nothing is changed."""
        self.path = path
        self.others: list[Other] = []
        self._lock: int | None = None
        try:
            for folder in reuse:
                self.others.append(Other(folder, path, problems))
            self._open(recipe, problems)
        except BaseException:
            self.close()
            raise
        self._logs: dict[type[Record], Log[Any]] = {}
        self._taken: set[tuple[type[Made], str]] = set()

    def _open(self, recipe: Recipe, problems: Iterable[Problem]) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise InputError(f"out: {path} is a file; a folder is needed")
        kept = path / "recipe.json"
        if path.exists() and any(path.iterdir()) and not kept.exists() and not (path / ".lock").exists():
            raise InputError(f"out: {path} contains files but no run; choose another folder or empty this one")
        path.mkdir(parents=True, exist_ok=True)
        check_files(path, "out")
        self._lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW)
        if not _locked(self._lock):
            raise InputError(f"out: {path} is in use by another stepmend process")
        self._check_problems({problem.id: problem for problem in problems})
        self.changed = self._claim(kept, recipe)
        self.manifest = Manifest(path)
        self._facts = Facts(read_facts(path, keep=True))

    def _check_problems(self, wanted: Mapping[str, Problem]) -> None:
        """Raises InputError if a stored problem has another question or answer under the same id: its grades would be wrong."""
        with warnings.catch_warnings(action="ignore"):  # damaged lines are reported when the problems are kept
            kept = {problem.id: problem for problem in Log(self._file(Problem), Problem, keep=False)}
        for name in kept.keys() & wanted.keys():
            if kept[name] not in (wanted[name], _unsolved(wanted[name])):
                raise InputError(
                    f"out: {self.path} was made with other problems (the benchmark's data has changed, for example {name}); "
                    "choose another --out"
                )

    def _claim(self, kept: Path, recipe: Recipe) -> list[str]:
        """The keys in which the recipe differs from the folder's last one; it is then stored as the folder's."""
        changed: list[str] = []
        if kept.exists():
            changed = recipe.differences(before := Recipe.from_json(kept))
            if before.model != recipe.model:
                raise InputError(f"out: {self.path} belongs to another model ({before.model}); choose another --out")
        if changed or not kept.exists():
            write_text(kept, recipe.model_dump_json(indent=2) + "\n")
        return changed

    def close(self) -> None:
        """Release this folder, and those of other runs."""
        if self._lock is not None:
            os.close(self._lock)
        for other in self.others:
            other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def announce(self, label: str, made_by: str) -> None:
        """Announce a stage before its first work: from now on its records are current, and those of its earlier states are not."""
        if self.manifest.announce(label, made_by):
            self._sort_bullets()

    def _sort_bullets(self) -> None:
        """Keep only current bullets in ``bullets.jsonl``, which other tools read as a dataset, and the others in a second file."""
        file, counts = self._file(Bullet), self.manifest.digests
        aside = superseded(file)
        for source, out, leaves in ((file, aside, lambda of: of not in counts), (aside, file, lambda of: of in counts)):
            leaving = {digest for digest in MadeLog(source, Bullet).digests if leaves(digest)}
            if leaving:
                set_aside(source, out, lambda _, line, leaving=leaving: any(f'"made_by":"{of}"'.encode() in line for of in leaving))
                self._logs.pop(Bullet, None)

    def log(self, kind: type[M]) -> MadeLog[M]:
        """The log of a kind of record; it is indexed on first use."""
        if kind not in self._logs:
            self._logs[kind] = MadeLog(self._file(kind), kind)
        log = self._logs[kind]
        assert isinstance(log, MadeLog)
        return log

    def of(self, kind: type[M], made_by: str) -> Records[M]:
        """The records of one digest, by problem, parsed on access; damaged ones are reported and set aside, so that they are generated
        again.

        Missing ones are copied from reused runs.
        """
        found = self.log(kind).of(made_by)
        if (kind, made_by) not in self._taken:
            self._taken.add((kind, made_by))
            for other in self.others:
                fresh = [record for problem, record in other.of(kind, made_by).items() if problem not in found]
                self.append(fresh)
                other.taken[kind.__name__.lower()] += len(fresh)
        return found

    def adopt(self, kind: type[T], fits: Callable[[T], bool]) -> list[T]:
        """All records of a kind that belongs to no arm, including suitable ones of reused runs."""
        found = self.load(kind)
        for other in self.others:
            known = {record.model_dump_json() for record in found}
            fresh = [record for record in other.all(kind) if fits(record) and record.model_dump_json() not in known]
            self.append(fresh)
            other.taken[kind.__name__.lower()] += len(fresh)
            found += fresh
        return found

    def load(self, kind: type[T], made_by: str | None = None) -> list[T]:
        """All records of one kind, or those of one digest; damaged lines are reported and set aside, so that they are generated again."""
        if issubclass(kind, Made):
            return list(self.log(kind) if made_by is None else self.of(kind, made_by).values())
        return list(Log(self._file(kind), kind))

    def append(self, records: Iterable[Record]) -> None:
        """Append records of one kind, in whole lines, and flush them to disk."""
        records = list(records)
        if records:
            kind = type(records[0])
            log: Log[Any] = self.log(kind) if issubclass(kind, Made) else Log(self._file(kind), kind)
            log.append(records)

    def settle(self, kind: type[M], made_by: str, order: Sequence[str]) -> None:
        """Sort the records of one digest, which are in order of arrival, into the order of these problem ids."""
        self.log(kind).settle(made_by, order)

    def drop(self, kind: type[Record]) -> None:
        """Delete all records of a kind that is no longer needed."""
        self._file(kind).unlink(missing_ok=True)

    def keep_problems(self, problems: Iterable[Problem]) -> None:
        """Store the problems of this run, so that a report needs only the folder. Those of another recipe are kept in a second file.

        Raises InputError if a stored problem has another question or answer under the same id: its grades would be wrong.
        """
        file, problems = self._file(Problem), list(problems)
        kept, wanted = {problem.id: problem for problem in self.load(Problem)}, {problem.id: problem for problem in problems}
        self._check_problems(wanted)
        self.announce("problems", digest(list(wanted)))
        if kept and list(kept) == list(wanted):
            return
        if others := kept.keys() - wanted.keys():
            Log(superseded(file), Problem).append([kept[name] for name in others])
        write_text(file, "".join(problem.model_dump_json() + "\n" for problem in problems))

    def keep(self, fact: Fact) -> None:
        """Store a fact of a stage, unless it equals the last one of its kind and arm."""
        if self.fact(type(fact), fact.arm) != fact:
            Log(self.path / FACTS, type(fact)).append([fact])
            self._facts.put(fact)

    def fact(self, kind: type[F], arm: str = "", *made_by: str) -> F | None:
        """The last current fact of a kind about an arm; with digests, the one with the first digest that is found.

        A missing one is copied from a reused run.
        """
        if not made_by:
            return self._facts.get(kind, arm, self.manifest.digests | {""})
        mine = (fact for digest in made_by if (fact := self._facts.get(kind, arm, {digest})))
        return next(mine, None) or self._taken_fact(kind, arm, made_by)

    def _taken_fact(self, kind: type[F], arm: str, made_by: Sequence[str]) -> F | None:
        for other in self.others:
            if fact := next((fact for of in made_by if (fact := other.fact(kind, arm, of))), None):
                self.keep(fact)
                other.taken["fact"] += 1
                return fact
        return None

    def take(self, folder: Path, fits: Callable[[Path], bool]) -> bool:
        """Copy a suitable checkpoint from a reused run into this run's ``folder``; whether one was found."""
        return any(other.take(folder, fits) for other in self.others)

    def latest(self, kind: type[F], arm: str) -> F | None:
        """The last fact of a kind about an arm, current or not."""
        return self._facts.get(kind, arm)

    def _file(self, kind: type[Record]) -> Path:
        return file_of(self.path, kind)


def _locked(descriptor: int) -> bool:
    """Whether the lock could be taken. It is tried for 0.2 s: ``stepmend watch`` takes it for an instant to see whether a run is alive."""
    for _ in range(5):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _unsolved(problem: Problem) -> Problem:
    """A problem as stored by versions before worked solutions were stored."""
    return problem.model_copy(update={"solution": ""})
