"""Whether full precision is fit for a run: accuracy, step format, and what a run says of them."""

import numpy as np
import pytest

from stepmend.measure import fitness, statistics
from stepmend.recipe import Recipe
from stepmend.records import Trace

STEPS, PROSE = "Step 1: 1 + 1 = 2\n\\boxed{2}", "It is 2.\n\n\\boxed{2}"


def trace(text: str, finish="stop") -> Trace:
    return Trace(problem="p", arm="full", made_by="t", text=text, tokens=(1,), finish=finish)


def fit(formed: int, right: int, n: int = 100) -> fitness.Fitness:
    return fitness.fitness([trace(STEPS if i < formed else PROSE) for i in range(n)], np.arange(n) < right)


def test_a_solution_counts_as_in_format_only_where_it_ended_by_itself():
    assert fitness.share_in_format([trace(STEPS), trace(PROSE), trace(STEPS, "length"), trace("")]) == 0.25


def test_a_model_that_solves_problems_in_steps_is_not_warned_of():
    assert fit(50, 5).warnings(Recipe()) == []


def test_a_model_that_does_not_write_steps_is_told_how_to_learn_it():
    (line,) = fit(49, 60).warnings(Recipe.make({"model": "Org/Model-1B"}))
    assert line.startswith("only 49.0 % of full precision's solutions follow the step format")
    assert line.endswith("stepmend align Org/Model-1B OUT")


def test_where_most_solutions_are_cut_off_the_limit_is_named():
    cut = [trace(PROSE, "length")] * 51 + [trace(STEPS)] * 49
    (line,) = fitness.fitness(cut, np.zeros(100, dtype=bool)).warnings(Recipe())
    assert line == "51.0 % of full precision's solutions are cut off by the token limit; raise measure.max_new_tokens"
    assert fitness.fitness([*cut[1:], trace(STEPS)], np.ones(100, dtype=bool)).warnings(Recipe()) == []


def test_a_model_that_solves_next_to_nothing_is_told_what_to_check():
    (line,) = fit(100, 4).warnings(Recipe.make({"model": "./a model"}))
    assert "solves only 4.0 % of the problems: no scheme is restored" in line
    assert "Check the prompt and the chat template" in line
    assert line.endswith("stepmend align './a model' OUT")
    (line,) = fit(100, 4).warnings(Recipe.make({"restore": {"within_noise": True}}))
    assert "restored all the same (restore.within_noise)" in line
    assert len(fit(0, 0).warnings(Recipe())) == 2


def test_the_command_that_aligns_takes_the_run_s_problems():
    recipe = Recipe.make({"model": "m", "benchmark": "gsm8k", "data": "my data"})
    assert fitness.align_command(recipe) == "stepmend align m OUT --benchmark gsm8k --data 'my data'"


@pytest.mark.parametrize(
    ("right", "low", "why"),
    [
        (100, 50, None),
        (
            *(100, 99),
            "no loss beyond noise on 100 curate problems (McNemar p = 1); not restored (restore.within_noise=true restores all the same)",
        ),
        (50, 100, "no loss beyond noise"),
        (4, 0, "full precision solves under 5 % of the problems; not restored"),
    ],
)
def test_why_a_scheme_is_not_restored(right, low, why):
    pair = statistics.paired(np.arange(100) < right, np.arange(100) < low)
    found = fitness.obstacle(fit(100, right), lambda: pair)
    assert found is None if why is None else (found or "").startswith(why)


def test_a_model_that_is_too_weak_solves_no_curate_problems():
    assert fitness.obstacle(fit(100, 4), lambda: pytest.fail("they were solved")) is not None
