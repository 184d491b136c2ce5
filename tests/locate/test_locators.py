"""Locators on real models: the built-in reasoner at full precision, and itself with noise in its weights."""

import math

import pytest
import torch

from stepmend import Problem, Trace
from stepmend.engines import local
from stepmend.engines.local import complete_all
from stepmend.grading import boxed
from stepmend.locate import locators, taxonomy
from stepmend.models import chat
from tests.locate.conftest import trace_of
from tests.texts import logits


def test_equations_find_the_false_one_and_abstain_on_true_ones(full, broken):
    for step, _, case in broken:
        assert locators.by_equations(case).step == step
        assert locators.by_equations(locators.make_case(case.prompt, case.full, case.full)).step is None


def right_ones(answers):
    return lambda asked: [boxed(text) == answers[index] for index, text, _ in asked]


def rescue_of(full, answers) -> locators.Rescue:
    return locators.Rescue(lambda texts: complete_all(full, texts, 64), right_ones(answers))


def test_rescue_finds_the_step_behind_which_all_is_lost(full, broken):
    cases, answers = [case for _, _, case in broken], [problem.answer for _, problem, _ in broken]
    found = rescue_of(full, answers)(cases)
    assert [rescued.vote.step for rescued in found] == [step for step, _, _ in broken]
    for rescued, (step, problem, case) in zip(found, broken, strict=True):
        begin = case.spans[step][0]
        assert rescued.outcome == "located"
        assert boxed(case.trace.text[:begin] + rescued.completion) == problem.answer
        assert rescued.completions <= math.ceil(math.log2(len(case.spans))) + 1


def test_rescue_from_the_very_end_and_not_even_from_the_start(full, broken):
    _, problem, case = broken[0]
    cut = case.full.text[: case.full.text.index("\\boxed")]
    unfinished = locators.make_case(case.prompt, trace_of(full, cut), case.full)
    hopeless = locators.make_case(case.prompt, case.trace, case.trace)
    unsolved = locators.make_case(case.prompt, case.trace)
    empty = locators.make_case(case.prompt, trace_of(full, ""), case.full)
    cases = [unfinished, hopeless, unsolved, empty]
    found = rescue_of(full, [problem.answer] * 4)(cases)
    assert [rescued.outcome for rescued in found] == ["misread", "unrescuable", "unrescuable", "abstained"]
    assert [rescued.vote.step for rescued in found] == [None] * 4


def test_margins_find_the_first_token_full_precision_would_not_write(full, broken):
    cases = [case for _, _, case in broken]
    both = locators.margins_of([c.prompt for c in cases], [c.trace for c in cases], full, full)
    for (step, _, case), margins in zip(broken, both, strict=True):
        spans = chat.token_spans(full.tokenizer, case.trace.tokens)
        assert locators.by_margins(case, margins, spans).step == step
        assert len(margins.reference) == len(case.trace.tokens)
        assert margins.full == margins.quantized
        assert min(margins.full) >= 0


def test_a_long_text_is_read_in_pieces(full, broken, monkeypatch):
    rows = [[*chat.encode(full.tokenizer, case.prompt), *case.trace.tokens] for _, _, case in broken[:3]]
    starts = [len(chat.encode(full.tokenizer, case.prompt)) for _, _, case in broken[:3]]
    whole = full.score(rows, starts)
    monkeypatch.setattr(local, "LOGITS", 3 * 10 * full.model.config.vocab_size)
    for one, other in zip(whole, full.score(rows, starts), strict=True):
        assert one.tokens == other.tokens
        assert other.margins == pytest.approx(one.margins, abs=0.02)


def test_a_margin_is_the_distance_to_the_best_other_token(full):
    ids = chat.encode(full.tokenizer, "Step 1: 4 * 12 = 48")
    with torch.inference_mode():
        logits_TV = logits(full.model, ids).float()
    asked = ids[3:]
    (read,) = full.score([ids], [3], [asked])
    for place, token, margin, choice in zip(range(2, len(ids) - 1), asked, read.margins, read.tokens, strict=True):
        others = logits_TV[place].clone()
        others[token] = -torch.inf
        assert margin == pytest.approx(float(logits_TV[place, token] - others.max()), abs=1e-3)
        assert choice == int(logits_TV[place].argmax())


def asked(question: str, solution: str = "") -> Problem:
    return Problem(id="p", benchmark="b", split="curate", level="all", question=question, answer="3", solution=solution)


QUESTION = "Mia has 4 boxes of 12 pens, 29 caps and 15 lids. She gives away 5 of all. How many are left?"


@pytest.mark.parametrize(
    ("faulty", "rest", "right", "error_class"),
    [
        ("Step 1: 4 * 12 = 46\n", "", "Step 1: 4 * 12 = 48\n", "computational"),
        ("Step 1: 4 + 12 = 16\n", "", "Step 1: 4 * 12 = 48\n", "procedural"),
        ("Step 1: 12 - 29 = 17\n", "Step 2: 4 * 5 = 20", "Step 1: 4 * 12 = 48\nStep 2: 48 + 29 = 77\n", "procedural"),
        ("Step 1: 29 - 15 = 14\n", "", "Step 1: 4 * 12 = 48\n", "contextual_oversight"),
        ("Step 1: 4 * 13 = 52\n", "", "Step 1: 4 * 12 = 48\n", "contextual_oversight"),
        ("Step 1: 4 * 13 = 53\n", "", "Step 1: 4 * 12 = 48\n", "contextual_oversight"),
        ("\\boxed{3}", "", "Step 1: 4 * 12 = 48\n", "contextual_oversight"),
        ("Step 1: 4 * = 48\n", "", "Step 1: 4 * 12 = 48\n", "symbolic_manipulation"),
        ("Step 1: we add them\n", "", "Step 1: 4 * 12 = 48\n", None),
        ("we guess\n", "", "so it is\n", None),
        ("we guess that 2 + 2 + 1 = 6\n", "", "so it is\n", "computational"),
        ("Step 1: 4 * 12 = 48\n", "", None, None),
    ],
)
def test_classes(faulty, rest, right, error_class):
    trace = Trace(problem="p", arm="a", made_by="t", text=faulty + rest + "\\boxed{3}", tokens=(), finish="stop")
    assert taxonomy.classify(asked(QUESTION), trace, (0, len(faulty)), right, "" if right else None) == error_class


def test_no_answer_is_degenerate():
    trace = Trace(problem="p", arm="a", made_by="t", text="Step 1: 1 + 1 = 2\n" * 9, tokens=(), finish="length")
    assert taxonomy.classify(asked(""), trace, None, None, None) == "degenerate"
