"""Other tools' logs of right and wrong, read into one form: lm-evaluation-harness, lighteval, Inspect, and plain tables.

The formats, as their own writers leave them: lm-eval's ``samples_<task>_<date>.jsonl`` of ``--log_samples``; lighteval's
``details_<task>_<date>.parquet``; Inspect's ``.eval`` (a zip of JSON) and ``.json``.
"""

import ast
import hashlib
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.grading import verify
from stepmend.records import InputError

METRICS = ("exact_match", "extractive_match", "math_verify", "acc", "accuracy", "pass@1", "is_correct", "correct")
"""What is taken as right or wrong where a log holds several metrics, the first that is there."""
YES, NO = {"true", "1", "1.0", "c", "yes", "correct", "right"}, {"false", "0", "0.0", "i", "no", "incorrect", "wrong"}
UNSCORED = {"", "none", "null", "nan", "unscored", "n"}
GROUPS = ("level", "subject", "type")
APPLIES = {"lm-eval": {"metric", "filter"}, "lighteval": {"metric"}, "Inspect": {"metric"}, "table": {"id", "correct", "answer", "gold"}}
"""Which fields can be chosen in which format."""


@dataclass(frozen=True)
class Sample:
    """One solution: right, wrong, or None where nothing scored it; its text where the log has it; level and subject where known."""

    correct: bool | None
    text: str | None = None
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Log:
    """One arm's outcomes by problem; several samples a problem where there were several epochs."""

    name: str
    format: str
    task: str | None
    version: str | None
    metric: str | None
    samples: dict[str, list[Sample]]


@dataclass(frozen=True)
class Fields:
    """Which fields of plain tables, and which metric of logs, to read; None is the usual one."""

    id: str | None = None
    correct: str | None = None
    answer: str | None = None
    gold: str | None = None
    metric: str | None = None
    filter: str | None = None
    kind: verify.Kind = "math"


def read(file: Path, fields: Fields | None = None) -> Log:
    """Read a log of any known format. Raises InputError where it is none, is damaged or empty, or names a problem twice."""
    fields = fields or Fields()
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: is empty")
    try:
        log = _read(file, fields)
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, SyntaxError, RuntimeError) as error:
        raise InputError(f"{file}: not a log as its tool writes it ({type(error).__name__}: {error})") from None
    useless = [name for name in sorted(set().union(*APPLIES.values()) - APPLIES[log.format]) if getattr(fields, name)]
    if useless:
        raise InputError(f"{file}: is of format {log.format}, which has no {' or '.join(useless)} to choose")
    return log


def _read(file: Path, fields: Fields) -> Log:
    if file.suffix == ".eval" or (file.suffix == ".json" and _is_inspect(file)):
        return _inspect(file, fields)
    rows = tables.read(file)
    if {"doc_id", "filtered_resps"} <= rows[0].keys():
        return _lm_eval(file, rows, fields)
    if file.suffix == ".parquet" and "doc" in rows[0] and ("metric" in rows[0] or "metrics" in rows[0]):
        return _lighteval(file, rows, fields)
    return _plain(file, rows, fields)


def _collect(file: Path, found: Iterable[tuple[str, str, Sample]]) -> dict[str, list[Sample]]:
    """Samples by problem from (problem, epoch, sample)."""
    samples: dict[str, list[Sample]] = {}
    seen: set[tuple[str, str]] = set()
    for problem, epoch, sample in found:
        if (problem, epoch) in seen:
            raise InputError(f"{file}: problem {problem[:40]!r} is there twice; every problem must be there once")
        seen.add((problem, epoch))
        samples.setdefault(problem, []).append(sample)
    if not samples:
        raise InputError(f"{file}: holds no samples")
    return samples


def _truth(value: Any, where: str) -> bool | None:
    """Right, wrong or unscored, of what tools write for them."""
    if value is None or isinstance(value, bool):
        return value
    said = str(value).strip().lower()
    if said in UNSCORED:
        return None
    if said in YES or said in NO:
        return said in YES
    raise InputError(
        f"{where}: {value!r} is neither right nor wrong; allowed: 0, 1, true, false, C, I, correct, wrong, or nothing (unscored)"
    )


