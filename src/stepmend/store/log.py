"""An append-only file of records, one JSON object per line: indexed once, parsed record by record, and never truncated.

The index holds each record's file offset. A record is parsed on access, so that memory does not grow with the file; at most ``HELD`` bytes
of lines stay parsed. Lines that cannot be read are moved to ``NAME.rejected``.
"""

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from pydantic import ValidationError

from stepmend import inputs
from stepmend.files import append_lines, appending, replace
from stepmend.records import InputError, Made, Record

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=Made)

HELD = 32 << 20
"""Bytes of lines that stay parsed, for each file; records take several times as much."""
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_HEAD = re.compile(rb'\{"version":1,"problem":' + _TEXT + rb',"arm":' + _TEXT + rb',"made_by":' + _TEXT + rb"[,}]")
_VERSION = re.compile(rb'\s*\{\s*"version"\s*:\s*([0-9]{1,9})\b')


class Log(Generic[R]):
    """The file of one kind of record. ``keep`` is False for read-only access: then the file is not changed."""

    def __init__(self, file: Path, kind: type[R], *, keep: bool = True) -> None:
        self.file, self.kind, self.keep = file, kind, keep

    def __iter__(self) -> Iterator[R]:
        """All records, in the order of the file; lines that cannot be read are set aside at the end."""
        bad = set[int]()
        for start, line in lines(self.file):
            if (record := self.parsed(line)) is not None:
                yield record
            else:
                bad.add(start)
        self.reject(bad)

    def append(self, records: Sequence[R]) -> int:
        """Append records, whole, and flush them to disk; where they start."""
        with appending(self.file) as stream:
            _end_line(self.file, stream)
            start = stream.seek(0, 2)
            append_lines(stream, records)
        return start

    def parsed(self, line: bytes) -> R | None:
        """The record of a line; None if it holds none. Raises InputError for one of a newer version."""
        try:
            return self.kind.model_validate_json(line) if line.endswith(b"\n") else None
        except ValidationError:
            version = _VERSION.match(line)
            if version and int(version[1]) > 1:
                raise InputError(f"{self.file}: holds records of a newer version of stepmend; install that one") from None
            return None

    def reject(self, starts: set[int]) -> None:
        """Move the lines at these offsets to a separate file, with a warning; in read-only access they are only ignored, with a warning."""
        if not starts:
            return
        aside = self.file.with_name(self.file.name + ".rejected")
        then = f"moved to {aside.name}; their content is generated again" if self.keep else "left out"
        warnings.warn(f"{self.file}: {len(starts)} damaged line(s) {then}", stacklevel=3)
        if self.keep:
            set_aside(self.file, aside, lambda start, line: start in starts)


