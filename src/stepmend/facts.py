"""Facts: the results of stages that are not records. One frozen class for each kind of fact, and the collection of one run.

A fact is about one arm (``arm`` is empty if it is about the whole run). ``made_by`` is the digest of all its inputs; it is empty
where nothing that is measured depends on it. Fields with a default were not kept by earlier versions.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from stepmend.records import Record


class Fact(Record):
    """Base of all facts. ``fact`` says which kind it is: every class has its own name, which is its field's default."""

    fact: str
    arm: str = ""
    made_by: str = ""


F = TypeVar("F", bound=Fact)


class Part(BaseModel):
    """Base of what facts consist of."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Placement(Fact):
    """Where a run computes: kind of device, dtype, slots, and how many slots ``fit`` into memory. A resumed run keeps these.

    ``asked`` is the digest of the recipe's settings for it.
    """

    fact: str = "placement"
    device: str
    dtype: str
    slots: int
    fit: int | None = None
    asked: str = ""


class Card(Fact):
    """The run card: library versions, digests, seed. ``parent`` is the digest of full precision's checkpoint.

    ``versions`` are those that the run was started with, and ``later`` those that it went on with, if they were others.
    """

    fact: str = "card"
    versions: dict[str, str] = Field(default_factory=dict)
    later: tuple[dict[str, str], ...] = Field(default=(), exclude_if=lambda later: not later)
    model: str = ""
    parent: str = ""
    recipe: str = ""
    seed: int = 0
    prompt: str = ""
    grading: str = ""
    leakage: dict[str, dict[str, int]] = Field(default_factory=dict)


class Seconds(Fact):
    """Seconds that every stage took, in all calls together, by the stage's label."""

    fact: str = "seconds"
    stages: dict[str, float]


class Quantized(Fact):
    """A quantized checkpoint: its digest, the seconds that it took, and how many layers were quantized and left alone, and why.

    ``given`` describes a checkpoint given by ``--quantized``: its format, where it loads, its contents, and warnings.
    """

    fact: str = "quantized"
    seconds: float | None = None
    checkpoint: str = ""
    layers: dict[str, JsonValue] = Field(default_factory=dict)
    given: dict[str, Any] = Field(default_factory=dict)


class Slope(Part):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Flips(Part):
    """Tokens of one kind, and how many of them flip."""

    tokens: int
    flips: int


class Damage(Fact):
    """What quantization did to the margins of full precision's own tokens (``measure.damage``)."""

    fact: str = "damage"
    traces: int
    tokens: int
    flips: int
    ratio: Slope
    median: float | None
    auc: float | None
    kinds: dict[str, Flips]


class Gate(Fact):
    """Why a scheme is not restored; None if it is."""

    fact: str = "gate"
    why: str | None = None


class Curated(Fact):
    """How many bullets were made at an arm's faults, and how many curate problems were solved for them."""

    fact: str = "curated"
    bullets: int
    problems: int


class Verdict(Part):
    """Mean KL divergence a token before and after, on ``problems`` held-out problems, and the 95 % interval of its paired change."""

    before: float
    after: float
    low: float
    high: float
    problems: int


class Endings(Part):
    """Abnormal endings of held-out solutions: new ones (``lost``), those that disappeared, p, and the number of problems.

    They are cut off, loop, or are an unclosed thought. ``kinds`` gives the same for each of these, with Holm's p, where one of the tests
    shows that more end so.
    """

    lost: int
    gained: int
    p: float
    n: int
    kinds: dict[str, tuple[int, int, float]] = Field(default_factory=dict, exclude_if=lambda kinds: not kinds)

    @property
    def words(self) -> str:
        """What the solutions are, with the counts that show it: the kind that does, else all of them together."""
        lost, gained, p = self.lost, self.gained, self.p
        shown = [(name, of) for name, of in self.kinds.items() if of[2] < 0.05 and of[0] > of[1]]
        if (p >= 0.05 or lost <= gained) and shown:
            name, (lost, gained, p) = min(shown, key=lambda one: one[1][2])
        else:
            name = "cut off or loop"
        return f"{name} ({lost} new, {gained} fewer, p = {p:.2g})"


class Tuned(Fact):
    """How a checkpoint was restored (``restore.tune.Tuned``), and what was decided of it.

    ``kept`` says whether the restored state was accepted; None was written by versions that accepted every one. ``checkpoint`` is the
    digest of what the arm's folder holds: the quantized model, where the state was not accepted.
    """

    fact: str = "tuned"
    seconds: float | None = None
    checkpoint: str = ""
    bullets: int = 0
    anchors: int = 0
    losses: tuple[float, ...] = ()
    verdict: Verdict | None = None
    export_error: float | None = None
    export_tolerance: float | None = None
    tokens: int = 0
    chosen_change: float | None = None
    rates: dict[str, float] = Field(default_factory=dict)
    tested: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    moved: float = 0.0
    solved: tuple[float, float] | None = None
    curve: tuple[tuple[int, float], ...] = ()
    other: tuple[float, float] | None = None
    kept: bool | None = None
    layers: dict[str, int] = Field(default_factory=dict)
    endings: Endings | None = None

    @property
    def accepted(self) -> bool:
        """Whether the arm's folder holds a restored model."""
        return self.kept is not False


