"""Sampled rescue: a better model continues a trace from before each step; the fault is where its probability of reaching the correct answer
drops.

The value of a cut is the probability that a continuation from there ends at the correct answer. Cuts before the first fault have about the
same value, cuts after it almost none. So the counts of correct continuations have a change point, and its posterior gives the location of
the fault. Samples are drawn if they are most informative, until the posterior is decided: a sequential test.

Arrays carry their shape: F hypotheses (the first faulty step, in the last place none), C cuts (before each step, and the end),
P levels of the value before the fault.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import betaln, gammaln, logsumexp

from stepmend import grading
from stepmend.engines.base import Completion
from stepmend.locate import steps
from stepmend.locate.locators import Case, Rescued
from stepmend.records import Vote

LEVELS_P = (np.arange(12) + 0.5) / 12
"""Assumed values before the fault, equally likely."""
CONCENTRATION = 8.0
"""Similarity of the values of cuts before the fault: each is drawn from a beta distribution with this many pseudo-counts."""
RESIDUE = 0.12
"""Value of cuts after the fault, relative to those before it: sometimes a continuation corrects the fault."""
SURE = 0.95
"""Posterior probability at which a case is decided."""
CANDIDATES = 40
"""Cuts, at most, whose information is computed before each batch."""
LEAST = 0.02
"""Minimum expected information about the fault, in nats, for which another batch is drawn."""


@dataclass(frozen=True)
class Asked:
    """Continuations of one text: those from number ``start`` on, up to ``end``; equal numbers are equal samples."""

    text: str
    start: int
    end: int


@dataclass
class _Search:
    """One case: arrivals and samples of each cut, one arriving completion of each, and what it cost.

    ``sections`` are the steps with which sections start; while it is ``coarse``, only cuts there are examined, until the section is found.
    """

    case: Case
    prior_F: np.ndarray
    guide_F: np.ndarray
    open: bool
    coarse: bool = field(init=False)
    sections: list[int] = field(init=False)
    arrived_C: np.ndarray = field(init=False)
    sampled_C: np.ndarray = field(init=False)
    closed_C: np.ndarray = field(init=False)
    good: dict[int, str] = field(default_factory=dict)
    completions: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        cuts = len(self.case.spans) + 1
        self.arrived_C, self.sampled_C = np.zeros(cuts, dtype=int), np.zeros(cuts, dtype=int)
        trace = self.case.trace
        self.sections = steps.section_starts(trace.text, self.case.spans)
        self.coarse = len(self.sections) < len(self.case.spans)
        self.closed_C = np.zeros(cuts, dtype=bool)  # nothing is to be learnt from after an answer
        self.closed_C[-1] = trace.finish == "stop" and grading.extract(trace.said, loose=True) is not None

    def prefix(self, cut: int) -> str:
        spans = self.case.spans
        return self.case.trace.text[: spans[cut][0] if cut < len(spans) else None]


@dataclass(frozen=True)
class SampledRescue:
    """Values cuts by sampled continuations.

    Attributes:
        complete: Generates new continuations of texts.
        arrive: For many (case, whole text, whether it is finished): whether each ends at the correct answer.
        samples: Continuations of a cut; twice as many where the decision stays open.
    """

    complete: Callable[[Sequence[Asked]], Sequence[Sequence[Completion]]]
    arrive: Callable[[Sequence[tuple[int, str, bool]]], Sequence[bool]]
    samples: int = 8

    def __call__(self, cases: Sequence[Case], priors: Sequence[np.ndarray], guides: Sequence[np.ndarray]) -> list[Rescued]:
        """What rescue says of each case; every round asks for all open cases in one go.

        Args:
            cases: The failed traces.
            priors: Of each case, the probability [F] of every hypothesis that its own vote starts from.
            guides: The same given the other locators' votes: it only decides where samples are spent.
        """
        searches = [_Search(case, *of, open=bool(case.spans)) for case, *of in zip(cases, priors, guides, strict=True)]
        while places := {i: cut for i, search in enumerate(searches) if search.open and (cut := self._next(search)) is not None}:
            self._probe(searches, places)
        return [self._result(search) for search in searches]

    @property
    def batch(self) -> int:
        """Samples of one cut that are drawn before it is decided where to look next."""
        return max(1, self.samples // 2)

    def _next(self, search: _Search) -> int | None:
        """The cut to sample next; None, and the case is closed, if it is decided or nothing is worth its cost."""
        likelihood_FP = log_likelihood(search.arrived_C, search.sampled_C)
        weight_FP = np.exp(likelihood_FP - logsumexp(likelihood_FP)) * search.guide_F[:, None]
        weight_FP /= weight_FP.sum()
        if search.coarse:
            best = self._next_section(search, weight_FP)
            if best is not None:
                return best
            search.coarse = False
        spent = search.completions >= self.samples * (math.ceil(math.log2(len(search.case.spans) + 1)) + 2)
        decided = weight_FP.sum(1).max() >= SURE
        information_C = information(weight_FP, search.arrived_C, search.sampled_C, self.batch)
        information_C[search.closed_C | (search.sampled_C >= 2 * self.samples)] = 0
        best = int(information_C.argmax())
        if not spent and not decided and information_C[best] >= LEAST:
            return best
        if search.arrived_C.sum() == 0 and search.sampled_C[0] < self.samples:
            return 0  # before a trace is given up, its start is tried
        search.open = False
        return None

    def _next_section(self, search: _Search, weight_FP: np.ndarray) -> int | None:
        """The section's start to sample next; None if the section is found, or nothing more is to be learnt from them."""
        cuts = [*search.sections, len(search.case.spans)]
        information_C = information(weight_FP, search.arrived_C, search.sampled_C, self.batch, cuts)
        information_C[search.closed_C | (search.sampled_C >= 2 * self.samples)] = 0
        decided = np.add.reduceat(weight_FP.sum(1), cuts).max() >= SURE
        spent = search.completions >= self.samples * (math.ceil(math.log2(len(cuts))) + 1)
        best = int(information_C.argmax())
        return None if decided or spent or information_C[best] < LEAST else best

    def _probe(self, searches: Sequence[_Search], places: dict[int, int]) -> None:
        """One batch of each given case's cut."""
        had = {i: int(searches[i].sampled_C[cut]) for i, cut in places.items()}
        prefixes = {i: searches[i].prefix(cut) for i, cut in places.items()}
        asked = [Asked(searches[i].case.prompt + prefixes[i], had[i], had[i] + self.batch) for i in places]
        found = dict(zip(places, self.complete(asked), strict=True))
        pairs = [(i, c) for i in places for c in found[i]]
        right = self.arrive([(i, prefixes[i] + c.text, c.finish == "stop") for i, c in pairs])
        for (i, completion), good in zip(pairs, right, strict=True):
            search, cut = searches[i], places[i]
            search.sampled_C[cut] += 1
            search.arrived_C[cut] += good
            search.completions += 1
            search.tokens += len(completion.tokens)
            if good:
                search.good.setdefault(cut, completion.text)

    def _result(self, search: _Search) -> Rescued:
        spent, steps = (search.completions, search.tokens), len(search.case.spans)
        if not steps:
            return Rescued(Vote(locator="rescue", step=None, evidence="the trace is empty"), "abstained", None, *spent)
        log_F = np.asarray(logsumexp(log_likelihood(search.arrived_C, search.sampled_C), axis=1))
        likelihood_F = np.exp(log_F - log_F.max())
        posterior_F = likelihood_F * search.prior_F
        posterior_F /= posterior_F.sum()
        best = int(posterior_F.argmax())
        outcome = self._outcome(search, best)
        located = outcome == "located"
        vote = Vote(
            locator="rescue",
            step=best if located else None,
            evidence=_evidence(search, outcome),
            confidence=round(float(posterior_F[best]), 4) if located else None,
            likelihood=() if outcome == "unrescuable" else tuple(float(f"{value:.3g}") for value in likelihood_F),
        )
        return Rescued(vote, outcome, search.good.get(best), *spent)

    def _outcome(self, search: _Search, best: int) -> Literal["located", "misread", "unrescuable"]:
        if search.arrived_C.sum() == 0 and search.sampled_C[0] >= self.samples:
            return "unrescuable"
        return "misread" if best == len(search.case.spans) else "located"


