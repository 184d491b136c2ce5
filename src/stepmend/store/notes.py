"""The facts of runs of versions before ``facts.jsonl``: untyped notes, one file each, in ``notes/``. They are read and never written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepmend import facts, inputs
from stepmend.facts import Fact
from stepmend.records import InputError

WHOLE: dict[str, type[Fact]] = {
    "placement": facts.Placement,
    "card": facts.Card,
    "seconds": facts.Seconds,
    "judges": facts.Judged,
}
"""Notes of the run as a whole, by name."""
OF_ARM: dict[str, type[Fact]] = {
    "quantize": facts.Quantized,
    "damage": facts.Damage,
    "gate": facts.Gate,
    "curate": facts.Curated,
    "restore": facts.Tuned,
    "effects": facts.Effects,
    "control": facts.Control,
}
"""Notes of one arm, by what is before its name."""
INSIDE = {"seconds": "stages", "judges": "judges"}
"""Notes that were a mapping as a whole, and the field that it is now."""


def read(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """A run's notes by name, and a line for each that is damaged."""
    found, damaged = dict[str, dict[str, Any]](), list[str]()
    for file in sorted((folder / "notes").glob("*.json")):
        try:
            values = json.loads(inputs.content(file))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            values = None
        if isinstance(values, dict):
            found[file.stem] = values
        else:
            damaged.append(f"{file}: damaged")
    return found, damaged


def as_facts(notes: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What a file of facts would hold of these notes; those of no stage are left out, and so are values that facts have no place for."""
    for name, values in notes.items():
        what, _, arm = name.partition("-")
        if kind := WHOLE.get(name):
            fields = {INSIDE[name]: values} if name in INSIDE else values
        elif kind := OF_ARM.get(what):
            fields = {"arm": arm, **values}
        else:
            continue
        yield {**{key: value for key, value in fields.items() if key in kind.model_fields}, "fact": facts.name_of(kind)}
