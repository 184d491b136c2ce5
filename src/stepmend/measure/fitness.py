"""Whether a full-precision model is fit for a run: its accuracy, and the shares of solutions that end and follow the step format."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stepmend.grading.visible import THOUGHTS
from stepmend.locate.steps import in_format
from stepmend.measure.statistics import Paired, Samples, proportion
from stepmend.recipe import Recipe
from stepmend.records import Trace

LOW_ACCURACY = 0.05
"""Minimum accuracy of full precision for restoring: below it there is almost nothing to lose."""
CUT_OFF = 0.5
"""Share of solutions cut off by the token limit above which a run says that the limit is too low."""
LOW_FORMAT = 0.5
"""Share of solutions in the step format below which a run names ``stepmend align``."""
FEW, SAMPLES = ("aime", "aime25"), 16
"""Benchmarks with so few problems that one solution per problem is not informative, and the number of samples that a run recommends."""


@dataclass(frozen=True)
class Fitness:
    """Full precision on the test problems: accuracy, the share of solutions in the step format, and of those cut off; all in [0, 1].

    ``thinks`` says whether most solutions contain a thought; then no step format is required. ``problems`` is their number.
    """

    accuracy: float
    in_format: float
    cut_off: float
    thinks: bool = False
    problems: int = 0

    @property
    def weak(self) -> bool:
        """Whether the model solves too few problems for a restoration to be meaningful."""
        return self.accuracy < LOW_ACCURACY

    def warnings(self, recipe: Recipe) -> list[str]:
        """Warnings for low accuracy and for a low share in the step format; only one warning if solutions are cut off, which explains
        both."""
        if self.cut_off > CUT_OFF:
            share = f"{100 * self.cut_off:.1f} % of full precision's solutions are cut off by the token limit"
            return [f"{share}; raise measure.max_new_tokens", *self._drawn(recipe)]
        lines = self._drawn(recipe)
        if self.weak:
            then = "restored all the same (restore.within_noise)" if recipe.restore.within_noise else "no scheme is restored"
            lines.append(
                f"full precision solves only {100 * self.accuracy:.1f} % of the problems: {then}. Check the prompt and the chat template, "
                f"or teach the step format: {align_command(recipe)}"
            )
        if self.in_format < LOW_FORMAT and not self.thinks:
            lines.append(
                f"only {100 * self.in_format:.1f} % of full precision's solutions follow the step format ('Step 1: ...' lines, answer in "
                f"\\boxed{{}}); this teaches it: {align_command(recipe)}"
            )
        return lines

    def _drawn(self, recipe: Recipe) -> list[str]:
        """Warnings about sampling: greedy decoding of thoughts, or few samples of few problems."""
        how, lines = "measure.temperature=0.6 and measure.top_p=0.95 are what most of their model cards ask for", []
        if self.thinks and not recipe.measure.temperature:
            lines.append(f"the model thinks, and was measured greedily, by which thoughts fall into loops: {how}")
        if recipe.benchmark in FEW and self.problems and recipe.measure.samples < SAMPLES:
            half = proportion(self.problems // 2, self.problems)
            width = 50 * ((half.high or 0) - (half.low or 0))
            lines.append(
                f"{recipe.benchmark} is measured on {self.problems} problems: where half of them are right, one solution of each tells "
                f"the accuracy to ±{width:.0f} points only. Set measure.samples to at least {SAMPLES}, with measure.temperature=0.6: "
                "their mean does not depend on the luck of single draws"
            )
        return lines


def fitness(traces: Iterable[Trace], right: Samples) -> Fitness:
    """The fitness of a full-precision model, from its solutions and whether they are right; there is at least one."""
    found = [(_in_format(trace), trace.finish == "length", is_thought(trace)) for trace in traces]
    in_format, cut_off, thinking = (sum(of) / len(found) for of in zip(*found, strict=True))
    return Fitness(float(right.mean()), in_format, cut_off, thinking > LOW_FORMAT, len(right))


def is_thought(trace: Trace) -> bool:
    """Whether a solution holds a thought, or starts in one."""
    return bool(trace.opening) or THOUGHTS.search(trace.text) is not None


def share_in_format(traces: Iterable[Trace]) -> float:
    """The share of solutions that follow the step format and ended by themselves; there is at least one."""
    found = [_in_format(trace) for trace in traces]
    return sum(found) / len(found)


def _in_format(trace: Trace) -> bool:
    return trace.finish == "stop" and in_format(trace.text)


def align_command(recipe: Recipe) -> str:
    """The command that teaches the recipe's model the step format."""
    words = ["stepmend", "align", recipe.model, "OUT"]
    if recipe.benchmark != "story":
        words += ["--benchmark", recipe.benchmark, *(["--data", recipe.data] if recipe.data else [])]
    return shlex.join(words)


def obstacle(fit: Fitness, pair: Callable[[], Paired]) -> str | None:
    """Why a scheme is not restored; None if it is.

    ``pair`` gives full precision's outcomes paired with the scheme's on curate problems, and is called only if they are needed. Test
    problems decide nothing: a loss that is reported because it looked large on the very problems it is reported on is too large on
    average, and a useless restoration would seem to recover part of it.
    """
    if fit.weak:
        return f"full precision solves under {100 * LOW_ACCURACY:.0f} % of the problems; not restored"
    of = pair()
    if of.p >= 0.05 or of.only_first <= of.only_second:
        counts = f"{of.n} curate problems ({of.test} p = {of.p:.2g})"
        return f"no loss beyond noise on {counts}; not restored (restore.within_noise=true restores all the same)"
    return None
