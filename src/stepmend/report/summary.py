"""The figures of a run, computed from its records."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from stepmend.arms import AGAIN, FULL, Arm, parse
from stepmend.benchmarks import oracle, story
from stepmend.engines import named
from stepmend.facts import Card, Damage, Gate, Judged, Quantized, Tally, Tuned
from stepmend.locate import steps
from stepmend.measure import fitness, statistics
from stepmend.quantize import schemes
from stepmend.recipe import Recipe as Recipe
from stepmend.records import EXECUTION, Fault
from stepmend.report.found import Found as Found
from stepmend.report.found import read as read


def figures(found: Found) -> dict[str, Any]:
    """What ``stepmend report --json`` prints."""
    return {
        "arms": {arm: _arm(found, arm) for arm in found.arms},
        "schemes": {scheme: _scheme(found, scheme) for scheme in found.recipe.low_bit if scheme in found.arms},
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


def locating(faults: Iterable[Fault]) -> dict[str, int]:
    """How locating ended, by outcome; and how many of the located faults have no error class."""
    faults = list(faults)
    counts = Counter(fault.outcome for fault in faults)
    named = {name: counts[name] for name in ("located", "abstained", "misread", "unrescuable")}
    return named | {"unclassified": sum(fault.step is not None and fault.error_class is None for fault in faults)}


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


def noise_floor(found: Found) -> dict[str, Any] | None:
    """How full precision's outcomes change when it solves the problems in other batches; None where that was not measured."""
    if not found.test or not {p.id for p in found.test} <= found.solved(AGAIN):
        return None
    first, second = found.outcomes(FULL), found.outcomes(AGAIN)
    pair, change = statistics.paired(first, second), statistics.difference(second, first)
    return {"lost": pair.only_first, "gained": pair.only_second, "n": pair.n, "value": change.value, "low": change.low, "high": change.high}


def capabilities(found: Found, arm: str) -> dict[str, int]:
    """Located step errors as the precursor's two capabilities: numerical computation, and reasoning planning."""
    counts = classes(found, arm)
    named = {name: count for name, count in counts.items() if name not in ("degenerate", "not located")}
    execution = sum(count for name, count in named.items() if name in EXECUTION)
    return {"numerical computation": execution, "reasoning planning": sum(named.values()) - execution}


def table(found: Found) -> Table:
    """The closing table: accuracy a level, the paired loss, and what of it was recovered; fits 100 columns."""
    levels = found.levels
    several, against = len(found.recipe.low_bit) > 1, against_full(found)
    columns = ("against full (95 %)", "p (Holm)" if several else "p", "loss recovered (95 %)")
    k = found.samples
    passed, title = ([f"pass@{k}"], f", avg@{k}") if k > 1 else ([], "")
    shown = Table("arm", *levels, "all", *passed, *columns, title=f"{len(found.test)} held-out problems{title}")
    for column in shown.columns[: len(levels) + len(passed) + 2]:
        column.no_wrap = True
    for arm in found.arms:
        outcomes = found.outcomes(arm)
        by_level = [percent(statistics.accuracy(found.outcomes(arm, level)).value) for level in levels]
        cells = [span(against[arm]), p_text(against[arm], several)] if arm in against else ["", ""]
        back = recovery_text(recovery(found, parse(arm).scheme, arm)) if parse(arm).round else ""
        passes = [percent(pass_at(found, arm)[str(k)])] if k > 1 else []
        shown.add_row(arm, *by_level, percent(statistics.accuracy(outcomes).value), *passes, *cells, back)
    return shown


def given(found: Found, scheme: str) -> dict[str, Any]:
    """What a run noted of a low-bit checkpoint that it was given; empty for one that it has made."""
    made = found.facts.get(Quantized, scheme)
    return made.given if made else {}


def loads_in(found: Found, scheme: str) -> str:
    """Where a scheme's checkpoint loads, or one that was given."""
    return given(found, scheme).get("loads_in") or schemes.parse(scheme).loads


