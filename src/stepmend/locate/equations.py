"""Written arithmetic that can be checked: ``left = right`` where both sides are numbers, units and operators. Silent when unsure.

A claim is false only where every sensible reading of it is: the usual precedence or plain left to right, rounded as written, a percent
as itself or as a share, one side in cents and the other in dollars. Variables, times of day, ordinals and mixed numbers are left alone.
"""

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stepmend.locate.plain import normalize

APPLY: dict[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
WORDS_FOR = {"times": "*", "plus": "+", "minus": "-", "x": "*"}
SILENT = frozenset(
    """
    am pm dozen dozens hundred hundreds thousand thousands million millions billion half halves third thirds quarter quarters twice
    double triple percent percentage remainder mod squared cubed th st nd rd or equals than more less from to day week step part number
    """.split()  # noqa: SIM905
)
"""Words next to a number that change what it means: an equation with one of them is not judged."""
STOPS = frozenset("and so because since is are was then if but which that thus".split())  # noqa: SIM905
"""Words that are no unit: an operand ends before them."""
FUNCTIONS = frozenset("sqrt root log ln lg exp sin cos tan abs floor ceil max min gcd lcm".split())  # noqa: SIM905
"""Words before a number or bracket that change what it means."""
MEASURES = frozenset(
    "pound ounce hour minute second week month year inch foot feet yard mile cup pint quart gallon gram cent dollar".split()  # noqa: SIM905
)
"""Units that convert into one another: an equation with two of them is not judged."""
CONVERSIONS = tuple(Fraction(n) for n in (100, 60, 12, 24, 7, 1000, 3600, 16, 3, 36, 52, 365, 30, 10))
"""Between units of one kind: cents, minutes, inches, hours, days, grams, ounces, feet, weeks."""
TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|(?P<word>[^\W\d_]+)|(?P<sign>[-+*/^()%=≈])|(?P<other>\S)"
)


@dataclass(frozen=True)
class Token:
    """A number, word, sign or other character of a normalized text; ``glued`` to what stands before it."""

    kind: str
    text: str
    glued: bool


@dataclass(frozen=True)
class Side:
    """One side of a claim: its values under every reading, and how it is written."""

    values: tuple[Fraction, ...]
    operators: int
    decimals: int
    whole: bool
    percent: bool
    sums: bool
    units: frozenset[str]
    first: Fraction


@dataclass(frozen=True)
class Claim:
    """One equation as written, and whether it holds."""

    text: str
    holds: bool


def claims(text: str) -> list[Claim]:
    """The equations of a text that can be checked, in order.

    ``total = 3 + 4``, later ``total = 8`` is one, too: the same words before the sign name the same number until they are set anew.
    """
    found = []
    named: dict[str, tuple[Side, Sequence[Token]]] = {}
    for line in normalize(text).splitlines():
        segments = _segments(line)
        for (before, _), (after, rounded) in itertools.pairwise(segments):
            left, right, shown = _suffix(before), _prefix(after), before
            if left is None and (name := _name(before)):
                if right and not right.operators and name in named:
                    left, shown = named.pop(name)
                elif right and right.operators:
                    named[name] = right, after
            if left is not None and right is not None and left.operators + right.operators:
                sign = "≈" if rounded else "="
                found.append(Claim(f"{_text(shown[-12:])} {sign} {_text(after[:12])}", _agree(left, right, rounded)))
    return found


def _name(tokens: Sequence[Token]) -> str:
    """The words that an equation begins with, back to the last punctuation; empty where there is anything else among them."""
    words = []
    for token in reversed(tokens):
        if token.kind == "other" and token.text not in "'’_":
            break
        if token.kind not in ("word", "other"):
            return ""
        words.append(token.text.lower())
    return " ".join(reversed(words)) if len(words) > 1 else ""


def _segments(line: str) -> list[tuple[list[Token], bool]]:
    """What stands between the equality signs of a line, each with whether the sign before it says "about"."""
    segments: list[tuple[list[Token], bool]] = [([], False)]
    end = -1
    for match in TOKEN.finditer(line):
        kind = match.lastgroup or "other"
        text = match[0]
        if text in "=≈":
            segments.append(([], text == "≈"))
        else:
            if kind == "word" and text.lower() in WORDS_FOR and text.lower() != "x":
                kind, text = "sign", WORDS_FOR[text.lower()]
            segments[-1][0].append(Token(kind, text, match.start() == end))
        end = match.end()
    return segments


def _text(tokens: Sequence[Token]) -> str:
    return " ".join(token.text for token in tokens)


class _UnsureError(Exception):
    """This reading is none."""


