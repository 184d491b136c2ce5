"""Formulas rewritten with plain signs. What plain arithmetic cannot read is between ``‹`` and ``›``, as LaTeX."""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

from stepmend.locate.equations.units import LETTERS, UNITS

LEX = re.compile(
    r"\\begin\{(?P<begin>\w{1,30}\*?)\}|\\end\{(?P<end>\w{1,30}\*?)\}|\\[A-Za-z]+|\\.|\d+(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
    r"|[A-Za-z]+|\s+|.",
    re.DOTALL,
)
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|,?\\[,;: ]|~)(?=\d{3}(?!\d))")
ROWS = frozenset("align aligned gather gathered eqnarray equation split multline flalign alignat".split())  # noqa: SIM905
SIGNS = {
    "\\times": " * ", "\\cdot": " * ", "\\ast": " * ", "*": " * ", "\\div": " / ", "/": " / ", "\\%": "%", "−": "-", "–": "-",
    "\\approx": " ≈ ", "\\simeq": " ≈ ", "\\doteq": " ≈ ", "\\quad": " ; ", "\\qquad": " ; ", "\\implies": " ; ", "\\Rightarrow": " ; ",
    "\\Longrightarrow": " ; ", "\\iff": " ; ", "\\Leftrightarrow": " ; ", "\\therefore": " ; ", "\\rightarrow": " ; ", "\\to": " ; ",
    "\\ne": " ¿ ", "\\neq": " ¿ ", "\\le": " ¿ ", "\\leq": " ¿ ", "\\ge": " ¿ ", "\\geq": " ¿ ", "\\lt": " ¿ ", "\\gt": " ¿ ", "<": " ¿ ",
    ">": " ¿ ", "[": "(", "]": ")", "\\lbrack": "(", "\\rbrack": ")", "\\degree": " degree ", "°": " degree ", "\\$": "¤", "$": "¤",
}  # fmt: skip
SILENT = frozenset(
    r"""
    \left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \displaystyle \textstyle \limits \, \; \: \! \/ \- ~ &
    \hfill \bf \rm \it \nonumber \notag \hline \displaylines \small \large \Large
    """.split()  # noqa: SIM905
) | {"\\ "}
TEXT = frozenset(r"\text \textrm \textbf \textit \textsf \mbox \hbox \mathrm \operatorname \textnormal \emph".split())  # noqa: SIM905
INNER = frozenset(r"\boxed \fbox \mathbf \boldsymbol \mathit \mathsf \bm \underline \ensuremath \underbrace \overbrace".split())  # noqa: SIM905
FRACTIONS = frozenset(r"\frac \dfrac \tfrac \cfrac".split())  # noqa: SIM905
DROPPED = frozenset(r"\phantom \hphantom \vphantom \color \hspace \vspace \label \tag".split())  # noqa: SIM905
FUNCTIONS = frozenset(r"\sin \cos \tan \cot \sec \csc \log \ln".split())  # noqa: SIM905
DEEP = 12
DIGITS = 40
LARGEST = 10**15
LARGEST_DENOMINATOR = 10**6
"""Of a value that is taken to be a fraction; others are irrational."""
LONG = 60
"""Characters of what latex2sympy reads at most."""


def plain(formula: str, *, words: bool = False, star: bool = True) -> str:
    """A formula with plain signs, in time linear in its length.

    Args:
        formula: LaTeX, without its delimiters.
        words: Whether letters are words, as in prose; else they are variables, except units right after a number.
        star: Whether ``*`` multiplies; else it is an operator of the text's own.
    """
    return _Formula(THOUSANDS.sub(",", formula), words=words, star=star).group("", 0)


