"""A text as lines of plain signs: formulas between bars, prose as it is; calculator notes and remarks in brackets taken out."""

import re
from itertools import pairwise

from stepmend.locate.equations.latex import plain
from stepmend.locate.steps import formulas

NOTE = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
WRITTEN = re.compile(r"<<([^<>=]*)=([^<>=]*)>>[ $]*(-?[\d,]*\.?\d[^\n<=]{0,40})")
NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
OPERATOR = re.compile(r"[+*/×=]|\s[-−–]\s|\d[-−–]\d|\d\s*x\s*\d")
TELLING = re.compile(r".*(?:[,.;:]|\b(?:so|then|because|thus|therefore|if))\s", re.DOTALL)
"""What a line says before its equation's own phrase."""
DOLLAR = re.compile(r"(?<![\\$])\$(?!\$)")
OPENING = ("\\(", "\\[", "$$")
LONGEST_INLINE = 400
COMMAND = re.compile(r"\\(?:text|textrm|textbf|mbox|mathrm|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
REMARK = re.compile(r"\(\s*[A-Za-z][A-Za-z\s'-]*\)")
"""Words in brackets; a formula's letters are between other marks."""
REWRITES: tuple[tuple[str, str], ...] = (
    (r"<<[^<>]*>>", ""),
    (r"[×·∗⋅]", " * "),
    (r"÷", " / "),
    (r"[≅≃]", " ≈ "),
    (r"[−–]", "-"),
    (r"²", "^2"),
    (r"³", "^3"),
    (r"\*\*(?!\s*\d)|(?<!\d)\*\*", " "),
    (r"\\?[$€£₹](?=\s*[\d.-])", "¤"),
    (r"[$€£₹]", " "),
    (r"¢", " cents "),
    (r"\bdivided by\b", "/"),
    (r"\bmultiplied by\b", "*"),
    (r"(?<=\d)[^\S\n]*[xX][^\S\n]*(?=¤?\d)", " * "),
    (r"(?<=[\w)])\([^()\d]*\)|\([^()\d]*[*+/=^][^()\d]*\)|\(\s*[A-Za-z]\s*\)", " ‹()› "),
    (r"\([^()\d]*\)", " "),
    (r"/\s*(?:per\s+)?[^\W\d_]{2,}", " "),
    (r"[!<>≠≤≥]\s*=|:=|==|=>", " ¿ "),
)


def lines(text: str) -> str:
    """The text with plain signs; each formula is on one line, between bars. Linear in the text's length."""
    pieces, end = [], 0
    star = not re.search(r"\\(?:times|cdot)\b", text)  # who writes \\cdot means something else by *
    for start, stop in _formulas(text):
        pieces.append(_prose(text[end:start]))
        pieces.append(_formula(text[start:stop], star=star))
        end = stop
    return "".join([*pieces, _prose(text[end:])])


def told_notes(text: str) -> list[tuple[str, str]]:
    """GSM8K's calculator notes that can reveal a slip of the writer: those whose operands appear earlier in the line's words."""
    found = []
    for match in NOTE.finditer(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        operator = OPERATOR.search(line)
        told = TELLING.match(line[: operator.start()]) if operator else None
        numbers = {_trimmed(number) for number in NUMBER.findall(told[0])} if told else set()
        operands = {_trimmed(number) for number in NUMBER.findall(match[1])}
        if operands <= numbers:
            found.append((match[1], match[2]))
    return found


def notes(text: str) -> list[tuple[str, str, str]]:
    """Calculator notes: what was typed, what came out, and the number written after it with what follows."""
    return [(match[1], match[2], match[3]) for match in WRITTEN.finditer(text)]


def _trimmed(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _formula(text: str, *, star: bool) -> str:
    size = 2 if text.startswith(OPENING) else 0 if text.startswith("\\begin") else 1
    inner = plain(text[size : len(text) - size], star=star)
    return f" ¦ {' '.join(REMARK.sub(' ', inner).split())} ¦ "


def _prose(text: str) -> str:
    if "\\" in text:
        text = plain(text.replace("**", " "), words=True)
    for pattern, by in REWRITES:
        text = re.sub(pattern, by, text)
    return text


def _formulas(text: str) -> list[tuple[int, int]]:
    """Formulas between LaTeX's signs, and those between single dollars that are not amounts of money."""
    found = formulas(text)
    gaps = pairwise([0, *(place for span in found for place in span), len(text)])
    inline = [span for index, (start, end) in enumerate(gaps) if index % 2 == 0 for span in _between_dollars(text, start, end)]
    return sorted([*found, *inline])


def _between_dollars(text: str, start: int, end: int) -> list[tuple[int, int]]:
    found, opened = [], None
    for match in DOLLAR.finditer(text, start, end):
        place = match.start()
        if opened is not None and place - opened <= LONGEST_INLINE and _is_formula(text[opened + 1 : place]):
            found.append((opened, place + 1))
            opened = None
        else:
            opened = place
    return found


def _is_formula(content: str) -> bool:
    """Whether what is between two dollars is a formula, not the end of one amount of money and the words before another."""
    bare = COMMAND.sub(" ", content)
    words = re.search(r"[a-z]{3,}", bare)
    cut = not content.strip() or content[-1] in "+-*/=×,(:" or content[0] in ",.;)=" or "\n\n" in content
    spaced = (content[0].isspace() or content[-1].isspace()) and "\\" not in content
    return not (words or cut or spaced) and content.count("(") == content.count(")") and content.count("{") == content.count("}")
