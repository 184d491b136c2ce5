"""HELM: ``per_instance_stats.json``, a list with each instance's statistics by name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample


def is_log(rows: list[dict[str, Any]]) -> bool:
    return {"instance_id", "stats"} <= rows[0].keys() and isinstance(rows[0]["stats"], list)


def read(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    """The mean of the chosen statistic of each instance; trials are samples."""
    names = list(_stats(rows[0]))
    metric = base.pick(names, fields.metric, str(file))

    def samples() -> Iterable[tuple[str, str, Sample]]:
        for number, row in enumerate(rows, 1):
            stats = _stats(row)
            right, share = base.scored(stats.get(metric), f"{file}, record {number}, {metric}", fields, shares=True)
            yield str(row["instance_id"]), str(row.get("train_trial_index", 1)), Sample(right, share=share, cut=_cut(stats))

    found, notes = base.collect(file, samples())
    return Log(file.stem, "HELM", None, None, metric, found, tuple(name for name in names if name != metric), notes)


def _cut(stats: dict[str, Any]) -> bool | None:
    """Whether the limit cut a text off: HELM has one statistic for each finish reason."""
    if stats.get("finish_reason_length"):
        return True
    return False if stats.get("finish_reason_stop") or stats.get("finish_reason_endoftext") else None


def _stats(row: dict[str, Any]) -> dict[str, Any]:
    return {stat["name"]["name"]: stat.get("mean") for stat in row["stats"]}