class Change(Part):
    """Means before and after, and the change's mean with its 95 % interval over ``n`` problems."""

    before: float
    after: float
    n: int
    low: float
    high: float
    value: float


class Effects(Fact):
    """Side effects of restoring: on the loss on the questions' text, and on KL where both models were right (nats per token)."""

    fact: str = "effects"
    question: Change | None = None
    kl: Change | None = None


class Control(Fact):
    """A control that was tuned and measured: of which scheme, with what budget and seed, and what it took.

    ``checkpoint`` is the digest of its checkpoint, which is not kept.
    """

    fact: str = "control"
    scheme: str
    control: str
    budget: str
    seed: int
    steps: int = 0
    seconds: float
    tokens: int
    bullets: int
    checkpoint: str = ""


class Tally(Part):
    """The outcomes of one judge's questions, and their tokens; ``given_up`` is the reason why the judge is no longer asked."""

    asked: int = 0
    from_kept: int = 0
    faults: int = 0
    none: int = 0
    off_menu: int = 0
    failed: int = 0
    not_asked: int = 0
    tokens: int = 0
    given_up: str | None = None


class Judged(Fact):
    """The outcomes of the judges' questions, by judge, in the last call that asked any."""

    fact: str = "judged"
    judges: dict[str, Tally]


class BlamedModule(Part):
    """A linear layer with codes: its place in the stack, weights, bits of a code, and its ``score`` at the curate faults.

    ``low`` and ``high`` are the score's 95 % interval over faults. ``error`` is the sum of squared rounding errors, ``relative`` that over
    the sum of squared weights.
    """

    name: str
    layer: int
    part: str
    weights: int
    bits: int
    score: float
    low: float
    high: float
    error: float
    relative: float


class Blamed(Fact):
    """Which modules caused a scheme's faults: the mean score a fault of every module, by the measure that chose best on curate problems.

    ``tried`` holds, by measure, how many frontiers came back to full precision's token of the ``faults`` faults, twice cut in half: with
    the modules in full precision that the other half's scores name.
    """

    fact: str = "blamed"
    measure: str
    faults: int
    tried: dict[str, int]
    modules: tuple[BlamedModule, ...]


class Rescue(Fact):
    """A low-bit model with some modules in full precision: those that ``choice`` names within ``share`` percent of the weights.

    ``frontiers`` counts the held-out faults at whose frontier full precision's token comes first again, and all of them; ``regressions``
    and ``others`` are the problems that the arm has solved: those that rounding lost, and some that it did not lose.
    """

    fact: str = "rescue"
    scheme: str
    choice: str
    share: int
    seed: int | None = None
    modules: tuple[str, ...]
    weights: int
    frontiers: tuple[int, int]
    regressions: tuple[str, ...]
    others: tuple[str, ...]


class Mixed(Fact):
    """A checkpoint of mixed precision, or uniform bits of the same size, that was measured on the test problems.

    ``budget`` and ``size`` are mean bits per weight, allowed and used, scales and zero points included; ``wide`` the bits of the modules
    that have more of them; ``made`` the scheme of all others.
    """

    fact: str = "mixed"
    scheme: str
    choice: str
    made: str
    budget: float
    size: float
    wide: dict[str, int]
    checkpoint: str
    seconds: float


class Facts:
    """Facts of one run, in the order in which they were kept; of one kind and arm the last one counts."""

    def __init__(self, held: Iterable[Fact | Mapping[str, Any]] = ()) -> None:
        """``held``: facts, or what a file holds of them; what is not a fact of its kind in this version is left out when it is asked
        for."""
        self._held: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for one in held:
            self.put(one)

    def put(self, fact: Fact | Mapping[str, Any]) -> None:
        """Add one after the others."""
        values = fact.model_dump(mode="json") if isinstance(fact, Fact) else fact
        self._held.setdefault((values["fact"], values.get("arm", "")), []).append(values)

    def get(self, kind: type[F], arm: str = "", made_by: Collection[str] | None = None) -> F | None:
        """The last fact of a kind about an arm; that with one of these digests, if some are given."""
        held = self._held.get((name_of(kind), arm), [])
        return next((fact for values in reversed(held) if (fact := _parsed(kind, values, made_by))), None)

    def all(self, kind: type[F]) -> dict[str, F]:
        """The last fact of a kind about every arm, by the arm's name."""
        arms = [arm for name, arm in self._held if name == name_of(kind)]
        return {arm: fact for arm in arms if (fact := self.get(kind, arm))}


def name_of(kind: type[Fact]) -> str:
    """What ``fact`` says in the facts of a class."""
    return kind.model_fields["fact"].default


def _parsed(kind: type[F], values: Mapping[str, Any], made_by: Collection[str] | None) -> F | None:
    if made_by is not None and values.get("made_by", "") not in made_by:
        return None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        warnings.warn(f"a fact of kind {name_of(kind)} cannot be read ({where}: {first['msg']}) and is ignored", stacklevel=3)
        return None
