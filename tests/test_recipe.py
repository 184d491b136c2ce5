"""Recipes: defaults, overrides, and one clear line for what is wrong."""

import pytest

from stepmend import InputError, Recipe
from stepmend.recipe import QUICK, merge, override, quick


def test_overrides_are_laid_over_yaml(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 3\nrestore:\n  steps: 9\n")
    recipe = Recipe.make(override(Recipe.from_yaml(file), ["restore.steps=11", "schemes=[rtn-w4a16-g64]"]))
    assert (recipe.seed, recipe.restore.steps, recipe.schemes) == (3, 11, ("rtn-w4a16-g64",))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"sead": 1}, "unknown key sead; allowed: model, schemes"),
        ({"restore": {"stepps": 1}}, "unknown key restore.stepps; allowed: tune, objective"),
        ({"restore": {"steps": -1}}, "restore.steps = -1: input should be greater than or equal to 0"),
        ({"restore": {"objective": "ppo"}}, "restore.objective = 'ppo': input should be 'sft', 'dpo' or 'distill'"),
        ({"schemes": []}, "schemes"),
        ({"schemes": ["rtn-w4a16-g64", "rtn-w4a16-g64"]}, "each scheme once"),
        ({"locate": {"locators": ["rescue", "rescue"]}}, "each locator once"),
        ({"restore": {"steps": 10**23}}, "restore.steps"),
        ({"restore": {"solve_tokens": 10**10}}, "restore.solve_tokens = 10000000000: value error, a number up to 1,000,000,000 is needed"),
        ({"restore": {"objective": "dpo", "keep_chosen": float("inf")}}, "restore.keep_chosen = inf"),
        ({"restore": {"objective": "dpo", "beta": float("nan")}}, "restore.beta = nan"),
        ({"seed": 10**12}, "seed = 1000000000000"),
        ({"restore": {"steps": "1_000_000_000_000"}}, "restore.steps = '1_000_000_000_000'"),
        ({"restore": {"features": "1e99"}}, "restore.features"),
        ({"restore": {"lora_rank": 10**9}}, "restore.lora_rank"),
        ({"locate": {"judge_timeout": float("inf")}}, "locate.judge_timeout = inf"),
        ({"measure": {"margin": 0}}, "measure.margin = 0: input should be greater than 0"),
        ({"restore": 3}, "restore = 3"),
        ({"restore": {"beta": 0.3}}, "recipe: restore: beta has an effect with restore.objective = dpo only"),
        ({"restore": {"objective": "dpo", "weight": "low-entropy"}}, "weight has an effect with restore.objective = distill only"),
        ({"restore": {"lora_rank": 4}}, "lora_rank has an effect with restore.tune = lora only"),
        ({"curate": {"data": "x"}}, "recipe: curate: data needs curate.benchmark"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(values, line):
    with pytest.raises(InputError) as caught:
        Recipe.make(values)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "line"), [("a: [1", "line 1: not valid YAML"), ("- 1\n- 2", "a mapping"), ("a:\n\t- b", "line 2")])
def test_malformed_yaml_names_its_line(tmp_path, text, line):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=line):
        Recipe.from_yaml(file)


def test_a_missing_recipe_and_a_bad_assignment_are_said(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        Recipe.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="key=value is needed"):
        override({}, ["restore.steps"])


def test_merge_keeps_what_is_not_named():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_a_quick_runs_rate_is_of_the_default_tuning_alone():
    assert Recipe.make(quick({})).restore.learning_rate == QUICK["restore"]["learning_rate"]
    assert Recipe.make(quick({"restore": {"objective": "dpo"}})).restore.learning_rate is None
    made = Recipe.make(quick({"restore": {"tune": "lora", "learning_rate": 0.5}, "curate": {"problems": 9}}))
    assert (made.restore.learning_rate, made.restore.steps, made.curate.problems, made.quick) == (0.5, 30, 9, True)
