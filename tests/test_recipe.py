"""Recipes: defaults, overrides, and one clear line for what is wrong."""

import re

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
        ({"schemes": ["rtn-w4a16-g64", "rtn-w4a16-g64"]}, "a scheme is listed twice"),
        ({"locate": {"locators": ["rescue", "rescue"]}}, "a locator is listed twice"),
        ({"restore": {"steps": 10**23}}, "restore.steps"),
        ({"restore": {"solve_tokens": 10**10}}, "restore.solve_tokens = 10000000000: a number up to 1,000,000,000 is needed"),
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


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        *[(f"quick: {word}", "quick", word.lower() in ("yes", "on", "y", "true")) for word in ("no", "off", "n", "NO", "Off", "yes", "on")],
        *[(f"model: {word}", "model", word) for word in ("no", "off", "y", "on", "=", "12:30:45", "2026-01-01", "1.2.3")],
        ("restore: {learning_rate: 1e-3}", "restore.learning_rate", 0.001),
        ("restore: {learning_rate: 2E-4}", "restore.learning_rate", 0.0002),
        ("restore: {features: .5}", "restore.features", 0.5),
        ("restore: {steps: 1e3}", "restore.steps", 1000),
        ("restore: {steps: 1_000}", "restore.steps", 1000),
        ("seed: 0o10", "seed", 8),
        ("seed: 0x10", "seed", 16),
        ("seed: '010'", "seed", 10),
        ("seed: +3", "seed", 3),
        ("measure: {problems: ~}", "measure.problems", None),
        ("measure: {problems: }", "measure.problems", None),
    ],
)
def test_values_are_read_as_they_are_meant(tmp_path, text, key, value):
    """YAML 1.1 takes no and off for false, 1e-3 for text, 0o10 for text, 12:30:45 for 45,045 and a date for a date."""
    (tmp_path / "recipe.yaml").write_text(text)
    read = Recipe.make(Recipe.from_yaml(tmp_path / "recipe.yaml"))
    for name in key.split("."):
        read = getattr(read, name)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 12:30:45", "recipe: seed = '12:30:45': input should be a valid integer"),
        ("seed: yes", "recipe: seed = 'yes'"),
        ("seed: true", "recipe: seed = True: true and false are not allowed for this key"),
        ("measure: {margin: false}", "recipe: measure.margin = False"),
        ("restore: {steps: true}", "recipe: restore.steps = True"),
        ("seed: 0b11", "recipe: seed = '0b11'"),
        ("seed: 010", "line 1: not valid YAML (010: a number that begins with 0 may be meant as octal"),
        ("model: a\nseed: -08", "line 2: not valid YAML (-08: a number that begins with 0"),
        ("model: a\nseed: 1\nseed: 2", "line 3: not valid YAML (key 'seed' is there twice)"),
        ("restore:\n  steps: 1\n  steps: 2", "line 3: not valid YAML (key 'steps' is there twice)"),
        ("<<: {seed: 3}", "recipe: unknown key <<"),
        ("no: 3", "recipe: unknown key no"),
        ("measure: {problems: 2026-01-01}", "recipe: measure.problems = '2026-01-01'"),
        ("seed: !!int 12:30", "a value that YAML cannot read"),
    ],
)
def test_values_of_two_meanings_are_refused(tmp_path, text, line):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        Recipe.make(Recipe.from_yaml(tmp_path / "recipe.yaml"))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_assignments_are_read_as_a_file_is():
    made = Recipe.make(override({}, ["restore.learning_rate=1e-3", "model=no", "quick=off", "seed=0o10", "data=12:30:45"]))
    assert (made.restore.learning_rate, made.model, made.quick, made.seed, made.data) == (0.001, "no", False, 8, "12:30:45")
    with pytest.raises(InputError, match=r"--set seed=010: the value is not valid YAML .010: a number that begins with 0"):
        override({}, ["seed=010"])


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


def test_given_checkpoints_take_the_place_of_schemes_and_name_arms():
    recipe = Recipe.make({"quantized": ["out/one", "someone/two-awq"]})
    assert (recipe.schemes, recipe.low_bit) == ((), ("one", "two-awq"))
    both = Recipe.make({"quantized": ["out/one"], "schemes": ["rtn-w4a16"]})
    assert both.low_bit == ("rtn-w4a16", "one")
    assert Recipe.make({"quantized": []}).low_bit == Recipe().schemes
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quantized": ["a/one", "b/one"]}, "two folders have the same name"),
        ({"quantized": ["a/rtn-w4a16"], "schemes": ["rtn-w4a16"]}, "two folders have the same name"),
        ({"quantized": [], "schemes": []}, "if schemes is empty, quantized must name a checkpoint"),
        ({"quantized": [".."]}, "cannot be the name of an arm"),
        ({"quantized": ["a/full"]}, "cannot be the name of an arm"),
        ({"quantized": "one"}, "quantized = 'one'"),
        ({"quantized": [3]}, "quantized.0 = 3"),
    ],
)
def test_given_checkpoints_that_name_no_arms_of_their_own_are_refused(values, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Recipe.make(values)
