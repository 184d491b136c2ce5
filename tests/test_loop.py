"""Before any model is asked: what a run may tune on, and what it is asked with."""

import json

import pytest

from stepmend.benchmarks import sources
from stepmend.loop import Loop
from stepmend.models import chat
from stepmend.recipe import Recipe

QUESTION = "Ann has {} red apples and buys {} more of them at the market on Monday, then gives {} to Bob. How many does Ann have left?"


def write(folder, split, questions):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions))


@pytest.fixture
def data(tmp_path):
    """Training questions of which some are test ones in capitals, some hold a test one, and some differ in their numbers alone."""
    others = [f"Question {i}: what is {i} plus {i + 1}, said quite otherwise than any other?" for i in range(120)]
    test = [QUESTION.format(n, n + 1, 2) for n in range(11, 31)]
    near = [QUESTION.format(n, 50, 60) for n in range(400, 410)]
    write(tmp_path, "test", test)
    write(tmp_path, "train", [*(q.upper() for q in test[:10]), *(f"Think first. {q} Explain." for q in test[10:]), *near, *others])
    return tmp_path


def test_leaks_are_dropped_and_counted_whichever_split_they_fall_into(data, tmp_path):
    recipe = Recipe.make({"benchmark": "jsonl", "data": str(data), "schemes": ["rtn-w4a16-g64"], "quantize": {"calibration": 64}})
    with Loop(recipe, tmp_path / "run") as loop:
        leaks, tuned = loop.card()["leakage"], [*loop.problems("calibration"), *loop.problems("curate")]
    own = [sources.Data("jsonl", str(data)).problems(split, None, 0) for split in ("calibration", "curate")]
    found = [p.question for part in own for p in part]
    planted = {kind: [q for q in found if match(q)] for kind, match in MATCHES.items()}
    for kind in ("same", "overlap", "near"):
        assert sum(counts[kind] for counts in leaks.values()) == len(planted[kind])
    assert not {p.question for p in tuned} & {*planted["same"], *planted["overlap"]}
    assert len(tuned) == len(found) - len(planted["same"]) - len(planted["overlap"])
    assert all(planted.values()), "of some kind no question falls into a split that is tuned on"


MATCHES = {"same": str.isupper, "overlap": lambda q: q.startswith("Think"), "near": lambda q: " 50 more" in q}


def test_an_aligned_checkpoint_is_asked_as_it_was_taught(tmp_path):
    assert chat.prompt_for(str(tmp_path), builtin=True) == "plain-1"
    assert chat.prompt_for(str(tmp_path), builtin=False) == "steps-1"
    (tmp_path / chat.ALIGNED).write_text(json.dumps({"settings": {"prompt": "plain-1"}}))
    assert chat.prompt_for(str(tmp_path), builtin=False) == "plain-1"
