"""Written arithmetic read token by token: numbers with units, brackets, operators, and formulas' roots and functions."""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import factorial
from typing import Any

from stepmend.locate.equations import latex
from stepmend.locate.equations.units import SHORT, UNITS

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
"""Words that are not an unit: an operand ends before them."""
VOWEL = re.compile(r"[aeiouyäöü]")
TOKEN = re.compile(
    r"(?:¤\s*)?(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|‹(?P<math>[^‹›]*)›|(?P<word>[^\W\d_]+)|(?P<sign>[-+*/^()%=≈])"
    r"|(?P<other>[^\s¤])"
)
LONGEST_NUMBER = 24
LARGEST_POWER = 4000
"""Bits of a power at most."""
LARGEST_FACTORIAL = 20


@dataclass(frozen=True)
class Token:
    """A number, word, sign, formula or other character of a text of plain signs; ``glued`` to what is before it, at a place."""

    kind: str
    text: str
    glued: bool
    place: int
    money: bool = False


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
    numbers: tuple[Fraction, ...]
    money: bool
    inexact: bool


@dataclass(frozen=True)
class Segment:
    """What is between two equality signs of a line; ``rounded`` where the sign before it says "about", which is at a place."""

    tokens: list[Token]
    rounded: bool
    place: int


def segments(line: str) -> list[Segment]:
    """What is between the equality signs of a line, the first and the last part included."""
    found = [Segment([], False, 0)]
    end, before = -1, ""
    for match in TOKEN.finditer(line):
        kind = match.lastgroup or "other"
        text, glued = match[kind], match.start() == end
        if text in ("=", "≈") and kind == "sign":
            found.append(Segment([], text == "≈", match.start()))
        else:
            kind, text = _kind(kind, text, after_number=glued and before == "number")
            found[-1].tokens.append(Token(kind, text, glued, match.start(), match[0][0] == "¤"))
        end, before = match.end(), kind
    return found


def _kind(kind: str, text: str, *, after_number: bool) -> tuple[str, str]:
    """What a token is: ``times`` an operator, letters directly after a number are a variable unless they are a unit."""
    word = text.lower()
    if kind == "word" and word in WORDS_FOR and word != "x":
        return "sign", WORDS_FOR[word]
    if kind == "word" and after_number and word not in UNITS and word not in SILENT:
        return "math", text
    return kind, text


def shown(tokens: Sequence[Token]) -> str:
    return " ".join(token.text for token in tokens)


class UnsureError(Exception):
    """Not a valid reading."""


