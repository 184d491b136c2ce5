"""Broken solutions with a known first fault, on a real model."""

import itertools

import pytest

from stepmend import Trace
from stepmend.benchmarks import story
from stepmend.engines.local import LocalEngine
from stepmend.grading import boxed
from stepmend.locate import locators
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS


@pytest.fixture(scope="package")
def full() -> LocalEngine:
    folder = str(CHECKPOINTS / "qwen2")
    return LocalEngine(load.load_model(folder), load.load_tokenizer(folder), 180)


def trace_of(engine: LocalEngine, text: str) -> Trace:
    tokens = (*chat.encode(engine.tokenizer, text), engine.tokenizer.eos_token_id)
    return Trace(problem="p", arm="a", made_by="t", text=text, tokens=tokens, finish="stop")


@pytest.fixture(scope="package")
def broken(full):
    """Easy problems that full precision solves, each with one result in its reference solution changed and the rest following it."""
    cases = []
    problems = list(itertools.islice(story.problems("curate", "easy", seed=3), 24))
    prompts = [chat.render(full.tokenizer, "plain-1", p.question) for p in problems]
    for place, (problem, prompt, solved) in enumerate(zip(problems, prompts, full.complete(prompts), strict=True)):
        lines = solved.text.splitlines()
        if boxed(solved.text) != problem.answer or len(lines) < 3:
            continue
        step = place % (len(lines) - 1)
        head, _, result = lines[step].rpartition(" = ")
        prefix = "".join(f"{line}\n" for line in [*lines[:step], f"{head} = {int(result) + 1}"])
        (rest,) = full.complete([prompt + prefix])
        trace = trace_of(full, prefix + rest.text)
        if boxed(trace.text) != problem.answer:
            cases.append((step, problem, locators.make_case(prompt, trace, trace_of(full, solved.text))))
    assert len(cases) >= 8
    return cases


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
