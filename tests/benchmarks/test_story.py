"""The built-in benchmark: exact programs, disjoint splits, seeds."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmend import InputError
from stepmend.benchmarks import story


def take(split: str, level: str, count: int, seed: int = 0):
    return list(itertools.islice(story.problems(split, level, seed=seed), count))


@pytest.mark.parametrize("level", story.LEVELS)
def test_levels_have_their_steps_and_values_stay_small(level):
    low, high = story.LEVELS[level]
    for problem in take("train", level, 300):
        program = story.program_of(problem)
        assert low <= len(program.nodes) <= high
        assert all(0 < result <= story.MAX_VALUE for result in program.results())
        assert problem.answer == str(program.results()[-1])


def test_every_quantity_stands_in_the_question_in_its_order():
    for problem in take("train", "hard", 200):
        numbers = [int(word.strip(".,?")) for word in problem.question.split() if word.strip(".,?").isdigit()]
        assert tuple(numbers) == story.program_of(problem).quantities


def test_every_step_is_used():
    for problem in take("train", "hard", 300):
        program = story.program_of(problem)
        used = {operand for node in program.nodes for operand in (node.left, node.right)}
        assert all(f"s{i}" in used for i in range(len(program.nodes) - 1)), problem.question


def test_splits_never_share_a_program_whatever_the_seed():
    seen: dict[str, str] = {}
    for split, seed in itertools.product(story.SPLITS, range(5)):
        for problem in take(split, "easy", 200, seed):
            assert seen.setdefault(problem.id, split) == split


def test_no_problem_twice_and_the_seed_decides():
    first, again, other = take("test", "easy", 300), take("test", "easy", 300), take("test", "easy", 300, seed=1)
    assert len({p.id for p in first}) == 300
    assert first == again != other


@given(st.integers(0, 10**6), st.integers(1, 10))
def test_program_survives_its_text_form(seed, steps):
    _, program = story.write(random.Random(seed), steps)
    assert story.parse(story.dump(program)) == program
    assert len(program.nodes) == steps


def test_known_solution():
    program = story.parse("29 4 12 15; * q1 q2; + q0 s0; - s1 q3; + s1 s2")
    assert program.solution().splitlines() == [
        "Step 1: 4 * 12 = 48",
        "Step 2: 29 + 48 = 77",
        "Step 3: 77 - 15 = 62",
        "Step 4: 77 + 62 = 139",
        "\\boxed{139}",
    ]


def test_unknown_split_is_said():
    with pytest.raises(InputError, match="splits: test, calibration, curate, train"):
        next(story.problems("dev", "easy", seed=0))
