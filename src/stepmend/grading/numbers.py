"""The values of answers that are numbers, exactly, with a unit or without."""

import re
from decimal import Decimal, InvalidOperation

from stepmend.grading import notation, words

PLAIN = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d{1,6})?")
SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
UNIT = (
    rf"(?!(?:{'|'.join(SCALES)})s?\b)"
    r"(?:[^\W\d_]{2,}|[mglshLVWJNKCF])(?![^\W\d_])"
    r"(?: ?\^ ?\{?[23]\}?|[²³])?\.?"
)
UNITS = re.compile(rf" ?\(?(?: ?/? ?{UNIT}(?:(?: ?/ ?| ){UNIT})*)? ?\)?| ?%| ?° ?[CF]?")
"""What may stand after a number that is the whole answer: words and units (``km/h``, ``cm^2``), a percent sign, degrees."""
KNOWN = frozenset(
    re.split(
        r"\|",
        "mm|cm|dm|km|nm|um|kg|mg|lb|lbs|ft|oz|hr|hrs|min|ms|mph|kph|mi|yd|ml|rad|deg|hz|khz|mhz|ghz|ev|kev|mev|gev|tev|pc|kpc|mpc|au|erg|ergs"
        "|kj|kw|mw|gw|kpa|mpa|pa|atm|mol|ly|yr|myr|gyr|cc|sq|cu|usd|eur",
    )
)
LETTERS = frozenset("mgsljknwvchfta")
"""Units of one letter, which are factors unless they stand beside another unit."""
_WORD = re.compile(r"([^\W\d_]+)((?: ?\^ ?\{? ?-?\d\}?)?)")
NAMED = re.compile(r"\s*\$?\\?[a-zA-Z]{1,12}(?:_\{?\w{1,8}\}?)?(?:\(\w{1,8}\))?\s*|[\d\s+*/().×·-]{1,200}")
COMPOUND = frozenset(("m/s", "m/s^2", "m/s^{2}", "N/m", "V/m", "J/K", "J/s", "L/s", "N/C", "g/L"))
DRESS = re.compile(r"\\[$,!; ]|\\?[$€£]|(?<!\w)\*\*|\*\*(?!\w)|\\left|\\right|\\(?=%)|~|`|\\[()\[\]]")
LONE = re.compile(r"[^\d+*/^<>=≤≥≠~]*?(?<![\w.])([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?!\w)[^\d+*/^<>=≤≥≠~]*")
"""One number in words, and no sum."""
HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
LONGEST = 2_000
"""Characters of the longest answer that is worth parsing; a longer one is no answer."""
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[+-]?\.\d+")
_EXPONENT = r"[+-]?\d{1,6}"
_POWER = re.compile(
    rf"(?:[eE]{_EXPONENT}(?!\w)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*"
    rf"(?:\{{\s*{_EXPONENT}\s*\}}|\(\s*{_EXPONENT}\s*\)|{_EXPONENT}))"
)


def plain_number(text: str) -> Decimal | None:
    """The value of a plain number (``18``, ``1,000``, ``$18.00``, ``9 500``, ``4.5e33``, ``five``); None for everything else."""
    bare = notation.signs(text).strip().strip("$").strip() if len(text) <= LONGEST else ""
    if not bare or len(bare) > 1_000:
        return None
    bare = words.NUMERALS.get(bare.lower(), bare)
    if PLAIN.fullmatch(bare) or PLAIN.fullmatch(bare := notation.joined(bare)):
        return _decimal(bare)
    return power_of_ten(bare)


def power_of_ten(text: str) -> Decimal | None:
    """The value of ``4.5\\times 10^{33}`` and its like; None for everything else."""
    found = notation.scientific(text)
    value = _decimal(found[0]) if found else None
    return value.scaleb(found[1]) if found and value is not None else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def measured(text: str) -> tuple[Decimal, str] | None:
    """(value, what is after it) of an answer that starts with a number, in one spelling; None for everything else."""
    said = words.WRAPPED.sub(r" \1 ", notation.signs(text[:LONGEST].replace("{,}", ",")))
    said = notation.joined(DRESS.sub("", said)).rpartition("=")[2].strip().rstrip(".。").rstrip()
    match = _NUMBER.match(said)
    if not match:
        return None
    end = power.end() if (power := _POWER.match(said, match.end())) else match.end()
    value = plain_number(said[:end])
    return None if value is None else (value, " ".join(["", *said[end:].split()]))


def number_with_unit(text: str) -> Decimal | None:
    """The number of an answer that is one, with a unit or without (``18 dollars``, ``\\$18.``, ``5 + 3 = 8``); None for everything else."""
    found = measured(text)
    if not found:
        return None
    value, rest = found
    scale = next((factor for word, factor in SCALES.items() if re.match(rf" {word}s?\b", rest)), None)
    if scale is None:
        return value if UNITS.fullmatch(rest) else None
    return value * scale if UNITS.fullmatch(" " + rest[1:].partition(" ")[2]) else None


def number_with_words(text: str) -> tuple[Decimal, str] | None:
    """(value, unit) of a number that clear words or units follow (``72 pens``, ``5 km/h``), where letters may be factors as well.

    The unit is empty for a number alone. None for everything else.
    """
    found = measured(text)
    # Of an equation the right side is the answer where the left one only names it, or is a sum of numbers.
    if not found or ("=" in text and not NAMED.fullmatch(text[:LONGEST].rpartition("=")[0])):
        return None
    value, rest = found
    if not rest.strip():
        return value, ""
    if rest.strip() in COMPOUND:
        return value, rest.strip().lower()
    parts = _WORD.findall(rest)
    if not parts or not rest.startswith(" ") or re.sub(r"[\s/()·.]|\\cdot", "", _WORD.sub("", rest)):
        return None
    known = [word.lower() in KNOWN or (len(word) > 2 and words.prose(word) is not None) for word, _ in parts]
    if not any(known) or any(not one and word.lower() not in LETTERS for one, (word, _) in zip(known, parts, strict=True)):
        return None
    return None if parts[0][0].lower() in SCALES else (value, rest.strip().lower())