class _Reader:
    """Recursive descent over tokens: numbers with units, brackets, and operators."""

    def __init__(self, tokens: Sequence[Token], begin: int) -> None:
        self.tokens, self.place = tokens, begin
        self.flat: list[Fraction | str] = []  # operands and operators, brackets closed, for the reading from left to right
        self.percents: set[int] = set()  # which of those are percentages
        self.operators = self.decimals = 0
        self.whole, self.percent, self.sums, self.depth = True, False, True, 0
        self.units: set[str] = set()

    def peek(self) -> Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def sum(self) -> Fraction:
        value = self.product()
        while (token := self.peek()) and token.text in "+-" and self._operand_follows():
            self._operator(token.text)
            other = self.product()
            value = value + other if token.text == "+" else value - other
        return value

    def product(self) -> Fraction:
        value = self.power()
        while (token := self.peek()) and (token.text in "*/" or self._share(token)) and self._operand_follows():
            self._operator("/" if token.text == "/" else "*")
            other = self.power()
            if token.text == "/" and other == 0:
                raise _UnsureError
            value = value / other if token.text == "/" else value * other
        return value

    def _share(self, token: Token) -> bool:
        """``20% of 50``, ``1/4 of 8``."""
        return token.text == "of" and (self.percent or (self.operators > 0 and "/" in self.flat))

    def power(self) -> Fraction:
        value = self.operand()
        token = self.peek()
        if token and token.text == "^":
            self.place += 1
            exponent = self.operand()
            if exponent.denominator != 1 or not 0 <= exponent <= 12:
                raise _UnsureError
            if self.depth == 0:
                del self.flat[-1]
                self.flat[-1] = Fraction(value ** int(exponent))
            self.operators += 1
            self.sums = False
            return Fraction(value ** int(exponent))
        return value

    def operand(self) -> Fraction:
        token = self.peek()
        negative = False
        if token and token.text == "-" and self.place + 1 < len(self.tokens) and self.tokens[self.place + 1].glued:
            negative = True
            self.place += 1
            token = self.peek()
        if token is None:
            raise _UnsureError
        if token.text == "(":
            value = self._bracket()
        elif token.kind == "number":
            self.place += 1
            value = self._number(token.text)
        else:
            raise _UnsureError
        value = -value if negative else value
        if (token := self.peek()) and token.text == "%":
            self.place += 1
            value, self.percent = value / 100, True
            self.percents.add(len(self.flat))
        self._units()
        if self.depth == 0:
            self.flat.append(value)
        return value

    def _bracket(self) -> Fraction:
        self.place += 1
        self.depth += 1
        value = self.sum()
        self.depth -= 1
        token = self.peek()
        if token is None or token.text != ")":
            raise _UnsureError
        self.place += 1
        return value

    def _number(self, text: str) -> Fraction:
        plain = text.replace(",", "")
        if len(plain) > 1 and plain[0] == "0" and plain[1] != ".":
            raise _UnsureError  # a time or a code
        self.decimals = max(self.decimals, len(plain.partition(".")[2]))
        self.whole &= "." not in plain
        return Fraction(plain)

    def _units(self) -> None:
        """Up to four words behind an operand; a letter alone is a variable, and some words change the number."""
        begin = self.place
        while (token := self.peek()) and token.kind == "word" and self.place - begin < 4:
            word = token.text.lower()
            if (word == "of" and self._share(token)) or word in STOPS:
                break
            if len(word) == 1 or word in SILENT:
                raise _UnsureError
            self.units.add(word.rstrip("s"))
            self.place += 1
        ahead = [token.text for token in self.tokens[self.place : self.place + 3]]
        if ahead[:1] == ["and"] and ahead[2:] == ["/"]:
            raise _UnsureError  # 1 and 1/4
        if (token := self.peek()) and (token.text == "(" or (token.kind == "number" and self.place == begin)):
            raise _UnsureError  # implied multiplication, or a mixed number

    def _operand_follows(self) -> bool:
        following = self.tokens[self.place + 1 : self.place + 3]
        if following and (following[0].kind == "number" or following[0].text == "("):
            return True
        return len(following) == 2 and following[0].text == "-" and following[1].kind == "number" and following[1].glued

    def _operator(self, sign: str) -> None:
        self.place += 1
        self.operators += 1
        self.sums &= sign in "+-"
        if self.depth == 0:
            self.flat.append(sign)

    def side(self) -> Side:
        """What ``sum`` has read from the beginning on."""
        value = self.sum()
        values = (value, *_left_to_right(self.flat), *_by_fraction(self.flat), *_by_percent(self.flat, self.percents))
        first = next((f for f in self.flat if isinstance(f, Fraction)), value)
        return Side(values, self.operators, self.decimals, self.whole, self.percent, self.sums, frozenset(self.units), first)


def _left_to_right(flat: Sequence[Fraction | str]) -> Iterator[Fraction]:
    """Operators applied as they come, and a last division by all that follows: how hurried people write."""
    if len(flat) < 4 or len(flat) % 2 == 0:
        return
    value: Any = flat[0]
    for sign, other in zip(flat[1::2], flat[2::2], strict=True):
        if sign == "/" and other == 0:
            return
        value = APPLY[str(sign)](value, other)
    yield value


