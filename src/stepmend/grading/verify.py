"""Whether two answers are equal: an exact fast path for numbers, options and words, and Math-Verify in worker processes that can be killed.

Math-Verify (https://github.com/huggingface/Math-Verify) simplifies with sympy, which now and then takes minutes or all memory. Its own
time limit is a signal that C code ignores; here a worker that exceeds the limit is killed and replaced.
"""

import multiprocessing
import os
import re
import resource
from collections.abc import Iterable, Sequence
from concurrent.futures import TimeoutError as Overtime
from contextlib import suppress
from decimal import Decimal
from typing import Any, Literal, Self

from stepmend.grading import notation, numbers, words
from stepmend.grading.symbolic import symbolic

Kind = Literal["math", "number"]
Verdict = Literal["equal", "different", "timeout", "parser"]

LIMIT = 3.0
"""Time limit of a worker per pair, in seconds."""
MEMORY = 4 * 2**30
"""Bytes of address space of a worker."""
CLOSE = Decimal("1e-6")
"""Relative difference below which decimals are left to Math-Verify, which rounds to six places."""


def quick(answer: str, gold: str, kind: Kind) -> Verdict | None:
    """The verdict if it is certain without symbolic work; None if it is not."""
    if answer == gold:
        return "equal"
    if not answer.strip() or len(answer) > numbers.LONGEST or len(gold) > numbers.LONGEST:
        return "parser"
    if (same := words.same_option(answer, gold)) is not None:
        return "equal" if same else "different"
    bare, right = _contents(answer, gold)
    if (bare, right) != (answer, gold):
        return quick(bare, right, kind)
    found = _by_number(answer, gold) if kind == "number" else _by_value(answer, gold)
    if found:
        return found
    for said in (_bases(answer, gold), _ellipses(answer, gold), words.same_prose(answer, gold)):
        if said is not None:
            return "equal" if said else "different"
    return None


def _contents(answer: str, gold: str) -> tuple[str, str]:
    """The contents of two answers, without an option's letter that only one of them has."""
    said, asked = words.without_option(answer), words.without_option(gold)
    if said and not words.option(gold):
        return said, gold
    if asked and not words.option(answer):
        return answer, asked
    return answer, gold


def _by_number(answer: str, gold: str) -> Verdict | None:
    """The verdict on answers that are numbers, units apart."""
    first, second = (
        numbers.plain_number(one) if numbers.plain_number(one) is not None else numbers.number_with_unit(one) for one in (answer, gold)
    )
    if first is None and second is not None:
        return _no_number(answer, second)
    return None if first is None or second is None else "equal" if first == second else "different"


def _by_value(answer: str, gold: str) -> Verdict | None:
    """The verdict on answers that may be any mathematics, where both are numbers in decimals; their units must not differ."""
    first, second = (
        (value, "") if (value := numbers.plain_number(one)) is not None else numbers.number_with_words(one) for one in (answer, gold)
    )
    if first is None or second is None or (first[1] and second[1] and first[1] != second[1]):
        return None
    if first[0] == second[0]:
        return "equal"
    whole = all(value == value.to_integral_value() for value, _ in (first, second))
    # Numbers of as many places are meant as they are written; else the shorter one may be the longer one, rounded.
    whole = whole or first[0].as_tuple().exponent == second[0].as_tuple().exponent
    apart = abs(first[0] - second[0]) > CLOSE * max(abs(first[0]), abs(second[0]))
    return "different" if whole or apart else None


def _no_number(answer: str, gold: Decimal) -> Verdict | None:
    """The verdict on an answer that is not a plain number, against one that is: fractions by value; prose and broken sums differ."""
    if fraction := re.fullmatch(r"\s*(-?\d{1,18})\s*/\s*(\d{1,18})\s*", answer):
        above, below = (Decimal(part) for part in fraction.groups())
        return "equal" if below and above == gold * below else "different"
    symbols = re.search(rf"\\|\b(?:{'|'.join(numbers.SCALES)}|pi|sqrt)|[√π]", answer)
    clean = numbers.HYPHEN.sub(" ", numbers.DRESS.sub("", answer))
    if not symbols and re.search(r"[^\W\d_]{2}", answer) and (lone := numbers.LONE.fullmatch(clean)):
        return "equal" if numbers.plain_number(lone[1]) == gold else "different"
    prose = re.search(r"[^\W\d_]", answer) or re.search(r"[-+*/^]\s*$", answer)
    return "different" if prose and not symbols else None


def _bases(answer: str, gold: str) -> bool | None:
    """Whether numbers with a written base are the same; one without a base is taken to be in the other's."""
    first, second = notation.in_base(answer), notation.in_base(gold)
    if first and second:
        return first == second
    based, bare = (first, gold) if first else (second, answer)
    return True if based and bare.strip().strip("$").lower() == based[0] else None


def _ellipses(answer: str, gold: str) -> bool | None:
    """Whether lists with an ellipsis have the same first and last terms, of which one may show more than the other."""
    first, second = notation.terms(answer), notation.terms(gold)
    if not first or not second:
        return False if (first and len(first[0]) > 1) or (second and len(second[0]) > 1) else None
    shown = min(len(first[0]), len(second[0]))
    return first[1] == second[1] and first[0][:shown] == second[0][:shown] and (shown > 1 or first[0] == second[0])


class Verifier:
    """Decides equality of many pairs. Workers start when a pair first needs one, and end with this object."""

    def __init__(self, *, limit: float = LIMIT, workers: int | None = None) -> None:
        self.limit, self.workers = limit, workers or min(4, os.cpu_count() or 1)
        self._pool: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()

    def decide(self, pairs: Sequence[tuple[str, str]], kind: Kind = "math") -> list[Verdict]:
        """One verdict per pair (answer, gold), in order. Equal pairs are decided once."""
        known: dict[tuple[str, str], Verdict] = {pair: verdict for pair in set(pairs) if (verdict := quick(*pair, kind))}
        known |= self._symbolic([pair for pair in dict.fromkeys(pairs) if pair not in known])
        return [known[pair] for pair in pairs]

    def _symbolic(self, pairs: Sequence[tuple[str, str]]) -> Iterable[tuple[tuple[str, str], Verdict]]:
        if not pairs:
            return
        if self._pool is None:
            from pebble import ProcessPool

            # Spawned, not forked: the parent may hold threads and models.
            self._pool = ProcessPool(self.workers, initializer=_settle, context=multiprocessing.get_context("spawn"))
            for warm in [self._pool.schedule(_settle) for _ in range(self.workers)]:
                warm.result()  # the limit is for thinking, not for starting
        asked = [(pair, self._pool.schedule(symbolic, args=pair, timeout=self.limit)) for pair in pairs]
        for pair, future in asked:
            try:
                yield pair, future.result()
            except Overtime:
                yield pair, "timeout"
            except Exception:  # a worker that the system killed (memory) or whose answer could not be sent
                yield pair, "parser"


def _settle() -> None:
    """Initialize a worker: import, and limit its memory."""
    import math_verify  # noqa: F401

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
