"""How a scheme was restored, from the facts of its tuning: validation, range test, codes, and whether the result was accepted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepmend.facts import Tuned, Verdict
from stepmend.report.summary import Found

UNCHANGED = "the quantized model is returned unchanged"
NOT_BETTER = f"No state was better on held-out problems: {UNCHANGED}."


@dataclass(frozen=True)
class State:
    """The model after one stage, with its KL on the problems that choose among states; ``note`` says why a stage was left out."""

    state: str
    kl: float | None
    note: str


@dataclass(frozen=True)
class Rate:
    """The range test of one kind: the peak learning rate that was chosen (None: not tuned), and the KL that each tried one came to."""

    kind: str
    rate: float | None
    tried: dict[float, float]


@dataclass(frozen=True)
class Round:
    """One round of restoring. ``states`` are the quantized, the solved and the tuned model; ``refused`` says why it was not accepted."""

    arm: str
    refused: str | None
    states: list[State]
    verdict: Verdict | None
    rates: list[Rate]
    tested: list[float]
    moved: float
    curve: Sequence[tuple[int, float]]
    other: Sequence[float] | None

    @property
    def change(self) -> float | None:
        """Of the mean KL, on the problems that judge."""
        return self.verdict.after - self.verdict.before if self.verdict else None


@dataclass(frozen=True)
class Restoring:
    """All rounds of one scheme."""

    scheme: str
    rounds: list[Round]


def figures(found: Found) -> list[Restoring]:
    """Every scheme that was restored by a version that noted how."""
    return [Restoring(scheme, rounds) for scheme in found.measured if (rounds := restoring(found, scheme))]


def restoring(found: Found, scheme: str) -> list[Round]:
    """What each round of restoring a scheme did; empty where nothing was restored, or by a version that noted none of this."""
    tuned = [(arm, found.facts.get(Tuned, arm)) for arm in found.restored(scheme)]
    return [_round(arm, of) for arm, of in tuned if of and of.kept is not None]


def returned(found: Found, scheme: str) -> bool:
    """Whether restoring a scheme gave nothing better, so that its quantized model was returned unchanged."""
    return any(round.refused for round in restoring(found, scheme)[:1])


def _round(arm: str, of: Tuned) -> Round:
    rates, tested = of.rates, of.tested
    return Round(
        arm,
        refused=None if of.accepted else _refused(of),
        states=_states(of),
        verdict=of.verdict,
        rates=[Rate(kind, rates.get(kind), dict(tested.get(kind, []))) for kind in sorted({*rates, *tested})],
        tested=sorted({rate for tried in tested.values() for rate, _ in tried}),
        moved=of.moved,
        curve=of.curve,
        other=of.other,
    )


def _refused(of: Tuned) -> str:
    if endings := of.endings:  # counted only where KL was better
        return f"More solutions of held-out problems are {endings.words}: {UNCHANGED}."
    return NOT_BETTER


def _states(of: Tuned) -> list[State]:
    solved, curve = of.solved, of.curve
    start = solved[0] if solved else curve[0][1] if curve else None
    rows = [State("quantized", start, "")]
    if solved:
        better = solved[1] < solved[0]
        said = f"{100 * of.moved:.1f} % of the codes moved" if better else "not better: quantized codes kept"
        rows.append(State("codes solved", solved[1], said))
    if curve:
        at, best = min(curve, key=lambda point: point[1])
        rows.append(State("tuned", best, f"state of step {at}, of {len(of.losses)} taken"))
    return rows


def nats(value: float | None) -> str:
    """A KL divergence with three significant digits, and at least four decimals."""
    if value is None:
        return "–"
    decimals = max(4, 2 - math.floor(math.log10(abs(value)))) if value else 4
    return f"{value:.{decimals}f}".replace("-", "−")


def change(value: float) -> str:
    """The change of a KL divergence, with its sign."""
    return ("+" if value > 0 else "") + nats(value)
