"""Locators measured on ProcessBench (2412.06559): human labels of the first wrong step of solutions, including correct ones."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepmend import grading, inputs, tables
from stepmend.benchmarks import sources
from stepmend.facts import Tally
from stepmend.locate import equations, judges
from stepmend.locate.panel import Panel
from stepmend.records import InputError, Judgement
from stepmend.rundir import append_lines, appending


@dataclass(frozen=True)
class Solution:
    """One labelled solution.

    Attributes:
        problem: The question.
        steps: The labelled steps.
        label: The first wrong one (0-based), or None if every step is right.
        also: Other defensible labels.
        answer: The right answer; empty if it is not known.
        worked: The benchmark's worked solution; empty if it is not known.
        error_class: The labelled class of the fault.
        benchmark: The problem's benchmark, if the record has it.
        group: The problem's id: solutions of one problem are never split between fitting and measuring.
        cut_off: Whether the model did not end the text by itself.
    """

    problem: str
    steps: tuple[str, ...]
    label: int | None
    also: tuple[int, ...] = ()
    answer: str = ""
    worked: str = ""
    error_class: str | None = None
    benchmark: str = "*"
    group: str = ""
    cut_off: bool = False

    @property
    def glue(self) -> str:
        """What is between the steps: nothing where they bring their own white space, else an empty line."""
        return "" if any(step != step.strip() for step in self.steps) else "\n\n"

    @property
    def text(self) -> str:
        """The whole solution."""
        return self.glue.join(self.steps)

    def middle(self, label: int) -> int:
        """The place in the text of the middle of a labelled step."""
        return sum(len(step) + len(self.glue) for step in self.steps[:label]) + len(self.steps[label]) // 2


def read(path: Path, limit: int | None = None, problems: Path | None = None) -> list[Solution]:
    """The solutions of a file, or of every file in a folder; ``limit`` of them, drawn with a fixed seed.

    ``problems`` is the benchmark's own file or folder: answers and worked solutions are looked up there by the question's text.

    Raises InputError if there is no such file, or a record has no problem, steps or label, or a label that is none of its steps.
    """
    known = _worked(problems) if problems else {}
    found = [_solution(row, f"{file}, record {number}", known) for file in _files(path) for number, row in enumerate(tables.read(file), 1)]
    return found if limit is None or limit >= len(found) else random.Random(0).sample(found, limit)


def _files(path: Path) -> list[Path]:
    files = sorted(f for f in path.iterdir() if f.suffix in tables.SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise InputError(f"bench: {path} holds no files in {', '.join(sorted(tables.SUFFIXES))}")
    return files


def _worked(path: Path) -> dict[str, str]:
    """Worked solutions (or bare answers) by question, of a benchmark's own files."""
    found = {}
    for file in _files(path):
        for row in tables.read(file):
            question = next((row[name] for name in ("question", "problem") if isinstance(row.get(name), str)), None)
            worked = next((row[name] for name in ("solution", "answer") if isinstance(row.get(name), str)), None)
            if question and worked:
                found[question.strip()] = worked
    return found


