"""Numbers and calculations in a text, which the locator ``reference`` and the rules of error classes compare.

Unlike ``equations``, which judges whether an equation holds and is silent when unsure, this reads as much as it can and judges nothing.
"""

import ast
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepmend.locate.equations import source

NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})+(?:\.\d+)?(?![\w])|(?<![\w.])\d+(?:\.\d+)?|(?<![\w.])\.\d+")
WORDS: dict[str, float] = {
    name: value
    for value, names in {
        2.0: "two twice double doubled doubles pair pairs", 3.0: "three thrice triple tripled triples", 4.0: "four quadruple", 5.0: "five",
        6.0: "six", 7.0: "seven week weeks", 8.0: "eight", 9.0: "nine", 10.0: "ten", 11.0: "eleven", 12.0: "twelve dozen dozens year",
        20.0: "twenty", 30.0: "thirty", 40.0: "forty", 50.0: "fifty", 60.0: "sixty hour hours minute minutes", 100.0: "hundred",
        1000.0: "thousand", 0.5: "half halves", 1 / 3: "third thirds", 0.25: "quarter quarters fourth fourths", 0.2: "fifth fifths",
        0.1: "tenth tenths", 24.0: "day days",
    }.items()
    for name in names.split()
}  # fmt: skip
"""What words of a question stand for; units stand for how many smaller ones they hold."""
TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|(?P<sign>[-+*/^()%])|(?P<of>\bof\b)|(?P<word>[^\W\d_]+)|\S"
)
EQUALS = re.compile(r"[=≈]")
PYTHON = {"%": "/100", "^": "**"}
LONGEST = 40
"""Tokens before an equality sign that are tried as an expression."""
FAR = 1e15


@dataclass(frozen=True)
class Calculation:
    """An expression and the number that is written as its value.

    Attributes:
        operands: The expression's numbers, from left to right.
        value: The expression's value.
        result: The value as written.
        parts: Values of the expression's own parts, and of itself.
    """

    operands: tuple[float, ...]
    operators: frozenset[str]
    value: float
    result: float
    parts: frozenset[float]

    @property
    def holds(self) -> bool:
        """Whether the written result is the expression's value, to the precision that people write."""
        return same(self.value, self.result)


def same(one: float, other: float) -> bool:
    """Whether two numbers are the same up to rounding: to a cent, or to one part in a hundred thousand."""
    return abs(one - other) <= max(0.00501, 1e-5 * max(abs(one), abs(other))) and (one == 0) == (other == 0)


def numbers(text: str) -> list[float]:
    """The numbers that a text writes in digits, in order."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(_readable(text))]


def _readable(text: str) -> str:
    """A text with plain signs, without the units of rates (``/day``) and remarks in brackets."""
    return re.sub(r"/\s*(?:per\s+)?[^\W\d_]+|\([^()\d]*\)", " ", source.lines(text))


def worded(text: str) -> list[float]:
    """The numbers that words of a text stand for: ``twice``, ``half``, ``a dozen``, ``two weeks``."""
    return [WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in WORDS]


def calculations(text: str) -> list[Calculation]:
    """Everything written as ``expression = number``, in order; units and words next to the numbers are ignored."""
    found = []
    for line in re.split(r"\n\s*\n|[;¦]|(?<=[a-z])\.\s", _readable(text)):
        sides = EQUALS.split(line.replace("\n", " "))
        for before, after in itertools.pairwise(sides):
            result, left = _leading(after), _trailing(before)
            if result is not None and left is not None and (made := _calculation(left, result)):
                found.append(made)
    return found


def _calculation(left: ast.expr, result: float) -> Calculation | None:
    value = _evaluate(left)
    if value is None:
        return None
    inside = [node for node in ast.walk(left) if isinstance(node, ast.BinOp)]
    parts = {part for node in inside if (part := _evaluate(node)) is not None}
    return Calculation(tuple(_operands(left)), frozenset(_SIGNS[type(node.op)] for node in inside), value, result, frozenset(parts))


def _operands(node: ast.AST) -> Iterator[float]:
    if isinstance(node, ast.Constant):
        yield float(node.value)  # pyright: ignore[reportArgumentType]
    for child in ast.iter_child_nodes(node):
        yield from _operands(child)


_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "^"}


def _evaluate(node: ast.expr) -> float | None:
    """The value of a parsed expression; None if it has none that is finite."""
    if isinstance(node, ast.Constant):
        return float(node.value)  # pyright: ignore[reportArgumentType]
    if isinstance(node, ast.UnaryOp):
        inner = _evaluate(node.operand)
        return None if inner is None else -inner
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _evaluate(node.left), _evaluate(node.right)
    if left is None or right is None:
        return None
    try:
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case ast.Pow() if abs(right) <= 8 and abs(left) <= FAR:
                value = left**right
                return value if isinstance(value, float) else None
            case _:
                return None
    except (ZeroDivisionError, OverflowError):
        return None


def _tokens(text: str) -> Iterator[str]:
    """The arithmetic of a text; words and units are left out, ``of`` after a share is a product, anything else is ``?``."""
    last, before = "", ""
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "of":
            token = "*" if last in ("%", ")") or before == "/" else ""
        elif token in ("x", "X"):
            token = "*"
        elif kind == "word" or token in "$€£¤.":
            continue
        elif kind is None:
            token = "?"
        if token:
            before, last = last, token
            yield token


def _trailing(text: str) -> ast.expr | None:
    """The longest expression, with at least one operator, that a text ends with."""
    tokens = list(_tokens(text))[-LONGEST:]
    stop = max((i + 1 for i, token in enumerate(tokens) if token == "?"), default=0)
    for start in range(stop, len(tokens)):
        if tokens[start] not in "+*/)^%-":
            found = _parsed(tokens[start:])
            if isinstance(found, ast.BinOp):
                return found
    return None


def _leading(text: str) -> float | None:
    """The number that a text starts with, where no operator follows it."""
    tokens = list(itertools.islice(_tokens(text), 4))
    sign = -1.0 if tokens[:1] == ["-"] else 1.0
    tokens = tokens[1:] if sign < 0 else tokens
    if not tokens or (not tokens[0][0].isdigit() and tokens[0][0] != "."):
        return None
    if tokens[1:2] and tokens[1] in "+*/^(":
        return None
    if tokens[1:2] == ["-"] and tokens[2:3] and tokens[2] not in "?(":
        return None
    return sign * float(tokens[0].replace(",", ""))


def _parsed(tokens: Sequence[str]) -> ast.expr | None:
    written: list[str] = []
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        number = token[0].isdigit() or token[0] == "."
        written.append(PYTHON.get(token) or (_plain(token) if number else token))
        if after == "(" and (token == ")" or number):
            written.append("*")
    try:
        return ast.parse(" ".join(written), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _plain(number: str) -> str:
    """A number as Python reads one: no commas, no leading zeros."""
    whole, point, decimals = number.replace(",", "").partition(".")
    return (whole.lstrip("0") or "0") + point + decimals
