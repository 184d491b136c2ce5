"""What ``stepmend compare`` shows: a table for the terminal, and a page, of arms that other tools measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from stepmend.measure import behaviour, statistics
from stepmend.measure.compare import Compared
from stepmend.measure.logs import Log
from stepmend.report import page
from stepmend.report.summary import percent, points


def against_first(pairs: Sequence[Compared]) -> tuple[list[Compared], list[float]]:
    """The pairs that hold the first arm, and their Holm-adjusted p."""
    chosen = [pair for pair in pairs if pair.first is pairs[0].first]
    return chosen, statistics.holm([pair.p for pair in chosen])


def table(pairs: Sequence[Compared]) -> Table:
    """Every other arm against the first one."""
    first = pairs[0].first
    shown = Table(
        "arm", "pairs", "right", "lost", "gained", "against first (95 %)", "p", "Holm p", "detectable", title=f"first: {escape(first.name)}"
    )
    chosen, adjusted = against_first(pairs)
    for pair, p in zip(chosen, adjusted, strict=True):
        counts, change = pair.paired, pair.difference
        shown.add_row(
            escape(pair.second.name),
            str(counts.n),
            percent(float(pair.shares[1].mean())),
            str(counts.only_first),
            str(counts.only_second),
            f"{points(change.value)} ({points(change.low)} to {points(change.high)})",
            f"{pair.p:.2g}",
            f"{p:.2g}",
            percent(statistics.smallest_detectable(counts)),
        )
    return shown


def notices(pairs: Sequence[Compared]) -> list[str]:
    """What may be concluded, and what could not be paired and why."""
    chosen, adjusted = against_first(pairs)
    lines = [pair.sentence(p) for pair, p in zip(chosen, adjusted, strict=True)]
    for pair in chosen:
        if pair.unpaired:
            only = [
                sum(p not in other.samples for p in one.samples) for one, other in ((pair.first, pair.second), (pair.second, pair.first))
            ]
            lines.append(f"Not paired: {only[0]} problem(s) only in {pair.first.name}, {only[1]} only in {pair.second.name}.")
        if pair.unscored:
            lines.append(f"{pair.unscored} problem(s) of {pair.first.name} and {pair.second.name} are unscored in one of them; not right.")
    return lines


def write(pairs: Sequence[Compared], file: Path) -> None:
    """Write the page, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    page.write_blob(blob(pairs), "compare.html.j2", file)


def blob(pairs: Sequence[Compared]) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    chosen, adjusted = against_first(pairs)
    first = pairs[0].first
    arms = [first, *(pair.second for pair in chosen)]
    return {
        "title": f"{first.name} against {chosen[0].second.name if len(chosen) == 1 else f'{len(chosen)} others'}",
        "task": first.task,
        "sentences": notices(pairs),
        "arms": [_arm(arm, first) for arm in arms],
        "rows": [{**pair.figures(), "holm": p, "moves": _moves(pair)} for pair, p in zip(chosen, adjusted, strict=True)],
        "pairs": [pair.figures() for pair in pairs],
        "groups": {name: found for name in ("level", "subject", "type") if (found := _groups(chosen, name))},
    }


def _arm(arm: Log, first: Log) -> dict[str, Any]:
    several = any(len(samples) > 1 for samples in arm.samples.values())
    shares = np.array([sum(s.correct is True for s in samples) / len(samples) for samples in arm.samples.values()])
    texts = {p: s[0].text for p, s in arm.samples.items() if s[0].text}
    others = {p: s[0].text for p, s in first.samples.items() if s[0].text}
    return {
        "name": arm.name,
        "n": len(shares),
        "accuracy": vars(statistics.mean(shares) if several else statistics.accuracy(shares == 1)),
        "unscored": sum(s.correct is None for samples in arm.samples.values() for s in samples),
        "length_ratio": behaviour.length_ratio(texts, others),
        "loops": float(np.mean([behaviour.loops(text) for text in texts.values()])) if texts else None,
    }


def _moves(pair: Compared) -> dict[str, Any]:
    counts = pair.paired
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "right_right": counts.both_right,
        "right_wrong": counts.only_first,
        "wrong_right": counts.only_second,
        "wrong_wrong": counts.both_wrong,
    }


def _groups(chosen: Sequence[Compared], name: str) -> list[dict[str, Any]]:
    """Difference from the first arm by level, subject or type, where the first arm's log has them."""
    rows = []
    for pair in chosen:
        first, second = pair.shares
        labels = np.array([pair.first.samples[p][0].groups.get(name, "") for p in pair.problems])
        for label in sorted(set(labels) - {""}):
            inside = labels == label
            change = statistics.difference(second[inside], first[inside])
            rows.append({"arm": pair.second.name, "group": label, "n": int(inside.sum()), "difference": vars(change)})
    return rows
