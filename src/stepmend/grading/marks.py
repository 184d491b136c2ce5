"""Answers after a mark: ``#### 18``, "the answer is 18", ``<answer>18</answer>``, "Option C is correct"."""

import math
import re
from dataclasses import dataclass

from stepmend.grading import loose

_KEY = r"(?:final|correct|right|best|my|our)?[ _-]?(?:answers?|option|choice)(?: ?\([^()\n]{1,40}\))?"
_IS = (
    r"(?:[*_\"'”`)}\]]{0,4}[ \t]?(?::|：|=|→|->|=>)|[*_\"'”`]{0,4} (?:-|–|—) "
    r"|[*_]{0,4} (?:(?:to|for|of|in) [^.:\n=?!]{1,80}? )?"
    r"(?:is|are|was|would be|will be|should be|must be|comes? (?:out )?to(?: be)?|equals)\b"
    r"(?: (?:therefore|thus|then|simply|just|indeed|equal to|given by|found to be|option|choice|letter|the number|about"
    r"|approximately|roughly|around|exactly)\b)*[:：]?)"
)
STRONG = r"\#{4}(?!\#)|<(?:final[_ ]?)?(?:answer|final|solution|result)>|\[ANSWER\]"
MARKS = re.compile(
    rf"(?:(?P<strong>{STRONG})|^[ \t>*_]{{0,8}}(?:A|Ans)[*_]{{0,4}}[ \t]?[:：]|^[ \t]*+[#*_]{{1,6}} ?(?:the )?(?:final )?answer[ \t*_:]*+$"
    rf"|\b{_KEY}{_IS}|\bAns[:.]|\b(?:final|end) result{_IS}|答案(?:是|为|：|:)|答え(?:は|：|:)"
    r"|(?:la )?(?:respuesta|réponse|risposta)(?: final\w?)?(?: (?:es|est|è)\b| ?[:：])|antwort(?: (?:ist|lautet)\b| ?:)|ответ ?[:：—])"
    r"[ \t]*+[*_}]*+[ \t]*+\n?+\s{0,8}(?:(?:about|approximately|roughly|exactly) )?(?P<rest>[^\s:][^\n]{0,300})",
    re.IGNORECASE | re.MULTILINE,
)
"""The answer is the rest of the line, or the next line."""
MINERVA = re.compile(r"Final Answer: The final answer is")
CLEARLY = re.compile(r"\AThe final answer is\s*|\s*\$?\.? I hope it is correct\Z")
"""How a solution ends in the prompt of Minerva (https://arxiv.org/abs/2206.14858), which asks for it."""
CHOSEN = re.compile(
    r"(?:(?<=\s)|(?<=[(*$])|^)(?:\\text\{)?\(?(?-i:(?P<letter>[A-J]))\)?\}?[)*$.]{0,4} is (?:therefore |thus |indeed )?(?:the |our )?"
    r"(?:final |most )?(?:correct|right|best|answer)\b"
    r"|\b(?:choose|select|pick|go with) (?:option |choice |answer )?\(?(?-i:(?P<chosen>[A-J]))(?=[).,\s]|$)",
    re.IGNORECASE | re.MULTILINE,
)
"""An option named before the mark: "(C) is correct"."""
OPTION = re.compile(r"(?:\*\*|\\text\{|\\textbf\{|\$|\\\()*\(?[A-J](?:[).:\]]|\}|\*|$|\s*$)")
SENTENCE = re.compile(
    r"(?<=[^\s.])[.!?。！？]\s+(?=[A-Z\"'(])|[。；]| — | – |; "
    r"|(?<=\S), (?:I|we|and I|and we)\b|(?<=\S),? (?:which|because|since|so|as|where|meaning|and not|not|but|instead of|rather than)\b"
)
"""Where a marked answer ends, though its line goes on."""
FORMULA = re.compile(r"\$\$[^$\n]{1,300}\$\$|\$[^$\n]{1,300}\$|\\\[[^\n]{1,300}?\\\]|\\\([^\n]{1,300}?\\\)")
LISTED = re.compile(r"\s{0,3}(?:,|;|and\b|or\b|, and\b|, or\b)\s{0,3}")
CLOSERS = {"\\[": "\\]", "$$": "$$", "\\(": "\\)"}
TAIL = re.compile(r"(?<![\s.,;:!?*\"'`。！？✓✔✅–—-])[\s.,;:!?*\"'`。！？✓✔✅–—-]+\Z")
"""What closes a sentence and is no part of its answer."""
ASIDE = re.compile(r"(?<=[\w$}%)]) \((?!mod\b|base\b)[^()\d]{0,3}[^\W\d_]{3,40}[^()]{0,200}\)[\s.,;:!?]{0,5}\Z")
"""Words in brackets after an answer: ``12 (since 3 * 4 = 12)``."""
STOP = frozenset(
    re.split(
        r"\|",
        "the|an|to|of|that|this|it|its|not|as|in|on|at|given|found|obtained|therefore|thus|so|correct|incorrect|right|wrong|simply|just|about|now|below"
        "|above|here|following|follows|clear|shown|and|or|for|with|we|i|you|is|are|was|be|because|since|by|from|based|unknown|supposed|expected",
    )
)
"""A word that starts a sentence and is no answer."""
_BLANK = r"(?:your|the|my|a|an|insert|final|numeric|numerical|correct|single|just|only|exact|put|write|enter|actual)"
PLACEHOLDER = re.compile(
    rf"(?:{_BLANK} )*(?:answers?|number|result|value|solution|letter|option|choice|expression|integer|answer (?:choice|letter|value)|final"
    r"|numeric|placeholder|n/a|tbd|todo)(?: (?:goes )?here| only)?"
    r"|[.…?_\-\s#]*|(?:dots|ldots|cdots|square|quad|qquad|phantom|blank|placeholder|text|,|\s)*|xxx*",
    re.IGNORECASE,
)
_DRESS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textit)\b|[\\${}()\[\]<>*`\"']")


@dataclass(frozen=True)
class Mark:
    """A marked answer; ``strong`` where the mark is one that a format asks for."""

    answer: str
    strong: bool


def placeholder(answer: str) -> bool:
    """Whether a marked text is a placeholder: ``number``, ``...``, ``?``, ``your answer``, or empty."""
    if len(answer) > 80:
        return False
    said = " ".join(_DRESS.sub(" ", answer).replace("_", " ").split())
    return bool(PLACEHOLDER.fullmatch(said)) and not re.fullmatch(r"\(?-\)?", answer.strip())


def last(text: str, start: int, *, whole: bool) -> Mark | None:
    """The last marked answer from ``start`` on; in an incomplete text, only one that is complete and not followed by anything."""
    for match in sorted(_marked(text, start), key=re.Match.start, reverse=True):
        answer = _answer(match)
        if not answer:
            continue
        if not whole and not (text.endswith("\n") and not text[match.end() :].strip()):
            return None
        # Four number signs head a section as well: only a line of its own is as good as a box.
        strong = (
            match.re is MARKS
            and bool(match["strong"] or MINERVA.search(match[0]))
            and CLEARLY.sub("", _trimmed(match["rest"].partition("</")[0])).strip("$") == answer.strip("$")
        )
        return Mark(answer, strong)
    return None


def first_end(text: str) -> float:
    """Where the first marked answer ends; infinite if there is none."""
    return next((match.end() for match in sorted(_marked(text, 0), key=re.Match.start) if _answer(match)), math.inf)


def _marked(text: str, start: int) -> list[re.Match[str]]:
    return [*MARKS.finditer(text, start), *CHOSEN.finditer(text, start)]


def _answer(mark: re.Match[str]) -> str | None:
    """What a mark is followed by, up to the end of its sentence or line; of a formula that starts there, the formula."""
    if mark.re is CHOSEN:
        return mark["letter"] or mark["chosen"]
    content = mark["rest"].strip()
    if closer := CLOSERS.get(content):
        content = mark.string[mark.end("rest") : mark.end("rest") + 300].partition(closer)[0].strip()
    while inner := MARKS.search(content):
        content = inner["rest"]
    content = re.split(r"</|\[/|\s?<[|｜]", content, maxsplit=1)[0].strip()
    if content.startswith(("$", "\\(", "\\[")) and (formula := _formulas(content)):
        return formula
    sentence = _trimmed(SENTENCE.split(content)[0])
    if not OPTION.match(sentence) and loose.PROSE.search(re.sub(r"\\text\{[^{}]*\}", "", sentence)):
        said = _trimmed(re.split(r"(?<=[^\s.])[.!?]\s+(?=[A-Z])", content, maxsplit=1)[0])
        return loose.last(said) if re.search(r"\d|\\[a-z(\[]", said) else None
    return sentence if _is_answer(sentence) else None


def _formulas(content: str) -> str | None:
    """The formula at the start of a text, with those that are listed after it; None if none is."""
    found: list[str] = []
    place = 0
    while match := FORMULA.match(content, place):
        found.append(match[0])
        joint = LISTED.match(content, match.end())
        if not joint:
            break
        place = joint.end()
    if len(found) == 1:
        return re.sub(r"[.,;]\s*(?=(?:\$+|\\\)|\\\])\Z)", "", found[0])
    return ", ".join(one.strip("$").removeprefix("\\(").removesuffix("\\)") for one in found) or None


def _trimmed(answer: str) -> str:
    """Without what closes a sentence, emphasis, a JSON value or a bracket around it: ``42!`` after a mark is 42."""
    trimmed = TAIL.sub("", ASIDE.sub("", answer.strip())).lstrip("*\"'`_ ")
    while trimmed and trimmed[-1] in ")]}" and trimmed.count(trimmed[-1]) > trimmed.count({")": "(", "]": "[", "}": "{"}[trimmed[-1]]):
        trimmed = TAIL.sub("", trimmed[:-1])
    return trimmed


def _is_answer(said: str) -> bool:
    """Whether something after a mark can be an answer: mathematics, or a word or two that start no sentence."""
    if not said or placeholder(said):
        return False
    words = said.split()
    if words[0].lower() in STOP:
        return False
    if re.search(r"[\d\\$√π∞=+*/^<>≤≥]", said):
        return True
    return len(words) == 1 or (len(words) <= 3 and all(word[0].isupper() for word in words if word[0].isalpha()))