def lines(file: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from a line's start on, with the place where each starts; none if there is no file."""
    if not file.exists():
        return
    with inputs.opened(file, None) as stream:
        stream.seek(start)
        for line in stream:
            yield start, line
            start += len(line)


def set_aside(file: Path, aside: Path, chosen: Callable[[int, bytes], bool]) -> None:
    """Move lines to the end of another file; after a crash they may be in both files, but never in neither.

    A line that the other file has already, as after such a crash, is not added to it a second time.
    """
    there = {line for _, line in lines(aside)}
    with appending(aside) as out:
        _end_line(aside, out)
        for start, line in lines(file):
            if chosen(start, line) and (whole := line if line.endswith(b"\n") else line + b"\n") not in there:
                out.write(whole)
        append_lines(out, [])

    def without(part: Path) -> None:
        with part.open("wb") as out:
            out.writelines(line for start, line in lines(file) if not chosen(start, line))

    replace(file, without)


def _end_line(file: Path, stream: BinaryIO) -> None:
    """End the last line of a file, where a crash cut it: what comes next starts a new line."""
    if stream.seek(0, 2):
        with inputs.opened(file, None) as kept:
            kept.seek(-1, 2)
            if kept.read() != b"\n":
                stream.write(b"\n")


class MadeLog(Log[M]):
    """A log of records by digest and problem; if several have the same digest and problem, the last one is used."""

    def __init__(self, file: Path, kind: type[M], *, keep: bool = True) -> None:
        super().__init__(file, kind, keep=keep)
        self._places: dict[str, dict[str, int]] = {}
        self._arms: dict[str, str] = {}
        self._checked: set[str] = set()
        self._damaged: set[int] = set()
        self._held: dict[int, M] = {}
        self._room = HELD
        self._index()

    def _index(self) -> None:
        """Find every record's place in the file, without parsing it; lines that are none are set aside."""
        for places in self._places.values():
            places.clear()  # and filled again: mappings that were given out continue with it
        self._held, self._room = {}, HELD
        self.reject(self._add(0))

    def _add(self, first: int) -> set[int]:
        """Add the lines from there on to the index; where those that hold no record start."""
        bad = set[int]()
        for start, line in lines(self.file, first):
            if start in self._damaged:
                continue
            if line.endswith(b"}\n") and (head := _HEAD.match(line)) and b"\\" not in head[0]:
                self._put(start, *(part.decode(errors="replace") for part in head.groups()))
            elif record := self.parsed(line):
                self._put(start, record.problem, record.arm, record.made_by)
            else:
                bad.add(start)
        return bad

    def _put(self, start: int, problem: str, arm: str, made_by: str) -> None:
        self._places.setdefault(made_by, {})[sys.intern(problem)] = start
        self._arms[made_by] = arm

    def append(self, records: Sequence[M]) -> int:
        """Append records, whole, and flush them to disk; where they start."""
        first = super().append(records)
        self._add(first)
        return first

    def reject(self, starts: set[int]) -> None:
        """Move the lines at these offsets to a separate file, and rebuild the index, including earlier records of the same problems."""
        super().reject(starts)
        if starts:
            if not self.keep:
                self._damaged |= starts
            self._index()

    @property
    def digests(self) -> dict[str, str]:
        """The arm of every digest, in the order in which they first are in the file."""
        return dict(self._arms)

    def of(self, *digests: str) -> "Records[M]":
        """The records of these digests, by problem; each is parsed once now, and unreadable ones are set aside."""
        for made_by in digests:
            places = self._places.setdefault(made_by, {})
            while made_by not in self._checked:
                bad = {start for start in places.values() if self.at(start) is None}
                self.reject(bad)
                if not bad:
                    self._checked.add(made_by)
        return Records(self, [self._places[made_by] for made_by in digests])

    def at(self, start: int) -> M | None:
        """The record that starts there; None if the line holds none."""
        if start in self._held:
            return self._held[start]
        with inputs.opened(self.file, None) as stream:
            stream.seek(start)
            line = stream.readline()
        record = self.parsed(line)
        if record is not None and len(line) <= self._room:
            self._held[start] = record
            self._room -= len(line)
        return record

    def settle(self, made_by: str, order: Iterable[str]) -> None:
        """Sort the records of one digest, which are in order of arrival, into the order of these problem ids."""
        places = self._places.get(made_by, {})
        wanted = [places[problem] for problem in order if problem in places]
        if wanted == sorted(wanted):
            return
        moved = dict(zip(sorted(wanted), wanted, strict=True))

        def ordered(part: Path) -> None:
            with part.open("wb") as out, inputs.opened(self.file, None) as source:
                for start, line in lines(self.file):
                    if start in moved:
                        source.seek(moved[start])
                        line = source.readline()
                    out.write(line)

        replace(self.file, ordered)
        self._index()


class Records(Mapping[str, M]):
    """Records of one or more digests, by problem id, read from the file on access."""

    def __init__(self, log: MadeLog[M], places: Sequence[Mapping[str, int]]) -> None:
        """``places``: those of every digest; of several that have a problem, the record that was written last counts.

        Those of one digest alone grow as records are added.
        """
        self._log = log
        self._places = places[0] if len(places) == 1 else _merged(places)

    def __getitem__(self, problem: str) -> M:
        record = self._log.at(self._places[problem])
        if record is None:  # it was parsed when the digest was first asked for
            raise InputError(f"{self._log.file}: was changed while it was read")
        return record

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, problem: object) -> bool:
        return problem in self._places


def _merged(places: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The places of several digests in one; of those of a problem, the last in the file."""
    return {problem: start for start, problem in sorted((start, problem) for of in places for problem, start in of.items())}
