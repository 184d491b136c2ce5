"""Arms: the models that a run compares. Only this module builds and parses names of arms.

Records name an arm by a string:

| name | arm |
|---|---|
| ``full`` | full precision |
| ``full+again`` | the noise floor: full precision in other batches |
| ``SCHEME`` | a quantized model; for a given checkpoint, SCHEME is its folder's name |
| ``SCHEME+restored``, ``SCHEME+restored-2`` | a restored model, and that of the second round |
| ``SCHEME+VARIANT-BUDGET-sSEED`` | a control |
| ``SCHEME+VARIANT``, ``SCHEME+VARIANT-sSEED`` | a model that a benchmark makes |
"""

import re
from dataclasses import dataclass
from typing import Literal

Budget = Literal["steps", "tokens"]
"""What controls and located bullets have in equal number: optimizer steps, or supervised tokens."""

_NAME = re.compile(
    r"(?P<base>[^+]+)"
    r"(?:\+(?:restored(?:-(?P<round>[2-9]|[1-9][0-9]+))?(?P<restored>)"
    r"|(?P<variant>[^+]+?)(?:-(?P<budget>steps|tokens))?(?:-s(?P<seed>0|[1-9][0-9]*))?))?"
)

LONGEST = 100
"""Letters of a name that a folder gives an arm."""


@dataclass(frozen=True)
class Arm:
    """One model under comparison; ``str`` gives its name.

    ``scheme`` is empty for full precision. ``round`` counts rounds of restoring, from 1; 0 is a model that was not restored. ``variant`` is
    the control, the benchmark's method, or ``again``. ``budget`` and ``seed`` belong to a variant.

    Raises ValueError for fields whose name would be another arm's.
    """

    scheme: str = ""
    round: int = 0
    variant: str = ""
    budget: Budget | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if _fields(str(self)) != (self.scheme, self.round, self.variant, self.budget, self.seed):
            raise ValueError(f"not an arm: {self!r}; its name {str(self)!r} would be parsed as other fields")

    def __str__(self) -> str:
        base = self.scheme or "full"
        if self.round:
            return f"{base}+restored" + (f"-{self.round}" if self.round > 1 else "")
        parts = [self.variant, self.budget, None if self.seed is None else f"s{self.seed}"]
        end = "-".join(part for part in parts if part)
        return f"{base}+{end}" if end else base

    @property
    def folder(self) -> str:
        """The name of the folder of the arm's checkpoint, in a run's folder."""
        return str(self).replace("+", "-")

    def restored(self, number: int = 1) -> "Arm":
        """The model that round ``number`` of restoring makes of this quantized one."""
        return Arm(self.scheme, round=number)


def of_folder(path: str) -> Arm:
    """The arm of a low-bit checkpoint that somebody else made, named after its folder, its name on the hub, or its GGUF file.

    Raises ValueError if the name cannot be an arm's.
    """
    name = re.sub(r"[^\w.-]+", "-", path.replace("\\", "/").rstrip("/").rpartition("/")[2])
    name = re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE).strip("-.")[:LONGEST]
    if not name or name == FULL:
        raise ValueError(f"{path[:120]!r} cannot be the name of an arm; use a folder with a name other than '.', '..' and 'full'")
    return Arm(name)


def parse(name: str) -> Arm:
    """The arm of a name. Raises ValueError for what is not an arm's name."""
    fields = _fields(name)
    if fields is None:
        raise ValueError(f"not an arm: {name!r}; allowed: full, SCHEME, SCHEME+restored, SCHEME+restored-NUMBER, SCHEME+VARIANT")
    return Arm(*fields)


def _fields(name: str) -> tuple[str, int, str, Budget | None, int | None] | None:
    """The fields of the arm with this name; None if there is no such arm."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    scheme = "" if found["base"] == "full" else found["base"]
    number = int(found["round"] or 1) if found["restored"] is not None else 0
    seed = None if found["seed"] is None else int(found["seed"])
    budget: Budget | None = found["budget"]  # pyright: ignore[reportAssignmentType]
    return None if number and not scheme else (scheme, number, found["variant"] or "", budget, seed)


FULL = str(Arm())
"""The name of full precision."""
AGAIN = str(Arm(variant="again"))
"""The name of the noise floor: full precision with another batch size. What differs from ``full`` is floating-point order."""
