"""The one JSON blob that the page is drawn from."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stepmend.arms import FULL, parse
from stepmend.facts import Control, Damage, Quantized, Tuned
from stepmend.locate import steps
from stepmend.measure import fitness, statistics
from stepmend.measure.damage import PUBLISHED, kind
from stepmend.records import Bullet, Fault
from stepmend.report import blamed, controlled, effects, layers, regularities, restoring, summary
from stepmend.report.summary import Found

PLACES = 10
"""Steps that the histogram of first faults tells apart; later ones are counted with the last."""
STEPS = 20
"""Longer solutions are counted with those of this many steps."""


def blob(found: Found) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    return {
        "title": f"{found.recipe.model} on {found.recipe.benchmark}",
        "quick": found.recipe.quick,
        "n": len(found.test),
        "samples": found.samples,
        "drawn": {"temperature": found.recipe.measure.temperature, "top_p": found.recipe.measure.top_p},
        "thinks": "unclosed" in effects.endings_of(found),
        "levels": found.levels,
        "arms": [_arm(found, arm) for arm in found.arms],
        "schemes": [_scheme(found, scheme) for scheme in found.recipe.low_bit if scheme in found.arms],
        "figures": summary.figures(found),
        "noise": summary.noise_floor(found),
        "margin": found.recipe.measure.margin,
        "own_failures": found.recipe.locate.own_failures,
        "warnings": summary.fit(found).warnings(found.recipe),
        "judges": {name: summary.judge_text(tally) for name, tally in summary.judges(found).items()},
        "card": _card(found),
    }


def _interval(interval: statistics.Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "reason": interval.reason}


def _arm(found: Found, arm: str) -> dict[str, Any]:
    outcomes, full, against = found.outcomes(arm), found.outcomes(FULL), summary.against_full(found)
    levels = found.levels
    counts = Counter(grade.outcome for _, _, grade in found.solutions(arm))
    return {
        "name": arm,
        "pass_at": summary.pass_at(found, arm),
        "accuracy": _interval(statistics.accuracy(outcomes)),
        "levels": {level: _interval(statistics.accuracy(found.outcomes(arm, level))) for level in levels},
        "difference": _interval(statistics.difference(outcomes, full)),
        "p": against[arm]["mcnemar_p"] if arm in against else 1.0,
        "holm": against[arm]["holm"] if arm in against else 1.0,
        "beside_full": summary.beside_full(found, arm) if arm in against else "",
        "accuracy_kept": summary.accuracy_kept(found, arm),
        "loss_recovered": _interval(summary.recovery(found, parse(arm).scheme, arm)) if parse(arm).round else None,
        "unscored": counts["unscored"],
        "classes": dict(summary.classes(found, arm)),
        "places": _places(found, arm),
        "capabilities": summary.capabilities(found, arm),
        "behaviour": {name: _behaviour(found, arm, name) for name in ("all", *levels)},
        "subjects": {s: _interval(statistics.accuracy(found.outcomes(arm, subject=s))) for s in _subjects(found)},
        "by_steps": _by_steps(found, arm),
    }


def _subjects(found: Found) -> list[str]:
    return sorted({p.subject for p in found.test if p.subject})


def _behaviour(found: Found, arm: str, level: str) -> dict[str, Any]:
    """What else differs, on all held-out problems or one level: length against full precision (tokens), and shares of odd endings."""
    chosen = [p for p in found.test if level in ("all", p.level)]
    solutions, full = found.solutions(arm, chosen), found.solutions(FULL, chosen)
    traces, grades = [trace for _, trace, _ in solutions], [grade for _, _, grade in solutions]
    return {
        "length_ratio": sum(len(t.tokens) for t in traces) / max(1, sum(len(t.tokens) for _, t, _ in full)),
        "unscored": sum(grade.outcome == "unscored" for grade in grades) / len(traces),
        "step_format": fitness.share_in_format(traces),
        **{name: sum(map(odd, traces, grades)) / len(traces) for name, (_, odd) in effects.ENDINGS.items()},
    }


def _by_steps(found: Found, arm: str) -> list[dict[str, Any]]:
    """Accuracy by the number of steps of full precision's solution, where it is right."""
    right: dict[int, list[bool]] = {}
    for problem in found.test:
        if found.solves(FULL, problem.id):
            length = len(steps.split(found.first(FULL, problem.id, right=True)[0].text))
            right.setdefault(min(length, STEPS), []).append(found.solves(arm, problem.id))
    return [{"steps": length, "n": len(of), "accuracy": sum(of) / len(of)} for length, of in sorted(right.items())]


def _places(found: Found, arm: str) -> list[int]:
    """Located first faults on the held-out problems, by step."""
    counts = [0] * PLACES
    test = {p.id for p in found.test}
    for fault in found.faults.get(arm, {}).values():
        if fault.problem in test and fault.step is not None:
            counts[min(fault.step, PLACES - 1)] += 1
    return counts


