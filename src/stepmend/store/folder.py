"""The files of records and facts in a run's folder, and how they are read."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepmend.facts import Fact
from stepmend.records import InputError, Record
from stepmend.store import notes
from stepmend.store.log import Log, lines

FACTS = "facts.jsonl"


def file_of(folder: Path, kind: type[Record]) -> Path:
    """The file of a kind of record, in a run's folder."""
    return folder / f"{kind.__name__.lower()}s.jsonl"


def superseded(file: Path) -> Path:
    """The file of records that are not current, next to it."""
    return file.with_name(file.name + ".superseded")


def check_files(folder: Path, what: str) -> None:
    """Whether a run's folder holds nothing but files and folders. Raises InputError for a link, FIFO, socket or device."""
    for path in (*folder.iterdir(), *(folder / "notes").glob("*")):
        if path.is_symlink():
            raise InputError(f"{what}: {path} is a symbolic link; a run reads and writes files of its own folder only")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{what}: {path} is not a regular file")


def read_facts(folder: Path, *, keep: bool) -> list[Mapping[str, Any]]:
    """The stored facts of a run, in order, notes of earlier versions first.

    Lines that are not a fact are reported, and moved aside where ``keep`` is set.
    """
    named, damaged = notes.read(folder)
    for line in damaged:
        warnings.warn(f"{line}; its content is generated again", stacklevel=2)
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
    """The fact on a line, as a mapping; None if the line holds no fact."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    whole = (
        isinstance(values, dict) and all(isinstance(values.get(key, ""), str) for key in ("fact", "arm", "made_by")) and values.get("fact")
    )
    return values if whole else None
