"""How a scheme was restored, from the facts of its tuning: validation, range test, codes, and whether the result was accepted."""

import math
from typing import Any

from stepmend.facts import Tuned
from stepmend.report.summary import Found

UNCHANGED = "the quantized model is returned unchanged"
NOT_BETTER = f"No state was better on held-out problems: {UNCHANGED}."


def restoring(found: Found, scheme: str) -> list[dict[str, Any]]:
    """What each round of restoring a scheme did; empty where nothing was restored, or by a version that noted none of this.

    ``states`` are the quantized, the solved and the tuned model with their validation KL (natural log a token; None where a stage was left
    out). ``refused`` says why the result was not accepted; None where it was.
    """
    rounds = []
    for arm in found.restored(scheme):
        tuned = found.facts.get(Tuned, arm)
        if tuned and tuned.kept is not None:
            rounds.append(_round(arm, tuned))
    return rounds


def returned(found: Found, scheme: str) -> bool:
    """Whether restoring a scheme gave nothing better, so that its quantized model was returned unchanged."""
    return any(round["refused"] for round in restoring(found, scheme)[:1])


def _round(arm: str, of: Tuned) -> dict[str, Any]:
    verdict, rates, tested = of.verdict, of.rates, of.tested
    return {
        "arm": arm,
        "refused": None if of.accepted else _refused(of),
        "states": _states(of),
        "verdict": {**verdict.model_dump(), "change": verdict.after - verdict.before} if verdict else None,
        "rates": [{"kind": kind, "rate": rates.get(kind), "tried": dict(tested.get(kind, []))} for kind in sorted({*rates, *tested})],
        "tested": sorted({rate for tried in tested.values() for rate, _ in tried}),
        "moved": of.moved,
        "curve": of.curve,
        "steps": len(of.losses),
        "other": of.other,
        "endings": of.endings.model_dump() if of.endings else None,
        "bullets": of.bullets,
        "anchors": of.anchors,
    }


def _refused(of: Tuned) -> str:
    if endings := of.endings:  # counted only where KL was better
        return f"More solutions of held-out problems are {endings.words}: {UNCHANGED}."
    return NOT_BETTER


def _states(of: Tuned) -> list[dict[str, Any]]:
    """The model after each stage, with its KL on the problems that choose among states; the stages that were left out say why."""
    solved, curve = of.solved, of.curve
    start = solved[0] if solved else curve[0][1] if curve else None
    rows: list[dict[str, Any]] = [{"state": "quantized", "kl": start, "note": ""}]
    if solved:
        better = solved[1] < solved[0]
        said = f"{100 * of.moved:.1f} % of the codes moved" if better else "not better: quantized codes kept"
        rows.append({"state": "codes solved", "kl": solved[1], "note": said})
    if curve:
        at, best = min(curve, key=lambda point: point[1])
        rows.append({"state": "tuned", "kl": best, "note": f"state of step {at}, of {len(of.losses)} taken"})
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