def _pick(found: dict[str, Any], asked: str | None, where: str) -> str:
    """The metric to read."""
    if asked:
        if asked not in found:
            raise InputError(f"{where}: no metric {asked!r}; there are: {', '.join(found)}")
        return asked
    exact = [m for name in METRICS for m in found if m.split(",")[0] == name]
    known = exact or [m for name in METRICS for m in found if m.split("/")[-1].startswith(name)]
    if not known:
        raise InputError(f"{where}: which metric says right or wrong? choose with --metric: {', '.join(found) or 'there is none'}")
    return known[0]


def _groups(row: Any) -> dict[str, str]:
    return {name: str(row[name]) for name in GROUPS if isinstance(row, dict) and isinstance(row.get(name), str | int)}


def _digest(content: Any) -> str:
    return hashlib.sha256(str(content).encode()).hexdigest()[:16]


def _lm_eval(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    metric = _pick({name: 0 for name in rows[0].get("metrics") or METRICS if name in rows[0]}, fields.metric, str(file))
    filters = sorted({str(row.get("filter", "none")) for row in rows})
    if fields.filter and fields.filter not in filters:
        raise InputError(f"{file}: no filter {fields.filter!r}; there are: {', '.join(filters)}")
    chosen = fields.filter or ("none" if "none" in filters else filters[0])
    rows = [row for row in rows if str(row.get("filter", "none")) == chosen]
    match = re.fullmatch(r"samples_(.+)_(\d{4}-\d\d-\d\dT.+)", file.stem)
    task, version = (match[1] if match else None), None
    if match and (results := file.with_name(f"results_{match[2]}.json")).is_file():
        version = json.loads(results.read_text(encoding="utf-8")).get("versions", {}).get(task)

    def samples() -> Iterable[tuple[str, str, Sample]]:
        for row in rows:
            failed = row["filtered_resps"] in (["[invalid]"], "[invalid]")
            truth = None if failed else _truth(row[metric], f"{file}, doc_id {row['doc_id']}, {metric}")
            yield str(row["doc_id"]), "1", Sample(truth, _first_text(row.get("resps")), _groups(row.get("doc")))

    found = _collect(file, samples())
    questions = _told_apart([str(row.get("doc_hash") or row["doc_id"]) for row in rows])
    by_question = dict(zip(questions, found.values(), strict=True))
    return Log(file.stem, "lm-eval", task, None if version is None else str(version), f"{metric} ({chosen})", by_question)


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of which none is there twice: the second of a kind is ``name #2``."""
    seen: Counter[str] = Counter()
    told = []
    for name in names:
        seen[name] += 1
        told.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return told


def _first_text(value: Any) -> str | None:
    """The first text in lists of lists."""
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def _lighteval(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    def metrics(row: dict[str, Any]) -> dict[str, Any]:
        found = row.get("metric") or row.get("metrics")
        found = ast.literal_eval(found) if isinstance(found, str) else found
        if not isinstance(found, dict):
            raise ValueError("the metrics are no mapping")
        return found

    metric = _pick(metrics(rows[0]), fields.metric, str(file))
    match = re.fullmatch(r"details_(.+?)_(\d{4}-\d\d-\d\dT.+)", file.stem)
    docs = [row["doc"] if isinstance(row.get("doc"), dict) else {} for row in rows]
    questions = [doc.get("query") or row.get("full_prompt") or row.get("example") or number for number, (doc, row) in _pairs(docs, rows)]

    def samples() -> Iterable[tuple[str, str, Sample]]:
        for question, (number, (doc, row)) in zip(_told_apart([_digest(q) for q in questions]), _pairs(docs, rows), strict=True):
            answer = row.get("model_response")
            text = _first_text(answer.get("text") if isinstance(answer, dict) else row.get("predictions"))
            truth = _truth(metrics(row).get(metric), f"{file}, record {number}, {metric}")
            yield question, "1", Sample(truth, text, _groups(doc.get("specific")))

    return Log(file.stem, "lighteval", match[1] if match else None, None, metric, _collect(file, samples()))


def _pairs(docs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Iterable[tuple[int, tuple[dict[str, Any], dict[str, Any]]]]:
    return enumerate(zip(docs, rows, strict=True), 1)


def _is_inspect(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as stream:
        begin = stream.read(4096)
    return begin.lstrip().startswith("{") and '"eval"' in begin


def _inspect(file: Path, fields: Fields) -> Log:
    head, samples = _inspect_zip(file) if file.suffix == ".eval" else _inspect_json(file)
    about = head.get("eval", {})

    scorers = list(dict.fromkeys(name for sample in samples for name in sample.get("scores") or {}))
    metric = fields.metric or next(iter(scorers), None)
    if fields.metric and fields.metric not in scorers:
        raise InputError(f"{file}: no metric {fields.metric!r}; there are: {', '.join(scorers)}")

    def found() -> Iterable[tuple[str, str, Sample]]:
        for sample in samples:
            score = (sample.get("scores") or {}).get(metric) or {}
            output = sample.get("output") or {}
            text = output.get("completion") or ((output.get("choices") or [{}])[0].get("message") or {}).get("content")
            truth = _truth(score.get("value"), f"{file}, sample {sample.get('id')}")
            solved = Sample(truth, text if isinstance(text, str) else None, _groups(sample.get("metadata")))
            yield f"{sample.get('id')} {_digest(_spoken(sample.get('input')))}", str(sample.get("epoch", 1)), solved

    version = about.get("task_version")
    return Log(file.stem, "Inspect", about.get("task"), None if version is None else str(version), metric, _collect(file, found()))


def _spoken(value: Any) -> Any:
    """A chat as who said what: its messages carry random names."""
    return [(m.get("role"), m.get("content")) for m in value] if isinstance(value, list) else value


def _inspect_json(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{file}: not valid JSON") from None
    return found, found.get("samples") or []


def _inspect_zip(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with suppress(ModuleNotFoundError):
        import zipfile_zstd  # noqa: F401  # Inspect compresses with zstd, which the standard library reads from Python 3.14 on
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            head = json.loads(archive.read("header.json" if "header.json" in names else "_journal/start.json"))
            return head, [json.loads(archive.read(name)) for name in names if re.fullmatch(r"samples/.+\.json", name)]
    except NotImplementedError:
        raise InputError(f"{file}: compressed in a way this Python cannot read; run 'inspect log convert --to json' on it first") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError):
        raise InputError(f"{file}: not an Inspect log") from None


def _plain(file: Path, rows: list[dict[str, Any]], fields: Fields) -> Log:
    usual: Callable[[Sequence[str]], str | None] = lambda names: next((name for name in names if name in rows[0]), None)  # noqa: E731
    identity = fields.id or usual(("id", "idx", "problem_id", "unique_id", "question"))
    if bool(fields.answer) != bool(fields.gold) or (fields.answer and fields.correct):
        raise InputError("compare: --answer-field and --gold-field go together, and without --correct-field")
    correct = fields.correct or (None if fields.answer else usual(("is_correct", "correct")))
    if not identity or not (correct or (fields.answer and fields.gold)):
        lacking = "--id-field" if not identity else "--correct-field, or --answer-field with --gold-field"
        raise InputError(f"{file}: a plain table needs {lacking}; its fields: {', '.join(map(str, rows[0]))}")
    where = [f"{file}, record {number}" for number in range(1, len(rows) + 1)]
    texts: Sequence[str | None] = [None] * len(rows)
    if correct:
        truths = [_truth(tables.field(row, correct, place), f"{place}, {correct}") for row, place in zip(rows, where, strict=True)]
    else:
        assert fields.answer and fields.gold
        gold = [grading.gold_of(tables.text(row, fields.gold, place)) for row, place in zip(rows, where, strict=True)]
        answers = [tables.text(row, fields.answer, place) for row, place in zip(rows, where, strict=True)]
        with verify.Verifier() as verifier:
            judged = grading.judge([grading.bare(a) or grading.extract(a) for a in answers], gold, fields.kind, verifier)
        truths, texts = [{"correct": True, "wrong": False}.get(outcome) for outcome, _ in judged], answers
    ids = [str(tables.field(row, identity, place)) for row, place in zip(rows, where, strict=True)]
    found = [(i, "1", Sample(truth, text, _groups(row))) for i, truth, text, row in zip(ids, truths, texts, rows, strict=True)]
    return Log(file.stem, "table", None, None, None, _collect(file, found))
