"""Steps of a trace: spans that join to the text, character for character; and the equations of steps."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from stepmend.grading.extract import boxed
from stepmend.grading.visible import THOUGHTS

VERSION = "steps-4"
"""Changes whenever a text may be split differently; ``OF_THOUGHTS`` is the version for texts with thoughts."""
OF_THOUGHTS = "thoughts-1"
Span = tuple[int, int]
MARK = re.compile(r"^[ \t#*>]*step\s+\d+\b\s*[:.)*]", re.IGNORECASE | re.MULTILINE)
ITEM = re.compile(r"^[ \t#*>]*\(?\d{1,3}[.)]\**[ \t]+(?=\S)", re.MULTILINE)
"""An item of a numbered list."""
NEWLINES = re.compile(r"\n\s*")
SOLID = re.compile(r"\S")
SENTENCE = re.compile(r"(?<=[^\s.!?])[.!?]+[\"'”’)*]*(?=\s+[\"'“‘(\\*$A-Z0-9])")
CLAUSE = re.compile(r"[,;](?=\s)|\s(?=(?:and|so|then)\s)", re.IGNORECASE)
"""The finest boundaries, used only where a sentence holds several calculations."""
ABBREVIATIONS = frozenset("mr mrs ms dr st vs eq fig no approx etc e.g i.e min max hr hrs ft in oz lb lbs".split())  # noqa: SIM905
DELIMITER = re.compile(r"\\\\|\\[\[\]()]|(?<!\$)\$\$(?!\$)|\\(?:begin|end)\{\w{1,30}\*?\}")
CLOSING = {"\\[": "\\]", "\\(": "\\)", "$$": "$$"}
LONGEST_FORMULA = 4000
LONGEST_WORD = 40
INTRODUCTION = 3
"""Words before the first mark that are not a step of their own unless they are a sentence."""
SIGN = re.compile(r"(?P<relation>[=≈]+|\\approx\b)|[\d)}%](?:\s*(?:[+*×÷·]|\\(?:times|cdot|div)\b)|\s+[-−–/])\s*\\?[$(]?[\d(\\.]")
"""An equality sign, or an operator between two operands."""
BREAK = re.compile(r"[,;:.!?]\s|\n|\b(?:and|so|then|thus|which|because|while|therefore|hence|giving|gives|leaving|but)\b", re.IGNORECASE)
"""What ends a calculation in prose: an equality sign after it belongs to another one."""
CONTINUED = re.compile(r"\s*(?:[+×÷=≈≤≥]|\\(?:approx|times|cdot|div|leq?|geq?)\b)")
CONCLUSION = re.compile(r"[\s*#]*(?:therefore|thus|hence|so|in conclusion|finally|(?:the )?(?:final )?answer)\b|\s*####", re.IGNORECASE)
HEADING = re.compile(r"\s*(?:#+ [^\n]*|(?:\d{1,3}[.)] )?\*\*[^\n]*[^\n.!?]\*\*:?|\d{1,3}[.)] [^\n]*:)\s*")
HEADING_BEGIN = re.compile(r"\s*(?:#|\*\*|\d{1,3}[.)] )")
LEVELS = ("items", "paragraphs", "lines", "sentences", "clauses")
"""Boundaries of a step of several calculations, from the coarsest on."""
TURN = re.compile(
    r"[\s*#]*(?:wait|hmm|alternatively|but wait|no,|let me|let's|okay|ok,|now|next|so,|therefore|first|second|third|another|case|"
    r"step|maybe|actually|hold on|</think>)\b|\s*(?:#|\*\*|</think>)",
    re.IGNORECASE,
)
"""How a section of a long thought starts."""
SECTIONS = 24
"""Approximate number of sections of a text: it has at most twice as many, and a text with fewer steps has one section per step."""
EQUATION = re.compile(r"(?<![\d.*/+\-])(?<![*/+\-] )(-?\d+(?:\.\d+)?)\s*([-+*/])\s*(-?\d+(?:\.\d+)?)\s*=\s*(-?\d+(?:\.\d+)?)")
ASKED = re.compile(r"Step (\d+): \S")
"""How each line but the answer's starts in the step format."""


