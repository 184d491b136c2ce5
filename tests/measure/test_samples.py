"""Several solutions of each problem: drawn, kept and resumed one by one, paired by problem, located at a defined one."""

import json
from itertools import combinations

import numpy as np
import pytest

from stepmend import InputError, Recipe, logs, pipeline
from stepmend.arms import AGAIN, FULL
from stepmend.context import Context
from stepmend.curate import rounds
from stepmend.engines.local import LocalEngine
from stepmend.measure import compare, fitness, statistics
from stepmend.measure import solve as solving
from stepmend.records import Grade, Trace
from stepmend.report import export, page, summary, terminal

SCHEME = "rtn-w3a16"
VALUES = {
    "model": "builtin:qwen2", "schemes": [SCHEME],
    "measure": {"problems": 3, "batch_size": 12, "temperature": 1.5, "top_p": 0.98, "samples": 3},
    "curate": {"problems": 15, "round": 15, "bullets": 4},
    "restore": {"tune": "scales", "steps": 2, "learning_rate": 0.001, "within_noise": True},
    "locate": {"own_failures": 2},
}  # fmt: skip


def recipe(**measure):
    return Recipe.make({**VALUES, "measure": {**VALUES["measure"], **measure}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a whole small run of three solutions a problem."""
    out = tmp_path_factory.mktemp("samples") / "run"
    with Context(recipe(), out) as context:
        pipeline.run(context)
    return out


def test_every_solution_is_a_record_and_more_of_them_keep_those_there_are(run, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (run / "traces.jsonl").read_text().splitlines()]
    first = {(line["problem"], line.get("sample", 0)): line["text"] for line in lines if line["arm"] == FULL and line["problem"]}
    asked, generate = [], LocalEngine.generate

    def seen(engine, texts, *, done=(), **options):
        asked.append((len(texts), len(done)))
        yield from generate(engine, texts, done=done, **options)

    monkeypatch.setattr(LocalEngine, "generate", seen)
    with Context(recipe(samples=4), tmp_path / "more") as context:
        for name in ("traces.jsonl", "grades.jsonl"):
            (context.dir.path / name).write_bytes((run / name).read_bytes())
        test = context.problems("test")
        more = solving.solve(context, FULL, test, "test")
        assert asked == [(36, 27)], "of nine problems the fourth solution alone is missing"
        texts = [[samples[p.id].text for p in test] for samples in more.samples]
        assert texts[:3] == [[first[p.id, n] for p in test] for n in range(3)]
        assert len({tuple(of) for of in texts}) == 4
        assert {trace.sample for trace in more.samples[3].values()} == {3}
        (alone,) = context.engine(FULL).complete([context.prompt_of(test[0])], temperature=1.5, top_p=0.98)
        assert alone.text == more[test[0].id].text, "the first solution is the same whatever else is drawn"


def test_a_stopped_run_goes_on_where_it_was_within_a_problems_solutions(tmp_path, monkeypatch):
    generate = LocalEngine.generate

    def stopped(engine, texts, **options):
        for number, one in enumerate(generate(engine, texts, **options)):
            if number == 5:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(LocalEngine, "generate", stopped)
    with Context(recipe(), tmp_path / "run") as context, pytest.raises(KeyboardInterrupt):
        solving.solve(context, FULL, context.problems("test"), "test")
    kept = len((tmp_path / "run" / "traces.jsonl").read_text().splitlines())
    monkeypatch.setattr(LocalEngine, "generate", generate)
    with Context(recipe(), tmp_path / "run") as context:
        made = solving.solve(context, FULL, context.problems("test"), "test")
        assert (kept, [len(of) for of in made.samples]) == (5, [9, 9, 9])
        assert not (tmp_path / "run" / "traces.jsonl.rejected").exists()


def test_what_decides_the_draw_is_in_the_digest_and_a_greedy_runs_digest_is_what_it_was(tmp_path):
    def digests(*, arm=FULL, seed=0, **measure):
        made = recipe(**measure).model_copy(update={"seed": seed})
        with Context(made, tmp_path / "run") as context:
            return solving._inputs(context, arm, ["q"], ["p"])[1]

    base = digests()
    assert len({*base}) == 3
    assert digests(samples=2) == base[:2]
    for other in ({"temperature": 0.5}, {"top_p": 0.5}, {"seed": 1}, {"arm": AGAIN}):
        assert not {*digests(**other)} & {*base}, other
    greedy = {"temperature": 0, "top_p": 1, "samples": 1}
    assert digests(**greedy, seed=0) == digests(**greedy, seed=1)
    assert not {"chat", "temperature", "top_p", "samples"} & {*Recipe().model_dump(), *Recipe().model_dump()["measure"]}


def test_a_run_is_paired_by_problem_and_shown(run, tmp_path):
    found = summary.read(run)
    assert found.samples == 3
    full, low = found.outcomes(FULL), found.outcomes(SCHEME)
    assert full.shape == (9, 3)
    figures = summary.figures(found)["arms"]
    assert figures[FULL]["accuracy"] == full.mean()
    assert (figures[FULL]["n"], figures[FULL]["correct"], figures[FULL]["samples"]) == (9, full.sum(), 3)
    assert figures[FULL]["pass_at"] == {str(k): statistics.pass_at(full, k) for k in (1, 2, 3)}
    against, change = figures[SCHEME]["against_full"], statistics.difference(low, full)
    assert (against["value"], against["low"], against["high"]) == (change.value, change.low, change.high)
    assert against["mcnemar_p"] == statistics.permutation(full, low)
    page.write(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for said in ("Accuracy is avg@3", "<th>pass@3</th>", "Chen et al., 2021", "sign-flip test"):
        assert said in text
    assert "solved greedily" not in text
    shown = terminal.table(found)
    assert [column.header for column in shown.columns][5] == "pass@3"
    assert "avg@3" in shown.title
    for tool in ("inspect", "every-eval-ever"):
        read = [logs.read(file) for file in export.write(found, run, tool, tmp_path / tool)[:2]]
        (pair,) = compare.compare(read)
        assert [len(of) for of in read[0].samples.values()] == [3] * 9
        assert (pair.difference.value, pair.p) == pytest.approx((change.value, against["mcnemar_p"]))


def test_regressions_are_majorities_and_the_first_wrong_solution_is_located(run):
    found = summary.read(run)
    with Context(recipe(), run) as context:
        test = context.problems("test")
        solved = {arm: solving.solve(context, arm, test, "test") for arm in (FULL, SCHEME)}
        lost = solving.regressions(context, SCHEME, test)
        wrong, right = solving.shown(context, SCHEME, solved[SCHEME], right=False), solving.shown(context, FULL, solved[FULL], right=True)
        assert {p.id for p in lost} == {p.id for p in test if found.solves(FULL, p.id) and not found.solves(SCHEME, p.id)}
        assert lost, "nothing was lost, so nothing is tested"
        for p in lost:
            outcomes = [found.grade(SCHEME, p.id, n).outcome for n in range(3)]
            assert wrong[p.id].sample == next(n for n in range(3) if outcomes[n] != "correct")
            assert found.grade(FULL, p.id, right[p.id].sample).outcome == "correct"
            fault = found.faults[SCHEME][p.id]
            assert fault.sample == wrong[p.id].sample
            assert not any(vote.locator == "margins" for vote in fault.votes), "a drawn token proves nothing"
        made = rounds.bullets(context, SCHEME)
        curated = {p.id: p for p in context.problems("curate")}
        low = solving.shown(context, SCHEME, solving.solve(context, SCHEME, list(curated.values()), "curate 1-15"), right=False)
        for bullet in made:
            if bullet.problem in low:
                assert low[bullet.problem].sample == bullet.sample
                assert low[bullet.problem].text == bullet.prefix + bullet.rejected + bullet.rejected_rest


def test_a_majority_is_more_than_half():
    outcomes = np.array([[True, True, False, False], [True, True, True, False], [False] * 4])
    assert statistics.majority(outcomes).tolist() == [False, True, False]
    pair = statistics.paired(outcomes, ~outcomes)
    assert (pair.both_right, pair.only_first, pair.only_second, pair.both_wrong) == (0, 1, 1, 1)
    assert (pair.p, pair.test) == (statistics.permutation(outcomes, ~outcomes), "sign flips")


def test_accuracy_of_several_solutions_is_resampled_by_problem():
    """Solutions of one problem are not independent: Wilson's interval over all of them would be half as wide."""
    outcomes = np.repeat(np.arange(40)[:, None] % 2 == 0, 16, axis=1)
    found, naive = statistics.accuracy(outcomes), statistics.proportion(int(outcomes.sum()), outcomes.size)
    assert found.value == 0.5
    assert found.high - found.low > 3 * (naive.high - naive.low)


def test_few_problems_without_a_change_prove_no_equality():
    outcomes = np.array([[True, False]] * 6)
    found = statistics.difference(outcomes, outcomes)
    assert (found.value, found.low < -0.3, found.high > 0.3) == (0, True, True)
    assert statistics.verdict(found) == "not shown"


def test_pass_at_k_is_the_share_of_draws_of_k_with_a_right_one():
    outcomes = np.array([[True, False, False, False], [True, True, False, True], [False] * 4])
    for k in range(1, 5):
        draws = [any(row[list(chosen)]) for row in outcomes for chosen in combinations(range(4), k)]
        assert statistics.pass_at(outcomes, k) == pytest.approx(np.mean(draws))


@pytest.mark.parametrize("key", ["samples", "top_p"])
def test_nothing_is_drawn_without_a_temperature(key):
    with pytest.raises(InputError, match=f"{key} = .* has an effect only with measure.temperature above 0"):
        Recipe.make({"measure": {key: 4 if key == "samples" else 0.9}})


@pytest.mark.parametrize(
    ("benchmark", "samples", "asked"), [("aime", 1, True), ("aime25", 8, True), ("aime", 16, False), ("math", 1, False)]
)
def test_few_problems_ask_for_sixteen_solutions_and_say_why(benchmark, samples, asked):
    made = Recipe.make({"benchmark": benchmark, "measure": {"samples": samples, "temperature": 0.6}})
    traces = [Trace(problem=f"p{i}", arm=FULL, made_by="t", text="Step 1: 1\n\\boxed{1}", tokens=(1,), finish="stop") for i in range(30)]
    lines = fitness.fitness(traces, np.array([True] * 30)).warnings(made)
    assert [("30 problems" in line, "measure.samples to at least 16" in line, "±17 points" in line) for line in lines] == [
        (True,) * 3
    ] * asked


def test_thoughts_measured_greedily_are_told_of_and_no_step_format_is_asked_of_them():
    traces = [Trace(problem="p", arm=FULL, made_by="t", text="<think>so</think>1", tokens=(1,), finish="stop")] * 4
    lines = fitness.fitness(traces, np.array([True] * 4)).warnings(Recipe())
    assert len(lines) == 1
    assert "the model thinks, and was measured greedily" in lines[0]
    assert fitness.fitness(traces, np.array([True] * 4)).warnings(Recipe.make({"measure": {"temperature": 0.6}})) == []


def test_a_grade_says_which_solution_it_is_of():
    grade = Grade(problem="p", arm="a", made_by="g", outcome="correct")
    assert "sample" not in grade.model_dump()
    assert Grade.model_validate_json(grade.model_copy(update={"sample": 2}).model_dump_json()).sample == 2
