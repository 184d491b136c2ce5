"""The oracle: what it says of traces whose fault is known."""

import itertools
import random

import pytest

from stepmend.benchmarks import oracle, story

# 29 + 4 * 12, then - 15, then both together
PROGRAM = story.parse("29 4 12 15; * q1 q2; + q0 s0; - s1 q3; + s1 s2")
RIGHT = PROGRAM.solution().splitlines()


def judged(*lines: str) -> tuple[int | None, str | None]:
    truth = oracle.judge(PROGRAM, "\n".join(lines))
    return truth.step, truth.error_class


def test_reference_solutions_have_no_fault():
    for level in story.LEVELS:
        for problem in itertools.islice(story.problems("test", level, seed=0), 200):
            program = story.program_of(problem)
            assert oracle.judge(program, program.solution()) == oracle.Truth(None, None)


def test_another_valid_order_is_correct():
    program = story.parse("10 5 20 3; + q0 q1; - q2 q3; + s0 s1")
    assert oracle.judge(program, "Step 1: 20 - 3 = 17\nStep 2: 5 + 10 = 15\nStep 3: 17 + 15 = 32\n\\boxed{32}").step is None


@pytest.mark.parametrize(
    ("place", "line", "error_class"),
    [
        (0, "Step 1: 4 * 12 = 46", "computational"),
        (0, "Step 1: 4 + 12 = 16", "procedural"),
        (2, "Step 3: 15 - 77 = 62", "procedural"),
        (0, "Step 1: 4 * 13 = 52", "contextual_oversight"),
        (2, "Step 3: 77 + 62 = 139", "contextual_oversight"),
        (4, "\\boxed{138}", "contextual_oversight"),
        (1, "Step 2: 29 * = 77", "symbolic_manipulation"),
    ],
)
def test_first_fault_and_class(place, line, error_class):
    assert judged(*RIGHT[:place], line, *RIGHT[place + 1 :]) == (place, error_class)


def test_skipped_quantity_is_an_oversight_and_a_wrong_order_is_procedural():
    skipped = ["Step 1: 29 - 15 = 14", "Step 2: 29 + 14 = 43", "\\boxed{43}"]
    assert judged(*skipped) == (0, "contextual_oversight")
    reordered = ["Step 1: 29 - 15 = 14", "Step 2: 4 * 12 = 48", "Step 3: 14 + 48 = 62", "\\boxed{62}"]
    assert judged(*reordered) == (0, "procedural")


def test_an_early_answer_and_no_answer():
    assert judged(*RIGHT[:2], "\\boxed{77}") == (2, "contextual_oversight")
    assert judged(*RIGHT[:2]) == (1, "degenerate")
    assert judged(*RIGHT[:2], *["Step 3: 77 - 15 = 62"] * 20)[1] == "degenerate"
    assert judged("") == (0, "degenerate")


def test_a_single_changed_result_is_found_where_it_was_changed():
    rng = random.Random(0)
    for problem in itertools.islice(story.problems("test", "hard", seed=0), 200):
        program = story.program_of(problem)
        lines = program.solution().splitlines()
        place = rng.randrange(len(lines) - 1)
        head, _, result = lines[place].rpartition(" = ")
        lines[place] = f"{head} = {int(result) + 1}"
        assert oracle.judge(program, "\n".join(lines)) == oracle.Truth(place, "computational")