def log_likelihood(arrived_C: np.ndarray, sampled_C: np.ndarray) -> np.ndarray:
    """Log-probability [F, P] of the counts, for each first faulty step (in the last place none) and value before it.

    Cut k is before step k, so the cuts up to that of the faulty step are worth something, and those after it are not. A cut's value
    is drawn about its regime's mean, so its count is beta-binomial.
    """
    before_CP = _beta_binomial(arrived_C[:, None], sampled_C[:, None], LEVELS_P)
    after_CP = _beta_binomial(arrived_C[:, None], sampled_C[:, None], RESIDUE * LEVELS_P)
    left_CP = before_CP.cumsum(0)
    right_CP = after_CP[::-1].cumsum(0)[::-1]
    right_CP = np.concatenate([right_CP[1:], np.zeros((1, len(LEVELS_P)))])
    return left_CP + right_CP


def information(
    weight_FP: np.ndarray, arrived_C: np.ndarray, sampled_C: np.ndarray, count: int, cuts: Sequence[int] | None = None
) -> np.ndarray:
    """Mutual information [C], in nats, between the first faulty step and the arrivals among ``count`` more samples of each cut.

    It is computed for ``cuts``, else for those that are worth examining; 0 elsewhere.
    """
    outcomes_S = np.arange(count + 1)
    level_1P = LEVELS_P[None]
    chance_F = weight_FP.sum(1)
    inside_FP = weight_FP / np.maximum(chance_F, 1e-300)[:, None]
    found = np.zeros(len(sampled_C))
    for cut in _candidates(chance_F) if cuts is None else cuts:
        had = int(arrived_C[cut]), int(sampled_C[cut])
        before_SP = np.exp(_beta_binomial(outcomes_S[:, None], np.array(count), level_1P, had))
        after_SP = np.exp(_beta_binomial(outcomes_S[:, None], np.array(count), RESIDUE * level_1P, had))
        lies_before_F = cut <= np.arange(len(chance_F))
        predicted_FS = np.where(lies_before_F[:, None], inside_FP @ before_SP.T, inside_FP @ after_SP.T)
        overall_S = chance_F @ predicted_FS
        with np.errstate(divide="ignore", invalid="ignore"):
            terms_FS = predicted_FS * np.log(predicted_FS / overall_S)
        found[cut] = float(chance_F @ np.nan_to_num(terms_FS).sum(1))
    return found


