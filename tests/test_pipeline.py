"""Before any model is asked: what a run may tune on, and what it is asked with."""

import json
import shutil

import pytest

from stepmend import InputError, pipeline
from stepmend.benchmarks import sources
from stepmend.cli import running
from stepmend.context import Context
from stepmend.engines.base import Completion
from stepmend.engines.local import LocalEngine
from stepmend.facts import Gate
from stepmend.locate import run as locating
from stepmend.measure import margins
from stepmend.measure import solve as solving
from stepmend.models import chat, load
from stepmend.quantize import checkpoint, schemes
from stepmend.quantize import run as quantizer
from stepmend.recipe import Recipe
from stepmend.records import Grade, Trace
from stepmend.restore import align

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
    with Context(recipe, tmp_path / "run") as context:
        leaks, tuned = pipeline.card(context).leakage, [*context.problems("calibration"), *context.problems("curate")]
    own = [sources.Data("jsonl", str(data)).problems(split, None, 0) for split in ("calibration", "curate")]
    found = [p.question for part in own for p in part]
    planted = {kind: [q for q in found if match(q)] for kind, match in MATCHES.items()}
    for kind in ("same", "overlap", "near"):
        assert sum(counts[kind] for counts in leaks.values()) == len(planted[kind])
    assert not {p.question for p in tuned} & {*planted["same"], *planted["overlap"]}
    assert len(tuned) == len(found) - len(planted["same"]) - len(planted["overlap"])
    assert all(planted.values()), "of some kind no question falls into a split that is tuned on"


def test_alignment_is_checked_against_all_that_a_run_reports(data, tmp_path, monkeypatch):
    """Not against the few problems alone that are solved before and after."""
    asked = {}

    def see(model, out, *, train, test, leaks, **settings):
        asked.update(train=train, test=test, leaked={p.question for p in train if leaks(p)})
        raise InputError("seen")

    monkeypatch.setattr(align, "align", see)
    with pytest.raises(InputError, match="seen"):
        running.align("builtin:qwen2", tmp_path / "out", benchmark="jsonl", data=str(data), problems=300, held_out=1, seed=0)
    assert len(asked["test"]) == 1
    assert asked["leaked"] == {p.question for p in asked["train"] if MATCHES["same"](p.question) or MATCHES["overlap"](p.question)}
    assert len(asked["leaked"]) > 1
    assert len(sources.Data("story").measured(None, 0)) == 900


def test_a_model_aligned_on_what_is_reported_is_told(data, tiny_llama, tmp_path):
    parent = tmp_path / "aligned"
    shutil.copytree(tiny_llama, parent)
    reported, other = sources.Data("jsonl", str(data)).measured(1, 0)[0], sources.Data("story").problems("train", 3, 0)[0]
    (parent / chat.ALIGNED).write_text(json.dumps({"taught": [reported.model_dump(), other.model_dump()]}))
    recipe = Recipe.make({"model": str(parent), "benchmark": "jsonl", "data": str(data), "schemes": ["rtn-w4a16-g64"]})
    with Context(recipe, tmp_path / "run") as context:
        assert context.leaks["alignment"] == {"checked": 2, "same": 1, "overlap": 0, "near": 0, "clean": 1}


