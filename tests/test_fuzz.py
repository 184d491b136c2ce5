"""Every reader of people's files, on damaged ones: a value or one clear line, soon, and nothing written.

``make test`` runs one round from a fixed seed; ``make fuzz SECONDS=600`` runs on from other seeds for that long.
"""

import io
import itertools
import json
import os
import signal
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stepmend import Grade, InputError, Recipe, Trace, tables
from stepmend.benchmarks.sources import Data
from stepmend.facts import Placement
from stepmend.locate import bench, reliability
from stepmend.logs import Fields, read
from stepmend.models import load
from stepmend.recipe import override
from stepmend.records import LINE, Problem, digest
from stepmend.report import audit, summary
from stepmend.rundir import RunDir

SECONDS = float(os.environ.get("STEPMEND_FUZZ_SECONDS", "0"))
EXAMPLES = 100
ROUND = 26.0
"""Seconds that the round of ``make test`` takes at most; a slow machine sees the beginning of it."""
LIMIT = 20.0
"""Seconds after which a reader hangs, on a machine that does much else."""


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def zipped(members: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content))
    return stream.getvalue()


def safetensors(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\x00" * 8


HEAD = {"eval": {"task": "t", "model": "m/n", "dataset": {"samples": 2}, "config": {"epochs": 1}}, "status": "success"}
INSPECTED = [
    {"id": i, "epoch": 1, "input": "1 + 1?", "target": "2", "scores": {"match": {"value": "C"}}, "output": {"completion": "2"}}
    for i in (1, 2)
]
SAMPLES = [
    {"doc_id": i, "doc": {"q": i}, "target": "2", "resps": [["2"]], "filtered_resps": ["2"], "exact_match": 1.0, "filter": "none"}
    for i in (0, 1)
]
HELM = {"request_states": [{"instance": {"id": "a"}, "result": {"completions": [{"text": "2"}]}}]}
STATES = {"id": "x", "task_states": {"cases": {"t_000_001": {"status": "ok", "correct": True, "response": "2", "expected": "2"}}}}
DETAILS = [{"doc": {"query": "1 + 1?", "choices": ["2"], "gold_index": 0}, "metric": {"acc": 1.0}, "model_response": {"text": ["2"]}}]
SOLVED = [{"id": "a", "correct": True, "answer": "2", "level": "1"}, {"id": "b", "correct": False, "answer": "3", "level": "2"}]
PROBLEMS = [{"question": f"{i} + 1?", "answer": str(i + 1), "solution": f"{i} + 1 = {i + 1}"} for i in range(3)]
LABELLED = [{"id": "gsm8k-1", "problem": "1 + 1?", "steps": ["1 + 1 = 3", "So 3."], "label": 0, "also": [1], "answer": "2"}]
YAML = (
    b"model: builtin:qwen2\nschemes: [rtn-w4a16-g128]\nseed: 3\nrestore:\n  steps: 10\n  beta: 0.1\nlocate: {judges: ['a=m@http://h/v1']}\n"
)
PROBLEM = Problem(id="story-1", benchmark="story", split="test", level="1", question="1 + 1?", answer="2")
TRACE = Trace(problem="story-1", arm="full", made_by="x", text="2", tokens=(1, 2), finish="stop")
GRADE = Grade(problem="story-1", arm="full", made_by="x", outcome="correct", extracted="2", form="boxed")
MANIFEST = json.dumps({"version": 1, "stages": {"problems": digest([PROBLEM.id]), "full: traces, test": "x"}}).encode()
HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}


def problems(name: str) -> Callable[[Path], Any]:
    return lambda file: Data(name, str(file)).problems("test", None, 0)


def recipe(file: Path) -> Any:
    return Recipe.make(Recipe.from_yaml(file))


def assignment(file: Path) -> Any:
    return Recipe.make(override({}, [file.read_text(encoding="utf-8", errors="surrogateescape")]))


def beside_samples(file: Path) -> Any:
    return read(file.with_name("samples_t_2025-01-01T00-00-00.jsonl"))


def threshold(file: Path) -> Any:
    return read(file, Fields(threshold=0.5))


