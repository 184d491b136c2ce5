"""What ``stepmend compare`` shows: a table for the terminal, and a page, of arms that other tools measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from stepmend.logs import Log
from stepmend.measure import behaviour, endings, statistics
from stepmend.measure.compare import Compared, is_broken
from stepmend.report import page
from stepmend.report.summary import percent, points

UNKNOWN = "not known"


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


def ending_table(pairs: Sequence[Compared]) -> Table | None:
    """Loops, cuts by the limit and unclosed thoughts of every other arm, against the first one; None where there is nothing to show.

    What is known in both arms, and happens in neither, is left to ``conclusions``.
    """
    rows = [(pair, of) for pair in against_first(pairs)[0] for of in pair.endings if not _absent(of)]
    if not any(of.tested for _, of in rows):
        return None
    shown = Table("arm", "solutions", "pairs", "first", "this", "fewer", "more", "change (95 %)", "p", "Holm p", title="how solutions end")
    for pair, of in rows:
        cells = ["0", *(UNKNOWN if share is None else percent(share) for share in (of.first, of.second)), *[""] * 5]
        if of.tested:
            found = of.tested
            counts = [str(found.pair.only_first), str(found.pair.only_second)]
            change = f"{points(found.change.value)} ({points(found.change.low)} to {points(found.change.high)})"
            cells = [str(of.problems), *cells[1:3], *counts, change, f"{found.p:.2g}", f"{found.holm:.2g}"]
        shown.add_row(escape(pair.second.name), of.words, *cells)
    return shown


def warnings(pairs: Sequence[Compared]) -> list[str]:
    """Which arms are broken runs: whether a run is worth reading comes before what it says."""
    arms = [pairs[0].first, *(pair.second for pair in against_first(pairs)[0])]
    return [f"{arm.name} is a broken run: {why}. Its accuracy is not meaningful." for arm in arms if (why := is_broken(arm))]


def notices(pairs: Sequence[Compared]) -> list[str]:
    """All that a reader must be told."""
    return [*warnings(pairs), *conclusions(pairs)]


def conclusions(pairs: Sequence[Compared]) -> list[str]:
    """What may be concluded, and what could not be paired and why."""
    chosen, adjusted = against_first(pairs)
    arms = [pairs[0].first, *(pair.second for pair in chosen)]
    lines = [pair.sentence(p) for pair, p in zip(chosen, adjusted, strict=True)]
    lines += [line for pair in chosen for line in _subtask_lines(pair)]
    lines += [line for pair in chosen for line in _ending_lines(pair)] + _unknown_lines(arms)
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


def _ending_lines(pair: Compared) -> list[str]:
    """What is shown of how solutions end: a line for each odd ending that became rarer or more frequent, and one for those that are not."""
    lines = [
        f"{pair.second.name}: {percent(of.second)} of the solutions are {of.words}, {percent(of.first)} of {pair.first.name}'s "
        f"({points(of.tested.change.value)} points, {points(of.tested.change.low)} to {points(of.tested.change.high)}; "
        f"Holm p = {of.tested.holm:.2g}, {of.problems} pairs)."
        for of in pair.endings
        if of.tested and of.tested.holm < 1 - statistics.LEVEL
    ]
    if absent := [of.words for of in pair.endings if _absent(of)]:
        lines.append(f"No solution of {pair.second.name} or {pair.first.name} is {' or '.join(absent)}.")
    return lines


def _absent(of: endings.Ending) -> bool:
    """Whether an odd ending is known of both arms, and happens in neither."""
    return of.tested is not None and not of.first and not of.second


def _unknown_lines(arms: Sequence[Log]) -> list[str]:
    """Of which arms it is not known which solutions end oddly, and what their logs lack."""
    by_lack: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, (words, lack, _) in endings.ENDINGS.items():
        without = tuple(arm.name for arm in arms if endings.share(arm, name) is None)
        if without:
            by_lack.setdefault((lack, without), []).append(words)
    return [
        f"Not known which solutions are {' or '.join(words)}: {', '.join(names)} {'has' if len(names) == 1 else 'have'} {lack}."
        for (lack, names), words in by_lack.items()
    ]


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
        "endings": [{"arm": pair.second.name, "ending": of.words, **of.figures()} for pair in chosen for of in pair.endings],
        "rows": [{**pair.figures(), "holm": p, "moves": _moves(pair)} for pair, p in zip(chosen, adjusted, strict=True)],
        "pairs": [pair.figures() for pair in pairs],
        "groups": {name: found for name in ("subtask", "level", "subject", "type") if (found := _groups(chosen, name))},
    }


def _arm(arm: Log, first: Log) -> dict[str, Any]:
    several = any(len(samples) > 1 or samples[0].share is not None for samples in arm.samples.values())
    shares = np.array([sum(s.value or 0.0 for s in samples) / len(samples) for samples in arm.samples.values()])
    texts = {p: s[0].text for p, s in arm.samples.items() if s[0].text}
    others = {p: s[0].text for p, s in first.samples.items() if s[0].text}
    return {
        "name": arm.name,
        "n": len(shares),
        "accuracy": vars(statistics.mean(shares) if several else statistics.accuracy(shares == 1)),
        "unscored": arm.unscored,
        "metric": arm.metric,
        **{name: endings.share(arm, name) for name in endings.ENDINGS},
        "broken": is_broken(arm),
        "length_ratio": behaviour.length_ratio(texts, others),
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
