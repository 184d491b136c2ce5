"""The locators, each on its own: equations that can be checked, rescue by full precision, and margins of both models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stepmend.engines.local import Completion, LocalEngine
from stepmend.locate import equations, steps
from stepmend.models import chat
from stepmend.records import Trace, Vote


@dataclass(frozen=True)
class Case:
    """One failed trace, ready to be located: its prompt as rendered, its steps, and full precision's own solution of the problem."""

    prompt: str
    trace: Trace
    spans: tuple[tuple[int, int], ...]
    full: Trace


def make_case(prompt: str, trace: Trace, full: Trace) -> Case:
    return Case(prompt, trace, tuple(steps.split(trace.text)), full)


def by_equations(case: Case) -> Vote:
    """The first step with an equation that does not hold; abstains where all hold. Blind to right arithmetic on wrong quantities.

    What it names proves a fault at this step or before it, not that it is the first.
    """
    found = equations.first_false([case.trace.text[begin:end] for begin, end in case.spans], case.prompt)
    if found:
        return Vote(locator="equations", step=found[0], evidence=found[1].evidence)
    return Vote(locator="equations", step=None, evidence="every equation holds")


@dataclass(frozen=True)
class Probe:
    """What came of full precision's continuations of one cut trace: how many arrived, of how many, and one that did."""

    arrived: int
    samples: int
    completion: str | None

    def succeeds(self, threshold: float) -> bool:
        return self.arrived >= threshold * self.samples and self.arrived > 0

    def confidence(self, threshold: float) -> float:
        """Posterior probability that the rate of arrival is on the side of the threshold that it was taken for, from a flat prior."""
        from scipy.stats import beta

        below = float(beta(self.arrived + 1, self.samples - self.arrived + 1).cdf(threshold))
        return 1 - below if self.succeeds(threshold) else below


@dataclass(frozen=True)
class Rescued:
    """Rescue's vote and outcome; full precision's completion from just before the fault, which arrives; what finding it cost."""

    vote: Vote
    outcome: Literal["located", "misread", "unrescuable", "abstained"]
    completion: str | None
    completions: int
    tokens: int


