"""Whether a restored state is better: mean KL divergence per token from full precision on held-out solutions, never on test problems.

The solutions are those that full precision and the low-bit model wrote themselves. Half of the problems choose among states (learning
rates, codes, when to stop); the other half says whether the chosen one is better than the start. Tensor names: N tokens, H hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import torch

from stepmend.measure import statistics
from stepmend.models import chat
from stepmend.models.forward import head_of, in_chunks, states_of
from stepmend.models.head import Head
from stepmend.restore import objectives

READ = 16
"""Texts read at once."""
LEAST = 6
"""Held-out problems that it takes to show that a state is better at 5 %: the signs of five differences are all alike in 1 of 16 cases."""


@dataclass(frozen=True)
class Solution:
    """A solution as a model wrote it: the problem's id, the rendered prompt, and the token ids of the answer (the end token included)."""

    problem: str
    prompt: str
    tokens: tuple[int, ...]

    def row(self, tokenizer: Any) -> objectives.Row:
        """Question and answer as one training text whose targets are the answer's tokens."""
        question = chat.encode(tokenizer, self.prompt)
        targets = (False,) * len(question) + (True,) * len(self.tokens)
        return objectives.Row((*question, *self.tokens), targets, len(question))


class Readings:
    """Full precision's last hidden states at the targets of texts, from which its distributions are recomputed without the model."""

    def __init__(self, teacher: Any, rows: Sequence[objectives.Row], pad: int) -> None:
        self.rows, self.pad, self.head = list(rows), pad, Head(teacher)
        self.states: list[torch.Tensor] = []
        for part in self._parts():
            with torch.no_grad():
                found = states_of(teacher, [row.ids for row in part], objectives.places(part), pad).cpu()
            self.states += found.split([sum(row.targets) for row in part])

    def _parts(self) -> list[list[objectives.Row]]:
        return [self.rows[start : start + READ] for start in range(0, len(self.rows), READ)]

    def divergences(self, student: Any) -> list[float]:
        """Each text's mean KL(full precision || student) over its targets, natural log."""
        return [kl for kl, _ in self.compare(student)]

    def compare(self, student: Any) -> list[tuple[float, float]]:
        """Each text's mean KL(full precision || student), and the share of targets where both have the same first token."""

        def of(student_NH: torch.Tensor, teacher_NH: torch.Tensor) -> torch.Tensor:
            student_NV, teacher_NV = head_of(student, student_NH), self.head(teacher_NH)
            same_N = (student_NV.argmax(-1) == teacher_NV.argmax(-1)).float()
            return torch.stack([objectives.distill(student_NV, teacher_NV), same_N], dim=1)

        found: list[tuple[float, float]] = []
        vocabulary = student.config.get_text_config().vocab_size
        for number, part in enumerate(self._parts()):
            teacher = self.states[number * READ : number * READ + len(part)]
            with torch.no_grad():
                student_NH = states_of(student, [row.ids for row in part], objectives.places(part), self.pad)
                values_N2 = in_chunks(of, vocabulary, student_NH, torch.cat(teacher).to(student_NH.device))
            means = [one.mean(0).tolist() for one in values_N2.split([len(states) for states in teacher])]
            found += [(kl, same) for kl, same in means]
        return found


@dataclass(frozen=True)
class Verdict:
    """Mean KL divergence per token before and after, and the paired 95 % interval of their difference over held-out problems."""

    before: float
    after: float
    low: float
    high: float
    problems: int

    @property
    def better(self) -> bool:
        """Whether there are enough problems, and the interval excludes zero on the side of the restored state."""
        return self.problems >= LEAST and self.high < 0


class Validation:
    """The held-out solutions, read by full precision once; ``choose`` on one half of the problems, ``verdict`` on the other."""

    def __init__(self, teacher: Any, solutions: Sequence[Solution], tokenizer: Any) -> None:
        problems = list(dict.fromkeys(solution.problem for solution in solutions))
        self.problems = [solution.problem for solution in solutions]
        chosen = set(problems[::2])
        self.choosing = [i for i, problem in enumerate(self.problems) if problem in chosen]
        self.judging = [i for i, problem in enumerate(self.problems) if problem not in chosen] or self.choosing
        rows = [solution.row(tokenizer) for solution in solutions]
        pad = tokenizer.pad_token_id
        self.halves = {half: Readings(teacher, [rows[i] for i in self._of(half)], pad) for half in ("choosing", "judging")}
        self.prose = Readings(teacher, prose_rows(tokenizer), pad)

    def _of(self, half: Literal["choosing", "judging"]) -> list[int]:
        return self.choosing if half == "choosing" else self.judging

    def choose(self, student: Any) -> float:
        """The mean KL divergence by which states are chosen."""
        return float(np.mean(self.halves["choosing"].divergences(student)))

    def judge(self, student: Any) -> list[float]:
        """The mean KL divergence of every problem of the other half."""
        found: dict[str, list[float]] = {}
        for i, value in zip(self.judging, self.halves["judging"].divergences(student), strict=True):
            found.setdefault(self.problems[i], []).append(value)
        return [float(np.mean(values)) for values in found.values()]

    def other(self, student: Any) -> float:
        """The mean KL divergence on plain prose: what restoring costs elsewhere."""
        return float(np.mean(self.prose.divergences(student)))


def verdict(before: Sequence[float], after: Sequence[float]) -> Verdict:
    """Compare two states on the same problems; problems are resampled (paired bootstrap)."""
    one, other = np.array(before), np.array(after)
    found = statistics.mean(other - one)
    assert found.low is not None and found.high is not None, "there is at least one held-out problem"
    return Verdict(float(one.mean()), float(other.mean()), found.low, found.high, len(one))


def prose_rows(tokenizer: Any) -> list[objectives.Row]:
    """Passages that are not mathematics, each from its second token on."""
    text = files("stepmend.restore").joinpath("prose.txt").read_text(encoding="utf-8")
    rows = [tuple(chat.encode(tokenizer, passage)) for passage in text.split("\n\n")]
    return [objectives.Row(ids, (False, *(True,) * (len(ids) - 1))) for ids in rows if len(ids) > 1]


RATES = tuple(round(1e-4 * 10 ** (k / 2), 8) for k in range(6))
"""Peak learning rates that a range test tries, in ascending order: relative changes of a scale or norm in a step."""


def range_test(start: float, attempt: Callable[[float], float]) -> tuple[float | None, list[tuple[float, float]]]:
    """The peak learning rate at which a few steps lower the validation KL most; None if every rate raises it.

    Args:
        start: validation KL before any step.
        attempt: gives the validation KL after a few steps from the start at a rate, and restores the start.

    Returns:
        The rate and every (rate, KL) that was tried: ascending rates, until one is worse than the best so far.
    """
    tried: list[tuple[float, float]] = []
    best, chosen = start, None
    for rate in RATES:
        value = attempt(rate)
        tried.append((rate, value))
        if value < best:
            best, chosen = value, rate
        elif chosen is not None or value > 1.5 * start:
            break
    return chosen, tried


def from_to(before: float, after: float) -> str:
    """Two values in three significant digits."""
    return f"{before:.3g} before, {after:.3g} after"
