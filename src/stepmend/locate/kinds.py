"""Kinds of steps: introduction, item of a plan, statement, calculation, answer; and the kind of a whole text.

The vote's prior depends on these kinds: a fault is rarely in a step without content, and a plan's item is where a wrong operation is first
named.
"""

import re
from collections.abc import Sequence
from typing import Literal

from stepmend.locate import quantities
from stepmend.locate.steps import ASKED

Kind = Literal["introduction", "plan", "statement", "calculation", "answer"]
Written = Literal["steps", "free"]
KINDS: tuple[Kind, ...] = ("introduction", "plan", "statement", "calculation", "answer")
ITEM = re.compile(r"[\s#*>]*(?:step\s+)?\(?(?P<number>\d{1,3})\s*[.):]", re.IGNORECASE)
MARKER = re.compile(r"[\s#*>-]*(?:(?:step\s+)?\(?\d{1,3}\s*[.):]|[-*•])?[\s*]*", re.IGNORECASE)
STEP_NUMBER = re.compile(r"\bsteps?\s+\d+(?:\s*(?:,|and)\s*\d+)*", re.IGNORECASE)
VERBS = {
    "+": r"add|sum|total|combine",
    "-": r"subtract|deduct|take away",
    "*": r"multiply",
    "/": r"divide",
}
COMMANDS = {sign: re.compile(rf"(?:{verbs})\b", re.IGNORECASE) for sign, verbs in VERBS.items()}
"""How an item of a plan starts that orders one operation."""


def kinds(steps: Sequence[str]) -> list[Kind]:
    """The kind of each step of a text."""
    return [kind(step, first=index == 0) for index, step in enumerate(steps)]


def kind(step: str, *, first: bool = False) -> Kind:
    """The kind of one step.

    A step with a calculation is one; else with a ``\\boxed`` or ``####`` answer the answer; else with a number other than its own
    mark a statement. What is left is a plan's item, or the introduction where it comes ``first``.
    """
    if quantities.calculations(step):
        return "calculation"
    if "\\boxed" in step or "####" in step:
        return "answer"
    if quantities.NUMBER.search(STEP_NUMBER.sub("", body(step))):
        return "statement"
    return "introduction" if first else "plan"


def body(step: str) -> str:
    """A step without the mark before it: ``2.``, ``Step 2:``, ``-``."""
    return step[MARKER.match(step).end() :]  # pyright: ignore[reportOptionalMemberAccess]  # it matches the empty text, too


def written(text: str) -> Written:
    """``steps`` if every line but the last is ``Step k: …`` as requested; ``free`` otherwise."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "steps" if lines and all(ASKED.match(line) for line in lines[:-1] or lines) else "free"


def ordered_by(steps: Sequence[str], index: int) -> int | None:
    """The item of an earlier plan that orders the very operation that step ``index`` carries out; None if there is none.

    An item orders a step where it starts with the operation's verb, the step's only operation is that one, and both have the same number
    or, if the step has none, the step repeats the verb and most of the item's words.
    """
    made = quantities.calculations(steps[index])
    command = COMMANDS.get("".join(made[0].operators)) if len(made) == 1 else None
    if command is None:
        return None
    number, words = _number(steps[index]), _words(steps[index])
    repeats = command.search(steps[index]) is not None
    for place, step in enumerate(steps[:index]):
        if kind(step) == "plan" and ITEM.match(step) and command.match(body(step)):
            own = _words(step)
            if _number(step) == number or (number is None and repeats and len(own & words) * 3 >= 2 * len(own)):
                return place
    return None


def _number(step: str) -> int | None:
    found = ITEM.match(step)
    return int(found["number"]) if found else None


def _words(step: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", step.lower())} - COMMON


COMMON = frozenset("the from for and number total amount get find out each all that this how many much".split())  # noqa: SIM905
"""Words that say nothing of which quantities are meant."""
