"""Context of equations: what a text only quotes, asks, supposes or rejects is not its own claim."""

import re

EQUALITY = re.compile(r"=|≈|\\approx")
SENTENCE_END = re.compile(r"[.!?;](?=\s)|\n[^\S\n]*\n")
NEAR = 300
"""Characters that a sentence is looked for in, each way."""
REJECTED = re.compile(
    r"\b(?:false|incorrect|wrong|untrue|contradict\w*|impossible|absurd|cannot|can['’]t|invalid|nonsense|"
    r"(?:is|are|does|do|did|was)(?:n['’]t| not) (?!enough\b)\w|not (?:true|equal|possible|right|correct|valid|\d)|fails?\b|"
    r"too (?:big|small|large|high|low)|wait|hmm|oops)|[≠?]|¿",
    re.IGNORECASE,
)
REJECTED_NEXT = re.compile(
    r"[\s¦*]*(?:wait|no\b|nope|but (?:that|this|it|we)|hmm|oops|actually|incorrect|wrong|hold on|"
    r"(?:this|that|it|which|these|so this|so that)(?:['’]s| is| are| does| can| would| contradicts| fails| was| equation)?\W+"
    r"(?:also |clearly |obviously |a |an |not? |can|[n ]?o?t? ?|simply |of course )*"
    r"(?:false|wrong|incorrect|impossible|absurd|contradict\w*|not|n['’]?t|cannot|can['’]t|invalid|too|untrue|mistake|fail\w*|nonsense|work)|"
    r"contradiction|not (?:equal|true|right|correct|possible)|impossible|does(?:n['’]t| not)|isn['’]t)",
    re.IGNORECASE,
)
SUPPOSED = re.compile(
    r"\b(?:if|suppose|supposing|assum\w+|whether|unless|imagine|pretend|say|says|said|claims?|claimed|thinks?|thought|believes?|wrote|writes|"
    r"asks?|asked|guess\w*|try|tries|trying|tried|instead of|rather than|not|is it|isn['’]t|does|did|why|cannot|can['’]t|"
    r"mistakenly|wrongly|erroneously|incorrectly)\b[^,.;:!?]*$",
    re.IGNORECASE,
)
"""Before an equation, with no comma between: the equation is what is supposed, said or asked."""
QUOTE = re.compile(r"[\"“”]")
MODULAR = re.compile(
    r"(?<![A-Za-z])mod(?:ulo|ulus)?(?![A-Za-z])|\bcongruen|\bresidues?\b|≡|\\equiv|\\[pb]?mod\b|clock arithmetic", re.IGNORECASE
)
BASES = re.compile(
    r"\d_\{?\d|\b(?:hexadecimal|octal|binary (?:number|digit|representation|form)|in base|base[- ]\d+ (?:number|digit|repr))", re.IGNORECASE
)
REDEFINED = re.compile(
    r"\b[A-Za-z]\s*(?:\*|\\ast|\\star|\\circ|#|\\#|@|&|\\&|\\[a-z]*(?:plus|times|dot|minus)|\\diamond\w*|\\(?:club|spade|heart)suit)\s*[A-Za-z]\b[^.\n]{0,40}="
)
"""``a * b = …``: an operator that the text defines."""
OPERATION = re.compile(r"\b(?:operat(?:ion|or)s?|defin\w+)\b", re.IGNORECASE)
CASES = re.compile(
    r"\b(?:cases?|options?|scenario|if|when|suppose|alternatively|either|or|otherwise|instead|another|method|plan|now|then|later|after|next|new|"
    r"originally|before|first|second|third|day|week|month|year|today|tomorrow|yesterday)\b",
    re.IGNORECASE,
)
"""Words between two equations by which one name may stand for two numbers."""


LARGE = re.compile(r"\b(?:thousands?|millions?|billions?)\b|\d[kKmM]\b", re.IGNORECASE)


def other_arithmetic(text: str) -> bool:
    """Whether a text calculates with residues, other bases, or operators that it defines: then its equations say nothing."""
    return bool(MODULAR.search(text) or BASES.search(text) or (REDEFINED.search(text) and OPERATION.search(text)))


def asserted(text: str, start: int, end: int, following: str = "") -> bool:
    """Whether an equation at a place of a text is what the text itself says is so.

    Args:
        text: The text as ``source.lines`` gives it.
        start: Where the equation starts.
        end: Where it ends.
        following: What comes after the text.
    """
    begin = max((m.end() for m in SENTENCE_END.finditer(text, max(start - NEAR, 0), start)), default=max(start - NEAR, 0))
    before = text[begin:start]
    after = (text[end : end + NEAR] + (following if len(text) - end < NEAR else ""))[:NEAR]
    stop = SENTENCE_END.search(after)
    rest = after[: stop.end()] if stop else after
    then = after[stop.end() :] if stop else ""
    if SUPPOSED.search(before) or _rejects(rest) or REJECTED_NEXT.match(then.lstrip()):
        return False
    return len(QUOTE.findall(before)) % 2 == 0 or not QUOTE.search(rest)


def _rejects(rest: str) -> bool:
    """Whether the end of the sentence takes the equation back; a word of it that belongs to another equation does not."""
    return REJECTED.search(rest.partition("=")[0]) is not None
