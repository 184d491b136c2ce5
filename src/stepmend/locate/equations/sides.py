"""The expression on either side of an equality sign, told from the words and signs around it."""

from collections.abc import Sequence
from dataclasses import replace

from stepmend.locate.equations.reader import SILENT, Reader, Side, Token, UnsureError

FUNCTIONS = frozenset("sqrt root log ln lg exp sin cos tan abs floor ceil max min gcd lcm".split())  # noqa: SIM905
"""Words before a number or bracket that change what it means."""
NEAREST = 60
"""Tokens of a side that are examined."""
PUNCTUATION = ',;:.?!¦"“”—-•'


def _read(tokens: Sequence[Token], start: int, *, left: bool) -> tuple[Side, int] | None:
    reader = Reader(tokens, start, left=left)
    try:
        side = reader.side()
    except (UnsureError, RecursionError, OverflowError):
        return None
    return side, reader.place


def suffix(tokens: Sequence[Token]) -> tuple[Side, int] | None:
    """The expression that a segment ends with, and where it starts; None if it is preceded by what may belong to it."""
    if tokens and tokens[-1].text == "¦":
        tokens = tokens[:-1]
    resumed = first = max(len(tokens) - NEAREST, 0)
    for start in range(first, len(tokens)):
        token = tokens[start]
        if start < resumed or (token.kind not in ("number", "math") and token.text != "("):
            continue
        found = _read(tokens, start, left=True)
        if found is None or found[1] < len(tokens):
            resumed = start if found is None else found[1]
            continue
        return None if _belongs(tokens[:start], token, found[0].operators) else (found[0], token.place)
    return None


def _belongs(before: Sequence[Token], first: Token, operators: int) -> bool:
    """Whether what is before an expression may be part of it, or the expression part of a phrase (``in 20 years = …``)."""
    if not before:
        return False
    last = before[-1]
    if last.kind in ("number", "math") or last.text in ")}^%_√∛!'" or (last.text == ":" and last.glued and first.glued):
        return True
    if last.kind == "word" and (first.glued or last.text.lower() in SILENT | FUNCTIONS | {"of", "by", "and"} or len(last.text) == 1):
        return True
    if operators == 0 and last.text not in ":(¦":
        return True
    if first.text == "(" and last.kind == "word" and before[-2:-1] and before[-2].kind == "number":
        return True  # a unit, times what is in the bracket
    if last.text in ".," and (first.glued or _pieces(before, first) or (last.text == "." and before[-2:-1] and before[-2].kind == "sign")):
        return True  # a number written in pieces
    # An operator earlier in the phrase has an operand that we do not know: "25 pupils + his 1 teacher".
    for token in reversed(before):
        if token.kind == "other" and token.text not in "'’":
            return token.text not in PUNCTUATION
        if token.kind == "math" or (token.kind == "sign" and token.text in "+-*/^("):
            return True
    return False


def _pieces(before: Sequence[Token], after: Token) -> bool:
    """``14, 400``: one number or two."""
    return len(before) > 1 and before[-1].text == "," and before[-2].kind == after.kind == "number" and len(after.text) == 3


def prefix(tokens: Sequence[Token]) -> Side | None:
    """The expression that a segment starts with; None if what follows may belong to it."""
    if tokens and tokens[0].text == "¦":
        tokens = tokens[1:]
    tokens = tokens[:NEAREST]
    found = _read(tokens, 0, left=False)
    if found is None:
        return None
    side, end = found
    if end == NEAREST or _goes_on(tokens, end):
        return None
    shares = [place for place in range(end) if tokens[place].text == "of"]
    alone = _read(tokens[: shares[0]], 0, left=False) if shares else None
    return replace(side, values=(*side.values, *alone[0].values)) if alone else side


def _goes_on(tokens: Sequence[Token], end: int) -> bool:
    """Whether what stands after an expression may be part of it."""
    if end == len(tokens):
        return False
    after, rest = tokens[end], tokens[end + 1 :]
    if after.kind in ("number", "math") or after.text in ("…", "|") or after.text in "+-*/^(%!_'" or (after.text == ":" and after.glued):
        return True
    if after.text == "is":
        return True  # 12 + 3 + 4 = 12 + 3 is 15, …
    if after.text == "." and rest and rest[0].text in (".", "…"):
        return True  # 8.333…
    return after.text in (",", ".") and bool(rest) and rest[0].kind == "number" and (rest[0].glued or _pieces(tokens[: end + 1], rest[0]))
