"""Silver Bullets: training examples at exactly the faulty steps, and the check that none of them leaks from the evaluation."""

import re
from collections.abc import Iterable, Mapping

from stepmend.records import Bullet, Fault, Problem, Trace

NGRAM = 13
"""Words in a row that make two questions overlap (Brown et al., 2005.14165, appendix C)."""


def ngrams(text: str) -> set[str]:
    """Every run of ``NGRAM`` words of a text, lower case, signs dropped; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))} if words else set()


def make_bullet(problem: Problem, prompt: str, trace: Trace, fault: Fault, made_by: str) -> Bullet | None:
    """The bullet at a located fault; None where full precision's own step there was not verified to lead to the right answer."""
    if fault.span is None or fault.step is None or fault.chosen is None or fault.continuation is None:
        return None
    begin, end = fault.span
    if trace.text[begin:end] == fault.chosen:
        return None
    return Bullet(
        problem=problem.id,
        arm=trace.arm,
        made_by=made_by,
        prompt=prompt,
        prefix=trace.text[:begin],
        chosen=fault.chosen,
        continuation=fault.continuation,
        rejected=trace.text[begin:end],
        rejected_rest=trace.text[end:],
        step=fault.step,
        error_class=fault.error_class,
    )


def curate(
    problems: Mapping[str, Problem],
    prompts: Mapping[str, str],
    traces: Mapping[str, Trace],
    faults: Iterable[Fault],
    evaluation: Iterable[Problem],
    *,
    limit: int,
    made_by: str,
) -> tuple[list[Bullet], int]:
    """At most ``limit`` bullets from faults in their order, and the number dropped because their question overlaps an evaluation one."""
    held_out: set[str] = set().union(*(ngrams(problem.question) for problem in evaluation))
    bullets: list[Bullet] = []
    leaked = 0
    for fault in faults:
        if len(bullets) == limit:
            break
        problem = problems[fault.problem]
        bullet = make_bullet(problem, prompts[fault.problem], traces[fault.problem], fault, made_by)
        if bullet is None:
            continue
        if ngrams(problem.question) & held_out:
            leaked += 1
            continue
        bullets.append(bullet)
    return bullets, leaked
