"""Every Eval Ever (https://github.com/evaleval/every_eval_ever): instance-level JSON Lines, ``instance_level_eval.schema.json``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepmend.grading import finish
from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample
from stepmend.records import InputError


def is_log(rows: list[dict[str, Any]]) -> bool:
    return {"evaluation_name", "sample_id", "evaluation", "input"} <= rows[0].keys()


def read(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    """The outcomes by sample; records of one sample are its epochs, and one with an error and no answer is unscored.

    The format has no field for how a text finished, and none for what nobody scored; both are read from ``metadata``, where ``export``
    and others put them: ``finish_reason``, and ``outcome`` with the value ``unscored``.
    """
    tasks = sorted({str(row.get("evaluation_name")) for row in rows})
    if len(tasks) > 1:
        raise InputError(f"{file}: holds {len(tasks)} evaluations ({', '.join(tasks[:3])} …); one file must hold one")
    epochs: dict[str, int] = {}

    def samples() -> Iterable[tuple[str, str, Sample]]:
        for number, row in enumerate(rows, 1):
            sample, asked = str(row["sample_id"]), row.get("input") or {}
            epochs[sample] = epochs.get(sample, 0) + 1
            result, output, about = (row.get(name) or {} for name in ("evaluation", "output", "metadata"))
            text = base.spoken(output.get("raw"), output.get("reasoning_trace"))
            failed = about.get("outcome") == "unscored" or (bool(row.get("error")) and not text)
            value = result.get("is_correct") if fields.threshold is None else result.get("score")
            right, share = (None, None) if failed else base.scored(value, f"{file}, record {number}", fields)
            found = Sample(
                right,
                text,
                base.groups_of(about),
                share=share,
                gold=base.short(asked.get("reference")),
                question=base.digest(asked.get("raw")),
                prompt=base.digest(asked["formatted"]) if asked.get("formatted") else None,
                cut=finish.is_cut(about["finish_reason"]) if about.get("finish_reason") else None,
            )
            yield sample, str(epochs[sample]), found

    found, notes = base.collect(file, samples())
    return Log(file.stem, "every_eval_ever", tasks[0], None, "is_correct", found, (), notes, {})
