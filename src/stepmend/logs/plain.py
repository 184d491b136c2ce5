"""Plain tables: a field that names the problem, and one that says right or wrong, or an answer and its gold answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.grading import finish, verify
from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample
from stepmend.records import InputError

IDS = ("id", "idx", "problem_id", "unique_id", "task_id", "question_id", "sample_id", "question")
CORRECT = ("is_correct", "correct", "passed", "resolved")
GOLDS = ("gold", "gold_answer", "target", "expected", "ground_truth", "reference_answer", "correct_answer")
QUESTIONS = ("question", "problem", "query")
TEXTS = ("text", "full_text", "response", "completion", "generation", "generated_text", "model_output", "output")
"""Fields that are read if they are there and no other one is named."""


def read(file: Path, rows: list[dict[str, Any]], fields: Fields) -> list[Log]:
    """One log, or with ``fields.arm`` one an arm, in the order in which the arms come first."""
    if bool(fields.answer) != bool(fields.gold) or (fields.answer and fields.correct):
        raise InputError("compare: --answer-field and --gold-field go together, and without --correct-field")
    if fields.arm is None:
        return [_log(file, file.stem, list(enumerate(rows, 1)), fields)]
    by_arm: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, row in enumerate(rows, 1):
        by_arm.setdefault(str(tables.field(row, fields.arm, f"{file}, record {number}")), []).append((number, row))
    return [_log(file, name, numbered, fields) for name, numbered in by_arm.items()]


def _log(file: Path, name: str, numbered: list[tuple[int, dict[str, Any]]], fields: Fields) -> Log:
    rows, where = [row for _, row in numbered], [f"{file}, record {number}" for number, _ in numbered]
    identity = fields.id or _usual(IDS, rows[0])
    correct = fields.correct or (None if fields.answer else _usual(CORRECT, rows[0]))
    if not identity or not (correct or fields.answer):
        lacking = "--id-field" if not identity else "--correct-field, or --answer-field with --gold-field"
        raise InputError(f"{file}: a plain table needs {lacking}; its fields: {', '.join(map(str, rows[0]))}")
    ids = [str(tables.field(row, identity, place)) for row, place in zip(rows, where, strict=True)]
    epochs = [str(tables.field(row, fields.sample, place)) if fields.sample else "1" for row, place in zip(rows, where, strict=True)]
    cuts = finish.cuts(rows, fields.finish, where)
    if correct:
        found = [
            base.scored(tables.field(row, correct, place), f"{place}, {correct}", fields) for row, place in zip(rows, where, strict=True)
        ]
        said = _usual(TEXTS, rows[0])
        texts: Sequence[str | None] = [text if said and isinstance(text := row.get(said), str) else None for row in rows]
        golds = [base.short(row.get(gold)) if (gold := _usual(GOLDS, row)) else None for row in rows]
    else:
        found, texts, golds = _graded(rows, where, [cut is not True for cut in cuts], fields)
    asked = _usual(QUESTIONS, rows[0])
    samples = [
        Sample(
            right,
            text,
            base.groups_of(row),
            share=share,
            gold=gold,
            question=base.digest(" ".join(str(row.get(asked)).split())) if asked else None,
            cut=cut,
        )
        for (right, share), text, gold, cut, row in zip(found, texts, golds, cuts, rows, strict=True)
    ]
    collected, notes = base.collect(file, zip(ids, epochs, samples, strict=True))
    return Log(name, "table", None, None, correct, collected, (), notes)


def _graded(
    rows: Sequence[dict[str, Any]], where: Sequence[str], ended: Sequence[bool], fields: Fields
) -> tuple[list[tuple[bool | None, float | None]], list[str | None], list[str | None]]:
    """Outcomes of answers against golds, the texts, and the golds. A record without either is unscored."""
    assert fields.answer and fields.gold
    golds = [grading.gold_of(tables.text_or_none(row, fields.gold, place) or "") for row, place in zip(rows, where, strict=True)]
    texts = [tables.text_or_none(row, fields.answer, place) for row, place in zip(rows, where, strict=True)]
    answers = [
        grading.answer_of(text, whole=whole) if text and gold else None for text, gold, whole in zip(texts, golds, ended, strict=True)
    ]
    with verify.Verifier() as verifier:
        judged = grading.judge(answers, golds, fields.kind, verifier)
    outcomes = {"correct": True, "wrong": False}
    return [(outcomes.get(outcome), None) for outcome, _ in judged], texts, [gold or None for gold in golds]


def _usual(names: Sequence[str], row: dict[str, Any]) -> str | None:
    return next((name for name in names if name in row), None)
