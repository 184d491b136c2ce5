"""Silver Bullets: training examples at exactly the faulty steps, with no leakage from the evaluation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from stepmend.locate import steps
from stepmend.records import Bullet, Fault, Problem, Trace


@dataclass(frozen=True)
class Solved:
    """A curate problem: its rendered question, full precision's solution and the low-bit model's."""

    problem: Problem
    prompt: str
    full: Trace
    quantized: Trace


def make_bullet(solved: Solved, fault: Fault, made_by: str) -> Bullet | None:
    """The bullet at a located fault; None if full precision's own step there was not verified to lead to the right answer."""
    if fault.span is None or fault.step is None or fault.chosen is None or fault.continuation is None:
        return None
    start, end = fault.span
    text = solved.quantized.text
    if text[start:end] == fault.chosen:
        return None
    return Bullet(
        problem=solved.problem.id,
        arm=solved.quantized.arm,
        made_by=made_by,
        sample=solved.quantized.sample,
        prompt=solved.prompt + text[:start],
        prefix=text[:start],
        chosen=fault.chosen,
        continuation=fault.continuation,
        rejected=text[start:end],
        rejected_rest=text[end:],
        solution=solved.full.text,
        place=place(solved.full.text, fault.step),
        step=fault.step,
        error_class=fault.error_class,
        cut=solved.quantized.finish == "length",
    )


def place(solution: str, step: int) -> tuple[int, int]:
    """The span of a solution's step, of its last one if it has fewer."""
    spans = steps.split(solution) or [(0, len(solution))]
    return spans[min(step, len(spans) - 1)]


def curate(solved: Mapping[str, Solved], faults: Iterable[Fault], *, limit: int, made_by: str) -> list[Bullet]:
    """At most ``limit`` bullets, from faults in order."""
    made = (make_bullet(solved[fault.problem], fault, made_by) for fault in faults)
    return list(islice((bullet for bullet in made if bullet), limit))