def _scheme(found: Found, scheme: str) -> dict[str, Any]:
    restored = summary.final(found, scheme)
    pairs = [(FULL, scheme), *([(scheme, restored), (FULL, restored)] if restored else [])]
    bullets = found.bullets.get(scheme, [])
    return {
        "name": scheme,
        "restored": restored,
        "loss_recovered": _interval(summary.recovery(found, scheme)),
        "returned": restoring.returned(found, scheme),
        "restoring": restoring.restoring(found, scheme),
        "moves": [{"first": a, "second": b, **summary.moves(found, a, b)} for a, b in pairs],
        "examples": _examples(found, scheme, restored),
        "bullets": {
            "count": len(bullets),
            "classes": dict(Counter(b.error_class or "not classified" for b in bullets)),
            "examples": _bullets(bullets),
        },
        "thoughts": summary.thoughts(found, scheme),
        "located": summary.locating(found.faults.get(scheme, {}).values()),
        "damage": _damage(found, scheme),
        "regularities": regularities.regularities(found, scheme),
        "agreement": summary.figures(found)["schemes"][scheme]["oracle_agreement"],
        "seconds": summary.tuning(found, scheme).seconds,
        "tuned": summary.kinds_text(found.recipe.restore.tune),
        "effects": effects.effects(found, scheme),
        "controls": controlled.controls(found, scheme),
        "blamed": blamed.blamed(found, scheme),
        "rounds": [{"arm": arm, "classes": dict(summary.classes(found, arm))} for arm in found.arms if parse(arm).scheme == scheme],
    }


def _damage(found: Found, scheme: str) -> dict[str, Any] | None:
    """What quantization did to margins, with the published ratio for this many weight bits."""
    damage = found.facts.get(Damage, scheme)
    bits = re.search(r"w(\d)a", scheme)
    more = {"published": PUBLISHED.get(int(bits[1])) if bits else None, "frontier": _frontier(found, scheme)}
    return {**damage.model_dump(), **more} if damage else None


def _frontier(found: Found, scheme: str) -> dict[str, int]:
    """Kinds of the tokens at the frontier of this scheme's faults."""
    return dict(Counter(kind(f.reference) for f in found.faults.get(scheme, {}).values() if f.reference is not None))


def _bullets(bullets: Sequence[Bullet]) -> list[dict[str, Any]]:
    """The first bullet of each error class."""
    first: dict[str, Bullet] = {}
    for bullet in bullets:
        first.setdefault(bullet.error_class or "not classified", bullet)
    return [
        {
            "class": name,
            "question": b.question,
            "prefix": b.prefix,
            "chosen": b.chosen,
            "rejected": b.rejected,
            "continuation": b.continuation,
        }
        for name, b in first.items()
    ]


def _examples(found: Found, scheme: str, restored: str | None) -> list[dict[str, Any]]:
    """One held-out problem of each error class: one that was restored where there is one, else one that was not."""
    test = {p.id for p in found.test}
    faults = [f for f in found.faults.get(scheme, {}).values() if f.problem in test]
    rescued = {f.problem for f in faults if restored and found.solves(restored, f.problem)}
    chosen: dict[str, Fault] = {}
    for fault in sorted(faults, key=lambda f: f.problem not in rescued):
        chosen.setdefault(fault.error_class or "not classified", fault)
    return [_example(found, name, fault, scheme, restored) for name, fault in sorted(chosen.items())]


def _example(found: Found, name: str, fault: Fault, scheme: str, restored: str | None) -> dict[str, Any]:
    problem = found.problems[fault.problem]
    arms = [FULL, scheme, *([restored] if restored else [])]
    return {
        "class": name,
        "question": problem.question,
        "answer": problem.answer,
        "level": problem.level,
        "votes": [{"locator": v.locator, "step": None if v.step is None else v.step + 1, "evidence": v.evidence} for v in fault.votes],
        "chosen": fault.chosen,
        "reference": fault.reference,
        "columns": [_column(found, arm, fault) for arm in arms],
    }


def _column(found: Found, arm: str, fault: Fault) -> dict[str, Any]:
    """One arm's solution of the example: its steps; in the arm that failed, tokens with their margins and the fault marked."""
    faulty = fault if arm == fault.arm else found.faults.get(arm, {}).get(fault.problem)
    solution = found.solution(arm, fault.problem, faulty.sample) if faulty else found.first(arm, fault.problem, right=True)
    trace, grade = solution
    rows = []
    for begin, end in steps.split(trace.text):
        marked = faulty is not None and faulty.span is not None and begin <= faulty.span[0] < end  # as today's rules cut it
        row: dict[str, Any] = {"text": trace.text[begin:end], "faulty": marked, "tokens": []}
        if faulty is not None and faulty.token_ends:
            row["tokens"] = _tokens(trace.text, faulty, begin, end)
        rows.append(row)
    return {"arm": arm, "outcome": grade.outcome, "reason": grade.reason, "extracted": grade.extracted, "steps": rows}


def _tokens(text: str, fault: Fault, begin: int, end: int) -> list[dict[str, Any]]:
    """The tokens of one step; of a token that two steps share, each has its part."""
    found, last = [], 0
    for index, stop in enumerate(fault.token_ends):
        if last < end and max(begin, last) < stop:
            found.append(
                {"text": text[max(begin, last) : min(stop, end)], "margin": fault.margins[index], "frontier": index == fault.frontier}
            )
        last = stop
    return found


def _card(found: Found) -> dict[str, Any]:
    controls = found.facts.all(Control)  # they have their own table
    kinds = (("quantize", found.facts.all(Quantized)), ("restore", found.facts.all(Tuned)))
    made = {f"{stage}-{arm}": fact for stage, of in kinds for arm, fact in of.items() if arm not in controls}
    seconds = {name: round(fact.seconds, 1) for name, fact in made.items() if fact.seconds is not None}
    checkpoints = {name: fact.checkpoint for name, fact in made.items() if fact.checkpoint}
    card = summary.card(found)
    counted = {scheme: of["text"] for scheme in found.recipe.low_bit if (of := layers.layers(found, scheme))}
    return {**card, "layers": counted, "seconds": seconds, "checkpoints": checkpoints, "recipe": found.recipe.model_dump(mode="json")}
