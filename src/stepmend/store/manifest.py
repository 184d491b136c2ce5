"""The manifest: which records and facts of a run are current, that is, belong to stages that the present recipe has reached.

A run announces every stage before its first work, with a label and the digest of its inputs. The manifest is the list of these, in order.
If a stage's digest has changed, the list is truncated there: later stages may depend on it, and become current again when they are
announced again. Records themselves are never deleted by this.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stepmend import inputs
from stepmend.files import write_text
from stepmend.records import InputError

NAME = "manifest.json"


class Kept(BaseModel):
    """What the file holds: the digests of the stages, by label, in the order in which they were announced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    stages: dict[str, str]


class Manifest:
    """The list of one run, in its folder."""

    def __init__(self, folder: Path) -> None:
        """A damaged file is reported and moved aside: each stage is announced again."""
        self._file = folder / NAME
        stages = read(folder, strict=False)
        if stages is None and self._file.exists():
            aside = self._file.with_name(NAME + ".rejected")
            warnings.warn(f"{self._file}: damaged, moved to {aside.name}; all stages of this run are checked again", stacklevel=2)
            self._file.replace(aside)
        self._stages = stages or {}

    def announce(self, label: str, made_by: str) -> bool:
        """Announce a stage; whether this changed the list."""
        if self._stages.get(label) == made_by:
            return False
        self._stages = dict(_until(self._stages, label)) | {label: made_by}
        write_text(self._file, json.dumps(Kept(stages=self._stages).model_dump(), indent=1) + "\n")
        return True

    @property
    def digests(self) -> frozenset[str]:
        """The digests of the current records and facts."""
        return frozenset(self._stages.values())


def _until(stages: dict[str, str], label: str) -> Iterator[tuple[str, str]]:
    """The stages before one; all if it is not among them."""
    for other, made_by in stages.items():
        if other == label:
            return
        yield other, made_by


def read(folder: Path, *, strict: bool = True) -> dict[str, str] | None:
    """The stages that a run has come to, with their digests; None if the folder is of a version that kept no manifest.

    Raises InputError if it is of a newer version, and if it is damaged; None for that, too, where ``strict`` is off.
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        found = json.loads(inputs.content(file))
        if isinstance(found, dict) and isinstance(found.get("version"), int) and found["version"] > 1:
            raise InputError(f"{file}: made by a newer version of stepmend; install that one, or choose another folder")
        kept = Kept.model_validate(found)
    except (ValidationError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if strict:
            raise InputError(f"{file}: damaged; 'stepmend run --out {folder}' recreates it") from None
        return None
    return kept.stages
