"""The figures of a run, computed from its records."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stepmend.arms import FULL, Arm, parse
from stepmend.benchmarks import oracle, story
from stepmend.facts import Card, Gate, Quantized, Tally, Tuned
from stepmend.measure import fitness, statistics
from stepmend.quantize import schemes
from stepmend.recipe import Recipe as Recipe
from stepmend.records import Fault
from stepmend.report.found import Found as Found
from stepmend.report.found import read as read


def figures(found: Found) -> dict[str, Any]:
    """What ``stepmend report --json`` prints."""
    return {
        "arms": {arm: _arm(found, arm) for arm in found.arms},
        "schemes": {scheme: _scheme(found, scheme) for scheme in found.measured},
    }


def _arm(found: Found, arm: str) -> dict[str, Any]:
    solutions = found.solutions(arm)
    counts = Counter(grade.outcome for _, _, grade in solutions)
    against = against_full(found)
    drawn = {"samples": found.samples, "pass_at": pass_at(found, arm)} if found.samples > 1 else {}
    return {
        "n": len(found.test),
        **drawn,
        "correct": counts["correct"],
        "wrong": counts["wrong"],
        "unscored": counts["unscored"],
        "against_full": against.get(arm),
        "accuracy": counts["correct"] / len(solutions),
        "accuracy_kept": accuracy_kept(found, arm),
        "step_format": fitness.share_in_format([trace for _, trace, _ in solutions]),
    }


def pass_at(found: Found, arm: str) -> dict[str, float]:
    """pass@k by k, for the powers of two up to the number of samples and that number; empty where there is one solution a problem."""
    ks = sorted({2**i for i in range(found.samples.bit_length())} | {found.samples}) if found.samples > 1 else []
    outcomes = found.outcomes(arm)
    return {str(k): statistics.pass_at(outcomes, k) for k in ks}


def against_full(found: Found) -> dict[str, dict[str, Any]]:
    """Every arm but full precision, against it: ``n``, the difference with its interval, McNemar's p, the verdict, and ``holm``.

    ``holm`` is p with Holm's adjustment over the schemes: over all quantized arms, and apart from those over all restored ones of a round.
    """
    full, rows = found.outcomes(FULL), dict[str, dict[str, Any]]()
    for arm in found.arms[1:]:
        outcomes = found.outcomes(arm)
        change, pair = statistics.difference(outcomes, full), statistics.paired(full, outcomes)
        shown = statistics.verdict(change, found.recipe.measure.margin)
        rows[arm] = {"n": pair.n, "value": change.value, "low": change.low, "high": change.high, "mcnemar_p": pair.p, "verdict": shown}
    for number in {parse(arm).round for arm in rows}:
        arms = [arm for arm in rows if parse(arm).round == number]
        for arm, p in zip(arms, statistics.holm([rows[arm]["mcnemar_p"] for arm in arms]), strict=True):
            rows[arm]["holm"] = p
    return rows


def _scheme(found: Found, scheme: str) -> dict[str, Any]:
    against = against_full(found)[scheme]
    recovered, restored = recovery(found, scheme), final(found, scheme)
    shown = {"value": recovered.value, "low": recovered.low, "high": recovered.high, "reason": recovered.reason}
    faults = list(found.faults.get(scheme, {}).values())
    return {
        "recovery": shown,
        "loss_recovered": shown,
        "accuracy_kept": {
            "quantized": accuracy_kept(found, scheme),
            "restored": accuracy_kept(found, restored) if restored else None,
        },
        "mcnemar_p": against["mcnemar_p"],
        "holm": against["holm"],
        "bullets": len(found.bullets.get(scheme, [])),
        "restore_seconds": tuning(found, scheme).seconds,
        "regressions_located": sum(fault.step is not None for fault in faults),
        "oracle_agreement": oracle_agreement(found, faults),
    }


def tuning(found: Found, scheme: str) -> Tuned:
    """What was kept of a scheme's last tuning: seconds, losses, tokens; empty where nothing was restored."""
    return found.facts.get(Tuned, final(found, scheme) or "") or Tuned()


def final(found: Found, scheme: str) -> str | None:
    """The restored arm of a scheme, of the last round; None where nothing was restored."""
    return next((arm for arm in reversed(found.restored(scheme)) if arm in found.arms), None)


def recovery(found: Found, scheme: str, arm: str | None = None) -> statistics.Interval:
    """The loss recovered in a scheme by ``arm``, or its last restored one: (restored − quantized) / (full − quantized) accuracy.

    On all test problems, none of which decided whether to restore. With its interval; None with a reason where it is undefined.
    """
    full, quantized = found.outcomes(FULL), found.outcomes(scheme)
    restored = arm or final(found, scheme)
    interval = statistics.recovery(full, quantized, found.outcomes(restored) if restored else quantized)
    if interval.value is not None and not restored:
        return statistics.Interval(None, None, None, _unrestored(found, scheme))
    return interval


