"""A run's folder: one append-only JSONL file per kind of record, the recipe it belongs to, and what makes a killed run continue.

Records are written in whole lines and flushed to disk; a line that a crash cut is said, dropped, and made again. Folders and single
files appear complete or not at all.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from stepmend import inputs
from stepmend.recipe import Recipe
from stepmend.records import InputError, Made, Problem, Record

T = TypeVar("T", bound=Record)
M = TypeVar("M", bound=Made)


class RunDir:
    """The folder of one run. Opening it takes a lock that other processes respect and that ends with this process."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Raises InputError where the folder belongs to another recipe, is not a run's, or is in use by another process."""
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
            self._claim(kept, recipe)
        except BaseException:
            self.close()
            raise

    def _claim(self, kept: Path, recipe: Recipe) -> None:
        if kept.exists():
            before = Recipe.from_json(kept)
            if before != recipe:
                changed = ", ".join(recipe.differences(before))
                raise InputError(
                    f"out: {self.path} belongs to another recipe ({changed} differ); choose another --out, or delete it to start over"
                )
        else:
            write_text(kept, recipe.model_dump_json(indent=2) + "\n")

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def load(self, kind: type[T], made_by: str | None = None) -> list[T]:
        """All records of one kind, or those with one digest; a damaged line is said, dropped from the file, and so made again."""
        file = self._file(kind)
        if not file.exists():
            return []
        good, bad = [], 0
        for line in inputs.content(file).splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("cut")
                other = made_by is not None and made_by.encode() not in line and line.startswith(b"{") and line.endswith(b"}\n")
                good.append((line, None if other else kind.model_validate_json(line)))  # what is not asked for is not parsed
            except (ValueError, ValidationError):
                bad += 1
        if bad:
            warnings.warn(f"{file}: {bad} damaged line(s) dropped; what they held is made again", stacklevel=2)
            replace(file, lambda part: part.write_bytes(b"".join(line for line, _ in good)))
        return [record for _, record in good if record and made_by in (None, getattr(record, "made_by", None))]

    def append(self, records: Iterable[Record]) -> None:
        """Write records of one kind behind the others, whole, and flush them to disk."""
        records = list(records)
        if not records:
            return
        with appending(self._file(type(records[0]))) as stream:
            append_lines(stream, records)

    def settle(self, kind: type[M], made_by: str, order: Sequence[str]) -> None:
        """Bring the records of one digest, which were kept as they came, into the order of these problem ids."""
        file, mark = self._file(kind), f'"made_by":"{made_by}"'.encode()
        held = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        mine = {i: kind.model_validate_json(line).problem for i, line in enumerate(held) if mark in line}
        place = {problem: n for n, problem in enumerate(order)}
        wanted = sorted(mine, key=lambda i: place[mine[i]])
        if wanted == list(mine):
            return
        moved = dict(zip(mine, [held[i] for i in wanted], strict=True))
        replace(file, lambda part: part.write_bytes(b"".join(moved.get(i, line) for i, line in enumerate(held))))

    def drop(self, kind: type[Record]) -> None:
        """Remove all records of a kind that is needed no more."""
        self._file(kind).unlink(missing_ok=True)

    def keep_problems(self, problems: Iterable[Problem]) -> None:
        """Keep the problems of this run, so that a report needs nothing but the folder."""
        file, problems = self.path / "problems.jsonl", list(problems)
        text = "".join(problem.model_dump_json() + "\n" for problem in problems)
        if file.exists() and inputs.text(file) not in (text, "".join(map(_unsolved, problems))):
            raise InputError(f"out: {self.path} was made with other problems (the benchmark's data has changed); choose another --out")
        if not file.exists():
            write_text(file, text)

    def note(self, name: str, **values: Any) -> None:
        """Keep facts about a finished stage (seconds, counts) that are no records: ``notes/NAME.json``."""
        folder = self.path / "notes"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{name}.json", json.dumps(values, indent=2) + "\n")

    def notes(self) -> dict[str, dict[str, Any]]:
        """All notes, by name."""
        found = {}
        for file in sorted((self.path / "notes").glob("*.json")):
            try:
                found[file.stem] = read_note(file)
            except InputError as error:
                warnings.warn(f"{error}; what it held is made again", stacklevel=2)
        return found

    def _file(self, kind: type[Record]) -> Path:
        return self.path / f"{kind.__name__.lower()}s.jsonl"


def check_files(folder: Path, what: str) -> None:
    """Whether a run's folder holds nothing but files and folders. Raises InputError for a link, FIFO, socket or device."""
    for path in (*folder.iterdir(), *(folder / "notes").glob("*")):
        if path.is_symlink():
            raise InputError(f"{what}: {path} is a symbolic link; a run reads and writes files of its own folder only")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{what}: {path} is not a regular file")


def read_note(file: Path) -> dict[str, Any]:
    """The facts about a finished stage. Raises InputError where the file is damaged."""
    try:
        found = json.loads(inputs.content(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{file}: damaged")
    return found


def _unsolved(problem: Problem) -> str:
    """A problem's line as folders have it that were made before worked solutions were kept."""
    return problem.model_copy(update={"solution": ""}).model_dump_json() + "\n"


def appending(file: Path) -> BufferedWriter:
    """A file opened to write behind what it holds, made where there is none. Raises InputError for a link and what else is no file."""
    if file.exists() and not file.is_symlink():
        inputs.regular(file)  # a FIFO would be waited for
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"out: {file} is a symbolic link; stepmend does not write through links") from None
    return os.fdopen(descriptor, "ab")


def append_lines(stream: BufferedWriter, records: Iterable[Record]) -> None:
    """Write records behind what a file has, a line each, and flush them to disk: all of them, or none where the disk is full."""
    begin = os.fstat(stream.fileno()).st_size
    try:
        stream.write("".join(record.model_dump_json() + "\n" for record in records).encode())
        stream.flush()
        os.fsync(stream.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(stream.fileno(), begin)
        raise


def write_text(file: Path, text: str) -> None:
    """Write a file that is either there whole or not at all."""
    replace(file, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that is either there whole or not at all: ``fill`` writes into a folder beside it, which then takes its name."""
    part = folder.with_name(folder.name + ".part")
    _remove(part)
    part.mkdir(parents=True)
    try:
        fill(part)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        # safetensors has an error type of its own; what the system said stands in its text.
        if not isinstance(error, OSError) and (said := re.search(r"\(os error (\d+)\)", str(error))):
            raise OSError(int(said[1]), os.strerror(int(said[1])), str(folder)) from error
        raise
    _readable(part)
    _remove(folder)
    part.rename(folder)


def _remove(path: Path) -> None:
    """Remove a folder, a file, or a link but not what it points to, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _readable(folder: Path) -> None:
    """Files as a new file has them: safetensors keeps its own from everybody but their owner, and a server may be another user."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file beside ``file``, which then takes its name: it is there whole, or as it was.

    The file beside it is always created, whatever stands there: nothing is written through a link.
    """
    part = file.with_name(file.name + ".part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        write(part)
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
