"""Reliabilities of locators: rates by benchmark and kind of text, with defaults, read from and written to a file.

``stepmend bench locate --save FILE`` measures them on labelled solutions; the recipe's ``locate.reliabilities`` names the file.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepmend import inputs
from stepmend.locate.kinds import Kind, Written
from stepmend.records import InputError

VERSION = "reliability-1"
ANY = "*"
"""In place of a benchmark: every benchmark that has no rates of its own."""


class Part(BaseModel):
    """Base: immutable, and strict about fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reliability(Part):
    """If a locator names a step: how often it is the first faulty one, an earlier one, or a later one."""

    exact: float = Field(ge=0, le=1)
    early: float = Field(ge=0, le=1)
    late: float = Field(ge=0, le=1)


class Table(Part):
    """The rates for one benchmark and kind of text.

    Attributes:
        n: Labelled solutions that they were measured on.
        locators: By a locator's (or judge's) name.
        prior: How much likelier a step of a kind is to be the first faulty one than a calculation is; of a kind that is missing, as likely.
        none: Prior probability that no step is faulty (only the answer was misread).
        power: Exponent of all locators' likelihoods together, at most 1: they err together, which their product does not know.
    """

    n: int = Field(ge=0)
    locators: dict[str, Reliability]
    prior: dict[Kind, float] = {}
    none: float = Field(default=0.01, ge=0, lt=1)
    power: float = Field(default=1.0, gt=0, le=1)


class Reliabilities(Part):
    """All tables, by ``BENCHMARK/KIND``: ``gsm8k/free``, ``*/steps``."""

    version: Literal["reliability-1"] = VERSION
    judges_see_answer: bool | None = Field(default=None, description="whether judges were shown the right answer while measured")
    completer: str | None = Field(default=None, description="what rescue continued with while measured")
    tables: dict[str, Table]

    def table(self, benchmark: str, written: Written) -> Table:
        """The rates of a benchmark's texts of a kind: its own, else those of any benchmark, else the default."""
        for of in (self, DEFAULT):
            for name in (f"{benchmark}/{written}", f"{ANY}/{written}"):
                if name in of.tables:
                    return of.tables[name]
        raise AssertionError(written)


def read(file: Path) -> Reliabilities:
    """The rates of a file. Raises InputError if it cannot be read, or holds something else."""
    try:
        return Reliabilities.model_validate_json(inputs.content(file))
    except InputError as error:
        raise InputError(f"locate.reliabilities: cannot read {error}") from None
    except ValidationError:
        raise InputError(
            f"locate.reliabilities: {file} holds no reliabilities of this version; 'stepmend bench locate --save FILE' writes them"
        ) from None


UNMEASURED = Reliability(exact=0.6, early=0.2, late=0.2)
"""The reliability of a locator or judge that has not been measured."""
# The generated problems (docs/results/locate.md): 338 regressions, half a case added to each count, so none is ever certain. There is one
# way to write a solution there, so margins are nearly always right; in free text the first other word is not a fault yet.
# gsm8k/free: 60 labelled failures of a quantized 0.5 B model (`bench locate --save`; rescue by full precision, 8 samples per cut).
# */free: these and 207 faulty solutions of ProcessBench gsm8k for reference and solution, all of ProcessBench for equations.
FREE: dict[Kind, float] = {"introduction": 0.045, "plan": 0.49, "statement": 0.71, "answer": 0.27}
DEFAULT = Reliabilities(
    tables={
        "*/steps": Table(
            n=338,
            locators={
                "equations": Reliability(exact=0.937, early=0.003, late=0.06),
                "rescue": Reliability(exact=0.982, early=0.004, late=0.014),
                "margins": Reliability(exact=0.90, early=0.09, late=0.01),
                "judges": UNMEASURED,
            },
        ),
        "gsm8k/free": Table(
            n=60,
            locators={
                "equations": Reliability(exact=0.58, early=0.03, late=0.39),
                "rescue": Reliability(exact=0.66, early=0.22, late=0.12),
                "margins": Reliability(exact=0.06, early=0.93, late=0.01),
                "judges": UNMEASURED,
                "reference": Reliability(exact=0.68, early=0.06, late=0.26),
                "solution": Reliability(exact=0.65, early=0.10, late=0.25),
            },
            prior=FREE,
            none=0.025,
            power=0.6,
        ),
        "*/free": Table(
            n=267,
            locators={
                "equations": Reliability(exact=0.50, early=0.05, late=0.45),
                "rescue": Reliability(exact=0.66, early=0.22, late=0.12),
                "margins": Reliability(exact=0.06, early=0.93, late=0.01),
                "judges": UNMEASURED,
                "reference": Reliability(exact=0.53, early=0.11, late=0.36),
                "solution": Reliability(exact=0.53, early=0.11, late=0.36),
            },
            prior=FREE,
            none=0.025,
            power=0.6,
        ),
    }
)
