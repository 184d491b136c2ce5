"""Unmarked answers: the last formula or number at the end of a text."""

import re

MATHS = re.compile(
    r"\$\$([^$\n]{1,300})\$\$|(?<![\\$])\$(?=\S)([^$\n]{1,300})(?<=\S)\$(?!\d)|\$ ([^$\n]{1,300}\\[^$\n]{1,300}) \$"
    r"|\\\[([^\n]{1,300}?)\\\]|\\\(([^\n]{1,300}?)\\\)"
)
"""Formulas. A single dollar sign is money as often: it opens a formula before no blank, and closes one after none and before no digit."""
OPENED = re.compile(r"\\\[(?!.*\\\])|\\\((?!.*\\\))|\\[a-z]{0,20}\Z", re.DOTALL)
"""A formula or a command that is cut off at the end of the text."""
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_ROOT = r"(?:[√∛]\(?\d{1,20}\)?|sqrt\(\d{1,20}\)|[πeEi](?!\w)|pi\b)"
_VALUE = rf"(?:(?:{_PLAIN})(?:[eE][+-]?\d{{1,4}}(?!\w)| ?(?:×|x|\*|·) ?10(?:\^|\*\*)\(?[+-−]?\d{{1,4}}\)?)?|(?=[√∛πs]|pi\b){_ROOT})"
NUMBER = re.compile(
    rf"[(\[{{] ?[-−]?\$?{_VALUE}(?: ?, ?[-−]?{_VALUE}){{1,8}} ?[)\]}}]"
    rf"|[-−]?\$?{_VALUE}(?: ?\*? ?{_ROOT})?(?: ?/ ?{_VALUE}(?![/\d]))?(?::\d{{1,3}}(?!\d))?(?:\^\(?-?\d{{1,4}}\)?)?%?"
)
"""A number as it may close a text: with a fraction (``3/4``), a root, a power of ten; or several in brackets."""
PROSE = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,40} [^\W\d_]{1,40} [^\W\d_]{2,40}")
"""Three words in a row."""
TAIL = 300
"""Number of characters at the end of a text that are searched for an unmarked answer."""


def last(text: str) -> str | None:
    """The formula or number that ends last in the end of a text; None if there is none, or a formula is cut off there."""
    # A number or formula that the cut goes through is none.
    end = text if len(text) <= TAIL else text[-TAIL:].partition(" ")[2]
    if OPENED.search(end.rstrip()):
        return None
    formulas = [(m.end(), formula.strip()) for m in MATHS.finditer(end) if not PROSE.search(formula := next(filter(None, m.groups()), ""))]
    numbers = [(m.end(), m[0].replace("−", "-")) for m in NUMBER.finditer(end)]
    # What ends inside a formula is part of it; a dollar sign closes it.
    later = [(place, number) for place, number in numbers if not formulas or place > formulas[-1][0]]
    return (later or formulas or [(0, None)])[-1][1]


def concluded(text: str) -> bool:
    """Whether a text looks like a finished solution: its last line has a number, and neither asks nor announces anything."""
    line = text.rstrip()[-TAIL:].rpartition("\n")[2]
    return bool(re.search(r"\d", line)) and not re.search(
        r"[:?？：]\W{0,5}\Z|\b(?:find|solve|given|problem|question)\b", line, re.IGNORECASE
    )
