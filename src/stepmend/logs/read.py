"""Detects the tool of a log, and reads a folder of subtasks' logs as one log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepmend import inputs, tables
from stepmend.logs import every_eval_ever, helm, inspect, lighteval, llama_eval, lm_eval, plain
from stepmend.logs.base import Fields, Log, Sample
from stepmend.records import InputError

APPLIES = {
    "lm-eval": {"metric", "filter", "threshold"},
    "lighteval": {"metric", "threshold"},
    "Inspect": {"metric", "threshold"},
    "llama-eval": {"threshold"},
    "every_eval_ever": {"threshold"},
    "HELM": {"metric", "threshold"},
    "table": {"id", "correct", "answer", "gold", "finish", "arm", "sample", "threshold"},
}
"""Which fields can be chosen in which format."""
IN_FOLDERS = ("samples_*.jsonl", "samples_*.jsonl.gz", "details_*.parquet", "*.eval")


def read(file: Path, fields: Fields | None = None) -> Log:
    """The one arm of a log of any known format, or of a folder of subtasks' logs.

    Raises InputError if it is not a log, is damaged or empty, holds several arms, or holds a problem twice with different outcomes.
    """
    found = read_all(file, fields)
    if len(found) > 1:
        raise InputError(f"{file}: holds {len(found)} arms; one is needed here")
    return found[0]


def read_all(file: Path, fields: Fields | None = None) -> list[Log]:
    """The arms of a log: one, or with ``fields.arm`` each arm of a plain table."""
    fields = fields or Fields()
    if file.is_dir():
        return [_folder(file, fields)]
    if inputs.regular(file) == 0:
        raise InputError(f"{file}: is empty")
    try:
        logs = _read(file, fields)
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, SyntaxError, RuntimeError) as error:
        raise InputError(f"{file}: not a valid log of its tool ({type(error).__name__}: {str(error)[:200]})") from None
    applies = APPLIES[logs[0].format]
    if useless := [name for name in sorted(set().union(*APPLIES.values()) - applies) if getattr(fields, name)]:
        raise InputError(f"{file}: is of format {logs[0].format}, which has no {' or '.join(useless)} to choose")
    return logs


def _read(file: Path, fields: Fields) -> list[Log]:
    if inspect.is_log(file):
        return [inspect.read(file, fields)]
    content: Any = tables.parsed(file) if tables.kind_of(file) == ".json" else None
    if llama_eval.is_log(content):
        return [llama_eval.read(file, content, fields)]
    rows = tables.read(file)
    if lm_eval.is_log(rows):
        return [lm_eval.read(file, rows, fields)]
    if every_eval_ever.is_log(rows):
        return [every_eval_ever.read(file, rows, fields)]
    if helm.is_log(rows):
        return [helm.read(file, rows, fields)]
    if lighteval.is_log(file, rows):
        return [lighteval.read(file, rows, fields)]
    return plain.read(file, rows, fields)


def _folder(folder: Path, fields: Fields) -> Log:
    """All subtasks' logs of a folder as one log, whose problems carry their subtask; of several runs of a subtask the newest counts."""
    files = sorted(file for pattern in IN_FOLDERS for file in folder.rglob(pattern) if file.is_file())
    if not files:
        raise InputError(f"{folder}: holds no logs; a folder may hold {', '.join(IN_FOLDERS)}")
    by_task: dict[str, Log] = {}
    notes: list[str] = []
    for file in files:  # dates are part of the names: the newest comes last
        log = read(file, fields)
        task = log.task or file.stem
        if task in by_task:
            notes.append(f"{task} is there twice; the newer log was read")
        by_task[task] = log
    if len({log.format for log in by_task.values()}) > 1:
        raise InputError(f"{folder}: holds logs of several tools; one is needed")
    if len(by_task) == 1:
        (only,) = by_task.values()
        return Log(
            folder.name, only.format, only.task, only.version, only.metric, only.samples, only.others, (*only.notes, *notes), only.about
        )
    samples = {f"{task}: {problem}": _of_subtask(task, found) for task, log in by_task.items() for problem, found in log.samples.items()}
    metrics = {log.metric for log in by_task.values()}
    metric = metrics.pop() if len(metrics) == 1 else ", ".join(f"{log.metric} of {task}" for task, log in by_task.items())
    notes += [f"{task}: {note}" for task, log in by_task.items() for note in log.notes]
    first = next(iter(by_task.values()))
    shared = {name: value for name, value in first.about.items() if all(log.about.get(name) == value for log in by_task.values())}
    return Log(folder.name, first.format, None, None, metric, samples, (), tuple(notes), shared)


def _of_subtask(task: str, samples: Sequence[Sample]) -> list[Sample]:
    return [
        Sample(
            s.correct, s.text, {"subtask": task, **s.groups}, share=s.share, gold=s.gold, question=s.question, prompt=s.prompt, cut=s.cut
        )
        for s in samples
    ]