class Reader:
    """Recursive descent over tokens: numbers with units, brackets, and operators."""

    def __init__(self, tokens: Sequence[Token], begin: int, *, left: bool) -> None:
        self.tokens, self.place, self.left = tokens, begin, left
        self.flat: list[Fraction | str] = []  # operands and operators, brackets closed, for the reading from left to right
        self.percents: set[int] = set()  # which of those are percentages
        self.operators = self.decimals = 0
        self.whole, self.percent, self.sums, self.depth = True, False, True, 0
        self.money = self.inexact = False
        self.units: set[str] = set()
        self.numbers: list[Fraction] = []

    def peek(self) -> Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def sum(self) -> Fraction:
        value = self.product()
        while (token := self.peek()) and token.text in ("+", "-") and self._operand_follows():
            self._operator(token.text)
            other = self.product()
            value = value + other if token.text == "+" else value - other
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while (token := self.peek()) and (token.text in ("*", "/") or self._share(token)) and self._operand_follows():
            self._operator("/" if token.text == "/" else "*")
            other = self.factor(divides=token.text == "/")
            if token.text == "/" and other == 0:
                raise UnsureError
            value = value / other if token.text == "/" else value * other
        return value

    def factor(self, *, divides: bool = False) -> Fraction:
        """A power, or several side by side: ``2(3 + 4)``, ``4√2``; in a denominator nobody knows which of them it holds."""
        value = self.power()
        while (token := self.peek()) and (token.kind == "math" or (token.text == "(" and token.glued)):
            if divides:
                raise UnsureError
            self.place -= 1  # there is no sign to step over
            self._operator("*")
            value *= self.power()
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
            if self.tokens[self.place - 1].text == "!":
                raise UnsureError
            if exponent.denominator != 1 or not 0 <= exponent <= 100 or _bits(value) * exponent > LARGEST_POWER:
                raise UnsureError
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
            raise UnsureError
        if token.text == "(":
            value = self._bracket()
        elif token.kind == "number":
            self.place += 1
            self.money |= token.money
            value = self._number(token.text)
        elif token.kind == "math":
            self.place += 1
            value = self._formula(token.text)
        else:
            raise UnsureError
        value = self._factorial(value)
        value = -value if negative else value
        if (token := self.peek()) and token.text == "%":
            self.place += 1
            value, self.percent = value / 100, True
            self.percents.add(len(self.flat))
        self._units()
        if self.depth == 0:
            self.flat.append(value)
        return value

    def _formula(self, text: str) -> Fraction:
        """A root, a function or a constant; a variable is none."""
        value = latex.value(text)
        if value is None:
            raise UnsureError
        self.inexact |= value.denominator > latex.LARGEST_DENOMINATOR
        self.whole &= value.denominator == 1 or self.inexact
        self.operators += text != "\\pi"
        self.sums = False
        return value

    def _factorial(self, value: Fraction) -> Fraction:
        """``5!``, if it is not the end of an exclamation."""
        token = self.peek()
        if token is None or token.text != "!":
            return value
        after = self.tokens[self.place + 1].text if self.place + 1 < len(self.tokens) else ""
        if (
            not token.glued
            or value.denominator != 1
            or not 0 <= value <= LARGEST_FACTORIAL
            or after not in (*"+-*/)^¦", "" if self.left else "+")
        ):
            raise UnsureError
        self.place += 1
        self.operators += 1
        return Fraction(factorial(int(value)))

    def _bracket(self) -> Fraction:
        self.place += 1
        self.depth += 1
        value = self.sum()
        self.depth -= 1
        token = self.peek()
        if token is None or token.text != ")":
            raise UnsureError
        self.place += 1
        return value

    def _number(self, text: str) -> Fraction:
        plain = text.replace(",", "")
        if len(plain) > LONGEST_NUMBER:
            raise UnsureError
        if len(plain) > 1 and plain[0] == "0" and plain[1] != ".":
            raise UnsureError  # a time or a code
        self.decimals = max(self.decimals, len(plain.partition(".")[2]))
        self.whole &= "." not in plain
        self.numbers.append(Fraction(plain))
        return self.numbers[-1]

    def _units(self) -> None:
        """Up to four words after an operand, each with its power; a letter alone is a variable, and some words change the number."""
        begin = self.place
        while (token := self.peek()) and token.kind == "word" and self.place - begin < 4:
            word = token.text.lower()
            if (word == "of" and self._share(token)) or word in STOPS:
                break
            if (
                len(word) == 1
                or word in SILENT
                or (len(word) == 2 and word not in UNITS | SHORT)
                or not VOWEL.search(word + "y" * (word in UNITS))
            ):
                raise UnsureError
            self.place += 1
            after = self.peek()
            self.units.add("inch" if word == "in" and not (after and after.kind in ("word", "number")) else word.rstrip("s"))
            self._unit_power(word)
        ahead = [token.text for token in self.tokens[self.place : self.place + 3]]
        if ahead[:1] == ["and"] and ahead[2:] == ["/"]:
            raise UnsureError  # 1 and 1/4
        if (token := self.peek()) and ((token.text == "(" and not token.glued) or (token.kind == "number" and self.place == begin)):
            raise UnsureError  # a remark, or a mixed number

    def _unit_power(self, word: str) -> None:
        ahead = [token.text for token in self.tokens[self.place : self.place + 2]]
        if ahead[:1] == ["^"]:
            if word not in UNITS or ahead[1:] not in (["2"], ["3"]):
                raise UnsureError
            self.place += 2

    def _operand_follows(self) -> bool:
        following = self.tokens[self.place + 1 : self.place + 3]
        return any(token.kind in ("number", "math") or token.text == "(" for token in following[:1]) or (
            len(following) == 2 and following[0].text == "-" and following[1].kind in ("number", "math") and following[1].glued
        )

    def _operator(self, sign: str) -> None:
        self.place += 1
        self.operators += 1
        self.sums &= sign in "+-"
        if self.depth == 0:
            self.flat.append(sign)

    def side(self) -> Side:
        """What ``sum`` has read from the start on."""
        value = self.sum()
        values = (value, *_left_to_right(self.flat), *_by_fraction(self.flat), *_by_percent(self.flat, self.percents))
        units = frozenset(self.units)
        return Side(
            values, self.operators, self.decimals, self.whole, self.percent, self.sums, units, tuple(self.numbers), self.money, self.inexact
        )


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
    """``50 - 10%`` as 50 minus a tenth of it."""
    if len(flat) == 3 and flat[1] in ("+", "-") and percents == {2}:
        yield APPLY[str(flat[1])](flat[0], flat[0] * flat[2])  # pyright: ignore[reportOperatorIssue]


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
