"""Grade a file of solutions against its gold answers: what ``stepmend grade`` does."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.grading import verify
from stepmend.records import InputError
from stepmend.rundir import write_text


def grade_file(
    file: Path, answer_field: str, gold_field: str, *, kind: verify.Kind = "math", loose: bool = True, limit: float = verify.LIMIT
) -> list[dict[str, Any]]:
    """One record a row: outcome, strict grade, extracted answer, its form, the gold answer, and the reason where unscored.

    ``loose`` lets an answer stand unmarked at the end of the text. Raises InputError where a field is missing or the file unreadable.
    """
    rows = tables.read(file)
    where = [f"{file}, record {number}" for number in range(1, len(rows) + 1)]
    gold = [grading.gold_of(tables.text(row, gold_field, place)) for row, place in zip(rows, where, strict=True)]
    if empty := next((place for place, answer in zip(where, gold, strict=True) if not answer), None):
        raise InputError(f"{empty}: field {gold_field!r} is empty; every record needs its right answer")
    texts = [tables.text(row, answer_field, place) for row, place in zip(rows, where, strict=True)]
    found = [(grading.bare(text) if loose else None) or grading.extract(text, loose=loose) for text in texts]
    with verify.Verifier(limit=limit) as verifier:
        judged = grading.judge(found, gold, kind, verifier)
    return [
        {
            "record": number,
            "outcome": outcome,
            "strict": outcome if answer and answer.form == "boxed" else "unscored",
            "extracted": answer.answer if answer else None,
            "form": answer.form if answer else None,
            "gold": right,
            "reason": reason,
        }
        for number, (answer, right, (outcome, reason)) in enumerate(zip(found, gold, judged, strict=True), 1)
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
        "reasons": dict(Counter(g["reason"] for g in graded if g["reason"])),
        "version": grading.VERSION,
    }


def write(graded: list[dict[str, Any]], file: Path) -> None:
    """Keep every record's grade, one JSON object a line; the file is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(record) + "\n" for record in graded))
