"""The finish reason of texts, in the words of the tools that record it."""

from collections.abc import Sequence
from typing import Any

from stepmend import tables
from stepmend.records import InputError

USUAL = ("finish_reason", "stop_reason", "finish", "stop_type", "truncated")
"""Fields that are read if they are there and no other one is named."""
CUT = frozenset(
    (
        *("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
        *("context_length", "limit", "token_limit", "truncated", "incomplete", "cut", "cut_off", "cutoff", "overlong"),
    )
)
ENDED = frozenset(
    (
        *("stop", "eos", "eos_token", "end_turn", "end_of_turn", "stop_sequence", "stop_word", "word", "stopped", "end", "ended"),
        *("finished", "finish", "complete", "completed", "done", "success"),
    )
)
SAY_CUT = ("trunc", "cut", "overlong", "exceed", "limit", "incomplete")
SAY_ENDED = ("finish", "complete", "stop", "end", "done")


def whole(rows: Sequence[dict[str, Any]], name: str | None, where: Sequence[str]) -> list[bool]:
    """Whether the text of each row ended by itself; True if nothing says so. Arguments and errors as of ``cuts``."""
    return [cut is not True for cut in cuts(rows, name, where)]


def cuts(rows: Sequence[dict[str, Any]], name: str | None, where: Sequence[str]) -> list[bool | None]:
    """Whether the limit cut off the text of each row; None if nothing says so. ``name`` is the field; None takes a usual one.

    Raises InputError if the named field is missing or says neither.
    """
    found = name or next((usual for usual in USUAL if rows and usual in rows[0]), None)
    if found is None:
        return [None] * len(rows)
    return [
        _cut(tables.field(row, found, place) if name else row.get(found), found, place, name is None)
        for row, place in zip(rows, where, strict=True)
    ]


def is_cut(value: Any) -> bool | None:
    """Whether a finish reason means that the token limit cut the text off; None for an unknown one."""
    said = str(value).strip().lower().rpartition(".")[2].replace("-", "_").replace(" ", "_")
    return True if said in CUT else False if said in ENDED else None


def _cut(value: Any, name: str, where: str, guessed: bool) -> bool | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == "" or value != value:  # of Parquet and JSON, NaN too is nothing
        return None
    if str(value).lower() in ("true", "false", "0", "1"):
        yes = str(value).lower() in ("true", "1")
        if any(part in name.lower() for part in SAY_CUT):
            return yes
        if any(part in name.lower() for part in SAY_ENDED):
            return not yes
    cut = is_cut(value)
    if cut is None and not guessed:
        raise InputError(
            f"{where}: field {name!r} holds {str(value)[:40]!r}, which says neither stop nor length; allowed: stop, length, max_tokens …"
        )
    return cut
