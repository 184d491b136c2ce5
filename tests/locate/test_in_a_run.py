"""What a run makes of the recipe's completer, rates and judges; it asks again what a judge gave no answer to, and nothing else."""

import json

from stepmend import Recipe
from stepmend.context import Context
from stepmend.locate import judges, reliability
from stepmend.locate import run as locating
from tests.scripted_server import ScriptedServer, completion, refusal


def test_a_run_with_a_better_completer_and_rates_of_its_own(broken, tmp_path):
    """The other family completes; the rates come from a file, and both are part of what decides a fault."""
    problems, cases = [p for _, p, _ in broken[:2]], [c for _, _, c in broken[:2]]
    traces = {p.id: c.trace.model_copy(update={"problem": p.id, "arm": "full"}) for p, c in zip(problems, cases, strict=True)}
    full = {p.id: c.full.model_copy(update={"problem": p.id, "arm": "full"}) for p, c in zip(problems, cases, strict=True)}
    rates = tmp_path / "rates.json"
    rates.write_text(reliability.DEFAULT.model_dump_json())
    small = {"measure": {"problems": 4}, "curate": {"problems": 9}, "quantize": {"calibration": 8}}
    made_by = set()
    for number, locate in enumerate(({"completer": "builtin:llama", "reliabilities": str(rates)}, {"reliabilities": str(rates)})):
        recipe = Recipe.make({**small, "locate": {**locate, "locators": ["rescue"]}})
        with Context(recipe, tmp_path / f"run{number}") as context:
            found = locating.locate(context, "full", problems, full, traces, "own failures")
        assert [fault.step for fault in found] == [step for step, _, _ in broken[:2]]
        made_by |= {fault.made_by for fault in found}
    assert len(made_by) == 2


def test_a_later_run_asks_what_failed_before(broken, tmp_path):
    """The judge refuses in the first call, answers in the second, and is not asked in the third."""
    problems = [p for _, p, _ in broken[:3]]
    traces = {p.id: c.trace.model_copy(update={"problem": p.id, "arm": "full"}) for _, p, c in broken[:3]}
    full = {p.id: c.full.model_copy(update={"problem": p.id, "arm": "full"}) for _, p, c in broken[:3]}
    awake = False

    def script(request):
        said = {"first_faulty_step": 1, "error_class": "computational", "reason": "so"}
        return completion(json.dumps(said)) if awake else refusal(400)

    with ScriptedServer(script) as server:
        values = {"locate": {"judges": [f"one=m@{server.url}"], "locators": ["equations"]}, "measure": {"problems": 4}}
        recipe = Recipe.make({**values, "curate": {"problems": 9}, "quantize": {"calibration": 8}})

        def located():
            with Context(recipe, tmp_path / "run") as context:
                return locating.locate(context, "full", problems, full, traces, "own failures")

        first = located()
        asked = len(server.requests)
        awake = True
        second = located()
        again = len(server.requests) - asked
        third = located()
        assert len(server.requests) == asked + again
    assert all(any(map(judges.Verdict.is_open, fault.votes)) for fault in first)
    assert [[v.step for v in fault.votes if v.locator == "one"] for fault in second] == [[0]] * 3
    assert again == 3
    assert third == second
    assert [fault.step for fault in second] == [fault.step for fault in first]
    assert [fault.chosen for fault in second] == [fault.chosen for fault in first]
