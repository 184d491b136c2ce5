"""From failed traces to faults: run the locators, combine their votes, and classify the error."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepmend.engines.base import Completion, Engine, Scorer, scorer
from stepmend.keys import Locate
from stepmend.locate import equations, judges, kinds, locators, reference, reliability, steps, taxonomy
from stepmend.locate.locators import Case, Margins, Rescue, Rescued
from stepmend.locate.panel import Panel
from stepmend.locate.reliability import Reliabilities, Table
from stepmend.locate.rescue import Asked, SampledRescue
from stepmend.locate.vote import posterior, vote
from stepmend.models import chat
from stepmend.records import Fault, InputError, Problem, Vote, digest

VERSION = f"locate-5 {steps.VERSION} {equations.VERSION} {reliability.VERSION} {taxonomy.VERSION}"
"""Changes whenever the same traces may be located or classified differently."""
ALONE = 8
"""Minimum number of samples per cut when full precision rescues itself: greedy decoding would only fail again."""
NOBODY = Rescued(Vote(locator="rescue", step=None, evidence="not asked"), "located", None, 0, 0)


@dataclass(frozen=True)
class Completer:
    """The model that continues traces for rescue: full precision or a better model; and how it is prompted."""

    engine: Engine
    prompt_of: Callable[[Problem], str]


@dataclass(frozen=True)
class Locator:
    """Everything that locating needs.

    Attributes:
        full: Full precision; None if only locators that need no model are used.
        arrive: Takes triples (problem, whole solution, whether it is finished), and returns for each whether the answer is correct.
        completer: The model that continues traces for rescue; full precision if it is None.
        rates: How reliable each locator is.
        known: Completions of an earlier, interrupted call, by key.
        keep: Called with (key, completion) as completions come.
        opening: The start of a thought that questions are rendered with, and that solutions continue with.
        drawn: Whether the solutions were sampled: then a token that full precision would not have chosen is not an evidence.
    """

    settings: Locate
    full: Engine | None
    tokenizer: Any
    arrive: Callable[[Sequence[tuple[Problem, str, bool]]], Sequence[bool]]
    panel: Panel | None = None
    seed: int = 0
    completer: Completer | None = None
    rates: Reliabilities = reliability.DEFAULT
    known: Mapping[str, Completion] = field(default_factory=dict)
    keep: Callable[[str, Completion], None] = lambda key, completion: None
    opening: str = ""
    drawn: bool = False

    def locate(
        self,
        problems: Sequence[Problem],
        cases: Sequence[Case],
        quantized: Scorer | None,
        made_by: str,
        *,
        worked: bool = False,
        alone: bool = False,
    ) -> list[Fault]:
        """The faults of ``cases``, which are solutions of ``problems``, by the recipe's locators.

        Args:
            problems: The problems.
            cases: The failed traces.
            quantized: The model that wrote them; without it, margins abstain.
            made_by: The digest of all inputs of the faults.
            worked: Whether the benchmark's worked solutions may be examined: not on problems that are reported.
            alone: Whether the traces are full precision's own failures: then it rescues itself by samples.
        """
        known = [_Known.of(problem, case, self.rates) for problem, case in zip(problems, cases, strict=True)]
        votes = self._written(problems, cases, worked=worked)
        rescued = self._rescued(problems, cases, known, votes, alone=alone)
        margins = self._margins(cases, quantized)
        spans = [chat.token_spans(self.tokenizer, case.trace.tokens) if margin else [] for case, margin in zip(cases, margins, strict=True)]
        judged = self._judged(problems, cases)
        for i, of in enumerate(votes):
            if found := rescued[i]:
                of.append(found.vote)
            if (margin := margins[i]) and "margins" in self.settings.locators and not self.drawn:
                of.append(locators.by_margins(cases[i], margin, spans[i]))
            of += judged[i]
        decided = [self._decide(of, found, own) for of, found, own in zip(votes, rescued, known, strict=True)]
        rescued = self._from_before(problems, cases, rescued, [step for step, _ in decided])
        return [
            self._fault(problem, case, found, margin, span, of, step, made_by, worked=worked)
            for problem, case, found, margin, span, of, step in zip(problems, cases, rescued, margins, spans, votes, decided, strict=True)
        ]

    def again(self, problem: Problem, case: Case, fault: Fault, verdicts: Sequence[Vote]) -> Fault | None:
        """A fault with the judges' new votes; None if that moves its step, so that it must be located again."""
        votes = [v for v in fault.votes if v.locator in judges.TAKEN - {judges.LOCATOR}] + [*verdicts]
        own = _Known.of(problem, case, self.rates)
        step, confidence = vote(votes, own.kinds, own.table, self.settings.threshold)
        if step != fault.step and fault.outcome != "misread":
            return None
        return fault.model_copy(update={"votes": tuple(votes), "confidence": confidence if step is not None else fault.confidence})

    def judged_again(self, problems: Sequence[Problem], cases: Sequence[Case], faults: Sequence[Fault]) -> list[Fault | None]:
        """``again`` for many faults; judges are asked concurrently, and only questions without an answer."""
        return [self.again(*of) for of in zip(problems, cases, faults, self._judged(problems, cases), strict=True)]

    def _written(self, problems: Sequence[Problem], cases: Sequence[Case], *, worked: bool) -> list[list[Vote]]:
        """The votes that need no model: by equations, and by right solutions."""
        asked, votes = self.settings.locators, [list[Vote]() for _ in cases]
        solved = self._solved(problems, cases) if "solution" in asked else {}
        for i, (problem, case) in enumerate(zip(problems, cases, strict=True)):
            if "equations" in asked:
                votes[i].append(locators.by_equations(case))
            if worked and "reference" in asked:
                votes[i].append(reference.locate(problem.solution, problem.answer, case.steps))
            if i in solved:
                votes[i].append(reference.locate(solved[i], problem.answer, case.steps, reference.OWN))
        return votes

    def _solved(self, problems: Sequence[Problem], cases: Sequence[Case]) -> dict[int, str]:
        """Full precision's own solutions that are right."""
        full = {i: case.full for i, case in enumerate(cases) if case.full and case.full.text != case.trace.text}
        right = self._right(problems)([(i, trace.text, trace.finish == "stop") for i, trace in full.items()])
        return {i: trace.text for (i, trace), good in zip(full.items(), right, strict=True) if good}

    def _rescued(
        self, problems: Sequence[Problem], cases: Sequence[Case], known: Sequence["_Known"], votes: Sequence[list[Vote]], *, alone: bool
    ) -> list[Rescued | None]:
        if "rescue" not in self.settings.locators:
            return [None] * len(cases)
        samples = self.settings.samples or ALONE
        if samples == 1 and not alone:
            return [*self.rescue(problems)(cases)]
        if self.completer:
            cases = [replace(case, prompt=self.completer.prompt_of(problem)) for problem, case in zip(problems, cases, strict=True)]
        priors = [posterior([], own.kinds, own.table) for own in known]
        guides = [posterior(of, own.kinds, own.table) for of, own in zip(votes, known, strict=True)]
        return [*self.sampled(problems, max(samples, ALONE) if alone else samples)(cases, priors, guides)]

    def rescue(self, problems: Sequence[Problem]) -> Rescue:
        """Greedy rescue by full precision, of cases that are solutions of ``problems``."""
        full = self._full()
        return Rescue(
            lambda texts: [of[0] for of in self._complete(full, [Asked(text, 0, 1) for text in texts], 0.0)], self._right(problems)
        )

    def sampled(self, problems: Sequence[Problem], samples: int) -> SampledRescue:
        """Sampled rescue by the completer, of cases that are solutions of ``problems``."""
        engine = self.completer.engine if self.completer else self._full()
        return SampledRescue(lambda asked: self._complete(engine, asked, self.settings.temperature), self._right(problems), samples)

    def _full(self) -> Engine:
        if self.full is None:
            raise InputError("locate: rescue and margins need the full-precision model")
        return self.full

    def _right(self, problems: Sequence[Problem]) -> Callable[[Sequence[tuple[int, str, bool]]], Sequence[bool]]:
        return lambda asked: self.arrive([(problems[i], self.opening + text, finished) for i, text, finished in asked])

    def _complete(self, engine: Engine, asked: Sequence[Asked], temperature: float) -> list[list[Completion]]:
        """New completions of each text; those of an earlier call are reused.

        The engine is given every text as often as it is sampled in total, so that a text's n-th sample does not depend on when it is drawn.
        """
        wanted = [(place, number) for place, one in enumerate(asked) for number in range(one.end)]
        texts = [asked[place].text for place, _ in wanted]
        times, keys = Counter[str](), []
        for text in texts:
            times[text] += 1
            keys.append(digest("continuation", text, times[text], temperature, self.seed, engine.identity, engine.max_new_tokens))
        found = {i: self.known[key] for i, key in enumerate(keys) if key in self.known}
        before = {i for i, (place, number) in enumerate(wanted) if number < asked[place].start}
        for i, completion in engine.generate(texts, temperature=temperature, seed=self.seed, done=found.keys() | before):
            found[i] = completion
            self.keep(keys[i], completion)
        made: list[list[Completion]] = [[] for _ in asked]
        for i, (place, number) in enumerate(wanted):
            if number >= asked[place].start:
                made[place].append(found[i])
        return made

    def _margins(self, cases: Sequence[Case], quantized: Scorer | None) -> Sequence[Margins | None]:
        if quantized is None:
            return [None] * len(cases)
        return locators.margins_of([c.prompt for c in cases], [c.trace for c in cases], scorer(self._full()), quantized)

    def _judged(self, problems: Sequence[Problem], cases: Sequence[Case]) -> list[list[Vote]]:
        """Each judge's own vote, and that of their quorum."""
        if not self.panel:
            return [[] for _ in cases]
        shown = self.settings.judges_see_answer
        questions = [judges.Question(p.question, p.answer if shown else None, tuple(c.steps)) for p, c in zip(problems, cases, strict=True)]
        return [[*(verdict.as_vote() for verdict in of), judges.quorum(of).vote] for of in self.panel.ask(questions)]

    def _decide(self, votes: Sequence[Vote], rescued: Rescued | None, own: "_Known") -> tuple[int | None, float | None]:
        """The voted step; None if greedy rescue succeeds from the end of the trace, so that no step is faulty."""
        if rescued and rescued.outcome == "misread" and not rescued.vote.likelihood:
            return None, None
        return vote(votes, own.kinds, own.table, self.settings.threshold)

    def _from_before(
        self, problems: Sequence[Problem], cases: Sequence[Case], rescued: Sequence[Rescued | None], voted: Sequence[int | None]
    ) -> list[Rescued | None]:
        """Bullets need full precision's own step before the voted one: where rescue has none, full precision continues from there."""
        found, asked = list(rescued), {}
        if self.full is None:
            return found
        for i, step in enumerate(voted):
            before = rescued[i]
            if step is not None and (self.completer or not (before and before.vote.step == step and before.completion)):
                asked[i] = cases[i].trace.text[: cases[i].spans[step][0]]
        completions = self._complete(self.full, [Asked(cases[i].prompt + prefix, 0, 1) for i, prefix in asked.items()], 0.0)
        texts = [(i, prefix + of[0].text, of[0].finish == "stop") for (i, prefix), of in zip(asked.items(), completions, strict=True)]
        for i, (completion,), right in zip(asked, completions, self._right(problems)(texts), strict=True):
            found[i] = replace(rescued[i] or NOBODY, completion=completion.text if right else None)
        return found

    def _fault(
        self,
        problem: Problem,
        case: Case,
        rescued: Rescued | None,
        margins: Margins | None,
        spans: Sequence[tuple[int, int]],
        votes: Sequence[Vote],
        decided: tuple[int | None, float | None],
        made_by: str,
        *,
        worked: bool,
    ) -> Fault:
        (step, confidence), trace = decided, case.trace
        place = case.spans[step] if step is not None else None
        chosen = continuation = None
        if place and rescued and rescued.completion:
            cut = steps.first(trace.text[: place[0]], rescued.completion)
            chosen, continuation = rescued.completion[:cut], rescued.completion[cut:]
        frontier = _frontier(place, spans, margins, len(trace.text)) if place and margins else None
        outcome = "located" if step is not None else rescued.outcome if rescued and rescued.outcome != "located" else "abstained"
        ruled = taxonomy.classify(problem, trace, place, chosen, continuation, worked=worked)
        return Fault(
            problem=trace.problem,
            arm=trace.arm,
            made_by=made_by,
            sample=trace.sample,
            outcome=outcome,
            confidence=confidence,
            step=step,
            steps=len(case.spans),
            span=place,
            votes=tuple(votes),
            error_class=ruled or next((v.error_class for v in votes if v.locator == "judges" and v.step == step), None),
            frontier=frontier,
            reference=self.tokenizer.decode([margins.reference[frontier]]) if margins and frontier is not None else None,
            margins=tuple(round(m, 3) for m in margins.quantized) if margins else (),
            token_ends=tuple(end for _, end in spans) if margins else (),
            chosen=chosen,
            continuation=continuation,
            spent=(rescued.completions, rescued.tokens) if rescued else (0, 0),
        )


@dataclass(frozen=True)
class _Known:
    """A case before any locator runs: the kinds of its steps, and the rates for such texts."""

    kinds: list[kinds.Kind]
    table: Table

    @classmethod
    def of(cls, problem: Problem, case: Case, rates: Reliabilities) -> "_Known":
        return cls(kinds.kinds(case.steps), rates.table(problem.benchmark, kinds.written(case.trace.text)))


def _frontier(place: tuple[int, int], spans: Sequence[tuple[int, int]], margins: Margins, end: int) -> int | None:
    """The first token in the faulty step that full precision would have written and the quantized model would not."""
    inside = [i for i, (a, b) in enumerate(spans) if place[0] <= a < b <= place[1] or a == b == place[1] == end]
    return next((i for i in inside if margins.full[i] > 0 >= margins.quantized[i]), None)
