"""What ``stepmend audit`` does: a page on which a person labels failed traces, blind to the locators, and their score on those labels."""

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepmend import inputs
from stepmend.locate import steps
from stepmend.measure import statistics
from stepmend.records import ErrorClass, Fault, InputError, digest
from stepmend.report import page
from stepmend.report.summary import Found

SHOWN = 60
"""Characters of a bad value that a message repeats."""


@dataclass(frozen=True)
class Item:
    """One failed trace as the person sees it: its ``steps`` join back to the text, and ``key`` tells nothing."""

    key: str
    question: str
    answer: str
    steps: tuple[str, ...]


class Part(BaseModel):
    """Base of the saved file's parts: immutable, and strict about fields and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Label(Part):
    """A person's word on one trace: the first faulty step (0-based), or None where no step is faulty."""

    key: str
    step: int | None = Field(ge=0)
    error_class: ErrorClass | None
    note: str = ""


class Skipped(Part):
    """A trace of which the person cannot tell."""

    key: str
    note: str = ""


class Saved(Part):
    """The file that the page saves; ``run`` is the digest of the run's recipe and of ``keys``, the traces that the page shows."""

    stepmend_audit: Literal[1]
    run: str
    seed: int
    keys: tuple[str, ...]
    labels: tuple[Label, ...]
    skipped: tuple[Skipped, ...] = ()


def sample(found: Found, count: int, seed: int) -> list[Item]:
    """``count`` failures of quantized arms on held-out problems, drawn at random, or all of them where there are fewer.

    The draw depends on the seed and on what the failures are, not on the order in which the run kept them. Raises InputError where
    ``count`` is not positive or the run has located no failure.
    """
    if count < 1:
        raise InputError(f"audit: a sample of {count}; at least 1 is needed")
    failures = _failures(found)
    if not failures:
        raise InputError("audit: this run has no located failures of a quantized model on held-out problems; there is nothing to label")
    drawn = random.Random(seed).sample(sorted(failures), min(count, len(failures)))
    return [_item(found, key, failures[key]) for key in drawn]


def write(found: Found, count: int, seed: int, file: Path) -> int:
    """Write the page, whole or not at all; the number of traces on it. Raises InputError as ``sample`` does."""
    items = sample(found, count, seed)
    page.write_blob(
        {
            "title": f"Audit of {found.recipe.model} on {found.recipe.benchmark}",
            "run": _run(found, [item.key for item in items]),
            "seed": seed,
            "total": len(_failures(found)),
            "items": [asdict(item) for item in items],
        },
        "audit.html.j2",
        file,
    )
    return len(items)


