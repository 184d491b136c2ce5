"""Whether two answers are equal: an exact fast path for plain numbers, and Math-Verify in worker processes that can be killed.

Math-Verify (https://github.com/huggingface/Math-Verify) simplifies with sympy, which now and then takes minutes or all memory. Its own
time limit is a signal that C code ignores; here a worker that overstays is killed and replaced, and the run goes on.
"""

import multiprocessing
import os
import re
import resource
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import TimeoutError as Overtime
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, Self

Kind = Literal["math", "number"]
Verdict = Literal["equal", "different", "timeout", "parser"]

LIMIT = 3.0
"""Seconds a worker may think about one pair."""
MEMORY = 4 * 2**30
"""Bytes of address space of a worker."""
LONGEST = 2_000
"""Characters of the longest answer that is worth parsing; a longer one is no answer."""
PLAIN = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d{1,3})?")
SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
UNIT = (
    rf"(?!(?:{'|'.join(SCALES)})s?\b)"
    r"(?:[^\W\d_]{2,}|[mglshLVWJNKCF])(?![^\W\d_])"
    r"(?: ?\^ ?\{?[23]\}?|[²³])?\.?"
)
UNITS = re.compile(rf" ?\(?(?: ?/? ?{UNIT}(?:(?: ?/ ?| ){UNIT})*)? ?\)?| ?%| ?° ?[CF]?")
"""What may stand behind a number that is the whole answer: words and units (``km/h``, ``cm^2``), a percent sign, degrees."""
DRESS = re.compile(r"\\[$,!; ]|\\?[$€£]|\*\*|\\left|\\right|\\(?=%)")
WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}")
LONE = re.compile(r"(?:[^\d+*/^<>=≤≥≠~-]|(?<=\w)-(?=\w))*?(?<![\w.])([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?!\w)[^\d+*/^<>=≤≥≠~]*")
"""One number in words, and no sum."""
TOLERANCE = Decimal("1e-6")
"""Decimals that differ by less are left to Math-Verify, which rounds to six places."""


INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
"""Marks of direction and width, which say nothing."""


def plain_number(text: str) -> Decimal | None:
    """The value of a plain number (``18``, ``1,000``, ``$18.00``); None for everything else."""
    bare = INVISIBLE.sub("", text).replace("−", "-").strip().strip("$").strip()
    if not bare or len(bare) > 1_000 or not PLAIN.fullmatch(bare):
        return None
    try:
        return Decimal(bare.replace(",", ""))
    except InvalidOperation:
        return None


def number_with_unit(text: str) -> Decimal | None:
    """The number of an answer that is one, with a unit or without (``18 dollars``, ``\\$18.``, ``5 + 3 = 8``); None for everything else."""
    bare = WRAPPED.sub(r" \1 ", text[:LONGEST].replace("{,}", ",").replace("−", "-"))
    bare = DRESS.sub("", bare).rpartition("=")[2].strip().rstrip(".。").rstrip()
    match = re.match(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[+-]?\.\d+", bare)
    if not match:
        return None
    rest = " ".join(["", *bare[match.end() :].split()])
    scale = next((factor for word, factor in SCALES.items() if re.match(rf" {word}s?\b", rest)), None)
    if scale is None:
        return plain_number(match[0]) if UNITS.fullmatch(rest) else None
    value = plain_number(match[0])
    return value * scale if value is not None and UNITS.fullmatch(" " + rest[1:].partition(" ")[2]) else None


def quick(answer: str, gold: str, kind: Kind) -> Verdict | None:
    """The verdict where it is certain without symbolic work; None where it is not."""
    if answer == gold:
        return "equal"
    if not answer.strip() or len(answer) > LONGEST:
        return "parser"
    read = number_with_unit if kind == "number" else plain_number
    first, second = read(answer), read(gold)
    if first is None and second is not None and kind == "number":
        return _no_number(answer, second)
    if first is None or second is None:
        return None
    if first == second:
        return "equal"
    whole = first == first.to_integral_value() and second == second.to_integral_value()
    return "different" if whole or kind == "number" or abs(first - second) > TOLERANCE * max(abs(second), 1) else None


def _no_number(answer: str, gold: Decimal) -> Verdict | None:
    """The verdict on an answer that is no plain number, against one that is: fractions by value; prose and broken sums differ."""
    if fraction := re.fullmatch(r"\s*(-?\d{1,18})\s*/\s*(\d{1,18})\s*", answer):
        above, below = (Decimal(part) for part in fraction.groups())
        return "equal" if below and above == gold * below else "different"
    symbols = re.search(rf"\\|\b(?:{'|'.join(SCALES)}|pi|sqrt)", answer)
    if not symbols and re.search(r"[^\W\d_]{2}", answer) and (lone := LONE.fullmatch(DRESS.sub("", answer))):
        return "equal" if plain_number(lone[1]) == gold else "different"
    prose = re.search(r"[^\W\d_]", answer) or re.search(r"[-+*/^]\s*$", answer)
    return "different" if prose and not symbols else None


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
        """One verdict a pair (answer, gold), in their order. Equal pairs are decided once."""
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
    """What a worker does first: import, and bound its memory."""
    import math_verify  # noqa: F401

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def symbolic(answer: str, gold: str) -> Verdict:
    """Math-Verify's verdict; ``parser`` where it cannot read the gold answer or fails, which it would otherwise call different."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        gold_parsed, answer_parsed = (parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True) for text in (gold, answer))  # pyright: ignore[reportArgumentType]
        if not gold_parsed or not answer_parsed:
            return "parser"
        return "equal" if verify(gold_parsed, answer_parsed, timeout_seconds=None, raise_on_error=True) else "different"
    except (Exception, RecursionError, MemoryError):
        return "parser"
