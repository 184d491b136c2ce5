"""Locators on real models: the built-in reasoner at full precision, and itself with noise in its weights."""

import itertools

import pytest
import torch

from stepmend import Trace, Vote
from stepmend.benchmarks import story
from stepmend.engines.local import LocalEngine
from stepmend.grading import boxed
from stepmend.locate import locators, taxonomy
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS


@pytest.fixture(scope="module")
def full() -> LocalEngine:
    folder = str(CHECKPOINTS / "qwen2")
    return LocalEngine(load.load_model(folder), load.load_tokenizer(folder), 180)


def trace_of(engine: LocalEngine, text: str) -> Trace:
    tokens = (*chat.encode(engine.tokenizer, text), engine.tokenizer.eos_token_id)
    return Trace(problem="p", arm="a", made_by="t", text=text, tokens=tokens, finish="stop")


@pytest.fixture(scope="module")
def broken(full):
    """Easy problems that full precision solves, each with one result in its reference solution changed and the rest following it."""
    cases = []
    problems = list(itertools.islice(story.problems("curate", "easy", seed=3), 24))
    prompts = [chat.render(full.tokenizer, "plain-1", p.question) for p in problems]
    for place, (problem, prompt, solved) in enumerate(zip(problems, prompts, full.complete(prompts), strict=True)):
        lines = solved.text.splitlines()
        if boxed(solved.text) != problem.answer or len(lines) < 3:
            continue
        step = place % (len(lines) - 1)
        head, _, result = lines[step].rpartition(" = ")
        prefix = "".join(f"{line}\n" for line in [*lines[:step], f"{head} = {int(result) + 1}"])
        (rest,) = full.complete([prompt + prefix])
        trace = trace_of(full, prefix + rest.text)
        if boxed(trace.text) != problem.answer:
            cases.append((step, problem, locators.make_case(prompt, trace, trace_of(full, solved.text))))
    assert len(cases) >= 8
    return cases


def test_equations_find_the_false_one_and_abstain_on_true_ones(full, broken):
    for step, _, case in broken:
        assert locators.by_equations(case).step == step
        assert locators.by_equations(locators.make_case(case.prompt, case.full, case.full)).step is None


def test_rescue_finds_the_step_behind_which_all_is_lost(full, broken):
    def arrives(index: int, text: str, finished: bool) -> bool:
        return boxed(text) == broken[index][1].answer

    found = locators.by_rescue([case for _, _, case in broken], full, arrives, 8)
    assert [rescued.vote.step for rescued in found] == [step for step, _, _ in broken]
    for rescued, (step, problem, case) in zip(found, broken, strict=True):
        begin = case.spans[step][0]
        assert boxed(case.trace.text[:begin] + rescued.completion) == problem.answer


def test_margins_find_the_first_token_full_precision_would_not_write(full, broken):
    cases = [case for _, _, case in broken]
    both = locators.margins_of(cases, full, full, 4)
    for (step, _, case), margins in zip(broken, both, strict=True):
        spans = chat.token_spans(full.tokenizer, case.trace.tokens)
        assert locators.by_margins(case, margins, spans).step == step
        assert len(margins.reference) == len(case.trace.tokens)
        assert margins.full == margins.quantized
        assert min(margins.full) >= 0


def test_margin_is_the_distance_to_the_best_other_token():
    logits_TV = torch.tensor([[1.0, 4.0, 2.5], [3.0, 0.0, 5.0]])
    assert locators._margin(logits_TV, torch.tensor([1, 0])).tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("named", "winner"),
    [
        ((1, 1, 2), 1),
        ((0, 2, 2), 0),
        ((1, None, 3), 1),
        ((None, 2, 2), 2),
        ((None, None, 3), 3),
        ((3, 2, 1), 2),
        ((None, 2, 3), 2),
        ((None, None, None), None),
    ],
)
def test_the_vote(named, winner):
    """In the order equations, rescue, margins: a majority wins, rescue breaks a tie, nothing lies behind a false equation."""
    names = ("equations", "rescue", "margins")
    assert locators.vote([Vote(locator=n, step=s, evidence="") for n, s in zip(names, named, strict=True)]) == winner


@pytest.mark.parametrize(
    ("faulty", "chosen", "continuation", "error_class"),
    [
        ("Step 1: 4 * 12 = 46\n", "Step 1: 4 * 12 = 48\n", "", "computational"),
        ("Step 1: 4 + 12 = 16\n", "Step 1: 4 * 12 = 48\n", "", "procedural"),
        ("Step 1: 29 - 15 = 14\n", "Step 1: 4 * 12 = 48\n", "Step 2: 29 - 15 = 14\n", "procedural"),
        ("Step 1: 4 * 13 = 52\n", "Step 1: 4 * 12 = 48\n", "", "contextual_oversight"),
        ("\\boxed{3}", "Step 1: 4 * 12 = 48\n", "", "contextual_oversight"),
        ("we guess\n", "so it is\n", "", None),
        ("Step 1: 4 * 12 = 48\n", None, None, None),
    ],
)
def test_classes(faulty, chosen, continuation, error_class):
    trace = Trace(problem="p", arm="a", made_by="t", text=faulty + "\\boxed{3}", tokens=(), finish="stop")
    assert taxonomy.classify(trace, faulty, chosen, continuation) == error_class


def test_no_answer_is_degenerate():
    trace = Trace(problem="p", arm="a", made_by="t", text="Step 1: 1 + 1 = 2\n" * 9, tokens=(), finish="length")
    assert taxonomy.classify(trace, "Step 1: 1 + 1 = 2\n", None, None) == "degenerate"
