"""From failed traces to faults: locators, judges and the vote together, on a real model."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from stepmend.grading import boxed
from stepmend.keys import Locate
from stepmend.locate import judges, locators
from stepmend.locate.faults import Completer, Locator
from stepmend.locate.judges import Judge
from stepmend.locate.panel import Panel
from stepmend.models import chat
from tests.locate.conftest import trace_of
from tests.scripted_server import ScriptedServer, completion


def locate(full, broken, quantized, panel=None, samples=1, **settings):
    problems, cases = [p for _, p, _ in broken], [c for _, _, c in broken]

    def arrive(asked):
        return [boxed(text) == problem.answer for problem, text, _ in asked]

    locator = Locator(Locate(samples=samples, **settings), full, full.tokenizer, arrive, panel)
    return locator.locate(problems, cases, quantized, "m", alone=quantized is None)


def test_faults_are_whole(full, broken):
    for fault, (step, problem, case) in zip(locate(full, broken, full), broken, strict=True):
        assert (fault.outcome, fault.step, fault.error_class) == ("located", step, "computational")
        assert [v.locator for v in fault.votes] == ["equations", "solution", "rescue", "margins"]
        assert fault.confidence > 0.9
        assert fault.span
        begin, end = fault.span
        assert boxed(case.trace.text[:begin] + fault.chosen + fault.continuation) == problem.answer
        assert fault.chosen != case.trace.text[begin:end]
        assert len(fault.margins) == len(fault.token_ends) == len(case.trace.tokens)


def test_equations_alone_still_get_the_right_step_of_full_precision(full, broken):
    for fault, (step, problem, case) in zip(locate(full, broken[:4], full, locators=("equations",)), broken, strict=False):
        assert fault.step == step
        assert boxed(case.trace.text[: fault.span[0]] + fault.chosen + fault.continuation) == problem.answer


def test_full_precision_rescues_itself_by_samples(full, broken):
    """Its own failures: here solutions that it would not have written, continued by itself at a temperature."""
    found = locate(full, broken, None)
    assert [fault.step for fault in found] == [step for step, _, _ in broken]
    for fault in found:
        assert fault.margins == ()
        rescued = next(v for v in fault.votes if v.locator == "rescue")
        assert len(rescued.likelihood) == fault.steps + 1
        assert " of 4" in rescued.evidence
        assert fault.spent[0] > 0


def test_a_trace_without_its_answer_is_no_faulty_step(full, broken):
    _, problem, case = broken[0]
    cut = trace_of(full, case.full.text[: case.full.text.index("\\boxed")])
    (fault,) = locate(full, [(0, problem, locators.make_case(case.prompt, cut, case.full))], full)
    assert (fault.outcome, fault.step, fault.error_class) == ("misread", None, None)


def test_judges_vote_with_the_locators_and_nonsense_is_no_vote(full, broken):
    def script(request):
        named = {"first_faulty_step": 1, "error_class": "formula_rule", "reason": "so"}
        return completion("who knows" if request.model == "nonsense" else json.dumps(named))

    with ScriptedServer(script) as server:
        for model, vote in (("nonsense", None), ("sure", 0)):
            panel = Panel([Judge("one", model, server.url)], lambda judgement: None)
            for fault, (step, _, _) in zip(locate(full, broken[:3], full, panel), broken, strict=False):
                assert fault.step == step
                assert {v.locator: v.step for v in fault.votes} | {"one": vote, "judges": vote} == {v.locator: v.step for v in fault.votes}


@pytest.mark.parametrize("values", [{"samples": 0}, {"threshold": 0}, {"judges": ("x",)}, {"judge_budget": 0}, {"completer": "x@y"}])
def test_settings_that_will_not_do(values):
    with pytest.raises(ValueError, match=next(iter(values))[:5]):
        Locate(**values)


@pytest.fixture(scope="module")
def noisy(full):
    """Full precision with noise in its weights: another model, which solves fewer problems."""
    model = copy.deepcopy(full.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter += 0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    return replace(full, model=model)


def test_full_and_quantized_are_not_swapped(full, noisy, broken):
    """Rescue is by full precision, and margins are the quantized model's, of full precision's tokens: no other way round."""
    rows = [[*chat.encode(full.tokenizer, c.prompt), *c.trace.tokens] for _, _, c in broken]
    starts = [len(chat.encode(full.tokenizer, c.prompt)) for _, _, c in broken]
    wanted = full.score(rows, starts)
    theirs = noisy.score(rows, starts, [read.tokens for read in wanted])
    assert any(min(read.margins) < 0 for read in theirs)  # else the two models would be alike
    found = locate(full, broken, noisy)
    for fault, read, (step, problem, case) in zip(found, theirs, broken, strict=True):
        assert fault.margins == pytest.approx([round(m, 3) for m in read.margins], abs=2e-3)
        assert {v.locator: v.step for v in fault.votes}["rescue"] == step
        assert boxed(case.trace.text[: fault.span[0]] + fault.chosen + fault.continuation) == problem.answer
        if step:
            (own,) = full.complete([case.prompt + case.trace.text[: fault.span[0]]])
            (other,) = noisy.complete([case.prompt + case.trace.text[: fault.span[0]]])
            assert fault.chosen + fault.continuation == own.text != other.text


def test_a_better_completer_rescues_and_bullets_stay_full_precisions(full, noisy, broken):
    """The noisy model stands in for full precision, and the real one for the completer."""
    completer = Completer(full, lambda problem: chat.render(full.tokenizer, "plain-1", problem.question))

    def arrive(asked):
        return [boxed(text) == problem.answer for problem, text, _ in asked]

    settings = Locate(samples=4, locators=("rescue",))
    locator = Locator(settings, noisy, full.tokenizer, arrive, completer=completer)
    found = locator.locate([p for _, p, _ in broken], [c for _, _, c in broken], None, "m")
    assert [fault.step for fault in found] == [step for step, _, _ in broken]
    for fault, (_, _, case) in zip(found, broken, strict=True):
        (own,) = noisy.complete([case.prompt + case.trace.text[: fault.span[0]]])
        assert fault.chosen is None or own.text == fault.chosen + fault.continuation


def test_continuations_of_a_stopped_call_are_not_made_again(full, broken):
    kept = {}

    def arrive(asked):
        return [boxed(text) == problem.answer for problem, text, _ in asked]

    settings, problems, cases = Locate(samples=4, locators=("rescue",)), [p for _, p, _ in broken[:3]], [c for _, _, c in broken[:3]]
    first = Locator(settings, full, full.tokenizer, arrive, keep=kept.__setitem__).locate(problems, cases, None, "m")
    again = {}
    known = dict(list(kept.items())[: len(kept) // 2])
    second = Locator(settings, full, full.tokenizer, arrive, known=known, keep=again.__setitem__).locate(problems, cases, None, "m")
    assert second == first
    assert again.keys() == kept.keys() - known.keys()


def test_the_worked_solution_is_looked_at_only_where_it_may_be(full, broken):
    step, problem, case = broken[0]
    worked = problem.model_copy(update={"solution": case.full.text})
    locator = Locator(Locate(samples=1, locators=("reference",)), None, full.tokenizer, lambda asked: [False] * len(asked))
    (may,), (must_not,) = (locator.locate([worked], [case], None, "m", worked=worked_too) for worked_too in (True, False))
    assert [(v.locator, v.step) for v in may.votes] == [("reference", step)]
    assert must_not.votes == ()


def test_a_judge_that_gave_no_answer_is_asked_again(full, broken):
    _, problem, case = broken[0]

    def script(request):
        return completion(json.dumps({"first_faulty_step": 1, "error_class": None, "reason": "so"}))

    with ScriptedServer(script) as server:
        judge = Judge("one", "m", server.url)
        spent = Panel([judge], lambda judgement: None, budget=1)
        spent.ask([question_of(broken[1])])  # the budget is gone
        (fault,) = locate(full, broken[:1], full, spent)
        assert any(v.evidence.startswith("not asked") for v in fault.votes)
        locator = Locator(Locate(samples=1), full, full.tokenizer, lambda asked: [], Panel([judge], lambda judgement: None))
        (again,) = locator.judged_again([problem], [case], [fault])
    assert {v.locator: v.step for v in again.votes} == {**{v.locator: v.step for v in fault.votes}, "one": 0, "judges": 0}
    assert (again.step, again.chosen) == (fault.step, fault.chosen)


def question_of(one):
    _, problem, case = one
    return judges.Question(problem.question, problem.answer, tuple(case.steps))
