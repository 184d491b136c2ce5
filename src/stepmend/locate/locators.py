"""The locators, each on its own: equations that can be checked, rescue by full precision, and margins of both models.

Tensor names carry their shape: B traces, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stepmend.engines.local import Completion, LocalEngine, complete_all
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
    """The first step with an equation that does not hold; abstains where all hold. Blind to right arithmetic on wrong quantities."""
    for index, (begin, end) in enumerate(case.spans):
        for claim in equations.claims(case.trace.text[begin:end]):
            if not claim.holds:
                return Vote(locator="equations", step=index, evidence=claim.text)
    return Vote(locator="equations", step=None, evidence="every equation holds")


@dataclass(frozen=True)
class Rescued:
    """Rescue's vote, and the completion of full precision from just before the fault, which arrives at the right answer."""

    vote: Vote
    completion: str | None


def by_rescue(
    cases: Sequence[Case],
    engine: LocalEngine,
    arrives: Callable[[int, str, bool], bool],
    size: int,
) -> list[Rescued]:
    """Full precision continues each trace, cut after step k: the first k from which it no longer arrives marks the fault.

    Found by bisection over the steps, as in OmegaPRM (2406.06592); every round probes all cases in one go. From the bare prompt full
    precision arrives (that is what a regression is), from behind the whole trace it does not, so a trace of n steps takes log2(n)
    rounds. ``arrives(index, text, finished)`` says whether the whole text of case ``index`` ends at the right answer.
    """
    low = [0] * len(cases)
    high = [len(case.spans) for case in cases]
    rescued: list[str | None] = [case.full.text for case in cases]
    while True:
        open_cases = [i for i in range(len(cases)) if high[i] - low[i] > 1]
        if not open_cases:
            break
        middles = {i: (low[i] + high[i]) // 2 for i in open_cases}
        prefixes = {i: cases[i].trace.text[: cases[i].spans[middles[i]][0]] for i in open_cases}
        texts = [cases[i].prompt + prefixes[i] for i in open_cases]
        found: list[Completion] = complete_all(engine, texts, size)
        for i, completion in zip(open_cases, found, strict=True):
            if arrives(i, prefixes[i] + completion.text, completion.finish == "stop"):
                low[i], rescued[i] = middles[i], completion.text
            else:
                high[i] = middles[i]
    results = []
    for i, case in enumerate(cases):
        if not case.spans:
            results.append(Rescued(Vote(locator="rescue", step=None, evidence="the trace is empty"), case.full.text))
            continue
        evidence = f"rescued before step {low[i] + 1} of {len(case.spans)}, lost behind it"
        results.append(Rescued(Vote(locator="rescue", step=low[i], evidence=evidence), rescued[i]))
    return results


@dataclass(frozen=True)
class Margins:
    """One teacher-forced pass of both models over a trace.

    Per token of the trace: ``reference`` is full precision's own choice there, ``full`` and ``quantized`` the margin of that
    choice in either model (its logit minus the best other logit).
    """

    reference: tuple[int, ...]
    full: tuple[float, ...]
    quantized: tuple[float, ...]


def margins_of(cases: Sequence[Case], full: LocalEngine, quantized: LocalEngine, size: int) -> list[Margins]:
    """Margins of every case, ``size`` traces a pass."""
    found: list[Margins] = []
    for begin in range(0, len(cases), size):
        part = cases[begin : begin + size]
        prompts = [chat.encode(full.tokenizer, case.prompt) for case in part]
        rows = [prompt + list(case.trace.tokens) for prompt, case in zip(prompts, part, strict=True)]
        logits_BTV = _logits(full, rows)
        other_BTV = _logits(quantized, rows)
        for row, (prompt, ids) in enumerate(zip(prompts, rows, strict=True)):
            places = slice(len(prompt) - 1, len(ids) - 1)
            reference_T = logits_BTV[row, places].argmax(-1)
            mine, theirs = (_margin(l_BTV[row, places], reference_T) for l_BTV in (logits_BTV, other_BTV))
            found.append(Margins(tuple(reference_T.tolist()), tuple(mine.tolist()), tuple(theirs.tolist())))
    return found


def _logits(engine: LocalEngine, rows: list[list[int]]) -> torch.Tensor:
    """Logits in float32 on the CPU; rows are padded on the right, which a causal model does not see."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [engine.tokenizer.pad_token_id] * (width - len(row)) for row in rows], device=engine.model.device)
    with torch.inference_mode():
        return engine.model(input_ids=ids_BT, use_cache=False).logits.float().cpu()


def _margin(logits_TV: torch.Tensor, tokens_T: torch.Tensor) -> torch.Tensor:
    chosen_T = logits_TV.gather(-1, tokens_T[:, None])[:, 0]
    return chosen_T - logits_TV.scatter(-1, tokens_T[:, None], -torch.inf).amax(-1)


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


def vote(votes: Sequence[Vote]) -> int | None:
    """The step that most locators name; a tie goes to rescue, which tests consequences, else nobody decides and it is None.

    A false equation is proof: whatever the others say, the first fault is not behind it. (Full precision sometimes arrives in spite
    of one, and then rescue and margins look too late.)
    """
    named = [v.step for v in votes if v.step is not None]
    if not named:
        return None
    counts = {step: named.count(step) for step in named}
    best = [step for step, count in counts.items() if count == max(counts.values())]
    chosen = best[0] if len(best) == 1 else next((v.step for v in votes if v.locator == "rescue" and v.step in best), None)
    proven = next((v.step for v in votes if v.locator == "equations"), None)
    return min((step for step in (chosen, proven) if step is not None), default=None)