def _by_fraction(flat: Sequence[Fraction | str]) -> Iterator[Fraction]:
    """``25 / 1/3`` as 25 divided by a third, and ``7/12 / 1/12`` likewise."""
    if flat[1::2] == ["/", "/"] and flat[4]:
        yield flat[0] * flat[4] / flat[2]  # pyright: ignore[reportOperatorIssue]
    if flat[1::2] == ["/", "/", "/"] and flat[2] and flat[4]:
        yield flat[0] / flat[2] * flat[6] / flat[4]  # pyright: ignore[reportOperatorIssue]


def _by_percent(flat: Sequence[Fraction | str], percents: set[int]) -> Iterator[Fraction]:
    """``50 - 10%`` as 50 less a tenth of it."""
    if len(flat) == 3 and flat[1] in ("+", "-") and percents == {2}:
        yield APPLY[str(flat[1])](flat[0], flat[0] * flat[2])  # pyright: ignore[reportOperatorIssue]


def _read(tokens: Sequence[Token], begin: int) -> tuple[Side, int] | None:
    reader = _Reader(tokens, begin)
    try:
        side = reader.side()
    except (_UnsureError, RecursionError, OverflowError):
        return None
    return side, reader.place


def _suffix(tokens: Sequence[Token]) -> Side | None:
    """The expression that a segment ends with; None where it is preceded by what may belong to it."""
    for begin, token in enumerate(tokens):
        if token.kind != "number" and token.text != "(":
            continue
        found = _read(tokens, begin)
        if found is None or found[1] < len(tokens):
            continue
        return None if _belongs(tokens[:begin], token, found[0].operators) else found[0]
    return None


def _belongs(before: Sequence[Token], first: Token, operators: int) -> bool:
    """Whether what stands before an expression may be part of it, or the expression part of a phrase (``in 20 years = …``)."""
    if not before:
        return False
    last = before[-1]
    if last.kind == "number" or last.text in ")}^%_√∛" or (last.text == ":" and last.glued and first.glued):
        return True
    if last.kind == "word" and (first.glued or last.text.lower() in SILENT | FUNCTIONS | {"of", "by", "and"} or len(last.text) == 1):
        return True
    if operators == 0 and last.text not in ":(":
        return True
    if last.text in ".," and first.glued:
        return True  # a number written in pieces
    # An operator earlier in the phrase has an operand that we do not know: "25 pupils + his 1 teacher".
    for token in reversed(before):
        if token.kind == "other":
            return False
        if token.text in "+-*/^(":
            return True
    return False


def _prefix(tokens: Sequence[Token]) -> Side | None:
    """The expression that a segment begins with; None where what follows may belong to it."""
    found = _read(tokens, 0)
    if found is None:
        return None
    side, end = found
    after = tokens[end] if end < len(tokens) else None
    if after and after.text == "." and tokens[end + 1 : end + 2] and tokens[end + 1].text == ".":
        return None  # 8.333…
    if after and (after.text in "+-*/^(%!_" or (after.text == ":" and after.glued) or after.kind == "number"):
        return None
    return side


def _agree(left: Side, right: Side, rounded: bool) -> bool:
    """Whether some reading of the two sides makes them equal."""
    if right.operators and right.first in left.values:
        return True  # 5 + 3 = 8 * 2 = 16: wrongly written, rightly meant
    if len((left.units | right.units) & MEASURES) > 1:
        return True
    return any(_near(a, b, left, right, rounded) for a in left.values for b in right.values)


def _exact_sum(side: Side, result: Side) -> bool:
    """Whether one side only adds and subtracts, and the other is written with as many decimals: then there is nothing to round."""
    return side.sums and not result.operators and 0 < side.decimals <= result.decimals


def _near(a: Fraction, b: Fraction, left: Side, right: Side, rounded: bool) -> bool:
    pairs = [(a, b), (a, -b)] if a < 0 or b < 0 else [(a, b)]
    if left.percent or right.percent:
        pairs += [(a * 100, b), (a, b * 100)]
    if "cent" in left.units | right.units:
        pairs += [(a * 100, b), (a, b * 100)]
    if left.units and right.units and left.units.isdisjoint(right.units):
        pairs += [pair for factor in CONVERSIONS for pair in ((a * factor, b), (a, b * factor))]
    exact = not rounded and ((left.whole and right.whole) or _exact_sum(left, right) or _exact_sum(right, left))
    for x, y in pairs:
        if x == y:
            return True
        gap = abs(x - y)
        written = Fraction(1, 10 ** min(left.decimals if not right.operators and not left.operators else right.decimals, 12))
        if gap <= written / 2 and not (exact and x.denominator == y.denominator == 1):
            return True
        if x.denominator != 1 and gap < 1 and y.denominator == 1:
            return True  # cut to a whole number
        if (not exact) and gap <= max(abs(x), abs(y)) * (Fraction(2, 100) if rounded else Fraction(1, 100)):
            return True
    return False