def accuracy_kept(found: Found, arm: str) -> float | None:
    """An arm's accuracy over full precision's, on the held-out problems; None where full precision solves none."""
    full = float(found.outcomes(FULL).mean())
    return float(found.outcomes(arm).mean()) / full if full else None


def fit(found: Found) -> fitness.Fitness:
    """Full precision's accuracy and step format on the held-out problems."""
    return fitness.fitness([trace for _, trace, _ in found.solutions(FULL)], found.outcomes(FULL))


def _unrestored(found: Found, scheme: str) -> str:
    """Why a scheme that lost accuracy has no restored arm."""
    if (tuned := found.facts.get(Tuned, str(Arm(scheme).restored()))) and not tuned.accepted:
        return "no state was better on held-out problems; the quantized model is returned unchanged"
    if fit(found).weak and not found.recipe.restore.within_noise:
        return f"full precision solves under {100 * fitness.LOW_ACCURACY:.0f} % of the problems; not restored"
    gate = found.facts.get(Gate, scheme)
    return (gate and gate.why) or "not restored yet"


def oracle_agreement(found: Found, faults: list[Fault]) -> float | None:
    """Share of regressions whose located step is exactly the oracle's; an abstention does not agree. None without an oracle."""
    judged = [
        fault.step == oracle.judge(story.parse(problem.program), found.solution(fault.arm, fault.problem, fault.sample)[0].text).step
        for fault in faults
        if (problem := found.problems[fault.problem]).program
    ]
    return sum(judged) / len(judged) if judged else None


def given(found: Found, scheme: str) -> dict[str, Any]:
    """What a run noted of a low-bit checkpoint that it was given; empty for one that it has made."""
    made = found.facts.get(Quantized, scheme)
    return made.given if made else {}


def loads_in(found: Found, scheme: str) -> str:
    """Where a scheme's checkpoint loads, or one that was given."""
    return given(found, scheme).get("loads_in") or schemes.parse(scheme).loads


def card(found: Found) -> dict[str, Any]:
    """What made the run, as page and model card show it; empty where it kept none."""
    kept = found.facts.get(Card)
    return kept.model_dump(mode="json", exclude={"version", "fact", "arm", "made_by"}) if kept else {}


def judge_text(tally: Tally) -> str:
    """What became of a judge's questions, in words; a judge without a single vote is said to be none."""
    votes = tally.faults + tally.none
    counts = f"{tally.faults} faults named, {tally.none} times none found, {tally.off_menu} invalid, {tally.failed} failed"
    counts += f", {tally.not_asked} not asked; {tally.tokens:,} tokens"
    return (counts if votes else f"no vote at all: {counts}") + (f"; given up: {tally.given_up}" if tally.given_up else "")


def recovery_text(interval: statistics.Interval) -> str:
    """The loss recovered in words: a share with its interval, or that it is undefined."""
    if interval.value is None:
        return "undefined"
    return f"{percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)})"


def beside_full(found: Found, arm: str) -> str:
    """What is shown of an arm's accuracy beside full precision's, in words."""
    outcomes, margin = found.outcomes(arm), found.recipe.measure.margin
    shown = statistics.verdict(statistics.difference(outcomes, found.outcomes(FULL)), margin)
    return f"compared with full precision: {statistics.verdict_text(shown, margin)}, n = {len(outcomes)}"


def kinds_text(tune: str) -> str:
    """What is restored, in words: ``codes+scales+norms`` is codes, scales and norms."""
    *most, last = tune.replace("lora", "an adapter").split("+")
    return f"{', '.join(most)} and {last}" if most else last


def span(of: Mapping[str, Any]) -> str:
    """A difference in points with its interval."""
    return f"{points(of['value'])} ({points(of['low'])} to {points(of['high'])})"


def p_text(p: float, holm: float, several: bool) -> str:
    """A p value, where several schemes are tested with Holm's adjustment in brackets."""
    return f"{p:.2g} ({holm:.2g})" if several else f"{p:.2g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %".replace("-", "−")


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def classes(found: Found, arm: str) -> dict[str, int]:
    """Error classes of an arm's located failures on the held-out problems; ``not located`` where no locator tells."""
    test = {p.id for p in found.test}
    return dict(Counter(fault.error_class or "not located" for fault in found.faults.get(arm, {}).values() if fault.problem in test))