def _candidates(chance_F: np.ndarray) -> list[int]:
    """The cuts worth examining: all of them, or in a long thought those that part the probability of the fault evenly."""
    if len(chance_F) <= CANDIDATES:
        return list(range(len(chance_F)))
    parts = (np.arange(CANDIDATES) + 0.5) / CANDIDATES
    return sorted(
        {min(int(cut), len(chance_F) - 1) for cut in np.searchsorted(chance_F.cumsum() / chance_F.sum(), parts)} | {0, len(chance_F) - 1}
    )


def _beta_binomial(arrived: Any, sampled: Any, mean: Any, had: tuple[int, int] = (0, 0)) -> Any:
    """Log-probability of these numbers of correct continuations and samples at a cut with this mean value, given the earlier ``had``
    (correct, sampled)."""
    a = CONCENTRATION * mean + had[0]
    b = CONCENTRATION * (1 - mean) + had[1] - had[0]
    choose = gammaln(sampled + 1) - gammaln(arrived + 1) - gammaln(sampled - arrived + 1)
    return choose + betaln(arrived + a, sampled - arrived + b) - betaln(a, b)


def _evidence(search: _Search, outcome: str) -> str:
    counts = ", ".join(
        f"{'the end' if cut == len(search.case.spans) else f'step {cut + 1}'} {a} of {n}"
        for cut, (a, n) in enumerate(zip(search.arrived_C, search.sampled_C, strict=True))
        if n
    )
    said = {"unrescuable": "not solved even from the start", "misread": "solved even from the end"}.get(outcome, "solved")
    return f"{said}; from before {counts}" if counts else "nothing sampled"