def _solution(row: dict[str, Any], where: str, known: Mapping[str, str]) -> Solution:
    problem, steps, label = (tables.field(row, name, where) for name in ("problem", "steps", "label"))
    texts = list(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else []
    if not texts or not all(isinstance(step, str) for step in texts):
        raise InputError(f"{where}: steps must be a list of texts")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(texts):
        raise InputError(f"{where}: label {label!r}; a step's index (0 to {len(texts) - 1}) or -1 is needed")
    worked = known.get(str(problem).strip(), "")
    also = row["also"] if isinstance(row.get("also"), list) else []
    name = str(row.get("problem_id") or row.get("id") or "")
    return Solution(
        str(problem),
        tuple(texts),
        None if label < 0 else label,
        also=tuple(i for i in also if isinstance(i, int) and 0 <= i < len(texts)),
        answer=str(row.get("answer") or (grading.gold_of(worked) if worked else "")),
        worked=str(row.get("solution") or worked),
        error_class=row.get("class"),
        benchmark=name.partition("-")[0] if name.partition("-")[0] in sources.NAMES else "*",
        group=name or str(problem),
        cut_off=bool(row.get("cut_off")),
    )


def unlabelled(source: Path | Sequence[Mapping[str, Any]]) -> list[Solution]:
    """Solutions to be located, which nobody has labelled: of a file, or of records with the fields ``problem`` and ``solution``.

    ``answer`` is the right answer and ``worked`` a worked solution, if they are known; an answer is read from a worked solution where
    only that is. Raises InputError if there are none, or a record has no problem or solution.
    """
    rows = tables.read(source) if isinstance(source, Path) else [dict(row) for row in source]
    if not rows:
        raise InputError("locate: no solutions are given; one or more are needed")
    name = source if isinstance(source, Path) else "solutions"
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{name}, record {number}"
        problem, text = (tables.text_or_none(row, key, where) or "" for key in ("problem", "solution"))
        if not problem.strip() or not text.strip():
            raise InputError(f"{where}: {'solution' if problem.strip() else 'problem'} is empty; a text is needed")
        answer, worked = (tables.text_or_none(row, key, where) if key in row else None for key in ("answer", "worked"))
        answer = answer or (grading.gold_of(worked) if worked else "")
        found.append(Solution(problem, (text,), None, answer=answer, worked=worked or "", group=problem))
    return found


NEEDS: dict[str, tuple[str, ...]] = {
    "equations": (),
    "rescue": ("model", "answered"),
    "margins": ("model", "quantized"),
    "reference": (),
    "solution": ("model", "answered"),
}
"""The requirements of each locator: checkpoints, and correct answers."""


def able(**given: object) -> tuple[str, ...]:
    """The locators whose requirements are met by ``model``, ``quantized`` and ``answered``."""
    return tuple(name for name, needs in NEEDS.items() if all(given[need] for need in needs))


def first_false(steps: Sequence[str], question: str = "") -> int | None:
    """The first step with an equation that does not hold."""
    found = equations.first_false(steps, question)
    return found[0] if found else None


ABSTAINED = -1
"""Neither a step nor "every step is right": never a correct answer, by the benchmark's rules."""
Locate = Callable[[Sequence[Solution]], tuple[list[int | None], list[str]]]


@contextmanager
def asking(
    specs: Sequence[str], answers: Path, budget: int | None, console: Any, *, shown: bool = True, plain_http: bool = False,
    timeout: float = 60,
) -> Iterator[Locate]:  # fmt: skip
    """The locator to measure: equations, or the quorum of these judges, whose answers are kept in a file.

    If ``shown``, judges see the correct answer, if it is known, as in a run. An answer may take ``timeout`` seconds.
    Raises InputError as the judges do.
    """
    if not specs:
        yield lambda solutions: ([first_false(s.steps, s.problem) for s in solutions], [])
        return
    named = judges.asked(specs, plain_http=plain_http)
    answers.parent.mkdir(parents=True, exist_ok=True)
    known = kept(answers)
    from stepmend.progress import Stages

    with appending(answers) as stream:
        panel = Panel(named, lambda judgement: append_lines(stream, [judgement]), known, budget=budget, timeout=timeout)

        def locate(solutions: Sequence[Solution]) -> tuple[list[int | None], list[str]]:
            with Stages(console).stage("ask the judges", len(solutions) * len(named), "answers") as tick:
                verdicts = panel.ask([judges.Question(s.problem, (s.answer or None) if shown else None, s.steps) for s in solutions], tick)
            decided = [judges.quorum(of) for of in verdicts]
            return [ABSTAINED if d.outcome == "abstained" else d.vote.step for d in decided], _notes(panel, verdicts, solutions)

        yield locate


def kept(file: Path) -> list[Judgement]:
    """Answers of earlier calls; a truncated last line is terminated, and its question is asked again."""
    found = []
    lines = inputs.content(file).splitlines(keepends=True) if file.exists() else []
    for line in lines:
        with suppress(ValidationError):
            found.append(Judgement.model_validate_json(line))
    if lines and not lines[-1].endswith(b"\n"):
        with appending(file) as stream:
            stream.write(b"\n")
    return found


def _notes(panel: Panel, verdicts: Sequence[Sequence[judges.Verdict]], solutions: Sequence[Solution]) -> list[str]:
    """Each judge's own record, and how far they agree."""
    from stepmend.report.summary import judge_text

    notes = []
    for place, (name, tally) in enumerate(panel.tally().items()):
        said = [of[place] for of in verdicts]
        own = figures(solutions, [v.step if v.outcome in ("fault", "none") else ABSTAINED for v in said])
        notes.append(f"judge {name}: F1 {_percent(own['f1'])}; {judge_text(Tally.model_validate(tally))}")
    alpha = judges.agreement(verdicts)
    return [*notes, f"Krippendorff's alpha of the judges: {'undefined' if alpha is None else f'{alpha:.3f}'}"]


def figures(solutions: Sequence[Solution], found: Sequence[int | None]) -> dict[str, Any]:
    """The benchmark's figures: accuracy on wrong solutions (the very step), on right ones (none named), and their harmonic mean.

    ``fired`` counts the solutions in which a step is named; ``precision`` is the share of these in which it is the labelled step. A share
    of zero cases is None, and so is any figure computed from it.
    """
    pairs = list(zip(solutions, found, strict=True))
    wrong = [step == s.label for s, step in pairs if s.label is not None]
    right = [step is None for s, step in pairs if s.label is None]
    fired = [step == s.label for s, step in pairs if step not in (None, ABSTAINED)]
    on_wrong, on_right, precision = (sum(of) / len(of) if of else None for of in (wrong, right, fired))
    f1 = None if on_wrong is None or on_right is None else 2 * on_wrong * on_right / ((on_wrong + on_right) or 1)
    return {
        "n": len(pairs),
        "accuracy_wrong": on_wrong,
        "accuracy_right": on_right,
        "f1": f1,
        "fired": len(fired),
        "precision": precision,
    }


def text(of: dict[str, Any]) -> str:
    """The figures in words."""
    return (
        f"{of['n']} solutions: {_percent(of['accuracy_wrong'])} of the wrong ones located exactly, {_percent(of['accuracy_right'])} of "
        f"the right ones left alone, F1 {_percent(of['f1'])}; fired {of['fired']} times, precision {_percent(of['precision'])}"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