def run(file: Path) -> None:
    """A run's folder, as it is opened and as it is reported; damaged records are said, and left out."""
    folder = file.parent if file.parent.name != "notes" else file.parent.parent
    with RunDir(folder, Recipe.make({})) as opened:
        opened.fact(Placement)
        opened.load(Trace)
        opened.load(Grade, "x")
        opened.keep_problems([PROBLEM])
    summary.figures(summary.read(folder))


def checkpoint(file: Path) -> None:
    load.check(file.parent)


FILES: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "lm-eval": ("samples_t_2025-01-01T00-00-00.jsonl", lines(*SAMPLES), read),
    "lm-eval's results": (
        "results_2025-01-01T00-00-00.json",
        b'{"versions": {"t": 1}, "n-shot": {"t": 5}, "config": {"model": "hf"}}',
        read,
    ),
    "Inspect": ("a.eval", zipped({"header.json": HEAD, **{f"samples/{s['id']}.json": s for s in INSPECTED}}), read),
    "Inspect's JSON": ("a.json", json.dumps({**HEAD, "samples": INSPECTED}).encode(), read),
    "HELM": ("scenario_state.json", json.dumps(HELM).encode(), read),
    "llama-eval": ("state.json", json.dumps(STATES).encode(), read),
    "lighteval": ("details_t_2025-01-01T00-00-00.parquet", packed(DETAILS), read),
    "lines": ("a.jsonl", lines(*SOLVED), threshold),
    "a table": ("a.csv", b"id,correct,answer\na,1,2\nb,0,3\n", threshold),
    "a packed table": ("a.parquet", packed(SOLVED), threshold),
    "JSON": ("a.json", json.dumps({"rows": SOLVED}).encode(), tables.read),
    "problems": ("test.jsonl", lines(*PROBLEMS), problems("jsonl")),
    "problems of AIME": ("test.csv", b"Problem,Answer\n1 + 1?,2\n", problems("aime")),
    "labels": ("a.jsonl", lines(*LABELLED), bench.read),
    "a page's labels": ("a.json", b'{"stepmend_audit": 1, "run": "x", "keys": ["a"], "labels": [{"key": "a", "step": 0}]}', audit._read),
    "reliabilities": ("rates.json", reliability.DEFAULT.model_dump_json().encode(), reliability.read),
    "a recipe": ("recipe.yaml", YAML, recipe),
    "an assignment": ("set", b"restore.steps=100", assignment),
    "traces": ("traces.jsonl", TRACE.model_dump_json().encode() + b"\n", run),
    "grades": ("grades.jsonl", GRADE.model_dump_json().encode() + b"\n", run),
    "kept problems": ("problems.jsonl", PROBLEM.model_dump_json().encode() + b"\n", run),
    "a kept recipe": ("recipe.json", Recipe.make({}).model_dump_json().encode(), run),
    "facts": ("facts.jsonl", Placement(device="cpu", dtype="float32", slots=12).model_dump_json().encode() + b"\n", run),
    "a manifest": ("manifest.json", MANIFEST, run),
    "a note": ("notes/placement.json", b'{"device": "cpu", "dtype": "float32", "slots": 12}', run),
    "weights": ("model.safetensors", safetensors(HEADER), checkpoint),
    "an index": ("model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors"}}', checkpoint),
    "a configuration": ("config.json", b'{"model_type": "qwen2"}', checkpoint),
}
"""By what it is: a file's name, its content where it is whole, and what reads it."""
BESIDE = {
    run: {
        "recipe.json": Recipe.make({}).model_dump_json().encode(),
        "problems.jsonl": PROBLEM.model_dump_json().encode() + b"\n",
        "traces.jsonl": TRACE.model_dump_json().encode() + b"\n",
        "grades.jsonl": GRADE.model_dump_json().encode() + b"\n",
        "manifest.json": MANIFEST,
    },
    beside_samples: {"samples_t_2025-01-01T00-00-00.jsonl": lines(*SAMPLES)},
    checkpoint: {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": safetensors(HEADER)},
}
"""What lies beside the file, where its reader needs more."""

TOKENS = [
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"0.5", b"1_000", b"12:30:00", b"2024-01-01", "１".encode()),
    *(b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b"x" * 20_000, b"\n", b"\r", b",", b'"', b"\x00", b"\xff\xfe", b"\xed\xa0\x80"),
    *(b"\\ud800", b"\x1b[31m", b"*a", b"&a ", b"<<: ", b"!!python/object/apply:os.system [ls]", b"!!timestamp 1", b"? ", b"../../x"),
]
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\x00", "\ud800", "1", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "name", "value", "text", "0"]), inner, max_size=3),
    max_leaves=6,
)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with bytes replaced, put in, left out or said twice; or, where it is JSON, with other values in it; or any bytes."""
    place = st.integers(0, len(whole))
    edit = st.tuples(place, st.integers(0, 12), st.sampled_from([*TOKENS, b""]) | st.binary(max_size=8))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        found = whole
        for start, width, put in edits:
            found = found[:start] + put + found[start + width :]
        return found

    bytewise = st.lists(edit, min_size=1, max_size=4).map(apply)
    cut = place.map(lambda end: whole[:end])
    twice = place.map(lambda start: whole + whole[start:])
    kinds = [bytewise, cut, twice, st.binary(max_size=60)]
    with_values = []
    for number, line in enumerate(parts := whole.splitlines(keepends=True)):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        nodes = list(paths(value))
        with_values.append(
            st.tuples(st.just(number), st.just(value), st.lists(st.tuples(st.sampled_from(nodes), VALUES), min_size=1, max_size=3))
        )
    if with_values:

        def changed(drawn: Any) -> bytes:
            number, value, changes = drawn
            for path, put in changes:
                value = replaced(value, path, put)
            return b"".join([*parts[:number], json.dumps(value).encode() + b"\n", *parts[number + 1 :]])

        # Most other damage ends in the parser. (one_of would count equal kinds once.)
        kinds = [*[st.one_of(with_values).map(changed)] * 8, *kinds]
    return st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Where in a JSON value there is a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from paths(one, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    """A JSON value with another one at a place, where that is still there."""
    if not path:
        return put
    if isinstance(value, dict) and path[0] in value:
        return {**value, path[0]: replaced(value[path[0]], path[1:], put)}
    if isinstance(value, list) and isinstance(path[0], int) and path[0] < len(value):
        return [*value[: path[0]], replaced(value[path[0]], path[1:], put), *value[path[0] + 1 :]]
    return value


class HangError(BaseException):
    """A reader that does not end; no reader catches it."""


def hang(*_: object) -> None:
    raise HangError


@pytest.fixture(autouse=True)
def watched(monkeypatch, tmp_path):
    """The readers work in an empty folder, and end."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, hang)
    yield
    signal.signal(signal.SIGALRM, before)


