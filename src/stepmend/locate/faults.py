"""From failed traces to faults: every locator speaks, the vote decides, and the error class is told."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepmend.engines.local import Completion, LocalEngine
from stepmend.locate import equations, judges, locators, steps, taxonomy
from stepmend.locate.locators import Case, Margins, Rescue, Rescued
from stepmend.locate.panel import Panel
from stepmend.locate.vote import vote
from stepmend.models import chat
from stepmend.progress import Tick, silent
from stepmend.recipe import Locate
from stepmend.records import Fault, Problem, Vote, digest

VERSION = f"locate-4 {steps.VERSION} {equations.VERSION}"
"""Changes whenever the same traces may be located or classified otherwise."""
ALONE = 8
"""Samples of which one must arrive where full precision rescues itself: greedily it would only fail again."""


@dataclass(frozen=True)
class Locator:
    """All that locating needs.

    Attributes:
        arrive: Which of many (problem, whole solution, whether it is finished) end at the right answer.
        known: Completions of an earlier call that was stopped, by key.
        keep: Called with (key, completion) as completions come.
        tick: Counts tokens.
    """

    settings: Locate
    full: LocalEngine
    tokenizer: Any
    arrive: Callable[[Sequence[tuple[Problem, str, bool]]], Sequence[bool]]
    panel: Panel | None = None
    seed: int = 0
    known: Mapping[str, Completion] = field(default_factory=dict)
    keep: Callable[[str, Completion], None] = lambda key, completion: None
    tick: Tick = silent

    def locate(self, problems: Sequence[Problem], cases: Sequence[Case], quantized: LocalEngine | None, made_by: str) -> list[Fault]:
        """The faults of ``cases``, which are solutions of ``problems``, by the recipe's locators.

        Without a ``quantized`` engine the traces are full precision's own failures: it rescues itself by samples, and margins have
        nothing to say.
        """
        samples = self.settings.samples if quantized else max(self.settings.samples, ALONE)
        threshold = self.settings.threshold if quantized else 1 / samples
        rescue = self.rescue(problems, samples, threshold)
        rescued = rescue(cases) if "rescue" in self.settings.locators else [None] * len(cases)
        margins: Sequence[Margins | None] = [None] * len(cases)
        if quantized:
            margins = locators.margins_of([c.prompt for c in cases], [c.trace for c in cases], self.full, quantized)
        verdicts = self._judged(problems, cases)
        spans = [chat.token_spans(self.tokenizer, case.trace.tokens) for case in cases]
        votes = [
            [*self._votes(case, found, margin, span), *judged]
            for case, found, margin, span, judged in zip(cases, rescued, margins, spans, verdicts, strict=True)
        ]
        decided = [self._decide(case, found, of) for case, found, of in zip(cases, rescued, votes, strict=True)]
        rescued = self._from_before(rescue, cases, rescued, [step for step, _ in decided])
        return [
            self._fault(problem, case, found, margin, span, of, step, made_by)
            for problem, case, found, margin, span, of, step in zip(problems, cases, rescued, margins, spans, votes, decided, strict=True)
        ]

    def rescue(self, problems: Sequence[Problem], samples: int, threshold: float) -> Rescue:
        """Rescue by full precision, of cases that are solutions of ``problems``."""

        def arrive(asked: Sequence[tuple[int, str, bool]]) -> Sequence[bool]:
            return self.arrive([(problems[i], text, finished) for i, text, finished in asked])

        return Rescue(self._complete, arrive, samples, threshold)

    def _complete(self, texts: Sequence[str], samples: int) -> list[list[Completion]]:
        repeated = [text for text in texts for _ in range(samples)]
        temperature = self.settings.temperature if samples > 1 else 0.0
        keys, times = [], Counter[str]()
        for text in repeated:
            times[text] += 1
            keys.append(digest("continuation", text, times[text], temperature, self.seed, self.full.max_new_tokens))
        found = {i: self.known[key] for i, key in enumerate(keys) if key in self.known}
        for i, completion in self.full.stream(repeated, temperature=temperature, seed=self.seed, done=set(found)):
            found[i] = completion
            self.keep(keys[i], completion)
            self.tick(0, len(completion.tokens))
        return [[found[i * samples + n] for n in range(samples)] for i in range(len(texts))]

    def _votes(self, case: Case, rescued: Rescued | None, margins: Margins | None, spans: Sequence[tuple[int, int]]) -> list[Vote]:
        asked = self.settings.locators
        found = [locators.by_equations(case)] if "equations" in asked else []
        found += [rescued.vote] if rescued else []
        return found + ([locators.by_margins(case, margins, spans)] if margins and "margins" in asked else [])

    def _judged(self, problems: Sequence[Problem], cases: Sequence[Case]) -> list[list[Vote]]:
        """Each judge's own vote, and that of their quorum."""
        if not self.panel:
            return [[] for _ in cases]
        questions = [
            judges.Question(p.question, p.answer, tuple(c.trace.text[a:b] for a, b in c.spans))
            for p, c in zip(problems, cases, strict=True)
        ]
        return [[*(verdict.as_vote() for verdict in of), judges.quorum(of).vote] for of in self.panel.ask(questions)]

    def _decide(self, case: Case, rescued: Rescued | None, votes: Sequence[Vote]) -> tuple[int | None, float | None]:
        """The voted step. From the very end or not even from the start: then rescue has said that there is none to name."""
        if rescued and rescued.outcome in ("misread", "unrescuable"):
            return None, None
        return vote(votes, len(case.spans))

    def _from_before(
        self, rescue: Rescue, cases: Sequence[Case], rescued: Sequence[Rescued | None], voted: Sequence[int | None]
    ) -> list[Rescued | None]:
        """Where the vote names another step than rescue, full precision continues from before that one: bullets need its own step."""
        found = list(rescued)
        asked = {}
        for i, step in enumerate(voted):
            before = rescued[i]
            if step is not None and not (before and before.vote.step == step):
                asked[i] = cases[i].trace.text[: cases[i].spans[step][0]]
        completions = self._complete([cases[i].prompt + prefix for i, prefix in asked.items()], rescue.samples)
        for i, good in zip(asked, rescue.arrived(asked, completions), strict=True):
            nobody = Rescued(Vote(locator="rescue", step=None, evidence="not asked"), "located", None, 0, 0)
            found[i] = replace(rescued[i] or nobody, completion=good[0] if good else None)
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
    ) -> Fault:
        (step, confidence), trace = decided, case.trace
        place = case.spans[step] if step is not None else None
        chosen = continuation = None
        if place and rescued and rescued.completion:
            cut = steps.first(trace.text[: place[0]], rescued.completion)
            chosen, continuation = rescued.completion[:cut], rescued.completion[cut:]
        frontier = _frontier(place, spans, margins, len(trace.text)) if place and margins else None
        outcome = "located" if step is not None else rescued.outcome if rescued and rescued.outcome != "located" else "abstained"
        ruled = taxonomy.classify(problem.question, trace, place, chosen, continuation)
        return Fault(
            problem=trace.problem,
            arm=trace.arm,
            made_by=made_by,
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
        )


def _frontier(place: tuple[int, int], spans: Sequence[tuple[int, int]], margins: Margins, end: int) -> int | None:
    """The first token in the faulty step that full precision would have written and the quantized model would not."""
    inside = [i for i, (a, b) in enumerate(spans) if place[0] <= a < b <= place[1] or a == b == place[1] == end]
    return next((i for i in inside if margins.full[i] > 0 >= margins.quantized[i]), None)
