"""What ``stepmend compare`` shows: a table for the terminal, and a page, of arms that other tools measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from stepmend.logs import Log
from stepmend.measure import behaviour, statistics
from stepmend.measure.compare import Compared, is_broken
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
    arms = [pairs[0].first, *(pair.second for pair in chosen)]
    # Whether a run is worth reading comes before what it says.
    lines = [f"{arm.name} is a broken run: {why}. Its accuracy says little." for arm in arms if (why := is_broken(arm))]
    lines += [pair.sentence(p) for pair, p in zip(chosen, adjusted, strict=True)]
    lines += [line for pair in chosen for line in _subtask_lines(pair)]
    lines += _read_lines(arms)
    lines += [f"{arm.name}: {note}." for arm in arms for note in arm.notes]
    for pair in chosen:
        lines += [f"{pair.second.name} and {pair.first.name} were not measured alike: {what}." for what in pair.differences]
        if pair.unpaired:
            only = [
                sum(p not in other.samples for p in one.samples) for one, other in ((pair.first, pair.second), (pair.second, pair.first))
            ]
            lines.append(f"Not paired: {only[0]} problem(s) only in {pair.first.name}, {only[1]} only in {pair.second.name}.")
        if pair.unscored:
            lines.append(
                f"{pair.unscored} problem(s) of {pair.first.name} and {pair.second.name} are unscored in one of them; counted as wrong"
                f"{', or left out where that is said' if pair.left_out and pair.differs_in_unscored else ''}."
            )
    return lines


def _read_lines(arms: Sequence[Log]) -> list[str]:
    """Which metric and filter was read, and which others there are."""
    if not any(arm.metric for arm in arms):
        return []
    if len({(arm.metric, arm.others) for arm in arms}) == 1:
        return [_read_line("Read", arms[0])]
    return [_read_line(f"{arm.name}: read", arm) for arm in arms if arm.metric]


def _read_line(begin: str, arm: Log) -> str:
    others = f"; there are also {', '.join(arm.others[:8])}{' …' if len(arm.others) > 8 else ''}" if arm.others else ""
    return f"{begin}: {arm.metric}{others}."


def _subtask_lines(pair: Compared) -> list[str]:
    """What differs by subtask, with Holm's p over the subtasks; nothing where there are none."""
    rows = [row for row in _groups([pair], "subtask") if row["holm"] < 1 - statistics.LEVEL]
    several = len(_groups([pair], "subtask"))
    said = [f"{row['group']} {points(row['difference']['value'])} (Holm p = {row['holm']:.2g})" for row in rows]
    if not several:
        return []
    return [f"{pair.second.name} by subtask, of {several}: {', '.join(said) or 'no difference is shown in any'}."]


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
        "groups": {name: found for name in ("subtask", "level", "subject", "type") if (found := _groups(chosen, name))},
    }


def _arm(arm: Log, first: Log) -> dict[str, Any]:
    several = any(len(samples) > 1 or samples[0].share is not None for samples in arm.samples.values())
    shares = np.array([sum(s.value or 0.0 for s in samples) / len(samples) for samples in arm.samples.values()])
    cut = [s.cut for samples in arm.samples.values() for s in samples if s.cut is not None]
    texts = {p: s[0].text for p, s in arm.samples.items() if s[0].text}
    others = {p: s[0].text for p, s in first.samples.items() if s[0].text}
    return {
        "name": arm.name,
        "n": len(shares),
        "accuracy": vars(statistics.mean(shares) if several else statistics.accuracy(shares == 1)),
        "unscored": arm.unscored,
        "metric": arm.metric,
        "cut_off": float(np.mean(cut)) if cut else None,
        "broken": is_broken(arm),
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
    """Difference from the first arm by subtask, level, subject or type, where its log has them, with Holm's p over the groups of an arm."""
    rows = []
    for pair in chosen:
        of_pair = []
        first, second = pair.shares
        labels = np.array([pair.first.samples[p][0].groups.get(name, "") for p in pair.problems])
        for label in sorted(set(labels) - {""}):
            inside = labels == label
            change = statistics.difference(second[inside], first[inside])
            p = replace(pair, problems=[problem for problem, kept in zip(pair.problems, inside, strict=True) if kept]).p
            of_pair.append({"arm": pair.second.name, "group": label, "n": int(inside.sum()), "difference": vars(change), "p": p})
        for row, holm in zip(of_pair, statistics.holm([row["p"] for row in of_pair]), strict=True):
            rows.append({**row, "holm": holm})
    return rows
