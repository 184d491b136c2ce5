"""lighteval: ``details_<task>_<date>.parquet``."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample


def is_log(file: Path, rows: list[dict[str, Any]]) -> bool:
    return file.suffix == ".parquet" and "doc" in rows[0] and ("metric" in rows[0] or "metrics" in rows[0])


def read(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    """The outcomes of the chosen metric; ``avg@n`` and ``pass@1`` of several samples are shares."""
    match = re.fullmatch(r"details_(.+?)_(\d{4}-\d\d-\d\dT.+)", file.stem)
    task = match[1] if match else None
    names = list(_metrics(rows[0]))
    metric = base.pick(names, fields.metric, str(file), task)
    docs = [row["doc"] if isinstance(row.get("doc"), dict) else {} for row in rows]
    questions = [
        doc.get("query") or row.get("full_prompt") or row.get("example") or number
        for number, (doc, row) in enumerate(zip(docs, rows, strict=True), 1)
    ]

    def samples() -> Iterable[tuple[str, str, Sample]]:
        told = base.told_apart([base.digest(question) for question in questions])
        for number, (question, doc, row) in enumerate(zip(told, docs, rows, strict=True), 1):
            answer = row.get("model_response")
            answer = answer if isinstance(answer, dict) else {"text": row.get("predictions")}
            text = base.spoken(answer.get("text"), answer.get("reasoning"))
            right, share = base.scored(_metrics(row).get(metric), f"{file}, record {number}, {metric}", fields, shares=True)
            yield question, "1", Sample(right, text, base.groups_of(doc.get("specific")), share=share, gold=_gold(doc))

    found, notes = base.collect(file, samples())
    return Log(file.stem, "lighteval", task, None, metric, found, tuple(name for name in names if name != metric), notes)


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("metric") or row.get("metrics")
    found = ast.literal_eval(found) if isinstance(found, str) else found
    if not isinstance(found, dict):
        raise ValueError("the metrics are not a mapping")
    # A table has a column for every metric of any task in it: those without a value are not this row's.
    return {name: value for name, value in found.items() if value is not None} or found


def _gold(doc: dict[str, Any]) -> str | None:
    choices, index = doc.get("choices"), doc.get("gold_index")
    index = index[0] if isinstance(index, list) and index else index
    return str(choices[index]) if isinstance(choices, list) and isinstance(index, int) and 0 <= index < len(choices) else None