def notices(found: Found) -> list[str]:
    """What a reader of the table must be told."""
    lines = [f"{s}: {recovery_sentence(found, s)}" for s in found.recipe.low_bit if s in found.arms]
    lines += [f"{arm}: {beside_full(found, arm)}." for s in found.recipe.low_bit if s in found.arms and (arm := final(found, s))]
    lines += [f"{s}: given; warning: {warning}" for s in found.recipe.low_bit for warning in given(found, s).get("warnings", [])]
    lines.append(f"Step format: followed by {percent(fit(found).in_format)} of full precision's solutions.")
    if noise := noise_floor(found):
        changed = noise["lost"] + noise["gained"]
        drawn = "drawn again" if found.recipe.measure.temperature else "in other batches"
        again, what = f"full precision {drawn} changes", "outcomes" if found.samples == 1 else "problems' majorities"
        lines.append(f"Noise floor: {again} {changed} of {noise['n']} {what} ({points(noise['value'])} points).")
    for scheme in found.recipe.low_bit:
        if (damage := found.facts.get(Damage, scheme)) and scheme in found.arms:
            lines.append(f"{scheme}: {damage_text(damage)}")
        if faults := found.faults.get(scheme):
            lines.append(f"{scheme}: regressions {', '.join(f'{name} {n}' for name, n in locating(faults.values()).items())}")
        if places := thoughts(found, scheme):
            lines.append(f"{scheme}: located faults in {', '.join(f'the {name} {n}' for name, n in sorted(places.items(), reverse=True))}")
    for name, tally in judges(found).items():
        lines.append(f"judge {name}: {judge_text(tally)}")
    if engines := named.described(found.recipe.measure.engines, found.arms):
        lines.append(engines)
    if found.recipe.quick:
        lines.append("A quick run: these figures are from few problems and prove nothing; 'stepmend run' takes more.")
    return lines


def thoughts(found: Found, arm: str) -> dict[str, int]:
    """Where an arm's located faults lie: in the thought or in the answer; empty where its solutions hold no thoughts."""
    counts = Counter[str]()
    for fault in found.faults.get(arm, {}).values():
        trace = found.trace(arm, fault.problem, fault.sample)
        if fault.span and trace and fitness.is_thought(trace):
            answer = steps.answer_start(trace.said)
            counts["thought" if answer is None or fault.span[0] + len(trace.opening) < answer else "answer"] += 1
    return dict(counts)


def damage_text(damage: Damage) -> str:
    """What quantization did to margins, in words."""
    ratio, auc = damage.ratio, damage.auc
    foretold = "" if auc is None else f"; small margins foretell them with AUC {auc:.3f}"
    return (
        f"margins are {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times full precision's; "
        f"{damage.flips} of {damage.tokens:,} tokens flip{foretold}"
    )


def card(found: Found) -> dict[str, Any]:
    """What made the run, as page and model card show it; empty where it kept none."""
    kept = found.facts.get(Card)
    return kept.model_dump(mode="json", exclude={"version", "fact", "arm", "made_by"}) if kept else {}


def judges(found: Found) -> dict[str, Tally]:
    """What became of the judges' questions, by judge; empty where none was asked."""
    judged = found.facts.get(Judged)
    return judged.judges if judged else {}


def judge_text(tally: Tally) -> str:
    """What became of a judge's questions, in words; a judge without a single vote is said to be none."""
    votes = tally.faults + tally.none
    counts = f"{tally.faults} faults named, {tally.none} times none found, {tally.off_menu} off the menu, {tally.failed} failed"
    counts += f", {tally.not_asked} not asked; {tally.tokens:,} tokens"
    return (counts if votes else f"no vote at all: {counts}") + (f"; given up: {tally.given_up}" if tally.given_up else "")


def recovery_text(interval: statistics.Interval) -> str:
    """The loss recovered in words: a share with its interval, or that it is undefined."""
    if interval.value is None:
        return "undefined"
    return f"{percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)})"


def recovery_sentence(found: Found, scheme: str) -> str:
    """The accuracy that a scheme kept, quantized and restored, and the loss recovered or why it is undefined."""
    restored, recovered = final(found, scheme), recovery(found, scheme)
    after = f", {percent(accuracy_kept(found, restored))} restored" if restored else ""
    back = f"undefined, {recovered.reason}" if recovered.reason else recovery_text(recovered)
    return f"accuracy kept {percent(accuracy_kept(found, scheme))} quantized{after}; loss recovered {back}"


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


def p_text(of: Mapping[str, Any], several: bool) -> str:
    """A p value, where several schemes are tested with Holm's adjustment in brackets."""
    return f"{of['mcnemar_p']:.2g} ({of['holm']:.2g})" if several else f"{of['mcnemar_p']:.2g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %".replace("-", "−")


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def moves(found: Found, first: str, second: str) -> dict[str, int]:
    """How problems moved between right and wrong from one arm to another."""
    pair = statistics.paired(found.outcomes(first), found.outcomes(second))
    return {"right_right": pair.both_right, "right_wrong": pair.only_first, "wrong_right": pair.only_second, "wrong_wrong": pair.both_wrong}


def classes(found: Found, arm: str) -> Mapping[str, int]:
    """Error classes of an arm's located failures on the held-out problems; ``not located`` where no locator tells."""
    test = {p.id for p in found.test}
    return Counter(fault.error_class or "not located" for fault in found.faults.get(arm, {}).values() if fault.problem in test)
