"""Rows of the files that people have: CSV, JSON Lines, a JSON list, Parquet. What cannot be read is one clear line."""

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepmend.records import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def read(file: Path) -> list[dict[str, Any]]:
    """All rows of a file, by field name. Raises InputError where it is absent, empty, damaged or of another kind."""
    if not file.is_file():
        raise InputError(f"{file}: {'not a regular file' if file.exists() else 'no such file'}")
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise InputError(
            f"{file}: files {f'in {file.suffix}' if kind else 'without a suffix'} are not read; allowed: {', '.join(SUFFIXES)}"
        )
    try:
        rows = list(_READERS[kind](file))
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text") from None
    except csv.Error as error:
        raise InputError(f"{file}: not a valid table ({error})") from None
    if not rows:
        raise InputError(f"{file}: holds no rows")
    return rows


def field(row: dict[str, Any], name: str, where: str) -> Any:
    """A field of a row; ``a.b`` is field ``b`` of the mapping in ``a``. Raises InputError that names the fields there are."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}: no field {name!r}; there are: {', '.join(map(str, row))}")
        value = value[part]
    return value


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
    """A field as text; None where it is null, not a number (NaN), or an empty list. Raises InputError as ``text`` does."""
    value = field(row, name, where)
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return None
    return text(row, name, where)


def _csv(file: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise InputError(f"{file}: a field name is there twice in the header: {', '.join(names)}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{file}, line {reader.line_num}: {'more' if None in row else 'fewer'} values than the header has fields")
            yield row


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _mapping(_parsed(line, f"{file}, line {number}"), f"{file}, line {number}")


def _json(file: Path) -> Iterator[dict[str, Any]]:
    found = _parsed(file.read_text(encoding="utf-8-sig"), str(file))
    if not isinstance(found, list):
        raise InputError(f"{file}: a list of records is needed, or one record a line in a .jsonl file")
    for number, row in enumerate(found, 1):
        yield _mapping(row, f"{file}, record {number}")


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise InputError(f"{file}: reading Parquet needs pyarrow; install it with: pip install pyarrow") from None
    try:
        yield from parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a valid Parquet file ({str(error).splitlines()[0]})") from None


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
