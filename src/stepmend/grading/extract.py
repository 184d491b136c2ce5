"""Where the answer stands in a text. Versioned: a change of these rules is a change of every grade's digest. Linear in the text."""

import re
from dataclasses import dataclass
from typing import Literal

VERSION = "answer-3"
"""Names the rules below; part of every grade's digest."""

Form = Literal["boxed", "marked", "loose"]
"""How the answer was given: in ``\\boxed{}`` as asked; after a mark such as ``####``; or just at the end of the text."""

MARKS = re.compile(
    r"(?:####|^A:|\b(?:final )?answer(?: is:?|:)|答案[是为：:])[ \t]*\**[ \t]*\n?[ \t]*([^\s:][^\n]{0,300})", re.IGNORECASE | re.MULTILINE
)
"""GSM8K's ``#### 18``, ``A: 18``, "the answer is 18", "Answer: 18"; the answer is the rest of the line."""
NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\$?\.\d+")
SENTENCE = re.compile(r"(?<=[^\s.])[.!?]\s+(?=[A-Z\"'])|,\s+(?:which|because|since|so|as|where|meaning)\b")
"""Where a marked answer ends, though its line goes on."""
MATHS = re.compile(
    r"\$\$([^$\n]{1,300})\$\$|(?<![\\$])\$(?=\S)([^$\n]{1,300})(?<=\S)\$(?!\d)|\\\[([^\n]{1,300}?)\\\]|\\\(([^\n]{1,300}?)\\\)"
)
"""Formulas. A single dollar sign is money as often: it opens a formula before no blank, and closes one behind none and before no digit."""
PROSE = re.compile(r"[^\W\d_]{2,} [^\W\d_]+ [^\W\d_]{2,}")
"""Three words in a row."""
CLOSERS = {"\\[": "\\]", "$$": "$$", "\\(": "\\)"}
TAIL = 300
"""Characters at the end of a text in which a loose answer may stand."""


@dataclass(frozen=True)
class Extracted:
    """An answer as written, and how it was given."""

    answer: str
    form: Form


def extract(text: str, *, loose: bool = True) -> Extracted | None:
    """The last complete ``\\boxed{…}``; else the last marked answer; else, if ``loose``, the last formula or number of the text's end.

    A text that was cut off gives no loose answer: ask with ``loose=False``. None where there is no answer.
    """
    found = boxed(text)
    if found:
        return Extracted(found, "boxed")
    marked = [answer for mark in MARKS.finditer(text) if re.search(r"[\d\\$]|^\W*[^\W\d_]+\W*$", answer := _marked(mark))]
    if marked:
        return Extracted(marked[-1], "marked")
    if not loose:
        return None
    # A number or formula that the cut goes through is none.
    end = text if len(text) <= TAIL else text[-TAIL:].partition(" ")[2]
    formulas = [formula for m in MATHS.finditer(end) if not PROSE.search(formula := next(filter(None, m.groups()), ""))]
    numbers = NUMBER.findall(end)
    answer = formulas[-1].strip() if formulas else numbers[-1] if numbers else ""
    return Extracted(answer, "loose") if answer else None


def _marked(mark: re.Match[str]) -> str:
    """What a mark is followed by, up to the end of its sentence or line; of a formula that begins there, the formula."""
    answer = mark[1].strip()
    if closer := CLOSERS.get(answer):
        answer = mark.string[mark.end(1) : mark.end(1) + 300].partition(closer)[0].strip()
    while inner := MARKS.search(answer):
        answer = inner[1]
    return SENTENCE.split(answer)[0].strip().rstrip(".").strip("*").strip()


def bare(text: str) -> Extracted | None:
    """The text itself, where it is nothing but an answer: one short line without a box, a mark or three words in a row."""
    line = text.strip()
    prose = PROSE.search(re.sub(r"\\text\{[^{}]*\}", "", line))
    if not line or "\n" in line or "=" in line or len(line) > 200 or prose or "\\boxed" in line or MARKS.search(line):
        return None
    return Extracted(line.strip("$") or line, "loose")


def boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{…}`` whose braces are closed; an escaped brace (``\\{``) does not count. None without one."""
    last: tuple[int, int] | None = None
    open_boxes: list[tuple[int, int]] = []  # where a box's content begins, and the depth at which it closes
    depth = 0
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        piece = match[0]
        if piece == "}":
            if open_boxes and open_boxes[-1][1] == depth:
                begin = open_boxes.pop()[0]
                # An inner box is part of the outer one; the outermost that ends last counts.
                last = (begin, match.start())
            depth = max(depth - 1, 0)
        elif piece.endswith("{") and piece != "\\{":
            depth += 1
            if len(piece) > 1:
                open_boxes.append((match.end(), depth))
    return text[slice(*last)].strip() if last else None
