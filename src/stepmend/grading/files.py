"""Grade a file of solutions against its gold answers: ``stepmend grade``."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.grading import finish, verify
from stepmend.records import InputError
from stepmend.rundir import write_text


def grade_file(
    file: Path,
    answer_field: str,
    gold_field: str,
    *,
    finish_field: str | None = None,
    kind: verify.Kind = "math",
    loose: bool = True,
    limit: float = verify.LIMIT,
) -> list[dict[str, Any]]:
    """One record per row: outcome, strict grade, extracted answer, its form, the gold answer, and the reason where unscored.

    ``loose`` lets an answer stand unmarked at the end of the text. ``finish_field`` says how each text finished: one that was cut off has
    no loose and no early marked answer; without it, a usual field such as ``finish_reason`` is read if it is there. A record whose
    answer or gold answer is empty is unscored. Raises InputError if a field is missing or the file unreadable.
    """
    rows = tables.read(file)
    return grade_rows(rows, str(file), answer_field, gold_field, finish_field=finish_field, kind=kind, loose=loose, limit=limit)


def grade_rows(
    rows: Sequence[dict[str, Any]],
    name: str,
    answer_field: str,
    gold_field: str,
    *,
    finish_field: str | None = None,
    kind: verify.Kind = "math",
    loose: bool = True,
    limit: float = verify.LIMIT,
) -> list[dict[str, Any]]:
    """The same for rows that are read already; ``name`` is the file's name, for messages."""
    where = [f"{name}, record {number}" for number in range(1, len(rows) + 1)]
    gold = [grading.gold_of(tables.text_or_none(row, gold_field, place) or "") for row, place in zip(rows, where, strict=True)]
    if not any(gold):
        raise InputError(f"{name}: field {gold_field!r} is empty in every record; the right answers are needed")
    texts = [tables.text_or_none(row, answer_field, place) for row, place in zip(rows, where, strict=True)]
    ended = finish.whole(rows, finish_field, where)
    found = [
        grading.answer_of(text, loose=loose, whole=whole) if text and right else None
        for text, right, whole in zip(texts, gold, ended, strict=True)
    ]
    with verify.Verifier(limit=limit) as verifier:
        judged = grading.judge(found, gold, kind, verifier)
    reasons = ["no_gold" if not right else None if whole else "truncated" for right, whole in zip(gold, ended, strict=True)]
    judged = [(said, other if other and reason == "no_answer" else reason) for (said, reason), other in zip(judged, reasons, strict=True)]
    return [
        {
            "record": number,
            "outcome": outcome,
            "strict": outcome if answer and answer.form == "boxed" else "unscored",
            "extracted": answer.answer if answer else None,
            "form": answer.form if answer else None,
            "gold": right,
            "reason": reason,
            "cut_off": not whole,
            "text": text,
        }
        for number, (answer, right, (outcome, reason), whole, text) in enumerate(zip(found, gold, judged, ended, texts, strict=True), 1)
    ]


def counts(graded: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of outcomes, of strict grades, and of the reasons why something is unscored."""
    outcomes, strict = Counter(g["outcome"] for g in graded), Counter(g["strict"] for g in graded)
    names = ("correct", "wrong", "unscored")
    return {
        "n": len(graded),
        **{name: outcomes[name] for name in names},
        "accuracy": outcomes["correct"] / len(graded),
        "strict": {name: strict[name] for name in names},
        "cut_off": sum(g["cut_off"] for g in graded),
        "reasons": dict(Counter(g["reason"] for g in graded if g["reason"])),
        "version": grading.VERSION,
    }


def write(graded: list[dict[str, Any]], file: Path) -> None:
    """Write every record's grade, one JSON object per line, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = [{key: value for key, value in record.items() if key != "text"} for record in graded]
    write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
