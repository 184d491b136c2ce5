"""Mathematics as people and models write it, in LaTeX and in prose, rewritten with plain signs."""

import re

FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
REWRITES: tuple[tuple[str, str], ...] = (
    (r"<<[^<>]*>>", ""),
    (r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\boxed\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[()\[\]]", " ¦ "),
    (r"\\(?:times|cdot|ast)\b|[×·∗]", " * "),
    (r"\\div\b|÷", " / "),
    (r"\\approx\b|\\simeq\b|≅", " ≈ "),
    (r"\\(?:left|right|quad|qquad|displaystyle)\b|\\?[$€£&]|\\[,;:! ]|\\\\|\*\*", " "),
    (r"\{,\}", ","),
    (r"\\%", "%"),
    (r"[−–]", "-"),
    (r"\bdivided by\b", "/"),
    (r"\bmultiplied by\b", "*"),
    (r"(?<=\d)\s*[xX]\s*(?=\$?\d)", " * "),
    (r"\([^()\d]*\)", " "),
    (r"/\s*(?:per\s+)?[^\W\d_]+", " "),
    (r"[!<>≠≤≥]\s*=|==", " ? "),
)


def normalize(text: str) -> str:
    """LaTeX and prose signs as plain ones; calculator notes, remarks in brackets and rates' units (``/day``) taken out."""
    for pattern, by in REWRITES[:4]:
        text = re.sub(pattern, by, text)
    while FRACTION.search(text):
        text = FRACTION.sub(r"((\1)/(\2))", text)
    for pattern, by in REWRITES[4:]:
        text = re.sub(pattern, by, text)
    return text