@dataclass(frozen=True)
class Equation:
    """One equation of two operands, as written."""

    left: float
    op: str
    right: float
    result: float


def split(text: str) -> list[Span]:
    """Half-open spans of the steps; they cover the text without gaps. Linear in the text's length.

    If a text is written in ``Step k:`` marks, a step reaches from one mark to the next, what is before the first mark is split as
    a text of its own, and the conclusion is a step. Else steps are paragraphs and the items of numbered lists, else lines, else sentences,
    whichever there is more than one of. A step that holds several calculations or displayed formulas is cut further, into the next
    finer of these, and what leads to a calculation goes with it. Blanks before a step's first word are the step's own: they belong to that
    word's token. No step starts inside a formula, and a displayed formula belongs to the words before it.

    Thought and answer are split each as a text of its own: the mark that starts or ends the thought belongs to the step after it.
    """
    marks = list(THOUGHTS.finditer(text))
    end = answer_start(text)
    if end is None:
        return _after_mark(text, marks[0].end() if marks and not text[: marks[0].start()].strip() else 0)
    mark = next(mark for mark in marks if mark.start() == end)
    answer = _after_mark(text[end:], mark.end() - end)
    return [*split(text[:end]), *((start + end, stop + end) for start, stop in answer)]


def _after_mark(text: str, mark: int) -> list[Span]:
    """The steps of a text, of which a mark that ends there is no part, but belongs to the first of them."""
    found = [(start + mark, end + mark) for start, end in _Splitter(text[mark:]).spans()] if text[mark:] else []
    return [(0, found[0][1]), *found[1:]] if found else [(0, len(text))] if text else []


def answer_start(text: str) -> int | None:
    """Where a thought is closed and the answer starts, with the closing mark; None if no thought is closed and answered."""
    ends = [mark for mark in THOUGHTS.finditer(text) if not mark["open"]]
    return ends[-1].start() if ends and text[: ends[-1].start()].strip() and text[ends[-1].end() :].strip() else None


def sections(text: str) -> list[Span]:
    """Half-open spans of a few dozen sections, each of whole steps of ``split``: what a locator searches first in a long thought.

    They have about equal numbers of steps, and start where possible at a turn of the thought (``Wait``, ``Alternatively``, a heading).
    A text of up to SECTIONS steps has one step a section.
    """
    steps = split(text)
    return list(pairwise([*(steps[index][0] for index in section_starts(text, steps)), len(text)]))


