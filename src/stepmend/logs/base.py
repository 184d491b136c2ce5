"""The common form of logs, and the meaning of the tools' words for correct and wrong."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepmend.grading import verify
from stepmend.records import InputError

METRICS = (
    *("math_verify", "extractive_match", "exact_match", "acc", "accuracy", "pass@1", "math_pass@1", "pass@k:k=1", "avg@"),
    *("is_correct", "correct", "resolved", "passed", "score"),
)
"""Metrics in order of preference, for logs with several metrics and benchmarks without a headline metric."""
HEADLINE = {"arc_": "acc_norm", "hellaswag": "acc_norm", "openbookqa": "acc_norm", "piqa": "acc_norm", "truthfulqa_mc2": "acc"}
"""The metric that a benchmark reports, by the start of its name."""
YES = frozenset(("true", "1", "1.0", "c", "yes", "correct", "right", "passed", "pass", "success", "solved", "resolved", "accepted"))
NO = frozenset(
    (
        "false",
        "0",
        "0.0",
        "-1",
        "i",
        "no",
        "incorrect",
        "wrong",
        "failed",
        "fail",
        "failure",
        "timeout",
        "timed out",
        "unresolved",
        "rejected",
    )
)
UNSCORED = frozenset(("", "none", "null", "nan", "unscored", "n", "error", "pending", "skipped", "n/a"))
GROUPS = ("level", "subject", "type")


@dataclass(frozen=True)
class Sample:
    """One solution: right, wrong, or None if nothing scored it; its text where the log has it; level and subject where known.

    ``share`` is set instead if the log holds a share of several solutions (avg@n) or a partial score. ``gold``, ``question`` and ``prompt``
    (a digest) identify the question; ``cut`` says whether the token limit cut the text off. None means unknown.
    """

    correct: bool | None
    text: str | None = None
    groups: dict[str, str] = field(default_factory=dict)
    share: float | None = field(default=None, compare=False)
    gold: str | None = field(default=None, compare=False)
    question: str | None = field(default=None, compare=False)
    prompt: str | None = field(default=None, compare=False)
    cut: bool | None = field(default=None, compare=False)

    @property
    def value(self) -> float | None:
        """1 for right, 0 for wrong, or the share; None if nothing scored it."""
        if self.share is not None:
            return self.share
        return None if self.correct is None else float(self.correct)


@dataclass(frozen=True)
class Log:
    """One arm's outcomes by problem; several samples per problem if there were several epochs.

    ``others`` are the other available metrics and filters; ``notes`` are warnings about the log, such as a cancelled run; ``about`` says
    how it was made (few-shot examples, engine, dtype …).
    """

    name: str
    format: str
    task: str | None
    version: str | None
    metric: str | None
    samples: dict[str, list[Sample]]
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    about: dict[str, str] = field(default_factory=dict)

    @property
    def unscored(self) -> int:
        """Unscored samples."""
        return sum(sample.value is None for samples in self.samples.values() for sample in samples)


@dataclass(frozen=True)
class Fields:
    """Which fields of plain tables, and which metric of logs, to read; None is the usual one."""

    id: str | None = None
    correct: str | None = None
    answer: str | None = None
    gold: str | None = None
    metric: str | None = None
    filter: str | None = None
    kind: verify.Kind = "math"
    finish: str | None = None
    arm: str | None = None
    sample: str | None = None
    threshold: float | None = None


def scored(value: Any, where: str, fields: Fields, *, shares: bool = False) -> tuple[bool | None, float | None]:
    """(correct, share) from the values that tools write. A number between 0 and 1 needs ``fields.threshold``, unless ``shares`` are meant.

    Raises InputError for everything that says neither.
    """
    if isinstance(value, list):
        found = [scored(one, where, fields, shares=shares) for one in value]
        if len(found) == 1:
            return found[0]
        known = [float(bool(right)) if share is None else share for right, share in found if right is not None or share is not None]
        return (None, sum(known) / len(known)) if known else (None, None)
    if value is None or isinstance(value, bool):
        return value, None
    said = str(value).strip().lower()
    if said in UNSCORED:
        return None, None
    if said in YES or said in NO:
        return said in YES, None
    if said.startswith(("failed", "timed out")):
        return False, None
    number = 0.5 if said == "p" else _number(said)
    if number is not None and fields.threshold is not None:
        return number >= fields.threshold, None
    if number is not None and shares and 0 <= number <= 1:
        return None, number
    hint = "; --threshold says from which score on it is right" if number is not None else ""
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]} …"
    raise InputError(
        f"{where}: {shown} is neither right nor wrong; allowed: 0, 1, true, false, C, I, correct, wrong, passed, failed, or nothing"
        f" (unscored){hint}"
    )


def _number(said: str) -> float | None:
    try:
        return float(said)
    except ValueError:
        return None


def pick(found: Iterable[str], asked: str | None, where: str, task: str | None = None) -> str:
    """The metric to read: the requested one; else the benchmark's headline metric; else the first of METRICS; else the only one."""
    names = list(dict.fromkeys(found))
    if asked:
        if asked not in names:
            raise InputError(f"{where}: no metric {asked!r}; available: {', '.join(names)}")
        return asked
    headline = next((metric for start, metric in HEADLINE.items() if task and task.startswith(start) and metric in names), None)
    exact = [m for name in METRICS for m in names if m.split(",")[0] == name]
    known = exact or [m for name in METRICS for m in names if m.split("/")[-1].startswith(name)]
    if headline or known or len(names) == 1:
        return headline or (known or names)[0]
    raise InputError(f"{where}: which metric says right or wrong? choose with --metric: {', '.join(names) or 'there is none'}")


