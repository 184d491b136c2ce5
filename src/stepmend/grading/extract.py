"""Extraction of the answer from a text. Versioned: changing these rules changes every grade's digest. Linear in the text."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stepmend.grading import loose as ends
from stepmend.grading import marks
from stepmend.grading.visible import HEADING, visible

VERSION = "answer-4"
"""Names the rules of extraction and equality; part of every grade's digest."""

Form = Literal["boxed", "marked", "loose"]
"""How the answer was given: in ``\\boxed{}`` as asked; after a mark such as ``####``; or just at the end of the text."""

BOXES = re.compile(
    r"(?:\\{1,4}|\x08)(?:boxed|fbox|framebox)(?:\s*+\{|\s++(?P<bare>-?\d[\d.,]{0,40}(?<=\d)|\w)(?!\w)|(?P<cut>\s*+\Z))|\\.|[{}]", re.DOTALL
)
JOINED = re.compile(
    r"(?:[\s$})\]]|\\[()\],;! ]|\\(?:text|mathrm|textrm)\s?\{|\\q?quad)*[^\n.!?,;]{0,30}?(?:,|;|、|，|\band\b|\bor\b|&|和|或)"
    r"[\s$,]*(?:and\b|or\b)?(?![^\n]*\n\s*\n)[^\n.!?]{0,40}\Z"
)
"""What is between two boxes that are one answer: a comma, "and", "or" …"""
DERIVED = re.compile(
    r"\b(?:so|thus|therefore|hence|giv\w+|becom\w+|then|not|instead|rather|but|final\w*|total|sum|product|which|check|simplif\w+|equal\w*|means"
    r"|is the)\b|=>|\\implies|\\Rightarrow"
)
"""… and no word of a derivation."""
BULLET = re.compile(r"[\s$\\)}\]]*\n[ \t]*(?:[-*•]|\d{1,2}[.)])[^\n]{0,40}\Z")
LABEL = re.compile(r"[^\W\d_]{2}\W{0,3}[:：]|</?\w")
"""A label or a tag next to an answer."""
CLEAR = re.compile(r"-?\$?\d[\d,]{0,30}(?:\.\d{1,30})?%?")


@dataclass(frozen=True)
class Extracted:
    """An answer as written, and how it was given."""

    answer: str
    form: Form


@dataclass(frozen=True)
class _Box:
    """A box: where it starts, where its content does, where that ends (None: the text ends first)."""

    start: int
    begin: int
    end: int | None


def extract(text: str, *, loose: bool = True, whole: bool | None = None) -> Extracted | None:
    """The last ``\\boxed{…}``; else the last marked answer; else, if ``loose``, the last formula or number of the text's end.

    Only the visible answer counts: no thoughts, no text after the end of the turn, no further question that the model continues with. A
    placeholder (``\\boxed{answer}``) is no answer, nor is one that the end of the text cuts off. A text that was cut off
    (``whole=False``; the default where ``loose`` is False) has no marked answer either, unless nothing follows it: it is an early one.
    None if there is no answer.
    """
    said = visible(text)
    whole = (loose if whole is None else whole) and said.whole
    return _extract(*_one_question(said.text, whole), loose)


def _extract(text: str, whole: bool, loose: bool) -> Extracted | None:
    boxes = _boxes(text)
    cut = bool(boxes) and boxes[-1].end is None
    complete = [box for box in _outer(boxes) if not marks.placeholder(_content(text, box))]
    last = boxes[-1].start if cut else complete[-1].end or 0 if complete else -1
    mark = marks.last(text, last + 1, whole=whole)
    if mark and (cut or not complete or (mark.strong and CLEAR.fullmatch(mark.answer.strip("$")))):
        return Extracted(mark.answer, "marked")
    if cut:
        return None
    if complete:
        return Extracted(_joined(text, complete), "boxed")
    answer = ends.last(text) if loose and whole else None
    return Extracted(answer, "loose") if answer else None


