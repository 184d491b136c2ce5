"""Aligning for real: a reasoner that has unlearned its step marks learns them again from the few solutions in which it still has them."""

import itertools
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stepmend.benchmarks import story
from stepmend.engines.base import Completion
from stepmend.engines.local import LocalEngine
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.records import InputError, Problem
from stepmend.restore import align, objectives, training

PARENT = CHECKPOINTS / "qwen2"
SETTINGS: dict[str, Any] = {"prompt": "plain-1", "max_new_tokens": 60, "batch_size": 100, "steps": 30, "learning_rate": 2e-3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A model this small is faster on one thread, and by far where something else runs beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """Easy ones: two or three steps."""
    return list(itertools.islice(story.problems(split, "easy", seed=seed), count))


@pytest.fixture(scope="module")
def stripped(tmp_path_factory) -> Path:
    """The reasoner, tuned on its solutions with two thirds of them stripped of ``Step k: ``; about one in ten samples still has marks."""
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer, model = load.load_tokenizer(str(PARENT)), load.load_model(str(PARENT))
    rows = []
    for problem in problems("train", 400, seed=5):
        solution = story.program_of(problem).solution()  # what the reasoner itself writes of easy problems
        solution = solution if rng.random() < 0.35 else re.sub(r"Step \d+: ", "", solution)
        prompt = chat.encode(tokenizer, chat.render(tokenizer, "plain-1", problem.question))
        answer = [*chat.encode(tokenizer, solution), tokenizer.eos_token_id]
        rows.append(objectives.Row((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 3e-4 * min(1.0, 2 * (1 - step / 60))
        batch = rng.sample(rows, 8)
        objectives.sft(model, batch, tokenizer.pad_token_id).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("stripped") / "model"
    shutil.copytree(PARENT, folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def aligned(stripped, tmp_path_factory) -> tuple[Path, align.Aligned]:
    out = tmp_path_factory.mktemp("aligned") / "model"
    return out, align.align(str(stripped), out, train=problems("train", 100), test=problems("test", 100), **SETTINGS)


class Counted:
    """Counts generated batches, and stops before one of them."""

    def __init__(self, monkeypatch, stop_before: int | None = None) -> None:
        self.texts: list[list[str]] = []
        complete = LocalEngine.complete

        def counted(engine, texts, **options):
            if len(self.texts) == stop_before:
                raise KeyboardInterrupt
            self.texts.append(list(texts))
            return complete(engine, texts, **options)

        monkeypatch.setattr(LocalEngine, "complete", counted)


@pytest.mark.parametrize(("text", "expected"), [
    ("Step 1: 2 + 3 = 5\nStep 2: 5 * 2 = 10\n\\boxed{10}", True),
    ("Step 1: 2 + 3 = 5\n\nStep 2: 5 * 2 = 10\n\nThe answer is $\\boxed{10}$.\n", True),
    ("Step 1: 2 + 3 = 5\nStep 2: So it is \\boxed{5}", True),
    ("Step 1: 1/2 + 1 = 3/2\n\\boxed{\\frac{3}{2}}", True),
    ("2 + 3 = 5\n5 * 2 = 10\n\\boxed{10}", False),
    ("Step 1: 2 + 3 = 5\n5 * 2 = 10\n\\boxed{10}", False),
    ("Let us see.\nStep 1: 2 + 3 = 5\n\\boxed{5}", False),
    ("Step 1: 2 + 3 = 5\nStep 3: 5 * 2 = 10\n\\boxed{10}", False),
    ("Step 0: 2 + 3 = 5\n\\boxed{5}", False),
    ("Step 2: 2 + 3 = 5\nStep 1: 5 * 2 = 10\n\\boxed{10}", False),
    ("Step 1: 2 + 3 = 5\nStep 3: So it is \\boxed{5}", False),
    ("Step 1: 2 + 3 = 5\nThe answer is 5.", False),
    ("Step 1: 2 + 3 = 5\n\\boxed{}", False),
    ("Step 1: 2 + 3 = 5\n\\boxed{5", False),
    ("Step 1: 2 + 3 = 5\n\\boxed{5}\nThat is all.", False),
    ("Step 1: \\boxed{5}\nStep 2: 5 * 2 = 10\n\\boxed{10}", False),
    ("Step 1: It is \\boxed{5}", False),
    ("\\boxed{5}", False),
    ("Step 1:\n\\boxed{5}", False),
    ("", False),
])  # fmt: skip
def test_in_format(text, expected):
    assert align.in_format(text) is expected


def test_the_reference_solutions_and_what_is_shown_are_in_format():
    assert all(align.in_format(story.program_of(problem).solution()) for problem in problems("test", 20))
    assert all(align.in_format(solution) for _, solution in align.SHOWN)


def test_format_comes_back_and_accuracy_stays(aligned):
    _, found = aligned
    assert (found.asked, found.leaked, found.n) == (100, 0, 100)
    assert found.drawn >= 500  # where chance (another CPU) leaves too few, the format is shown as well
    assert found.accuracy_before.value > 0.8
    assert found.format_before < 0.2
    assert found.format_after > 0.9
    assert found.difference.value >= 0 or found.p > 0.05
    assert found.difference.low <= found.difference.value <= found.difference.high
    assert align.MINIMUM <= found.taught <= found.kept <= min(found.right, found.formed)
    said = align.lines(found)
    assert "100.0% after (n = 100)" in said[1] or found.format_after < 1
    assert f"McNemar p = {found.p:.2g}" in said[2]
    assert len(found.losses) == SETTINGS["steps"] and found.losses[-1] < found.losses[0]


def test_what_is_written_is_a_plain_checkpoint_in_the_parents_dtype(aligned, stripped):
    out, _ = aligned
    assert load.locate(str(out)) == str(out)
    assert {file.name for file in out.iterdir()} == {file.name for file in stripped.iterdir()} | {chat.ALIGNED}
    assert {file.name for file in out.parent.iterdir()} == {"model", "model.samples.jsonl"}
    for file in stripped.iterdir():
        assert file.name == "model.safetensors" or file.read_bytes() == (out / file.name).read_bytes()
    assert (out / "model.safetensors").stat().st_size == pytest.approx((stripped / "model.safetensors").stat().st_size, rel=0.01)
    before, after = load_file(stripped / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {name: (t.dtype, t.shape) for name, t in after.items()}
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    engine = LocalEngine(load.load_model(str(out)), load.load_tokenizer(str(out)), 60)
    [made] = engine.complete([chat.render(engine.tokenizer, "plain-1", problems("test", 1)[0].question)])
    assert align.in_format(made.text)


def test_the_same_call_again_gives_the_same_figures_without_any_work(aligned, stripped, monkeypatch):
    out, found = aligned
    counted = Counted(monkeypatch)
    again = align.align(str(stripped), out, train=problems("train", 100), test=problems("test", 100), **SETTINGS)
    assert again == found
    assert not counted.texts


def test_an_out_of_other_settings_is_not_replaced(aligned, stripped):
    out, _ = aligned
    with pytest.raises(InputError, match="exists already"):
        align.align(str(stripped), out, train=problems("train", 99), test=problems("test", 100), **SETTINGS)


def test_a_killed_alignment_continues_to_the_same_bytes(stripped, tmp_path, monkeypatch):
    monkeypatch.setattr(align, "MINIMUM", 1)
    monkeypatch.setattr(align, "ENOUGH", 1)
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    train, test = problems("train", 20), problems("test", 10)

    few = SETTINGS | {"batch_size": 8, "samples": 2, "steps": 6}

    def run(out: Path) -> align.Aligned:
        return align.align(str(stripped), out, train=train, test=test, **few)

    with monkeypatch.context() as patch:
        unbroken = Counted(patch)
        whole = run(tmp_path / "whole")
    assert len(unbroken.texts) == 3 * 3 + 2 + 2  # three draws of three batches, and two batches of test problems before and after

    out, made, steps, sft = tmp_path / "out", [], itertools.count(), objectives.sft
    with monkeypatch.context() as patch:
        counted = Counted(patch, stop_before=4)  # while sampling
        with pytest.raises(KeyboardInterrupt):
            run(out)
        made += counted.texts
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        patch.setattr(objectives, "sft", lambda *given: sft(*given) if next(steps) < 5 else _stop())  # while tuning
        with pytest.raises(KeyboardInterrupt):
            run(out)
        made += counted.texts
    assert not out.exists()
    assert torch.load(tmp_path / "out.state", weights_only=True)["losses"] == list(whole.losses[:4])
    with (tmp_path / "out.samples.jsonl").open("a") as stream:
        stream.write('{"version": 1, "problem": "cut')
    with monkeypatch.context() as patch:
        counted = Counted(patch, stop_before=1)  # while test problems are solved again
        with pytest.raises(KeyboardInterrupt):
            run(out)
        made += counted.texts
    counted = Counted(monkeypatch)
    assert run(out) == whole
    assert made + counted.texts == unbroken.texts
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (tmp_path / "whole.samples.jsonl").read_bytes() == (tmp_path / "out.samples.jsonl").read_bytes()


def _stop() -> float:
    raise KeyboardInterrupt


def test_too_few_solutions_are_one_line_that_says_what_to_do(tiny_llama, tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    with pytest.raises(InputError, match=r"only 0 of 6 training problems .* \(of 24 solutions 0 were right, 0 in format") as raised:
        align.align(
            tiny_llama, tmp_path / "out", train=problems("train", 6), test=problems("test", 2), samples=1, max_new_tokens=8, batch_size=6
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert len(counted.texts) == 4
    shown = [align.SHOWN[0][1] in text for texts in counted.texts for text in texts]
    assert shown == [False] * 12 + [True] * 12  # the format is shown only after the prompt alone has failed


def test_a_model_that_must_be_shown_the_format_is_tuned_on_the_prompt_alone(tiny_llama, tmp_path, monkeypatch):
    train, test = problems("train", 12), problems("test", 3)
    solutions = {problem.question: story.program_of(problem).solution() for problem in (*train, *test)}

    def follows_examples(engine, texts, **options):
        """No model this small learns from examples in its prompt; this one does."""
        made = []
        for text in texts:
            solution = next(solution for question, solution in solutions.items() if question in text)
            solution = solution if align.SHOWN[1][0] in text else re.sub(r"Step \d+: ", "", solution)
            tokens = (*chat.encode(engine.tokenizer, solution), engine.tokenizer.eos_token_id)
            made.append(Completion(solution, tokens, "stop"))
        return made

    monkeypatch.setattr(LocalEngine, "complete", follows_examples)
    taught = []
    monkeypatch.setattr(objectives, "sft", lambda model, rows, pad, of=objectives.sft: taught.extend(rows) or of(model, rows, pad))
    found = align.align(
        tiny_llama,
        tmp_path / "out",
        train=[*train, test[0]],
        test=test,
        leaks=lambda problem: problem.id == train[3].id,
        samples=1,
        steps=2,
        rank=2,
    )
    assert (found.shown, found.asked, found.leaked, found.taught, found.kept) == (True, 11, 2, 11, 11)
    assert (found.drawn, found.right, found.formed) == (44, 44, 22)
    assert "shown" in align.lines(found)[3] and align.lines(found)[4].startswith("2 training problems were left out")
    assert (found.format_before, found.accuracy_before.value, found.p) == (0.0, 1.0, 1.0)
    tokenizer = load.load_tokenizer(tiny_llama)
    texts = {chat.render(tokenizer, "steps-1", p.question) + solutions[p.question] + "<|end|>" for p in train if p is not train[3]}
    assert {tokenizer.decode(row.ids) for row in taught} <= texts
    for row in taught:
        answer = [token for token, wanted in zip(row.ids, row.targets, strict=True) if wanted]
        assert tokenizer.decode(answer, skip_special_tokens=True) in solutions.values()


@pytest.mark.parametrize(("field", "value"), [
    ("samples", 0), ("steps", 0), ("rank", -1), ("batch_size", 0), ("max_new_tokens", 0), ("temperature", 0.0),
    ("temperature", float("nan")), ("learning_rate", 2.0), ("prompt", "steps-9"),
])  # fmt: skip
def test_a_setting_out_of_range_is_said(tiny_llama, tmp_path, field, value):
    with pytest.raises(InputError, match=field):
        align.align(tiny_llama, tmp_path / "out", train=problems("train", 2), test=problems("test", 2), **{field: value})
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_aligned_is_said(tiny_llama, tmp_path):
    train, test = problems("train", 2), problems("test", 2)
    with pytest.raises(InputError, match="0 training and 2 test"):
        align.align(tiny_llama, tmp_path / "out", train=test, test=test)
    with pytest.raises(InputError, match="2 training and 0 test"):
        align.align(tiny_llama, tmp_path / "out", train=train, test=[])
    low_bit = tmp_path / "low"
    shutil.copytree(tiny_llama, low_bit)
    config = json.loads((low_bit / "config.json").read_text())
    (low_bit / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "compressed-tensors"}}))
    with pytest.raises(InputError, match="is quantized"):
        align.align(str(low_bit), tmp_path / "out", train=train, test=test)
    held = align._Samples(tmp_path / "out.samples.jsonl")
    with pytest.raises(InputError, match="in use by another"):
        align.align(tiny_llama, tmp_path / "out", train=train, test=test)
    held.close()


def test_a_damaged_line_is_said_and_the_others_count(aligned, tmp_path):
    lines = (aligned[0].parent / "model.samples.jsonl").read_bytes().splitlines(keepends=True)[:3]
    file = tmp_path / "out.samples.jsonl"
    file.write_bytes(lines[0] + b'{"version": 1}\n' + lines[2])
    with pytest.warns(UserWarning, match="1 damaged line"):
        samples = align._Samples(file)
    for line in (lines[0], lines[2]):
        kept = json.loads(line)
        assert samples.get(kept["made_by"], kept["problem"]) is not None
    samples.close()