def rounds(check: Callable[[bytes], None], inputs: st.SearchStrategy[bytes], seconds: float) -> None:
    """Check many inputs: one round, the same each time; where more time is given, others until it is over."""
    end = time.monotonic() + (seconds or ROUND / len(FILES))

    def timely(content: bytes) -> None:
        if time.monotonic() < end:
            check(content)

    for number in itertools.count():
        quick = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
        phases = [Phase.explicit, Phase.generate, Phase.shrink] if seconds else [Phase.explicit, Phase.generate]
        seed(number)(settings(max_examples=EXAMPLES, phases=phases, **quick)(given(inputs)(timely)))()
        if not seconds or time.monotonic() > end:
            return


@pytest.mark.parametrize("what", FILES)
def test_a_damaged_file_is_a_value_or_one_line(what, tmp_path):
    name, whole, reader = FILES[what]
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    beside = {tmp_path / other: content for other, content in BESIDE.get(reader, {}).items()}
    allowed = {file.relative_to(tmp_path), *(path.relative_to(tmp_path) for path in beside), Path("notes"), Path(".lock")}
    aside = Path(name + ".rejected"), Path(name + ".superseded")  # where a run's lines go that cannot be read, and problems of before
    allowed |= {*aside} if reader is run else set()

    def check(content: bytes) -> None:
        for path in aside:
            (tmp_path / path).unlink(missing_ok=True)
        for path, other in {**beside, file: content}.items():
            path.write_bytes(other)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                reader(file)
        except InputError as error:
            said = str(error)
            assert said and len(said) <= LINE and len(said.splitlines()) == 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} <= allowed

    try:
        check(whole)
        rounds(check, damaged(whole), SECONDS / len(FILES))
    except HangError:
        pytest.fail(f"no end within {LIMIT} s")