def section_starts(text: str, steps: Sequence[Span]) -> list[int]:
    """The numbers of the steps with which the sections of a text start (``sections``)."""
    size = -(-len(steps) // SECTIONS)
    starts, index = [], 0
    while index < len(steps):
        starts.append(index)
        index = min(range(index + max(size // 2, 1), index + size + size // 2 + 1), key=lambda i: _unfit(text, steps, i, index + size))
    return starts


def _unfit(text: str, steps: Sequence[Span], index: int, wanted: int) -> tuple[bool, int]:
    """The cost of starting a section at a step: high if the thought does not turn there, or if the step is far from an even spacing."""
    turns = index >= len(steps) or TURN.match(text, *steps[index]) is not None
    return not turns, abs(index - wanted)


def first(prefix: str, rest: str) -> int:
    """Where the first step of ``rest`` ends in it, by the rule that the whole text is split by: paragraphs stay paragraphs."""
    return next(end for _, end in split(prefix + rest) if end > len(prefix)) - len(prefix)


def formulas(text: str) -> list[Span]:
    """Spans of displayed and inline formulas, outermost ones only. A single dollar sign does not count, because it usually means money."""
    found: list[Span] = []
    opened: dict[str, list[int]] = {}
    for match in DELIMITER.finditer(text):
        sign = match[0]
        starts = opened.get(sign)
        start = starts.pop() if starts else None
        if start is not None and match.end() - start <= LONGEST_FORMULA:
            if not (found and found[-1][0] < start < found[-1][1]):
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end()))
        elif closing := CLOSING.get(sign) or (sign.replace("begin", "end", 1) if sign.startswith("\\begin") else None):
            opened.setdefault(closing, []).append(match.start())
    return found


class _Splitter:
    """One text: its formulas, its calculations, and where each level of boundaries allows a step to start; all sorted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.stripped = text.rstrip()
        self.begin = len(self.stripped) - len(self.stripped.lstrip())
        self.formulas = formulas(text)
        self.displayed = [span for span in self.formulas if not text.startswith("\\(", span[0])]
        self.calculations = [start for start, _ in _calculations(text, self.formulas)]

    @cached_property
    def items(self) -> list[int]:
        return self._allowed(_items(self.text))

    @cached_property
    def newlines(self) -> list[tuple[int, int]]:
        """Where lines start after empty ones are left out, each with how many line ends are before it."""
        return [(m.start() + m[0].rfind("\n") + 1, m[0].count("\n")) for m in NEWLINES.finditer(self.stripped)]

    @cached_property
    def paragraphs(self) -> list[int]:
        return self._allowed(place for place, count in self.newlines if count > 1)

    @cached_property
    def lines(self) -> list[int]:
        return self._allowed(place for place, _ in self.newlines)

    @cached_property
    def sentences(self) -> list[int]:
        return self._allowed(_sentences(self.text))

    @cached_property
    def clauses(self) -> list[int]:
        ends = [match.start() if match[0].isspace() else match.end() for match in CLAUSE.finditer(self.text)]
        return self._allowed([*ends, *(end for _, end in self.displayed)])

    @cached_property
    def parts(self) -> list[int]:
        return sorted({*self.items, *self.paragraphs})

    def spans(self) -> list[Span]:
        starts = [0, *self._base()]
        fine = [place for span in pairwise([*starts, len(self.text)]) for place in self._refined(span, LEVELS)]
        return list(pairwise([*fine, len(self.text)]))

    def _allowed(self, places: Iterable[int]) -> list[int]:
        """The places at which a step may start: not in a formula, nor before what belongs to the words before it."""
        return sorted({place for place in places if self.begin < place and self._may_begin(place)})

    def _may_begin(self, place: int) -> bool:
        if not self.text[place : place + 1] or _around(self.formulas, place) or CONTINUED.match(self.text, place):
            return False
        index = bisect_left(self.displayed, (place, 0))
        if index == len(self.displayed) or SOLID.search(self.text, place, self.displayed[index][0]):
            return True
        return index > 0 and not SOLID.search(self.text, self.displayed[index - 1][1], place)  # a display right after another one

    def _base(self) -> list[int]:
        """Where the steps after the first start, before those of several calculations are cut."""
        marks = _marks(self.text)
        if marks is None:
            places = self.parts or self.lines
            return self._led(places) if places else self.sentences
        words = self.text[: marks[0]].split(maxsplit=INTRODUCTION)
        introduced = len(words) > INTRODUCTION or (bool(words) and words[-1].endswith("."))
        before = self._led(self.parts[: bisect_left(self.parts, marks[0])]) if introduced else []
        places = self._allowed([*(marks if introduced else marks[1:]), self._conclusion(marks[-1])])
        return [*before, *places]

    def _led(self, places: Sequence[int]) -> list[int]:
        """The places without those of parts that a heading, or a line that ends in a colon, leads to."""
        parts = pairwise([0, *places, len(self.text)])
        return [place for place, (start, end) in zip(places, parts, strict=False) if not self._leads(start, end)]

    def _leads(self, start: int, end: int) -> bool:
        part = self.text[start:end]
        if HEADING.fullmatch(part):
            return not HEADING_BEGIN.match(self.text, end)
        line = self.text[end : self.text.find("\n", end)] if part.rstrip().endswith(":") else ""
        return "=" in line and not re.search(r"[A-Za-z]", line)

    def _conclusion(self, last: int) -> int:
        """Where the conclusion after the last mark starts: the lines with the boxed answer, else a paragraph that draws one; 0 for none."""
        answer = self.text.rfind("\\boxed")
        if answer > last:
            start = _around(self.formulas, answer)
            place = self.text.rfind("\n", 0, start[0] if start else answer) + 1
            index = bisect_right(self.lines, place)  # a displayed answer has no place of its own
            place = self.lines[index - 1] if index and start else place
            return place if place > last else 0
        return next((p for p in reversed(self.paragraphs) if p > last and CONCLUSION.match(self.text, p)), 0)

    def _refined(self, span: Span, levels: Sequence[str]) -> Iterator[int]:
        """Where the steps of a span start: itself, if it holds one calculation or none, else cut before what leads to the next."""
        start, end = span
        if not levels or self._count(start, end) < 2:
            yield start
            return
        places = getattr(self, levels[0])
        inner = places[bisect_right(places, start) : bisect_left(places, end)]
        starts, after = [start], 0
        for begin, stop in pairwise([start, *inner, end]):
            if self._count(begin, stop):
                if after:
                    starts.append(after)
                after = stop
        for part in pairwise([*starts, end]):
            yield from self._refined(part, levels[1:])

    def _count(self, start: int, end: int) -> int:
        return bisect_left(self.calculations, end) - bisect_left(self.calculations, start)


def _around(spans: Sequence[Span], place: int) -> Span | None:
    """The span that a place is inside of."""
    index = bisect_left(spans, (place, 0)) - 1
    return spans[index] if index >= 0 and spans[index][0] < place < spans[index][1] else None


def _calculations(text: str, of: Sequence[Span]) -> list[Span]:
    """Spans from a calculation's first sign to its last, or of the formula that it is; each displayed formula counts as one."""
    signs = [(_around(of, m.start() + 1) or m.span(), m["relation"] is not None) for m in SIGN.finditer(text)]
    shown = [(span, True) for span in of if not text.startswith("\\(", span[0])]
    found: list[tuple[Span, bool]] = []
    for (start, end), related in sorted([*signs, *shown]):
        if found and start < found[-1][0][1]:
            found[-1] = (found[-1][0], found[-1][1] or related)
        elif found and not BREAK.search(text, found[-1][0][1], start) and not (related and found[-1][1] and "\\" in text[start:end]):
            found[-1] = ((found[-1][0][0], end), found[-1][1] or related)
        else:
            found.append(((start, end), related))
    return [span for span, _ in found]


def _marks(text: str) -> list[int] | None:
    """Where marked steps start; None if a text is not written in them: it neither starts with one nor has two."""
    starts = [match.start() for match in MARK.finditer(text)]
    return None if not starts or (len(starts) == 1 and text[: starts[0]].strip()) else starts


def _items(text: str) -> list[int]:
    """Where the items of numbered lists start: lines whose numbers follow one another."""
    found = [(match.start(), int(re.sub(r"\D", "", match[0]))) for match in ITEM.finditer(text)]
    follows = [(a, b) for (a, m), (b, n) in pairwise(found) if n == m + 1]
    return [place for pair in follows for place in pair]


def _sentences(text: str) -> list[int]:
    """Where sentences start: not after an abbreviation, an initial, or the number of a list's item."""
    starts = [0]
    for match in SENTENCE.finditer(text):
        place = match.start()
        words = text[max(starts[-1], place - LONGEST_WORD) : place].split()
        last = words[-1].strip("(\"'“‘").lower() if words else ""
        if not (last in ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i") or (len(words) == 1 and last.isdigit())):
            starts.append(match.end())
    return starts[1:]


def in_format(text: str) -> bool:
    """Whether a solution is in the requested step format (``models/chat.py``).

    That is: nothing but ``Step k: …`` lines, k from 1 on, and a last line that alone has a ``\\boxed{}`` answer. The last line may be a
    step itself, but not the only one. Empty lines count for nothing.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not boxed(lines[-1]) or any("\\boxed" in line for line in lines[:-1]):
        return False
    found = lines if ASKED.match(lines[-1]) else lines[:-1]
    return all((mark := ASKED.match(line)) is not None and int(mark[1]) == k for k, line in enumerate(found, 1))


def equations(step: str) -> list[Equation]:
    """The two-operand equations of a step, in order."""
    return [Equation(float(a), op, float(b), float(c)) for a, op, b, c in EQUATION.findall(step)]