@pytest.mark.parametrize(("solved", "kept", "restored"), [(0, False, []), (0, True, ["rtn-w4a16-g64"]), (20, False, ["rtn-w4a16-g64"])])
def test_a_model_that_solves_next_to_nothing_is_told_so_and_not_restored(data, tiny_llama, tmp_path, monkeypatch, solved, kept, restored):
    values = {"model": tiny_llama, "benchmark": "jsonl", "data": str(data), "schemes": ["rtn-w4a16-g64"]}
    said, done = [], []

    def solve(context, arm, problems, split):
        right = {p.id for p in problems[: solved if arm == "full" else 0]}
        for p in problems:
            context.graded[arm, p.id] = Grade(problem=p.id, arm=arm, made_by="g", outcome="correct" if p.id in right else "wrong")
        return {p.id: Trace(problem=p.id, arm=arm, made_by="t", text="2", tokens=(1,), finish="stop") for p in problems}

    monkeypatch.setattr(solving, "solve", solve)
    for module, name in ((pipeline, "quantize"), (margins, "damage"), (locating, "locate")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(pipeline, "restore", lambda context, scheme, *_: done.append(scheme))
    with Context(Recipe.make({**values, "restore": {"within_noise": kept}}), tmp_path / "run") as context:
        monkeypatch.setattr(context.stages, "say", said.append)
        pipeline.run(context)
    assert done == restored
    named = [line for line in said if f"stepmend align {tiny_llama} OUT --benchmark jsonl" in line]
    assert ["solves only" in line for line in named] == ([False] if solved else [True, False])
    assert ("  rtn-w4a16-g64: full precision solves under 5 % of the problems; not restored" in said) == (not restored)


@pytest.mark.parametrize("lossy", ["test", "curate"])
def test_what_is_restored_is_decided_on_curate_problems_alone(data, tiny_llama, tmp_path, monkeypatch, lossy):
    values = {"model": tiny_llama, "benchmark": "jsonl", "data": str(data), "schemes": ["rtn-w4a16-g64"]}
    said, done = [], []

    def solve(context, arm, problems, split):
        right = arm == "full" or not split.startswith(lossy)
        for p in problems:
            context.graded[arm, p.id] = Grade(problem=p.id, arm=arm, made_by="g", outcome="correct" if right else "wrong")
        return {p.id: Trace(problem=p.id, arm=arm, made_by="t", text="2", tokens=(1,), finish="stop") for p in problems}

    monkeypatch.setattr(solving, "solve", solve)
    for module, name in ((pipeline, "quantize"), (margins, "damage"), (locating, "locate")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(pipeline, "restore", lambda context, scheme, *_: done.append(scheme))
    with Context(Recipe.make(values), tmp_path / "run") as context:
        monkeypatch.setattr(context.stages, "say", said.append)
        pipeline.run(context)
        why = context.dir.fact(Gate, "rtn-w4a16-g64").why
        count = len(context.problems("curate"))
    assert done == (["rtn-w4a16-g64"] if lossy == "curate" else [])
    assert (why is None) == (lossy == "curate")
    assert any(f"no loss beyond noise on {count} curate problems (McNemar p = 1); not restored" in line for line in said) == (
        lossy == "test"
    )


MATCHES = {"same": str.isupper, "overlap": lambda q: q.startswith("Think"), "near": lambda q: " 50 more" in q}


def test_an_aligned_checkpoint_is_asked_as_it_was_taught(tmp_path):
    assert chat.prompt_for(str(tmp_path), builtin=True) == "plain-1"
    assert chat.prompt_for(str(tmp_path), builtin=False) == "steps-1"
    (tmp_path / chat.ALIGNED).write_text(json.dumps({"settings": {"prompt": "plain-1"}}))
    assert chat.prompt_for(str(tmp_path), builtin=False) == "plain-1"


def test_quantizing_alone_calibrates_on_nothing_that_a_run_reports(tiny_llama, data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(quantizer, "quantize", lambda parent, scheme, texts, out: seen.append("".join(texts)))
    monkeypatch.setattr(LocalEngine, "complete", lambda engine, texts, **options: [Completion("", (1,), "stop") for _ in texts])
    for place in ("test.jsonl", "elsewhere.jsonl"):  # where there are no test problems, there is nothing to check against
        (data / "test.jsonl").rename(data / place)
        checkpoint.alone(tiny_llama, schemes.parse("gptq-w4a16-g64"), tmp_path / "out", 200, sources.Data("jsonl", str(data)))
        (data / place).rename(data / "test.jsonl")
    own = [p.question for p in sources.Data("jsonl", str(data)).problems("calibration", None, 0)]
    leaks = [q for q in own if MATCHES["same"](q) or MATCHES["overlap"](q)]
    assert leaks, "nothing planted is among the calibration problems"
    assert [[q for q in own if q not in texts] for texts in seen] == [leaks, []]


def test_a_resumed_run_keeps_its_dtype_whatever_a_probe_says_now(tmp_path, monkeypatch):
    recipe = Recipe.make({"model": "builtin:qwen2", "curate": {"problems": 30}, "measure": {"problems": 10}})

    def placed(dtype: str, recipe: Recipe) -> str:
        monkeypatch.setattr(load, "placement", lambda folder, asked="auto": ("cpu", dtype if asked == "auto" else asked))
        with Context(recipe, tmp_path / "run") as context:
            return context.placed.dtype

    assert placed("bfloat16", recipe) == "bfloat16"
    assert placed("float32", recipe) == "bfloat16"
    assert placed("bfloat16", recipe.model_copy(update={"measure": recipe.measure.model_copy(update={"dtype": "float32"})})) == "float32"
