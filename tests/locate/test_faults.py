"""From failed traces to faults: locators, judges and the vote together, on a real model."""

import json

import pytest

from stepmend.grading import boxed
from stepmend.locate import locators
from stepmend.locate.faults import Locator
from stepmend.locate.judges import Judge
from stepmend.locate.panel import Panel
from stepmend.recipe import Locate
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
        assert [v.locator for v in fault.votes] == ["equations", "rescue", "margins"]
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
        assert len(fault.votes[1].likelihood) == fault.steps + 1
        assert " of 4" in fault.votes[1].evidence


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
