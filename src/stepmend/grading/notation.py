"""Normalization of typed answers to LaTeX that Math-Verify can parse: signs, roots, powers of ten, spaces in numbers."""

import re

INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
"""Marks of direction and width, which say nothing."""
SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
ABOUT = re.compile(r"\A\s*\$?\s*(?:\\approx|\\simeq|\\sim|≈|≃)(?![a-z])\s*")
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": r"\cdot ", "÷": "/", "⁄": "/", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "±": r"\pm ", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ",
    "ω": r"\omega ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "⅙": r"\frac{1}{6}", "…": r"\ldots ",
}  # fmt: skip
FULL_WIDTH = {ord("０") + digit: str(digit) for digit in range(10)} | {ord("，"): ",", ord("．"): ".", ord("（"): "(", ord("）"): ")"}
TYPED = {name: f"\\{name} " for name in ("infty", "pi", "theta", "alpha", "beta", "lambda")} | {"infinity": r"\infty "}
_POWER = r"\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\s?\d{1,6})\s*\}|\(\s*([+-]?\d{1,6})\s*\)|([+-]?\d{1,6}))"
_GAP = r"(?: |~|\\[,;:! ]|\{,\}|,\\!|\{\s\}|\\thinspace ?)"
SPACED = re.compile(rf"(?<![\d.])(\d{{1,3}})((?:{_GAP}\d{{3}})+)(?!\d)")
SCIENTIFIC = re.compile(
    r"(?<![\w.])((?:\d+(?:\.\d*)?|\.\d+))\s?(?:[eE]|\\(?:mathrm|text|rm)\s?\{\s?[eE]\s?\})\s?\{?([+-]?\d{1,6})\}?(?![\w.])"
)
TEN = re.compile(rf"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))?\s*(?:(?:\\times|\\cdot|\*|x|X)\s*|(?=10\s*\^)(?<!\d))10{_POWER}\s*")
_NAMED = r"(\d{1,2}|[a-z]{3,8})"
DIGITS = re.compile(
    r"\(?\s?(-?[0-9A-Fa-f]{1,400}(?:\.[0-9A-Fa-f]{1,50})?)\s?\)?\s?"
    rf"(?:_\s?\{{?\s?\(?(?:\\text\s?\{{)?\s?(?:base\s?\}}?\s?)?{_NAMED}\s?\}}?\)?\s?\}}?|(?:in )?base[- ]{_NAMED})"
)
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}


def signs(text: str) -> str:
    """A text with plain signs: no invisible marks or odd blanks, digits raised by ``^`` and lowered by ``_``, Greek letters as commands."""
    text = ABOUT.sub("", SPACES.sub(" ", INVISIBLE.sub("", text)).translate(FULL_WIDTH))
    if text.isascii():
        return text
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: "^{" + m[0].translate(RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(LOWERED) + "}", text)
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    text = re.sub(r"([√∛])\s?(?:\(([^()]{1,200})\)|\{([^{}]{1,200})\}|(\d+(?:\.\d+)?|[a-z]))", _root, text)
    return text


def _root(match: re.Match[str]) -> str:
    return ("\\sqrt{" if match[1] == "√" else "\\sqrt[3]{") + (match[2] or match[3] or match[4]) + "}"


def joined(text: str) -> str:
    """A text with its numbers in one piece: ``9 500``, ``9\\,500`` and ``9{,}500`` are 9500."""
    return SPACED.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)


def scientific(text: str) -> tuple[str, int] | None:
    """(mantissa, exponent of ten) of ``4.5e33``, ``4.5\\times 10^{33}``, ``10^5``; None for everything else."""
    if match := SCIENTIFIC.fullmatch(text.lstrip("+-")):
        return ("-" if text.startswith("-") else "") + match[1], int(match[2])
    if not (match := TEN.fullmatch(text)):
        return None
    return match[1] or "1", int((match[2] or match[3] or match[4]).replace(" ", ""))


def in_base(text: str) -> tuple[str, int] | None:
    """(digits, base) of a number whose base is written: ``2516_8``, ``(2516)_{\\text{eight}}``, ``2516 base 8``; None for all else."""
    match = DIGITS.fullmatch(signs(text).strip().strip("$").strip())
    if not match:
        return None
    named = (match[2] or match[3]).lower()
    base = int(named) if named.isdigit() else BASES.get(named, 0)
    digits = match[1].lstrip("0").lower() or "0"
    # A letter with an index is a variable, unless the base has such a digit.
    return (digits, base) if 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits if digit.isalnum()) else None


def terms(text: str) -> tuple[list[str], list[str]] | None:
    """What is listed before and after an ellipsis, blanks left out; None if there is not exactly one, in a list."""
    text = re.sub(r"\\(?:l|c)?dots[bcmio]?(?![a-z])|…|\.\.\.", "…", signs(text).replace("\\ldots", "…"))
    text = re.sub(r"\\left|\\right|\\[,;! ]|[\s$]", "", text)
    text = re.sub(r"\\cdot|\*", "", text)
    before, mark, after = text.strip("{}[]()\\").partition("…")
    if not mark or "…" in after:
        return None
    lists = [[term for term in re.split(r"[,+]", part) if term] for part in (before, after)]
    return (lists[0], lists[1]) if lists[0] else None


def latex(text: str) -> str:
    """An answer as LaTeX: typed roots, powers, names and products become commands."""
    text = joined(signs(text).strip().strip("$").strip().rstrip(".").strip())
    text = re.sub(r"\\(?:text|mathrm)\s?\{\s?([a-zA-Z])\s?\}", r"\1", text)
    text = SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = re.sub(r"(?:\*\*|(?<=[\w)])\^)\s?(-?\d{2,})", r"^{\1}", text).replace("**", "^")
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s?\(([^()]{1,200})\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s?(\d+|[a-z]\b)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])(infinity|infty|theta|alpha|beta|lambda|pi)(?![a-zA-Z])", lambda m: TYPED[m[1]], text)
    text = re.sub(r"(?<![\\a-zA-Z])exp\s?\(([^()]{1,100})\)", r"e^{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])(ln|log|sin|cos|tan)(?=[ (\d])", r"\\\1", text)
    text = re.sub(r"\^\s?\(([^()]{1,100})\)", r"^{\1}", text)
    # Math-Verify reads a number and a bracket after it as a mixed number.
    text = re.sub(r"(?<![\w^_{}\\])(\d+)\s?(?=\(\s?\d+(?:\.\d+)?\s?\))", r"\1\\cdot ", text)
    text = re.sub(r"(?<=\d\))\s?(?=\(\s?\d)", r"\\cdot ", text)
    text = re.sub(r"(?<=[\d)}a-zA-Z])\s?\*\s?(?=[\\\w({])", r"\\cdot ", text)
    return re.sub(r"(?<![\d/.\\])(\d+) (\d+)\s?/\s?(\d+)(?![\d/])", r"\1\\frac{\2}{\3}", text)
