"""lm-evaluation-harness: ``samples_<task>_<date>.jsonl`` of ``--log_samples``, with ``results_<date>.json`` beside it."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepmend import tables
from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample
from stepmend.records import InputError

FILTERS = ("none", "strict-match", "score-first", "get-answer", "flexible-extract")
"""Which filter is read if there are several: the benchmark's own first one before what votes over samples (``maj@64``)."""


def is_log(rows: list[dict[str, Any]]) -> bool:
    return {"doc_id", "filtered_resps"} <= rows[0].keys()


def read(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    """The outcomes of the chosen filter and metric. Raises InputError if these are not there."""
    match = re.fullmatch(r"samples_(.+)_(\d{4}-\d\d-\d\dT.+)", file.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json"))
    task = match[1] if match else None
    metrics = [name for name in rows[0].get("metrics") or base.METRICS if name in rows[0]]
    metric = base.pick(metrics, fields.metric, str(file), task)
    filters = list(dict.fromkeys(str(row.get("filter", "none")) for row in rows))
    if fields.filter and fields.filter not in filters:
        raise InputError(f"{file}: no filter {fields.filter!r}; available: {', '.join(filters)}")
    chosen = fields.filter or next((name for name in FILTERS if name in filters), None)
    chosen = chosen or next((name for name in filters if not name.startswith("maj")), filters[0])
    kept = [row for row in rows if str(row.get("filter", "none")) == chosen]

    def samples() -> Iterable[tuple[str, str, Sample]]:
        for row in kept:
            failed = row["filtered_resps"] in (["[invalid]"], "[invalid]")
            where = f"{file}, doc_id {row['doc_id']}, {metric}"
            right, share = (None, None) if failed else base.scored(row[metric], where, fields, shares=True)
            asked = row.get("prompt_hash") or (base.digest(row["arguments"]) if row.get("arguments") else None)
            yield (
                str(row["doc_id"]),
                "1",
                Sample(
                    right,
                    base.first_text(row.get("resps")),
                    base.groups_of(row.get("doc")),
                    share=share,
                    gold=base.short(row.get("target")),
                    question=base.digest(row["doc"]) if row.get("doc") and not row.get("doc_hash") else None,
                    prompt=asked,
                ),
            )

    found, notes = base.collect(file, samples())
    hashes = {str(row["doc_id"]): str(row.get("doc_hash") or row["doc_id"]) for row in kept}
    by_question = dict(zip(base.told_apart([hashes[problem] for problem in found]), found.values(), strict=True))
    version, about, more = _results(file.with_name(f"results_{match[2]}.json"), task) if match and task else (None, {}, ())
    others = [f"{m} ({f})" for m in metrics for f in filters if (m, f) != (metric, chosen)]
    return Log(file.stem, "lm-eval", task, version, f"{metric} ({chosen})", by_question, tuple(others), (*notes, *more), about)


def _results(file: Path, task: str) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """(version, how it was made, notes) of a task from the results that lm-eval writes beside its samples."""
    found: Any = {}
    with suppress(InputError):
        found = tables.parsed(file)
    if not isinstance(found, dict):
        return None, {}, ()
    version = (found.get("versions") or {}).get(task)
    shots = (found.get("n-shot") or {}).get(task)
    config = found.get("config") or {}
    about = {
        "few-shot examples": shots,
        "engine": config.get("model"),
        "dtype": config.get("model_dtype"),
        "transformers": found.get("transformers_version"),
        "lm-eval": found.get("git_hash") or found.get("lm_eval_version"),
        "chat template": found.get("chat_template_sha"),
    }
    counts = (found.get("n-samples") or {}).get(task) or {}
    whole, done = counts.get("original"), counts.get("effective")
    partial = (f"{done} of the benchmark's {whole} problems were asked (--limit)",) if whole and done and done < whole else ()
    return None if version is None else str(version), {name: str(value) for name, value in about.items() if value is not None}, partial
