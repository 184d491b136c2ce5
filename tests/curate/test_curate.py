"""Bullets: what becomes one and what does not; and their controls."""

import json
from dataclasses import replace

import pytest

from stepmend import Bullet, Fault, InputError, Problem, Trace, curate
from stepmend.curate import Solved, controls
from stepmend.keys import Restore

SOLUTION = "Step 1: 2 + 2 = 4\nStep 2: 4 + 3 = 7\n\\boxed{7}"
TEXT = "Step 1: 2 + 2 = 4\nStep 2: 4 + 3 = 8\n\\boxed{8}"
BEGIN, END = TEXT.index("Step 2"), TEXT.index("\\boxed")
QUESTION = "Tom has 2 eggs. Tom buys 2 eggs. Tom finds 3 more eggs. How many eggs does Tom have now?"


def solved(name: str, text: str = TEXT) -> Solved:
    problem = Problem(id=name, benchmark="story", split="curate", level="easy", question=QUESTION, answer="7")
    full, low = (
        Trace(problem=name, arm=arm, made_by="t", text=of, tokens=(), finish="stop") for arm, of in (("full", SOLUTION), ("q", text))
    )
    return Solved(problem, "P", full, low)


def fault(name: str, **changes) -> Fault:
    common = {"problem": name, "arm": "q", "made_by": "t", "step": 1, "steps": 3, "span": (BEGIN, END), "error_class": "computational"}
    return Fault(**{**common, "outcome": "located", "votes": (), "chosen": "Step 2: 4 + 3 = 7\n", "continuation": "\\boxed{7}", **changes})


def collect(faults, *, limit=10):
    return curate.curate({f.problem: solved(f.problem) for f in faults}, faults, limit=limit, made_by="c")


def test_a_bullet_joins_without_separators():
    (bullet,) = collect([fault("a")])
    assert bullet.prefix + bullet.rejected + bullet.rejected_rest == TEXT
    assert bullet.prefix + bullet.chosen + bullet.continuation == SOLUTION
    assert bullet.solution[slice(*bullet.place)] == bullet.chosen


def test_the_prompt_ends_in_the_shared_beginning_as_a_preference_dataset_has_it():
    (bullet,) = collect([fault("a")])
    row = json.loads(bullet.model_dump_json())
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("P" + TEXT[:BEGIN], "Step 2: 4 + 3 = 7\n", "Step 2: 4 + 3 = 8\n")
    assert bullet.question == "P"


def test_a_solution_that_was_cut_off_is_marked():
    whole, part = solved("a"), solved("b")
    part = replace(part, quantized=part.quantized.model_copy(update={"finish": "length"}))
    made = curate.curate({"a": whole, "b": part}, [fault("a"), fault("b")], limit=2, made_by="c")
    assert [b.cut for b in made] == [False, True]
    assert [json.loads(b.model_dump_json()).get("cut") for b in made] == [None, True]
    assert [Bullet.model_validate_json(b.model_dump_json()) for b in made] == made
    assert [b.cut for b in controls.bullets_of("random-step", made, [], Restore(), seed=0)] == [False, True]


def test_only_verified_and_different_steps_become_bullets():
    faults = [
        fault("unlocated", step=None, span=None),
        fault("unverified", chosen=None, continuation=None),
        fault("same", chosen=TEXT[BEGIN:END]),
        fault("good"),
    ]
    assert [b.problem for b in collect(faults)] == ["good"]


def test_the_limit_keeps_the_first():
    assert [b.problem for b in collect([fault(name) for name in "abcd"], limit=2)] == ["a", "b"]


@pytest.mark.parametrize("objective", ["distill", "dpo"])
def test_a_random_step_is_of_the_same_texts_and_seeded(objective):
    located = collect([fault(name) for name in "abcdefgh"])
    recipe = Restore(objective=objective)
    made = controls.bullets_of("random-step", located, [], recipe, seed=0)
    assert made == controls.bullets_of("random-step", located, [], recipe, seed=0)
    assert [b.problem for b in made] == [b.problem for b in located]
    for bullet in made:
        assert bullet.prefix + bullet.chosen + bullet.continuation == SOLUTION
        assert bullet.prompt == bullet.question + bullet.prefix
    # A preference needs a step at which the two texts differ; elsewhere any will do but the located one.
    assert located[0].step == 1
    assert {b.step for b in made} == ({2} if objective == "dpo" else {0, 2})