class _Formula:
    """Walks over the tokens of one formula once."""

    def __init__(self, text: str, *, words: bool, star: bool) -> None:
        self.tokens = [match[0] for match in LEX.finditer(text)]
        self.index = 0
        self.words, self.star = words, star

    def peek(self) -> str:
        return self.tokens[self.index] if self.index < len(self.tokens) else ""

    def take(self) -> str:
        self.index += 1
        return self.tokens[self.index - 1] if self.index <= len(self.tokens) else ""

    def blanks(self) -> None:
        while self.peek().isspace():
            self.index += 1

    def group(self, closing: str, depth: int) -> str:
        """What is before a closing token, which is taken too."""
        out: list[str] = []
        while self.index < len(self.tokens):
            token = self.take()
            if token == closing:
                break
            if token == "\\over":
                rest = self.group(closing, depth + 1) if depth < DEEP else _unknown(closing)
                return _fraction("".join(out), rest)
            if token in ("\\choose", "\\atop", "\\brack"):
                rest = self.group(closing, depth + 1) if depth < DEEP else "x"
                return _unknown(f"\\binom{{{_bare(''.join(out))}}}{{{_bare(rest)}}}" if token == "\\choose" else token)
            self._put(token, out, depth)
        return "".join(out)

    def argument(self, depth: int) -> str:
        """A group, or one character or command."""
        self.blanks()
        token = self.take()
        if token == "{":
            return self.group("}", depth + 1) if depth < DEEP else _unknown("…")
        if token[:1].isdigit() and len(token) > 1:
            self.index -= 1
            self.tokens[self.index] = token[1:]
            return token[0]
        out: list[str] = []
        if token and depth < DEEP:
            self._put(token, out, depth + 1)
        return "".join(out)

    def raw(self) -> str:
        """The characters of a group, as they stand; a group that never ends is empty."""
        self.blanks()
        if self.peek() != "{":
            return ""
        start, depth = self.index, 0
        for index in range(start, len(self.tokens)):
            depth += (self.tokens[index] == "{") - (self.tokens[index] == "}")
            if depth == 0:
                self.index = index + 1
                return "".join(self.tokens[start + 1 : index])
        self.index = len(self.tokens)
        return ""

    def _put(self, token: str, out: list[str], depth: int) -> None:
        if token == "*" and not self.star:
            out.append(_unknown("*"))
        elif token in SIGNS:
            out.append(SIGNS[token])
        elif token in SILENT:
            if token in ("\\left", "\\right") and self.peek() == ".":
                self.index += 1
        elif token.isspace():
            out.append(token if self.words else " ")
        elif token[0].isdigit() or token[0] == ".":
            out.append(token)
        elif token[0].isalpha():
            out.append(token if self.words or _is_unit(token, out) else _unknown(token))
        elif token == "\\\\":
            self._row(out)
        elif token[0] == "\\" and len(token) > 1:
            self._command(token, out, depth)
        elif token in "^_":
            self._script(token, out, depth)
        elif token == "{":
            inner = self.group("}", depth + 1) if depth < DEEP else _unknown("…")
            out.append(_bracketed(inner))
        elif token in "|'" and not self.words:
            out.append(_unknown(token))
        elif token == ":" and not self.words and not _last(out).strip().isalpha():
            out.append(_unknown(":"))
        else:
            out.append(token)

    def _row(self, out: list[str]) -> None:
        """A new row: it continues with the one before where it starts with a sign."""
        while self.peek().isspace() or self.peek() == "&":
            self.index += 1
        signs = ("=", "+", "-", "\\approx", "\\times", "\\cdot", "\\div")
        out.append(" " if self.peek() in signs and not self.words else " ; ")

    def _command(self, token: str, out: list[str], depth: int) -> None:
        if token in FRACTIONS:
            mixed = bool(re.search(r"\d\s*$", _last(out)))
            fraction = _fraction(self.argument(depth), self.argument(depth))
            out.append(_unknown(fraction) if mixed else fraction)
        elif token in TEXT:
            content = re.sub(r"/\s*(?:per\s+)?[A-Za-z]+", "", self.raw())
            content = LETTERS.get(content.strip(), content)
            out.append(f" {content} " if not re.search(r"[\d\\=]", content) else _unknown("text"))
        elif token in INNER:
            out.append(_bracketed(self.argument(depth)))
        elif token in DROPPED:
            self.raw()
        elif token == "\\sqrt":
            self._root(out, depth)
        elif token in ("\\binom", "\\dbinom", "\\tbinom"):
            out.append(_unknown(f"\\binom{{{_bare(self.argument(depth))}}}{{{_bare(self.argument(depth))}}}"))
        elif token in FUNCTIONS:
            self._function(token, out, depth)
        elif token in ("\\lfloor", "\\lceil"):
            other = token.replace("\\l", "\\r")
            inside = self.group(other, depth + 1) if depth < DEEP else "x"
            out.append(_unknown(f"{token} {_bare(inside)} {other}"))
        elif token.startswith("\\begin"):
            self._environment(token[7:-1], out)
        elif not token.startswith("\\end"):
            out.append(_unknown(token))

    def _root(self, out: list[str], depth: int) -> None:
        self.blanks()
        index = ""
        if self.peek() == "[":
            self.index += 1
            inside = self.group("]", depth + 1) if depth < DEEP else "x"
            index = f"[{_bare(inside)}]"
        out.append(_unknown(f"\\sqrt{index}{{{_bare(self.argument(depth))}}}"))

    def _function(self, token: str, out: list[str], depth: int) -> None:
        """A function of a number or a bracket: of degrees if it is trigonometric, and of nothing longer."""
        base = ""
        self.blanks()
        if token == "\\log" and self.peek() == "_":
            self.index += 1
            base = f"_{{{_bare(self.argument(depth))}}}"
            self.blanks()
        while self.peek() in SILENT and self.peek():
            self.index += 1
        if self.peek() == "(":
            self.index += 1
            argument = self.group(")", depth + 1) if depth < DEEP else "x"
        elif self.peek()[:1].isdigit() or self.peek() in FRACTIONS or self.peek() == "{":
            argument = self.argument(depth) if self.peek() in FRACTIONS or self.peek() == "{" else self.take()
        else:
            out.append(_unknown(token))
            return
        degrees = "degree" in argument or [t for t in islice(self.tokens, self.index, self.index + 4) if t not in "{} "][:2] == [
            "^",
            "\\circ",
        ]
        if degrees and self.peek() == "^":
            self.index += 1
            self.argument(depth)
        number = _bare(argument.replace("degree", ""))
        if token in ("\\log", "\\ln"):
            out.append(_unknown(f"{token}{base}({number})"))
        elif degrees or "\\pi" in number or number.strip() == "0":
            out.append(_unknown(f"{token}(({number}) * \\pi / 180)" if degrees else f"{token}({number})"))
        else:
            out.append(_unknown(f"{token} x"))

    def _script(self, token: str, out: list[str], depth: int) -> None:
        argument = self.argument(depth)
        before = _last(out)
        if token == "_":
            if out:
                out[-1] = _unknown(f"{_bare(before)}_{_bare(argument)}")
        elif "\\circ" in argument or "degree" in argument:
            out.append(" degree ")
        elif before.strip().isalpha() and not before.startswith("‹"):
            if argument.strip() not in ("2", "3"):
                out.append(_unknown("^"))
        else:
            out.append(f"^{_bracketed(argument)}")

    def _environment(self, name: str, out: list[str]) -> None:
        """Rows of equations are read; a table, a matrix or cases are not."""
        if name.rstrip("*") in ROWS:
            return
        end = f"\\end{{{name}}}"
        while self.index < len(self.tokens) and self.take() != end:
            pass
        out.append(_unknown(name))


