"""Leakage check: everything that a model is tuned or calibrated on, against every evaluation question.

``same`` and ``overlap`` are leaks, and the caller drops them; ``near``, a paraphrase with other numbers, is only reported. Texts are
compared by their letters and digits alone. Signs are ignored, so "2 + 3", "2 - 3" and "23" are the same: dropping a question needlessly is
better than leaking one. In scripts without spaces, whole clauses count as words, so ``overlap`` and ``near`` detect little. This module
imports neither torch nor transformers.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepmend.records import Problem

NGRAM = 13
"""Words in a row that make two questions overlap (Brown et al., 2005.14165, appendix C)."""
NEAR = 0.5
"""A question is near an evaluation question if it shares at least this fraction of its masked n-grams."""

Kind = Literal["same", "overlap", "near"]


@dataclass(frozen=True)
class Hit:
    """A tuning question that resembles an evaluation one.

    ``problem`` and ``held_out`` are the two problems' ids. ``shared`` is the share, in [0, 1], of the tuning question's n-grams that
    are found in that evaluation question; where the kind is ``near``, of its n-grams with every number masked.
    """

    problem: str
    held_out: str
    kind: Kind
    shared: float


class Index:
    """Index of the evaluation questions by whole text and by n-gram; the time of a check depends only on the checked text's length."""

    def __init__(self, evaluation: Iterable[Problem]) -> None:
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._wholes: dict[str, int] = {}
        self._plain: defaultdict[str, list[int]] = defaultdict(list)
        self._masked: defaultdict[str, list[int]] = defaultdict(list)
        for place, problem in enumerate(evaluation):
            self._ids.append(problem.id)
            self._places.setdefault(problem.id, place)
            words = _words(problem.question)
            if words:
                self._wholes.setdefault("".join(words), place)
            for gram in _runs(words):
                self._plain[gram].append(place)
            for gram in _runs(_mask(words)):
                self._masked[gram].append(place)

    def check(self, problem: Problem) -> Hit | None:
        """The most serious hit, with the evaluation question that shares most (the first among ties); None if the question is clean.

        ``same``: the same id, or the same text except case, signs, spaces and the writing of numbers. ``overlap``: ``NGRAM`` words in a row
        are shared. ``near``: ``NEAR`` of its n-grams are shared once every number is masked. A question with fewer words is one n-gram. A
        question without words can match only by its id.
        """
        words = _words(problem.question)
        grams = _runs(words)
        place = self._places.get(problem.id, self._wholes.get("".join(words)))
        if place is not None:
            return self._hit(problem, place, "same", sum(place in self._plain.get(gram, ()) for gram in grams), len(grams))
        place, shared = _closest(grams, self._plain)
        if shared:
            return self._hit(problem, place, "overlap", shared, len(grams))
        masked = _runs(_mask(words))
        place, shared = _closest(masked, self._masked)
        return self._hit(problem, place, "near", shared, len(masked)) if shared and shared >= NEAR * len(masked) else None

    def _hit(self, problem: Problem, place: int, kind: Kind, shared: int, grams: int) -> Hit:
        return Hit(problem.id, self._ids[place], kind, shared / grams if grams else 0.0)


def check_all(problems: Iterable[Problem], index: Index) -> tuple[list[Hit], dict[str, int]]:
    """The hits in the problems' order, and how many were ``checked``, ``same``, ``overlap``, ``near`` and ``clean``."""
    found = [index.check(problem) for problem in problems]
    hits = [hit for hit in found if hit is not None]
    kinds = Counter(hit.kind for hit in hits)
    counts = {"checked": len(found), "same": kinds["same"], "overlap": kinds["overlap"], "near": kinds["near"]}
    return hits, {**counts, "clean": len(found) - len(hits)}


def kept(problems: Sequence[Problem], index: Index) -> tuple[list[Problem], dict[str, int]]:
    """The problems that do not leak (near ones are kept), and the counts of ``check_all``."""
    hits, counts = check_all(problems, index)
    leaked = {hit.problem for hit in hits if hit.kind != "near"}
    return [problem for problem in problems if problem.id not in leaked], counts


def ngrams(text: str) -> set[str]:
    """Every run of ``NGRAM`` words of a text, normalised; a shorter text is one run, and one without words has none."""
    return _runs(_words(text))


def _runs(words: list[str]) -> set[str]:
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))} if words else set()


def _closest(grams: set[str], postings: Mapping[str, list[int]]) -> tuple[int, int]:
    """The place that holds most of these n-grams, the first of equals, and how many it holds; (-1, 0) where none holds any."""
    counts: Counter[int] = Counter()
    for gram in grams:
        counts.update(postings.get(gram, ()))
    place = min(counts, key=lambda place: (-counts[place], place), default=-1)
    return place, counts[place]


class _Signs(dict[int, str | None]):
    """A lazy translation table for ``str.translate``.

    Letters and combining marks stay, digits of any script become ASCII ones, and what is invisible goes (category Cf: zero-width
    characters, direction marks, soft hyphens). What LaTeX or a number may need is given; all else is a space.
    """

    def __missing__(self, code: int) -> str | None:
        sign = chr(code)
        category = unicodedata.category(sign)
        if category == "Nd":
            self[code] = str(unicodedata.decimal(sign))
        else:
            self[code] = None if category == "Cf" else sign if category[0] in "LMN" else " "
        return self[code]


_SIGNS = _Signs({ord(sign): sign for sign in "\\{},.'!;:"} | {ord("’"): "'", ord("٬"): ",", ord("٫"): "."})
_SIGNS.update(dict.fromkeys((0x034F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))  # invisible marks: variation selectors
_LOOKS = re.compile(r"\\(?:left|right|text|mathrm|displaystyle|q?quad)(?![a-z])")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d\d)*(?:(?:\{,\}|,?\\[,!;:]|[,'])\d{3})+(?!\d)")  # also 1{,}000 1,\!000 1,00,000
_WORD = re.compile(r"(?:[^\s\\{},.'!;:]|(?<=\d)\.(?=\d))+")
_UNITS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_SPELLED = "|".join(f"{_UNITS} twenty thirty forty fifty sixty seventy eighty ninety hundred".split())
_NUMBER = re.compile(rf"(?<!\S)(?:{_SPELLED})(?: (?:{_SPELLED}))*(?!\S)|\d+(?:\.\d+)*")


def _words(text: str) -> list[str]:
    """A text's words, NFKC-normalized and case-folded; a number is a word with its decimal point and without thousands separators."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold())
    text = _FRACTION.sub("frac", _LOOKS.sub(" ", text))
    return _WORD.findall(_THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text))


def _mask(words: list[str]) -> list[str]:
    """The words with each number, of digits or spelled ("twenty", "one" in "twenty-one" are one number), replaced by ``#``."""
    return _NUMBER.sub("#", " ".join(words)).split()
