"""Answers in words: an option's letter, however it is written, and prose, which is not a product of its letters."""

import re
from itertools import pairwise

WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|bf|rm|operatorname)\s?\{([^{}]{0,400})\}")
_DRESS = re.compile(r"\\[()\[\],;!: ]|\\q?quad|[$*`~{}]|\\(?:left|right)(?![a-z])|\A\\(?:bf|rm)\b")
_OPTION = re.compile(
    r"(?:(?:the )?(?:(?:correct|right|best|final) )?(?:option|choice|answer|alternative)(?: is)?:? ?)?"
    r"(?:\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Za-z])\]|(?P<open>[A-Za-z]))"
    r"(?:(?P<delimiter>[).\]:](?=\s|\d|[$\\-]|\Z)| [–—] )?(?P<rest>.*))",
    re.IGNORECASE | re.DOTALL,
)
_SEVERAL = re.compile(r"\(?[A-J]\)?(?:(?: ?[,;/&] ?(?:and )?| and )\(?[A-J]\)?){1,9}")
NAMES = frozenset(
    re.split(
        r"\|",
        "pi|infinity|infty|inf|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|theta|alpha|beta|gamma|delta|lambda|mu|sigma|phi"
        "|omega|max|min|mod|gcd|lcm|deg|det",
    )
)
"""Words that are mathematics."""
SHORT = frozenset("no on is it at as so us we me he my or of to up if in an am by go do be ox ok".split())  # noqa: SIM905
_COUNTED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
NUMERALS = {word: str(value) for value, word in enumerate(_COUNTED)} | {word: str(30 + 10 * index) for index, word in enumerate(_TENS)}


def undressed(text: str) -> str:
    """A text without commands that only change its looks."""
    for _ in range(3):
        text = WRAPPED.sub(r" \1 ", text)
    return " ".join(_DRESS.sub(" ", text).split())


def option(text: str) -> tuple[str, str] | None:
    """(letter, what the option says) of ``C``, ``(C)``, ``C) 42``, ``Option C: 42``; None for everything else."""
    said = undressed(text).rstrip(".!").strip()
    if len(said) > 400 or not (match := _OPTION.fullmatch(said)):
        return None
    bracketed = match["round"] or match["square"]
    letter, rest = bracketed or match["open"], match["rest"].strip()
    if rest and not (
        match["delimiter"]
        or (bracketed and match["rest"][0] in " :.")
        or re.match(r"- |, ?[\d$\\(-]|,? (?:because|since|as)\b|(?:because|since)\b", rest)
    ):
        return None
    clear = bracketed or match["delimiter"] or match.start("open") > 0
    # A single small letter is a variable; after J there are no options.
    if (letter.islower() and not clear) or (rest and letter.upper() > "J"):
        return None
    return letter.upper(), rest


def same_option(answer: str, gold: str) -> bool | None:
    """Whether two answers name the same option; None if the gold one names none, or the answer none."""
    if (several := _options(gold)) and (others := _options(answer)):
        return several == others
    right = option(gold)
    found = option(answer) if right and not right[1].startswith("-") else None
    return None if right is None or found is None else right[0] == found[0]


def without_option(answer: str) -> str | None:
    """The content of ``(A) 12`` without its letter; None if there is no option, or nothing besides the letter."""
    found = option(answer)
    return found[1] if found and found[1] and not found[1].startswith("-") else None


def _options(text: str) -> frozenset[str] | None:
    said = undressed(text)
    return frozenset(re.findall(r"[A-J]", re.sub(r"\band\b", " ", said))) if _SEVERAL.fullmatch(said) else None


def prose(text: str) -> str | None:
    """The words of an answer that is nothing but words, in one spelling; None if it is mathematics.

    ``tea`` is a word, ``xyz`` a product: letters that follow each other in the alphabet are factors, as are two that make no word.
    """
    said = undressed(text)
    if not said or len(said) > 400 or not re.fullmatch(r"[^\W\d_]+(?:[\s,.'’&;:()-]{1,4}[^\W\d_]+){0,60}[.!?)]{0,2}", said):
        return None
    words = re.findall(r"[^\W\d_]+", said.casefold())
    if not any(_is_word(word) for word in words) or any(word in NAMES for word in words):
        return None
    return " ".join(word for word in words if word not in ("the", "a", "an") or len(words) == 1)


def same_prose(answer: str, gold: str) -> bool | None:
    """Whether two answers say the same words, lists in any order; None if neither is prose."""
    right, said = prose(gold), prose(undressed(answer).rpartition("=")[2])
    if right is None and said is None:
        return None
    if right is None or said is None:
        # The one is words and the other is not.
        return None if re.search(r"\\text|[^\W\d_]{3}", gold if right is None else answer) else False
    return right == said or _listed(gold) == _listed(answer)


def _listed(text: str) -> frozenset[str] | str:
    parts = [part for part in re.split(r",|;|&|\band\b", undressed(text).casefold()) if part.strip()]
    return frozenset(" ".join(re.findall(r"\w+", part)) for part in parts) if len(parts) > 1 else " ".join(parts)


def _is_word(word: str) -> bool:
    if word in NAMES:
        return False
    if len(word) <= 2:
        return word in SHORT
    follows = all(ord(after) - ord(before) == 1 for before, after in pairwise(word))
    return not follows
