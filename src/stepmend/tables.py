"""Rows of users' files: CSV, JSON Lines, JSON, Parquet, each also with gzip. Unreadable files give a one-line error."""

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from stepmend import inputs
from stepmend.records import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
CONTAINERS = ("results", "samples", "details", "data", "records", "rows", "eval", "cases", "instances", "predictions", "request_states")
"""Names under which an object may hold its records."""


ROW = 64
"""Bytes that any row takes, whatever it holds."""


def kind_of(file: Path) -> str:
    """The suffix that says how a file is read, ``.gz`` left out."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def read(file: Path) -> list[dict[str, Any]]:
    """All rows of a file, by field name. Raises InputError if it is absent, empty, damaged or of another kind."""
    inputs.regular(file)
    kind = kind_of(file)
    if kind not in SUFFIXES or (kind == ".parquet" and file.suffix.lower() == ".gz"):
        named = f"in {file.suffix}" if kind else "without a suffix"
        raise InputError(f"{file}: files {named} are not read; allowed: {', '.join(SUFFIXES)}, and .gz of them")
    try:
        rows = list(_READERS[kind](file))
    except csv.Error as error:
        raise InputError(f"{file}: not a valid table ({error})") from None
    if not rows:
        raise InputError(f"{file}: holds no rows")
    return rows


def parsed(file: Path) -> Any:
    """The content of a JSON file. Raises InputError if it is none."""
    with inputs.lines(file) as stream:
        return _parsed(stream.read(), str(file))


def field(row: dict[str, Any], name: str, where: str) -> Any:
    """A field of a row; ``a.b`` is field ``b`` of the mapping in ``a``, ``a.0`` the first item of a list.

    Of a list of mappings, ``a.b`` is the list of their fields. Raises InputError, which names the fields there are.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = _inside(value, part)
        if value is _MISSING:
            raise InputError(f"{where}: no field {name!r}; available: {', '.join(map(str, row))}")
    return value


_MISSING = object()


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value.get(part, _MISSING)
    if isinstance(value, list) and part.isdecimal() and len(part) < 10:
        return value[int(part)] if int(part) < len(value) else _MISSING
    if isinstance(value, list) and value:
        found = [_inside(one, part) for one in value]
        return _MISSING if any(one is _MISSING for one in found) else found
    return _MISSING


def text(row: dict[str, Any], name: str, where: str) -> str:
    """A field as text; a list of one is that one. Raises InputError for anything that is no text or number."""
    value = field(row, name, where)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: field {name!r} holds {type(value).__name__}; text or a number is needed")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: field {name!r} holds {value}; text or a finite number is needed")
    return str(value)


def text_or_none(row: dict[str, Any], name: str, where: str) -> str | None:
    """A field as text; None if it is null, not a number (NaN), or an empty list. Raises InputError as ``text`` does."""
    value = field(row, name, where)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return None
    return text(row, name, where)


def _csv(file: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with inputs.lines(file, newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if kind_of(file) == ".tsv" else ",", strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise InputError(f"{file}: a field name appears twice in the header: {', '.join(names)}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{file}, line {reader.line_num}: {'more' if None in row else 'fewer'} values than the header has fields")
            yield row


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    with inputs.lines(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                # A JSON list under this name: lm-eval 0.4.0 and 0.4.1 write one.
                if number == 1 and line.lstrip().startswith("[") and _is_list(line, stream):
                    yield from _json(file)
                    return
                yield _mapping(_parsed(line, f"{file}, line {number}"), f"{file}, line {number}")


def _is_list(line: str, stream: TextIO) -> bool:
    """Whether a first line starts a list of mappings, and not a record that is a list."""
    start = line.lstrip()[1:].lstrip() or stream.readline().lstrip()
    return start.startswith("{")


def _json(file: Path) -> Iterator[dict[str, Any]]:
    found = parsed(file)
    rows = found if isinstance(found, list) else _rows(found)
    if rows is None:
        raise InputError(f"{file}: a list of records is needed, or one record a line in a .jsonl file")
    for number, row in enumerate(rows, 1):
        yield _mapping(row, f"{file}, record {number}")


def _rows(found: Any) -> list[Any] | None:
    """The records in an object: a list under a usual name, records by name, or arrays side by side; None if there are none."""
    if not isinstance(found, dict):
        return None
    for name in CONTAINERS:
        inner = found.get(name)
        rows = inner if isinstance(inner, list) and inner and isinstance(inner[0], dict) else _by_name(inner)
        if rows:
            return rows
    return _by_name(found) or _side_by_side(found)


def _by_name(found: Any) -> list[Any] | None:
    """Records by name, such as ``{"0": {…}, "1": {…}}``: each gets its name as ``id``; a list under one name is several samples of it."""
    if not isinstance(found, dict) or not found:
        return None
    numbered = {name: value for name, value in found.items() if str(name).isdecimal()}
    found = numbered or found
    if all(isinstance(value, dict) for value in found.values()):
        return [{"id": name, **value} for name, value in found.items()]
    if all(isinstance(value, list) and value and all(isinstance(one, dict) for one in value) for value in found.values()):
        return [{"id": name, "sample": number, **one} for name, value in found.items() for number, one in enumerate(value, 1)]
    return None


def _side_by_side(found: dict[str, Any]) -> list[Any] | None:
    arrays = {name: value for name, value in found.items() if isinstance(value, list)}
    lengths = {len(value) for value in arrays.values()}
    if len(arrays) < 2 or len(lengths) != 1 or lengths == {0}:
        return None
    return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise InputError(f"{file}: reading Parquet needs pyarrow; install it with: pip install pyarrow") from None
    limit = inputs.bound(inputs.regular(file))
    left = limit
    try:
        with inputs.opened(file) as stream, parquet.ParquetFile(stream) as table:
            groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
            if sum(group.total_byte_size for group in groups) + ROW * sum(group.num_rows for group in groups) > limit:
                raise inputs.too_large(file, limit)
            for batch in table.iter_batches(batch_size=64):
                left -= batch.nbytes  # what a dictionary or a run length stands for
                if left < 0:
                    raise inputs.too_large(file, limit)
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not a valid Parquet file ({str(error).splitlines()[0] if str(error) else 'damaged'})") from None


def _parsed(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: not valid JSON") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a record with named fields is needed")
    return value


_READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