def test_a_shuffled_step_is_as_far_along_as_anothers_and_never_the_located_one():
    located = collect([fault(name) for name in "abcdefgh"])
    first, last = ([b.model_copy(update={"step": step}) for b in located] for step in (0, 2))
    made = controls.bullets_of("shuffled-step", first + last, [], Restore(), seed=0)
    assert made == controls.bullets_of("shuffled-step", first + last, [], Restore(), seed=0)
    for moved in made:
        assert moved.prefix + moved.chosen + moved.continuation == SOLUTION
    # Who draws the other end goes there; who draws its own goes to the step beside it.
    assert {moved.step for moved in made[: len(first)]} == {1, 2}
    assert {moved.step for moved in made[len(first) :]} == {0, 1}


def test_whole_responses_share_nothing():
    (bullet,) = controls.bullets_of("whole-response", collect([fault("a")]), [], Restore(), seed=0)
    assert (bullet.prompt, bullet.prefix, bullet.chosen, bullet.rejected) == ("P", "", SOLUTION, TEXT)


def test_solved_problems_are_others_and_no_more_than_located_ones():
    located = collect([fault("a"), fault("b")])
    made = controls.bullets_of("solved-problems", located, [solved(n, SOLUTION) for n in "xyz"], Restore(), seed=0)
    assert [b.problem for b in made] == ["x", "y"]
    with pytest.raises(InputError, match="solved-problems has nothing to tune on"):
        controls.bullets_of("solved-problems", located, [solved("x", SOLUTION)], Restore(objective="dpo"), seed=0)


def test_controls_change_what_they_are_named_for():
    located = Restore(span="prefix")
    assert controls.recipe_of("random-step", located) == located
    assert controls.recipe_of("whole-trace", located).span == "whole"
    assert controls.recipe_of("sft-chosen", located).objective == "sft"
    for control in ("sft-chosen", "full-tuned"):  # on the tokens that the located bullets are tuned on, not on sft's own
        assert controls.recipe_of(control, Restore(objective="dpo")).trained == "step"
        assert controls.recipe_of(control, Restore(span="prefix")).trained == "prefix"
    assert (controls.recipe_of("full-tuned", located).tune, controls.recipe_of("full-tuned", located).objective) == ("lora", "sft")
    assert controls.parse("random-step, whole-trace") == ("random-step", "whole-trace")
    assert controls.recipe_of("whole-response", Restore(learning_rate=0.01)).learning_rate is None, "a rate of distillation for DPO"
    assert controls.recipe_of("whole-trace", Restore(learning_rate=0.01)).learning_rate == 0.01
    for wrong in ("nonsense", "", "random-step,nonsense"):
        with pytest.raises(InputError, match="allowed: random-step, shuffled-step"):
            controls.parse(wrong)


@pytest.mark.parametrize(("changes", "idle"), [
    ({}, "random-step,shuffled-step,whole-trace"),
    ({"objective": "dpo", "span": "whole"}, "random-step,shuffled-step,whole-trace"),
    ({"objective": "sft", "span": "step"}, "sft-chosen"),
    ({"span": "prefix"}, ""),
])  # fmt: skip
def test_controls_that_would_be_tuned_as_the_located_bullets_are_refused(changes, idle):
    """And what is not refused is tuned otherwise: on other bullets, or by another recipe."""
    recipe, located = Restore.model_validate(changes), collect([fault(name) for name in "abcdefgh"])
    others = [name for name in controls.CONTROLS if name not in idle.split(",")]
    controls.check(others, recipe)
    for name in idle.split(",") if idle else ():
        with pytest.raises(InputError, match=f"{name} would be tuned exactly like the located bullets"):
            controls.check([name, *others], recipe)
    for name in others:
        made = controls.bullets_of(name, located, [solved(n, SOLUTION if recipe.objective != "dpo" else TEXT) for n in "xyz"], recipe, 0)
        assert made != located or controls.recipe_of(name, recipe) != recipe
