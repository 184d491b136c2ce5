"""The vLLM engine against the arguments that its documentation names; vLLM itself needs an environment of its own (docs/guides)."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from stepmend import InputError
from stepmend.engines.vllm import AT_ONCE, VLLMEngine
from stepmend.models import load
from stepmend.models.reasoner import CHECKPOINTS

FOLDER = str(CHECKPOINTS / "qwen2")


@pytest.fixture
def loaded(monkeypatch):
    """What was loaded, and what was asked; the stand-in answers with the seed and the first token of each prompt."""
    module, seen = ModuleType("vllm"), []

    class LLM:
        def __init__(self, model, **options):
            if options["dtype"] == "bad":
                raise ValueError("no such\ndtype")
            seen.append((model, options))

        def generate(self, prompts, sampling, use_tqdm):
            assert not use_tqdm and len(prompts) == len(sampling) <= AT_ONCE
            seen.append([one.__dict__ for one in sampling])
            pairs = zip(prompts, sampling, strict=True)
            made = [(f"{s.seed}", [p["prompt_token_ids"][0], s.stop_token_ids[0]]) for p, s in pairs]
            return [SimpleNamespace(outputs=[SimpleNamespace(text=t, token_ids=i, finish_reason="stop")]) for t, i in made]

    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return seen


def test_texts_go_in_as_token_ids_and_all_sampling_is_named(loaded):
    counted = []
    engine = VLLMEngine(FOLDER, load.load_tokenizer(FOLDER), 20, "float32", counted.append)
    whole = dict(engine.generate(["a", "b", "a"], temperature=0.5, seed=1))
    part = dict(engine.generate(["a", "b", "a"], temperature=0.5, seed=1, done={0, 1}))
    assert part == {2: whole[2]} and whole[0] != whole[2] and sum(counted) == 8
    (model, options), asked, _ = loaded
    assert (model, options["dtype"], options["generation_config"]) == (FOLDER, "float32", "vllm")
    assert options["max_model_len"] <= load.config_of(FOLDER).max_position_embeddings
    ends = sorted(load.ends_of(FOLDER))
    assert [(one["temperature"], one["top_p"], one["max_tokens"], one["stop_token_ids"]) for one in asked] == [(0.5, 1.0, 20, ends)] * 3


def test_many_texts_are_asked_in_parts_and_a_stop_keeps_what_came(loaded):
    engine = VLLMEngine(FOLDER, load.load_tokenizer(FOLDER), 20)
    first = next(engine.generate(["a"] * (AT_ONCE + 1)))
    assert first[0] == 0 and len(loaded) == 2  # loaded, and asked for the first part alone
    engine.close()
    assert len(dict(engine.generate(["a"]))) == 1 and len(loaded) == 4


def test_what_vllm_cannot_load_is_one_line(loaded):
    with pytest.raises(InputError, match=r"engine vllm: cannot load .* \(no such dtype\)"):
        list(VLLMEngine(FOLDER, load.load_tokenizer(FOLDER), 20, "bad").generate(["a"]))