@dataclass
class _Search:
    """One case under bisection: full precision arrives from step ``low`` on, and no longer from ``high`` on."""

    low: int
    high: int
    probes: dict[int, Probe] = field(default_factory=dict)
    completions: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Rescue:
    """Full precision continues each trace, cut after step k: the first k from which it no longer arrives marks the fault.

    Found by bisection over the steps, as in OmegaPRM (2406.06592); every round probes all cases in one go. A trace of n steps takes
    one probe behind its end (where full precision arrives from there, only the answer was misread or missing) and log2(n) more.
    ``arrive([(case, text, finished), ...])`` says which whole texts end at the right answer. With ``samples`` above one, full precision
    arrives where at least ``threshold`` of its sampled continuations do, the start is probed too, and votes state a confidence.
    """

    complete: Callable[[Sequence[str], int], Sequence[Sequence[Completion]]]
    arrive: Callable[[Sequence[tuple[int, str, bool]]], Sequence[bool]]
    samples: int = 1
    threshold: float = 0.5

    def __call__(self, cases: Sequence[Case]) -> list[Rescued]:
        searches = [_Search(0, len(case.spans)) for case in cases]
        whole = [i for i, case in enumerate(cases) if case.spans]
        if self.samples > 1:
            self._probe(cases, searches, dict.fromkeys(whole, 0))
        else:  # greedy: full precision's own solution is its continuation from the start
            solved = self.arrive([(i, cases[i].full.text, cases[i].full.finish == "stop") for i in whole])
            for i, arrived in zip(whole, solved, strict=True):
                searches[i].probes[0] = Probe(int(arrived), 1, cases[i].full.text if arrived else None)
        live = [i for i in whole if self._succeeds(searches[i], 0)]
        self._probe(cases, searches, {i: searches[i].high for i in live})
        live = [i for i in live if not self._succeeds(searches[i], searches[i].high)]
        while live := [i for i in live if searches[i].high - searches[i].low > 1]:
            middles = {i: (searches[i].low + searches[i].high) // 2 for i in live}
            self._probe(cases, searches, middles)
            for i, middle in middles.items():
                if self._succeeds(searches[i], middle):
                    searches[i].low = middle
                else:
                    searches[i].high = middle
        return [self._result(case, search) for case, search in zip(cases, searches, strict=True)]

    def _succeeds(self, search: _Search, step: int) -> bool:
        return search.probes[step].succeeds(self.threshold)

    def _probe(self, cases: Sequence[Case], searches: Sequence[_Search], places: Mapping[int, int]) -> None:
        """Let full precision continue the given cases from the given steps on."""
        prefixes = {i: cases[i].trace.text[: ([*cases[i].spans, (len(cases[i].trace.text),) * 2])[k][0]] for i, k in places.items()}
        found = self.complete([cases[i].prompt + prefix for i, prefix in prefixes.items()], self.samples)
        for i, completions, good in zip(prefixes, found, self.arrived(prefixes, found), strict=True):
            searches[i].probes[places[i]] = Probe(len(good), len(completions), good[0] if good else None)
            searches[i].completions += len(completions)
            searches[i].tokens += sum(len(c.tokens) for c in completions)

    def arrived(self, prefixes: Mapping[int, str], found: Sequence[Sequence[Completion]]) -> list[list[str]]:
        """Of each case's completions of its prefix, the texts that arrive; all are judged together."""
        asked = [(i, prefix + c.text, c.finish == "stop") for (i, prefix), of in zip(prefixes.items(), found, strict=True) for c in of]
        right = iter(self.arrive(asked))
        return [[c.text for c in of if next(right)] for of in found]

    def _result(self, case: Case, search: _Search) -> Rescued:
        spent = search.completions, search.tokens
        if not case.spans:
            return Rescued(Vote(locator="rescue", step=None, evidence="the trace is empty"), "abstained", None, *spent)
        if not self._succeeds(search, 0):
            return Rescued(Vote(locator="rescue", step=None, evidence="lost from the very start"), "unrescuable", None, *spent)
        if (end := search.probes.get(len(case.spans))) and end.succeeds(self.threshold):
            return Rescued(Vote(locator="rescue", step=None, evidence="arrives from its very end"), "misread", end.completion, *spent)
        before, behind = search.probes[search.low], search.probes[search.high]
        counts = f" ({before.arrived} and {behind.arrived} of {self.samples})" if self.samples > 1 else ""
        vote = Vote(
            locator="rescue",
            step=search.low,
            evidence=f"rescued before step {search.low + 1} of {len(case.spans)}, lost behind it{counts}",
            confidence=before.confidence(self.threshold) * behind.confidence(self.threshold) if self.samples > 1 else None,
        )
        return Rescued(vote, "located", before.completion, *spent)


@dataclass(frozen=True)
class Margins:
    """One teacher-forced pass of both models over a trace.

    Per token of the trace: ``reference`` is full precision's own choice there, ``full`` and ``quantized`` the margin of that
    choice in either model (its logit minus the best other logit).
    """

    reference: tuple[int, ...]
    full: tuple[float, ...]
    quantized: tuple[float, ...]


def margins_of(prompts: Sequence[str], traces: Sequence[Trace], full: LocalEngine, quantized: LocalEngine) -> list[Margins]:
    """Margins of every trace after its prompt."""
    heads = [chat.encode(full.tokenizer, prompt) for prompt in prompts]
    rows = [[*head, *trace.tokens] for head, trace in zip(heads, traces, strict=True)]
    begins = [len(head) for head in heads]
    mine = full.read(rows, begins)
    theirs = quantized.read(rows, begins, [read.tokens for read in mine])
    return [Margins(a.tokens, a.margins, b.margins) for a, b in zip(mine, theirs, strict=True)]


def by_margins(case: Case, margins: Margins, token_spans: Sequence[tuple[int, int]]) -> Vote:
    """The step of the first token that full precision would not have written at that prefix; abstains where there is none."""
    for index, (written, wanted) in enumerate(zip(case.trace.tokens, margins.reference, strict=True)):
        if written != wanted:
            step = step_of(case.spans, token_spans[index][0])
            return Vote(
                locator="margins",
                step=step,
                evidence=f"token {index}: margin {margins.quantized[index]:.2f} (full {margins.full[index]:.2f})",
            )
    return Vote(locator="margins", step=None, evidence="full precision would have written every token")


def step_of(spans: Sequence[tuple[int, int]], place: int) -> int | None:
    """The step that holds a character's place; the last one for places at the very end; None where there are no steps."""
    return next((i for i, (begin, end) in enumerate(spans) if begin <= place < end), len(spans) - 1 if spans else None)
