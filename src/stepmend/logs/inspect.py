"""Inspect: ``.eval`` (a zip of JSON) and ``.json``."""

import json
import re
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepmend import inputs, tables
from stepmend.grading import finish
from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample
from stepmend.records import InputError


def is_log(file: Path) -> bool:
    if file.suffix == ".eval":
        return True
    if file.suffix != ".json":
        return False
    with inputs.opened(file) as stream:
        start = stream.read(4096).decode("utf-8", "replace")
    return start.lstrip().startswith("{") and re.search(r'"eval"\s*:\s*\{', start) is not None and '"task"' in start


def read(file: Path, fields: Fields) -> Log:
    """The outcomes of the chosen scorer; None if nothing scored a sample."""
    head, samples = _zip(file) if file.suffix == ".eval" else _json(file)
    about = head.get("eval") or {}
    task = about.get("task")
    scorers = list(dict.fromkeys(name for sample in samples for name in sample.get("scores") or {}))
    headline = [score.get("name") for score in (head.get("results") or {}).get("scores") or [] if isinstance(score, dict)]
    if fields.metric and fields.metric not in scorers:
        raise InputError(f"{file}: no metric {fields.metric!r}; available: {', '.join(scorers) or 'none: it is not scored'}")
    metric = fields.metric or next((name for name in headline if name in scorers), next(iter(scorers), None))

    def found() -> Iterable[tuple[str, str, Sample]]:
        for sample in samples:
            score = (sample.get("scores") or {}).get(metric) or {}
            output = sample.get("output") or {}
            choice = (output.get("choices") or [{}])[0]
            where = f"{file}, sample {sample.get('id')}"
            right, share = (None, None) if sample.get("error") and not score else base.scored(_value(score.get("value")), where, fields)
            solved = Sample(
                right,
                _text(output, choice),
                base.groups_of(sample.get("metadata")),
                share=share,
                gold=base.short(sample.get("target")),
                cut=_cut(sample, choice.get("stop_reason") or output.get("stop_reason")),
            )
            yield f"{sample.get('id')} {base.digest(_spoken(sample.get('input')))}", str(sample.get("epoch", 1)), solved

    collected, notes = base.collect(file, found())
    version = about.get("task_version")
    return Log(
        file.stem,
        "Inspect",
        task,
        None if version is None else str(version),
        metric,
        collected,
        tuple(name for name in scorers if name != metric),
        (*notes, *_notes(head, len(samples))),
        _about(about),
    )


def _text(output: dict[str, Any], choice: dict[str, Any]) -> str | None:
    """The text of a message. Content may be a list of parts, with thoughts as separate parts."""
    content = (choice.get("message") or {}).get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    said, thought = ("".join(str(part.get(kind) or "") for part in parts if part.get("type") == kind) for kind in ("text", "reasoning"))
    return base.spoken(output.get("completion") or (said if parts else content), thought)


def _cut(sample: dict[str, Any], stop: Any) -> bool | None:
    """Whether a limit on tokens cut the text off: the model's, by its stop reason, or the sample's own."""
    limit = sample.get("limit")
    if isinstance(limit, dict) and limit.get("type") in ("context", "token"):
        return True
    return finish.is_cut(stop) if stop else None


def _value(value: Any) -> Any:
    """A score that holds several values: the one that says right or wrong."""
    if isinstance(value, dict):
        return value[base.pick(value, None, "score")]
    return value


def _notes(head: dict[str, Any], done: int) -> tuple[str, ...]:
    """Warnings: a cancelled or failed run, or one on a part of the benchmark."""
    about = head.get("eval") or {}
    whole = (about.get("dataset") or {}).get("samples")
    epochs = (about.get("config") or {}).get("epochs") or 1
    wanted = whole * epochs if isinstance(whole, int) and isinstance(epochs, int) else None
    status = head.get("status")
    of = f" of {wanted}" if wanted else ""
    if status and status != "success":
        named = {"cancelled": "cancelled", "error": "stopped by an error", "started": "never finished"}.get(status, status)
        return (f"its run was {named}: {done}{of} samples are there, those that finished first",)
    return (f"{done}{of} samples are there",) if wanted and done < wanted else ()


def _about(about: dict[str, Any]) -> dict[str, str]:
    packages = about.get("packages") or {}
    arguments = about.get("model_args") or {}
    found = {
        "inspect_ai": packages.get("inspect_ai"),
        "dtype": arguments.get("dtype"),
        "engine": str(about.get("model", "")).partition("/")[0],
    }
    shots = (about.get("task_args") or {}).get("fewshot", (about.get("task_args") or {}).get("num_fewshot"))
    return {name: str(value) for name, value in {**found, "few-shot examples": shots}.items() if value not in (None, "")}


def _spoken(value: Any) -> Any:
    """A chat as (role, text) pairs, because its messages have random ids."""
    return [(m.get("role"), m.get("content")) for m in value] if isinstance(value, list) else value


def _json(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = tables.parsed(file)
    return found, found.get("samples") or []


def _zip(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with suppress(ModuleNotFoundError):
        import zipfile_zstd  # noqa: F401  # Inspect compresses with zstd, which the standard library reads from Python 3.14 on
    try:
        with inputs.opened(file) as stream, zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            start = "header.json" if "header.json" in names else "_journal/start.json"
            wanted = [start, *(name for name in names if re.fullmatch(r"samples/.+\.json", name))]
            head, *samples = map(json.loads, inputs.members(file, archive, wanted))
            if start != "header.json":
                head = {**head, "status": head.get("status", "started")}
            return head, samples
    except (InputError, MemoryError):
        raise
    except NotImplementedError:
        raise InputError(f"{file}: compressed in a way this Python cannot read; run 'inspect log convert --to json' on it first") from None
    except Exception:  # each compression has its own error for damaged data
        raise InputError(f"{file}: not an Inspect log, or damaged") from None