def collect(file: Path, found: Iterable[tuple[str, str, Sample]]) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """(samples by problem, notes) from (problem, epoch, sample). Of equal samples of a problem one counts; different ones are an error."""
    samples: dict[str, dict[str, Sample]] = {}
    doubled, twice = 0, []
    for problem, epoch, sample in found:
        before = samples.setdefault(problem, {}).setdefault(epoch, sample)
        if before is not sample:
            doubled += 1
            if before != sample or before.share != sample.share or before.gold != sample.gold:
                twice.append(problem)
    if twice:
        names = ", ".join(repr(problem[:40]) for problem in dict.fromkeys(twice[:3]))
        many = len(set(twice))
        verb = "is there twice" if many == 1 else f"and others ({many} in all) are there twice"
        raise InputError(
            f"{file}: problem {names} {verb}, with different outcomes; every problem must be there once. If these are several samples or "
            "several arms, name the field that tells them apart: --sample-field or --arm-field"
        )
    if not samples:
        raise InputError(f"{file}: holds no samples")
    notes = (f"{doubled} record(s) are there twice, and were read once",) if doubled else ()
    return {problem: list(by_epoch.values()) for problem, by_epoch in samples.items()}, notes


def groups_of(row: Any) -> dict[str, str]:
    """Level, subject and type of a record, if it has them."""
    return {name: str(row[name]) for name in GROUPS if isinstance(row, dict) and isinstance(row.get(name), str | int)}


def digest(content: Any) -> str:
    """A short name of any content."""
    return hashlib.sha256(str(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def told_apart(names: Sequence[str]) -> list[str]:
    """Unique names: the second of two equal names becomes ``name #2``."""
    seen: Counter[str] = Counter()
    told = []
    for name in names:
        seen[name] += 1
        told.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return told


def first_text(value: Any) -> str | None:
    """The first text in lists of lists."""
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def spoken(text: Any, thought: Any) -> str | None:
    """A solution's text. Where a log keeps the thought apart and there is no text, the thought, as one that was never closed."""
    text, thought = first_text(text), first_text(thought)
    return f"<think>{thought}" if thought and not (text or "").strip() else text


def short(value: Any) -> str | None:
    """A gold answer as text, if it is one or a list of such."""
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or None
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "" else None
