"""Where problems come from: the table of benchmarks, from the hub by their usual names or from files of the same schema.

Splits: ``test`` is what is reported. ``calibration``, ``curate`` and ``train`` are what tuning may touch; where a benchmark has training
problems, each belongs to one of the three by the digest of its question, so that no seed can mix them.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.benchmarks import aime, aime25, gsm8k, math, story
from stepmend.benchmarks.base import Source
from stepmend.records import InputError, Problem

SHARES = {"calibration": range(0, 10), "curate": range(10, 60), "train": range(60, 100)}
"""The question's digest modulo 100, of a benchmark's training problems."""
TUNED = frozenset(SHARES)


SOURCES = {"gsm8k": gsm8k.SOURCE, "math": math.SOURCE, "aime": aime.SOURCE, "aime25": aime25.SOURCE}
"""Benchmarks that others published, by name: a file each."""
NAMES = ("story", *SOURCES, "jsonl")
"""All benchmarks: that which is generated, those that others published, and a user's own files."""


@dataclass(frozen=True)
class Data:
    """A requested benchmark: its name, and for files the path and the fields."""

    name: str
    path: str | None = None
    question_field: str | None = None
    answer_field: str | None = None

    def problems(self, split: str, count: int | None, seed: int) -> list[Problem]:
        """``count`` problems of a split (all, where None); generated ones level by level in turn, others in their file's order.

        Raises InputError if the benchmark, the split, a field or a record is not there, or if the number of records is wrong.
        """
        if self.name == "story" and (self.path or self.question_field or self.answer_field):
            raise InputError("benchmark: story is generated and reads no file; with --data choose --benchmark gsm8k, math, aime or jsonl")
        if self.name == "story":
            return _generated(split, count or 900, seed)
        kept = [problem for problem in self._all("train" if split in TUNED else split) if split not in TUNED or _share(problem) == split]
        if not kept:
            raise InputError(f"benchmark: {self.name} has no problems for {split}")
        return kept[:count]

    def measured(self, count: int | None, seed: int) -> list[Problem]:
        """The test problems of a run: ``count`` generated problems of each level (None: 300), or the first ``count`` of other benchmarks
        (None: all)."""
        return self.problems("test", (count or 300) * len(story.LEVELS) if self.name == "story" else count, seed)

    def _all(self, own: str) -> Iterator[Problem]:
        source = SOURCES.get(self.name, Source({}, {}, "", ("question", "problem"), ("answer",)))
        rows, where = self._rows(source, own)
        allowed = source.counts.get(own)
        if allowed and len(rows) not in allowed:
            raise InputError(
                f"benchmark: {where} holds {len(rows):,} records; {self.name} {own} has {' or '.join(f'{n:,}' for n in allowed)}"
            )
        question = self.question_field or _there(rows[0], source.question, where)
        answer = self.answer_field or _there(rows[0], source.answer, where)
        seen: set[str] = set()
        for number, row in enumerate(rows, 1):
            place = f"{where}, record {number}"
            text, gold = tables.text(row, question, place), grading.gold_of(tables.text(row, answer, place))
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            if name in seen:
                continue  # a question that is there twice is one problem
            seen.add(name)
            yield Problem(
                id=f"{self.name}-{name}",
                benchmark=self.name,
                split=own,
                level=str(row[source.level]) if source.level and source.level in row else "all",
                subject=str(row[source.subject]) if source.subject and source.subject in row else None,
                question=text,
                answer=gold,
                solution=next((row[name] for name in source.solution if isinstance(row.get(name), str)), ""),
            )

    def _rows(self, source: Source, own: str) -> tuple[Sequence[dict[str, Any]], str]:
        if self.path:
            file = _file(Path(self.path), own, self.name)
            return tables.read(file), str(file)
        if own not in source.hub:
            tune = "; --set curate.benchmark=NAME tunes on another one" if own == "train" and self.name != "jsonl" else ""
            raise InputError(f"benchmark: {self.name} has no {own} split{tune}{'; give one with --data' if self.name == 'jsonl' else ''}")
        name, configuration, split = source.hub[own]
        from datasets import load_dataset

        try:
            return list(load_dataset(name, configuration, split=split)), name  # pyright: ignore[reportReturnType, reportArgumentType]
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"benchmark: cannot load {name} from the hub ({first}); give its files with --data PATH") from None


def _file(path: Path, own: str, name: str) -> Path:
    """The file of a split: the path itself for ``test``, or ``test.jsonl`` and the like in a folder."""
    if path.is_file():
        if own == "test":
            return path
        tune = "give a folder with train.jsonl and test.jsonl, or another benchmark with --set curate.benchmark=NAME"
        raise InputError(f"benchmark: {path} is {name}'s test split; to tune, {tune}")
    if not path.is_dir():
        raise InputError(f"benchmark: {path}: no such file or folder")
    found = [file for file in sorted(path.iterdir()) if file.suffix in tables.SUFFIXES and own in file.stem.split("_")]
    if len(found) != 1:
        raise InputError(f"benchmark: {path} holds {len(found)} files for {own}; one is needed, such as {own}.jsonl")
    return found[0]


def _there(row: dict[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if name in row:
            return name
    raise InputError(f"benchmark: {where}: no field {' or '.join(map(repr, names))}; available: {', '.join(map(str, row))}")


def _share(problem: Problem) -> str:
    place = int(problem.id.rsplit("-", 1)[1], 16) % 100
    return next(split for split, places in SHARES.items() if place in places)


def _generated(split: str, count: int, seed: int) -> list[Problem]:
    each = -(-count // len(story.LEVELS))
    levels = [list(itertools.islice(story.problems(split, level, seed=seed), each)) for level in story.LEVELS]
    return [problem for group in zip(*levels, strict=True) for problem in group]


def listing() -> list[tuple[str, str, str, str, str]]:
    """(name, splits with counts, answers, licence, where from) of every benchmark."""
    counts = "train, calibration, curate, test: as many as wanted"
    rows = [("story", counts, grading.kind_of("story"), "Apache-2.0", "generated, with an oracle")]
    for name, source in SOURCES.items():
        splits = "; ".join(f"{own} {' or '.join(f'{n:,}' for n in counts)}" for own, counts in source.counts.items())
        hub = ", ".join(dict.fromkeys(place[0] for place in source.hub.values()))
        rows.append((name, splits, grading.kind_of(name), source.licence, hub))
    rows.append(("jsonl", "test, or train and test", grading.kind_of("jsonl"), "yours", "--data PATH --question-field --answer-field"))
    return rows