def _is_unit(token: str, out: list[str]) -> bool:
    return token in UNITS and bool(re.search(r"\d\s*$", "".join(out[-2:])))


def _last(out: list[str]) -> str:
    """The last piece that is not blank."""
    return next((piece for piece in islice(reversed(out), 4) if piece.strip()), "")


def _unknown(text: str) -> str:
    return f"‹{_bare(text)}›"


def _bare(text: str) -> str:
    return text.replace("‹", "").replace("›", "")


def _bracketed(text: str) -> str:
    return text if re.fullmatch(r"\s*(?:[\d.,]+|[A-Za-z]+|‹[^‹›]*›)\s*", text) or "=" in text or "≈" in text else f"({text})"


def _fraction(above: str, below: str) -> str:
    return f"(({above})/({below}))"


@lru_cache(maxsize=4096)
def value(latex: str) -> Fraction | None:
    """The value of a formula of numbers, to 30 digits; None if there is a variable, or more than can be read in a moment."""
    names = set(re.findall(r"[A-Za-z]+", latex))
    known = {"sqrt", "binom", "pi", "lfloor", "rfloor", "lceil", "rceil", *(name[1:] for name in FUNCTIONS)}
    if len(latex) > LONG or not names or not names <= known or not re.fullmatch(r"[\w\s.+*/()\\{}\[\]^-]+", latex):
        return None
    if latex.count("^") > 1 or re.search(r"\d{10}|\^\W*\d{3}|binom.*\d{4}", latex):
        return None
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    exact = re.sub(r"(\d*)\.(\d+)", lambda m: f"(({m[1]}{m[2]})/(1{'0' * len(m[2])}))", latex)  # its decimals are of 53 bits
    settings = ConversionConfig(interpret_as_mixed_fractions=False)
    try:
        read: Any = latex2sympy(re.sub(r"(?<=[\d)])\s*\(", "*(", exact).replace("*", "\\cdot "), conversion_config=settings)
        number = read.evalf(DIGITS)
        if not (number.is_Float or number.is_Integer) or abs(number) >= LARGEST:
            return None
        exactly = Fraction(str(number))
    except Exception:  # the parser raises bare Exception at what it cannot read
        return None
    simple = exactly.limit_denominator(LARGEST_DENOMINATOR)
    return simple if abs(simple - exactly) < Fraction(1, 10**25) else exactly