def score(found: Found, file: Path) -> dict[str, Any]:
    """How far the pipeline agrees with a person's labels, which the page has saved in ``file``.

    ``exact`` and ``within_one`` are shares of all labels with Wilson's interval: the pipeline names the person's step (or one beside
    it), or both find no step faulty. Where the pipeline names no step and does not say so either it is not right, and is counted in
    ``abstained``. ``classes`` is about the labels with a class where both name the same step; ``unclassified`` counts those on which
    the pipeline has no class, which is not right. Cohen's kappa is over those on which both have a word; None where it is undefined.
    ``rows`` are the disagreements, steps 0-based. Raises InputError where the file is none of this run's, or is damaged.
    """
    saved = _read(file)
    pairs = _pairs(found, saved, file)
    decided = [(label, fault) for label, fault in pairs if fault.outcome in ("located", "misread")]
    classed = [(label, fault) for label, fault in pairs if label.error_class and label.step is not None and label.step == fault.step]
    named = [(label, fault) for label, fault in classed if fault.error_class]
    return {
        "labelled": len(pairs),
        "skipped": len(saved.skipped),
        "exact": _share([_agree(label, fault) for label, fault in pairs]),
        "within_one": _share([_agree(label, fault, by=1) for label, fault in pairs]),
        "classes": _share([label.error_class == fault.error_class for label, fault in classed]),
        "kappa_step": kappa([label.step for label, _ in decided], [fault.step for _, fault in decided]),
        "kappa_class": kappa([label.error_class for label, _ in named], [fault.error_class for _, fault in named]),
        "abstained": len(pairs) - len(decided),
        "unclassified": len(classed) - len(named),
        "rows": [
            _row(label, fault)
            for label, fault in pairs
            if not _agree(label, fault) or ((label, fault) in classed and label.error_class != fault.error_class)
        ],
    }


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters' nominal labels of the same items (Cohen, 1960): agreement beyond chance over what was possible.

    None where there are no items, or where chance alone agrees always.
    """
    assert len(first) == len(second)
    if not first:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    expected = sum(first.count(label) * second.count(label) for label in set(first)) / len(first) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def _failures(found: Found) -> dict[str, Fault]:
    """The faults of quantized arms on held-out problems, by key."""
    test = {problem.id for problem in found.test}
    faults = [fault for scheme in found.recipe.low_bit for fault in found.faults.get(scheme, {}).values()]
    return {_key(found, fault): fault for fault in faults if fault.problem in test and fault.problem in found.traces.get(fault.arm, {})}


def _key(found: Found, fault: Fault) -> str:
    # The text goes in step by step: labels count steps, so a text that is split otherwise is another item.
    return digest(fault.arm, fault.problem, _steps(found, fault))


def _steps(found: Found, fault: Fault) -> tuple[str, ...]:
    text = found.solution(fault.arm, fault.problem, fault.sample)[0].text
    return tuple(text[begin:end] for begin, end in steps.split(text))


def _item(found: Found, key: str, fault: Fault) -> Item:
    problem = found.problems[fault.problem]
    return Item(key, problem.question, problem.answer, _steps(found, fault))


def _run(found: Found, keys: Sequence[str]) -> str:
    # Without the defaults, so that a later version's new keys do not make labels worthless.
    return digest(found.recipe.model_dump(mode="json", exclude_defaults=True), keys)


def _read(file: Path) -> Saved:
    try:
        return Saved.model_validate_json(inputs.text(file))
    except ValidationError as error:
        raise InputError(f"{file}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return "not valid JSON"
    if first["loc"] in ((), ("stepmend_audit",)):
        return "not an audit file of this version; the page of 'stepmend audit' saves one"
    where = ".".join(map(str, first["loc"]))
    return f"{where} = {repr(first['input'])[:SHOWN]}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _pairs(found: Found, saved: Saved, file: Path) -> list[tuple[Label, Fault]]:
    """Each label with the pipeline's fault. Raises InputError where they do not belong together."""
    failures = _failures(found)
    if saved.run != _run(found, saved.keys) or not failures.keys() >= set(saved.keys):
        raise InputError(f"{file}: made from another run's page, or this run has changed since; 'stepmend audit RUN' makes its page")
    if not saved.labels:
        raise InputError(f"{file}: holds no labels")
    decided = [part.key for part in (*saved.labels, *saved.skipped)]
    if len(set(decided)) < len(decided) or not set(saved.keys) >= set(decided):
        raise InputError(f"{file}: a trace is labelled twice, or one that is not on the page")
    for number, label in enumerate(saved.labels):
        count = len(_steps(found, failures[label.key]))
        if label.step is not None and label.step >= count:
            raise InputError(f"{file}: labels.{number}.step = {label.step}: out of range; the trace has {count} step(s), counted from 0")
    return [(label, failures[label.key]) for label in saved.labels]


def _agree(label: Label, fault: Fault, by: int = 0) -> bool:
    if label.step is None:
        return fault.outcome == "misread"
    return fault.step is not None and abs(fault.step - label.step) <= by


def _share(right: Sequence[bool]) -> dict[str, Any]:
    interval = statistics.accuracy(np.array(right, dtype=bool))
    return {"n": len(right), "right": sum(right), "accuracy": interval.value, "low": interval.low, "high": interval.high}


def _row(label: Label, fault: Fault) -> dict[str, Any]:
    return {
        "key": label.key,
        "problem": fault.problem,
        "arm": fault.arm,
        "person": {"step": label.step, "error_class": label.error_class, "note": label.note},
        "pipeline": {"outcome": fault.outcome, "step": fault.step, "error_class": fault.error_class},
    }


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The score in words."""

    def share(name: str, what: str) -> str:
        of = figures[name]
        interval = f" ({100 * of['low']:.1f} to {100 * of['high']:.1f} %, Wilson)" if of["n"] else ""
        return f"{what}: {of['right']} of {of['n']}" + (f", {100 * of['accuracy']:.1f} %{interval}" if of["n"] else "")

    def number(name: str) -> str:
        return "undefined" if figures[name] is None else f"{figures[name]:.2f}"

    return [
        f"{figures['labelled']} labelled, {figures['skipped']} skipped; the pipeline names no step in {figures['abstained']} of them",
        share("exact", "first faulty step, exactly"),
        share("within_one", "first faulty step, or one beside it"),
        share("classes", "error class, where the step agrees") + f"; {figures['unclassified']} without a class",
        f"Cohen's kappa: {number('kappa_step')} for steps, {number('kappa_class')} for classes",
    ]
