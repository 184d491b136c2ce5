"""The results of the functions of ``stepmend.api``: frozen, typed, and convertible to a table by ``to_pandas()``.

Shares are in [0, 1]; a share that is undefined is None. ``figures()`` is what the command line's ``--json`` prints.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from stepmend.grading import files
from stepmend.measure.broken import broken, is_degenerate
from stepmend.measure.statistics import Interval, Verdict
from stepmend.records import Fault, InputError, Outcome
from stepmend.report import compared, summary, terminal

if TYPE_CHECKING:
    import pandas

    from stepmend.measure.compare import Compared
    from stepmend.models.check import Layer
    from stepmend.models.timing import Work

T = TypeVar("T")


def frame(rows: Sequence[dict[str, Any]]) -> "pandas.DataFrame":
    """The rows as a DataFrame. Raises InputError if pandas is not installed."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise InputError("to_pandas needs pandas; install it with: pip install 'stepmend[pandas]'") from None
    return pandas.DataFrame(list(rows))


def _made(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from the values of its fields; what else there is stays out."""
    return kind(**{one.name: values[one.name] for one in fields(kind)})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Graded:
    """One solution's grade.

    Attributes:
        record: Its number in the file, from 1.
        outcome: Correct, wrong, or unscored.
        strict: The strict grade: an answer that was not boxed is unscored.
        extracted: The answer as it was read; None if there is none.
        form: How the answer was given: boxed, marked or loose.
        gold: The right answer.
        reason: Why it is unscored.
        cut_off: Whether the limit cut the text off.
        text: The solution.
    """

    record: int
    outcome: Outcome
    strict: Outcome
    extracted: str | None
    form: Literal["boxed", "marked", "loose"] | None
    gold: str
    reason: str | None
    cut_off: bool
    text: str | None


@dataclass(frozen=True)
class Grades:
    """The grades of a file of solutions, in its order."""

    records: tuple[Graded, ...]

    @property
    def accuracy(self) -> float:
        """Correct ones over all; unscored ones count as wrong."""
        return sum(one.outcome == "correct" for one in self.records) / len(self.records)

    @property
    def broken(self) -> str | None:
        """What is wrong with the texts, if they are those of a broken run."""
        return broken([one.text for one in self.records])

    def figures(self) -> dict[str, Any]:
        """Counts of outcomes, of strict ones, of the reasons why something is unscored, of texts that loop or were cut off."""
        loops = sum(is_degenerate(one.text) for one in self.records if one.text)
        return {**files.counts([asdict(one) for one in self.records]), "loops": loops, "broken": self.broken}

    def write(self, file: str | Path) -> None:
        """Write every grade, one JSON object per line, atomically."""
        files.write([asdict(one) for one in self.records], Path(file))

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per solution."""
        return frame([asdict(one) for one in self.records])


@dataclass(frozen=True)
class Comparison:
    """Every two of the arms, those with the first one first."""

    pairs: "tuple[Compared, ...]"

    def figures(self) -> list[dict[str, Any]]:
        """Counts, test and interval of each pair."""
        return [pair.figures() for pair in self.pairs]

    def notices(self) -> list[str]:
        """The conclusions, with Holm's adjustment over the arms; what could not be paired; which runs are broken."""
        return compared.notices(self.pairs)

    def write(self, file: str | Path) -> None:
        """Write the page."""
        compared.write(self.pairs, Path(file))

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per pair of arms: counts, the difference (second minus first) with its 95 % interval, p, and what is shown."""
        rows = []
        for pair in self.pairs:
            of = pair.figures()
            names = ("first", "second", "pairs", "unpaired", "both_right", "only_first", "only_second", "both_wrong")
            rows.append({name: of[name] for name in names} | {**of["difference"], "p": of["mcnemar_p"], "verdict": of["verdict"]})
        return frame(rows)


@dataclass(frozen=True)
class Location:
    """One solution, split into steps, and where it first goes wrong.

    Attributes:
        question: The question.
        steps: The steps' texts, which join to the solution's.
        fault: How locating ended, with each locator's vote.
    """

    question: str
    steps: tuple[str, ...]
    fault: Fault

    @property
    def step(self) -> int | None:
        """The index of the first faulty step; None if none is named."""
        return self.fault.step

    @property
    def text(self) -> str | None:
        """The first faulty step's text; None if none is named."""
        return None if self.step is None else self.steps[self.step]


@dataclass(frozen=True)
class Located:
    """The first faulty step of every solution, in order."""

    solutions: tuple[Location, ...]

    def figures(self) -> dict[str, Any]:
        """How locating ended, by outcome, and error classes of what is located."""
        outcomes = Counter(one.fault.outcome for one in self.solutions)
        classes = Counter(one.fault.error_class for one in self.solutions if one.step is not None and one.fault.error_class)
        return {"n": len(self.solutions), "outcomes": dict(outcomes), "classes": dict(classes)}

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per solution; ``votes`` is a mapping from each locator that names a step to that step."""
        return frame(
            [
                {
                    "question": one.question,
                    "outcome": one.fault.outcome,
                    "step": one.step,
                    "text": one.text,
                    "confidence": one.fault.confidence,
                    "error_class": one.fault.error_class,
                    "steps": len(one.steps),
                    "votes": {vote.locator: vote.step for vote in one.fault.votes if vote.step is not None},
                }
                for one in self.solutions
            ]
        )


@dataclass(frozen=True)
class Check:
    """What would be quantized and tuned in a model, what would be left alone, and the estimated memory and time.

    Attributes:
        family: The architecture, as its configuration names it.
        parameters: Number of parameters.
        device: Where a run would compute.
        dtype: The compute dtype.
        schemes: The schemes that it was checked for; all of them can be made.
        given: By arm: the format, layers and warnings of each low-bit checkpoint that it was checked with.
        layers: Every module that holds matrices: what is done to it, and why not.
        scaled: By scheme: linear layers whose inputs are scaled before rounding.
        memory: Bytes that tuning is expected to need, by purpose.
        seconds: What each stage is expected to take, from a probe of this machine.
        work: What the estimates assume of a run.
        summary: Counts and shares of the layers.
        probed: Seconds that the probe took.
    """

    family: str
    parameters: int
    device: str
    dtype: str
    schemes: tuple[str, ...]
    given: dict[str, dict[str, Any]]
    layers: "tuple[Layer, ...]"
    scaled: dict[str, int]
    memory: dict[str, float]
    seconds: dict[str, float]
    work: "Work"
    summary: dict[str, Any]
    probed: float

    def figures(self) -> dict[str, Any]:
        """All of it as plain values."""
        names = ("family", "parameters", "device", "dtype")
        facts = {name: getattr(self, name) for name in names} | {"schemes": list(self.schemes), "given": self.given} | self.summary
        facts |= {"scaled": self.scaled, "memory": self.memory, "seconds": self.seconds, "assumed": vars(self.work)}
        return facts | {"layers": [vars(layer) for layer in self.layers]}

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per module that holds matrices."""
        return frame([asdict(layer) for layer in self.layers])


@dataclass(frozen=True)
class AgainstFull:
    """An arm's accuracy minus full precision's (``value``, with its 95 % interval); ``holm`` is p with Holm's adjustment."""

    n: int
    value: float
    low: float
    high: float
    mcnemar_p: float
    verdict: Verdict
    holm: float


@dataclass(frozen=True)
class ArmFigures:
    """One arm on ``n`` held-out problems; ``against_full`` is None for full precision itself.

    With several ``samples`` of each problem, ``correct``, ``wrong`` and ``unscored`` count solutions, ``accuracy`` is avg@k, and
    ``pass_at`` gives pass@k by k.
    """

    name: str
    n: int
    correct: int
    wrong: int
    unscored: int
    accuracy: float
    accuracy_kept: float | None
    step_format: float
    against_full: AgainstFull | None
    samples: int = 1
    pass_at: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SchemeFigures:
    """The effect of restoring one scheme. ``accuracy_kept`` is over full precision's, quantized and restored."""

    name: str
    loss_recovered: Interval
    accuracy_kept: dict[str, float | None]
    mcnemar_p: float
    holm: float
    bullets: int
    restore_seconds: float | None
    regressions_located: int
    oracle_agreement: float | None


@dataclass(frozen=True)
class RunResult:
    """The figures of a run, from its folder.

    Attributes:
        folder: The run's folder; restored checkpoints are in it, under ``SCHEME-restored``.
        arms: Every arm that was measured, full precision first.
        schemes: The effect of restoring, by scheme.
        notices: Notes on the figures.
    """

    folder: Path
    arms: tuple[ArmFigures, ...]
    schemes: tuple[SchemeFigures, ...]
    notices: tuple[str, ...]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The figures of a run that was made before. Raises InputError if there is none, or nothing is measured yet."""
        return cls.of(Path(folder), summary.read(Path(folder)))

    @classmethod
    def of(cls, folder: Path, found: summary.Found) -> Self:
        """The figures of a run whose records are read already."""
        of = summary.figures(found)
        return cls(
            folder,
            tuple(_arm(name, values) for name, values in of["arms"].items()),
            tuple(
                _made(SchemeFigures, {**values, "name": name, "loss_recovered": _made(Interval, values["loss_recovered"])})
                for name, values in of["schemes"].items()
            ),
            tuple(terminal.notices(found)),
        )

    @property
    def page(self) -> Path:
        """The report page."""
        return self.folder / "report.html"

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per arm; the columns of the comparison with full precision start with ``against_full_``."""
        rows = []
        for arm in self.arms:
            row = {name: value for name, value in asdict(arm).items() if name != "against_full"}
            against = asdict(arm.against_full) if arm.against_full else {}
            rows.append(row | {f"against_full_{name}": against.get(name) for name in (one.name for one in fields(AgainstFull))})
        return frame(rows)


def _arm(name: str, values: dict[str, Any]) -> ArmFigures:
    against = values["against_full"]
    compared = _made(AgainstFull, against) if against else None
    return _made(ArmFigures, {"samples": 1, "pass_at": {}, **values, "name": name, "against_full": compared})
