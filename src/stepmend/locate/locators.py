"""Single locators: equations, rescue by full precision, and margins of both models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stepmend.engines.base import Completion, Scorer
from stepmend.locate import equations, steps
from stepmend.models import chat
from stepmend.records import Trace, Vote


@dataclass(frozen=True)
class Case:
    """One failed trace, ready to be located.

    Attributes:
        prompt: The question as rendered for the model that continues the trace.
        trace: The trace.
        spans: Its steps.
        full: Full precision's own solution of the problem, if there is one.
    """

    prompt: str
    trace: Trace
    spans: tuple[tuple[int, int], ...]
    full: Trace | None

    @property
    def steps(self) -> list[str]:
        """The steps' texts, which join to the trace's."""
        return [self.trace.text[start:end] for start, end in self.spans]


def make_case(prompt: str, trace: Trace, full: Trace | None = None) -> Case:
    return Case(prompt, trace, tuple(steps.split(trace.text)), full)


def by_equations(case: Case) -> Vote:
    """The first step with an equation that does not hold; abstains if all hold. Blind to right arithmetic on wrong quantities.

    What it names proves a fault at this step or before it, not that it is the first.
    """
    found = equations.first_false([case.trace.text[begin:end] for begin, end in case.spans], case.prompt)
    if found:
        return Vote(locator="equations", step=found[0], evidence=found[1].evidence)
    return Vote(locator="equations", step=None, evidence="every equation holds")


@dataclass(frozen=True)
class Rescued:
    """Rescue's vote and outcome; a correct completion from just before the fault; and the cost."""

    vote: Vote
    outcome: Literal["located", "misread", "unrescuable", "abstained"]
    completion: str | None
    completions: int
    tokens: int


@dataclass
class _Search:
    """One case under bisection: full precision reaches the correct answer from step ``low``, and not from ``high``.

    ``sections`` are the steps with which sections start: a section is found first, then the step in it.
    """

    low: int
    high: int
    sections: Sequence[int]
    arrived: dict[int, str | None] = field(default_factory=dict)
    completions: int = 0
    tokens: int = 0

    @property
    def middle(self) -> int:
        """The step to try next: the section's start that is nearest to the middle, while there is one between."""
        middle = (self.low + self.high) // 2
        between = [step for step in self.sections if self.low < step < self.high]
        return min(between or [middle], key=lambda step: abs(step - middle))


@dataclass(frozen=True)
class Rescue:
    """Full precision continues each trace greedily, cut after step k: the fault is the first k from which it no longer reaches the correct
    answer.

    Found by bisection over the steps, as in OmegaPRM (2406.06592), which is sound where the model solves nearly all problems; else
    ``rescue.SampledRescue`` values cuts by samples. Every round probes all cases in one go. A trace of n steps takes one probe after
    its end (where full precision arrives from there, only the answer was misread or missing) and log2(n) more.
    ``arrive([(case, text, finished), ...])`` says which whole texts end at the right answer.
    """

    complete: Callable[[Sequence[str]], Sequence[Completion]]
    arrive: Callable[[Sequence[tuple[int, str, bool]]], Sequence[bool]]

    def __call__(self, cases: Sequence[Case]) -> list[Rescued]:
        """What rescue says of each case, whose ``full`` solution is the probe from the start."""
        searches = [_Search(0, len(case.spans), steps.section_starts(case.trace.text, case.spans)) for case in cases]
        whole = {i: case.full for i, case in enumerate(cases) if case.spans and case.full}
        solved = self.arrive([(i, full.text, full.finish == "stop") for i, full in whole.items()])
        for (i, full), arrived in zip(whole.items(), solved, strict=True):
            searches[i].arrived[0] = full.text if arrived else None
        live = [i for i in whole if searches[i].arrived[0] is not None]
        self._probe(cases, searches, {i: searches[i].high for i in live})
        live = [i for i in live if searches[i].arrived[searches[i].high] is None]
        while live := [i for i in live if searches[i].high - searches[i].low > 1]:
            middles = {i: searches[i].middle for i in live}
            self._probe(cases, searches, middles)
            for i, middle in middles.items():
                if searches[i].arrived[middle] is not None:
                    searches[i].low = middle
                else:
                    searches[i].high = middle
        return [self._result(case, search) for case, search in zip(cases, searches, strict=True)]

    def _probe(self, cases: Sequence[Case], searches: Sequence[_Search], places: Mapping[int, int]) -> None:
        """Let full precision continue the given cases from the given steps on."""
        prefixes = {i: cases[i].trace.text[: ([*cases[i].spans, (len(cases[i].trace.text),) * 2])[k][0]] for i, k in places.items()}
        found = self.complete([cases[i].prompt + prefix for i, prefix in prefixes.items()])
        good = self.arrive([(i, prefixes[i] + c.text, c.finish == "stop") for i, c in zip(places, found, strict=True)])
        for i, completion, right in zip(places, found, good, strict=True):
            searches[i].arrived[places[i]] = completion.text if right else None
            searches[i].completions += 1
            searches[i].tokens += len(completion.tokens)

    def _result(self, case: Case, search: _Search) -> Rescued:
        spent, end = (search.completions, search.tokens), len(case.spans)
        if not case.spans:
            return Rescued(Vote(locator="rescue", step=None, evidence="the trace is empty"), "abstained", None, *spent)
        if search.arrived.get(0) is None:
            return Rescued(Vote(locator="rescue", step=None, evidence="not solved even from the start"), "unrescuable", None, *spent)
        if (completion := search.arrived.get(end)) is not None:
            return Rescued(Vote(locator="rescue", step=None, evidence="solved even from the end"), "misread", completion, *spent)
        evidence = f"solved from before step {search.low + 1} of {end}, not from after it"
        return Rescued(Vote(locator="rescue", step=search.low, evidence=evidence), "located", search.arrived[search.low], *spent)


@dataclass(frozen=True)
class Margins:
    """One teacher-forced pass of both models over a trace.

    Per token of the trace: ``reference`` is full precision's own choice there, ``full`` and ``quantized`` the margin of that
    choice in either model (its logit minus the best other logit).
    """

    reference: tuple[int, ...]
    full: tuple[float, ...]
    quantized: tuple[float, ...]


def margins_of(prompts: Sequence[str], traces: Sequence[Trace], full: Scorer, quantized: Scorer) -> list[Margins]:
    """Margins of every trace after its prompt, in full precision and in the quantized model."""
    heads = [chat.encode(full.tokenizer, prompt) for prompt in prompts]
    rows = [[*head, *trace.tokens] for head, trace in zip(heads, traces, strict=True)]
    starts = [len(head) for head in heads]
    mine = full.score(rows, starts)
    theirs = quantized.score(rows, starts, [one.tokens for one in mine])
    return [Margins(a.tokens, a.margins, b.margins) for a, b in zip(mine, theirs, strict=True)]


def by_margins(case: Case, margins: Margins, token_spans: Sequence[tuple[int, int]]) -> Vote:
    """The step of the first token that full precision would not have written at that prefix; abstains if there is none."""
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
    """The step that contains a character position; the last step for positions at the end; None if there are no steps."""
    return next((i for i, (begin, end) in enumerate(spans) if begin <= place < end), len(spans) - 1 if spans else None)