def _one_question(text: str, whole: bool) -> tuple[str, bool]:
    """The text before the next question that the model asks itself, and whether that part is complete (it is, if such a question
    follows)."""
    headings = list(HEADING.finditer(text, len(text) - len(text.lstrip()) + 1))
    if not headings:
        return text, whole
    answers = [box.end for box in _boxes(text) if box.end is not None and not marks.placeholder(_content(text, box))]
    answered = min([*answers, marks.first_end(text)])
    for heading in headings:
        if answered <= heading.start() or (
            heading["asked"] and ends.concluded(text[max(0, heading.start() - ends.TAIL) : heading.start()])
        ):
            return text[: heading.start()], True
    return text, whole


def answer_of(text: str, *, loose: bool = True, whole: bool = True) -> Extracted | None:
    """The answer of a field that may hold a solution or nothing but an answer."""
    return (bare(text) if loose and whole else None) or extract(text, loose=loose, whole=whole)


def bare(text: str) -> Extracted | None:
    """The text itself, if it is nothing but an answer: one short line without a box, a mark or three words in a row."""
    said = visible(text)
    line = said.text.strip()
    if not line or len(line) > 200 or not said.whole or "\n" in line or "=" in line or "\\boxed" in line or marks.placeholder(line):
        return None
    if ends.PROSE.search(re.sub(r"\\text\{[^{}]*\}", "", line)) or marks.MARKS.search(line) or LABEL.search(line):
        return None
    inner = line.strip("$").strip()
    if "$" in inner or not inner:
        return Extracted(line, "loose") if ends.MATHS.fullmatch(line) or not re.search(r"[^\W\d_]{3}", line) else None
    return Extracted(inner, "loose")


def boxed(text: str) -> str | None:
    """What is in the last ``\\boxed{…}`` whose braces are closed; an escaped brace (``\\{``) does not count. None without one."""
    closed = _outer(_boxes(text))
    return _content(text, closed[-1]) or None if closed else None


def _boxes(text: str) -> list[_Box]:
    """Boxes in the order in which they close, then those that never do. An inner box comes before the one around it."""
    found: list[_Box] = []
    opened: list[tuple[int, int, int]] = []  # where a box and its content start, and the depth at which it closes
    depth = 0
    for match in BOXES.finditer(text):
        piece = match[0]
        if piece == "}":
            if opened and opened[-1][2] == depth:
                start, begin, _ = opened.pop()
                found.append(_Box(start, begin, match.start()))
            depth = max(depth - 1, 0)
        elif match["bare"]:
            found.append(_Box(match.start(), *match.span("bare")))
        elif match["cut"] is not None:
            found.append(_Box(match.start(), match.end(), None))
        elif piece.endswith("{") and piece != "\\{":
            depth += 1
            if len(piece) > 1:
                opened.append((match.start(), match.end(), depth))
    # A box that is open while others close inside it has lost its brace: those count.
    latest = found[-1].start if found else -1
    return found + [_Box(start, begin, None) for start, begin, _ in opened if start > latest]


def _outer(boxes: list[_Box]) -> list[_Box]:
    """The closed boxes that are in no other one. What closes later and starts earlier is around what came before it."""
    kept: list[_Box] = []
    for box in boxes:
        if box.end is None:
            continue
        while kept and kept[-1].start > box.start:
            kept.pop()
        kept.append(box)
    return kept


def _content(text: str, box: _Box) -> str:
    return text[box.begin : box.end].strip()


def _joined(text: str, boxes: list[_Box]) -> str:
    """The last box's content; that of several boxes of one sentence or list, such as ``\\boxed{-4} and \\boxed{3}``, with commas."""
    several = [boxes[-1]]
    for before, after in pairwise(reversed(boxes)):
        gap = text[(after.end or 0) + 1 : before.start]
        together = len(gap) <= 80 and (JOINED.match(gap) or BULLET.match(gap)) and not DERIVED.search(gap)
        if not together:
            break
        several.append(after)
    return ", ".join(dict.fromkeys(_content(text, box) for box in reversed(several)))
