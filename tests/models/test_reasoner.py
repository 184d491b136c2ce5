"""The built-in reasoners: ordinary checkpoints, small, lossless tokenizer, and they solve what they were trained for."""

import itertools
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepmend import InputError
from stepmend.benchmarks import story
from stepmend.models import load, reasoner
from stepmend.models.train_reasoner import accuracy, make_batches, train

LEAST = {"easy": 0.9, "medium": 0.7, "hard": 0.4}
"""Below the measured accuracies by several standard errors of 120 problems: guards against a broken checkpoint, decides nothing."""


@pytest.fixture(scope="module")
def tokenizer():
    return load.load_tokenizer(str(reasoner.CHECKPOINTS / "qwen2"))


def test_small_and_whole(family):
    from transformers import AutoConfig

    folder = reasoner.CHECKPOINTS / family
    load.check(folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12_000_000
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == family
    assert config.hidden_size % 128 == config.intermediate_size % 128 == 0


def test_every_loader_reads_as_the_tokenizer_that_is_made(family):
    """transformers gives a Qwen2 checkpoint Qwen2's own splitting of text; the ids must be the same all the same."""
    made, loaded = reasoner.make_tokenizer(), load.load_tokenizer(str(reasoner.CHECKPOINTS / family))
    assert made.chat_template == loaded.chat_template
    for problem in itertools.islice(story.problems("test", "hard", seed=3), 100):
        text = f"<|user|>{problem.question}<|assistant|>{story.program_of(problem).solution()}<|end|>"
        assert made(text)["input_ids"] == loaded(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_one_token_a_digit_and_none_unknown(tokenizer):
    for problem in itertools.islice(story.problems("test", "hard", seed=2), 100):
        text = problem.question + story.program_of(problem).solution()
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert sum(any(c.isdigit() for c in piece) for piece in pieces) == sum(c.isdigit() for c in text)
        assert len(pieces) < reasoner.MAX_LENGTH


@given(text=st.text())
@example(text="\U0002f800")
@example(text="e\u0301")
def test_any_text_survives_the_tokenizer(tokenizer, text):
    # transformers gives a Qwen2 checkpoint Qwen2's normal form too: canonically the same text, composed.
    kept = text if tokenizer.backend_tokenizer.normalizer is None else unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == kept


def test_accuracy_on_held_out_problems(family):
    folder = str(reasoner.CHECKPOINTS / family)
    model, tokenizer = load.load_model(folder), load.load_tokenizer(folder)
    for level, least in LEAST.items():
        assert accuracy(model, tokenizer, level, 120, split="test") >= least, level


def test_training_resumes_where_it_stopped(tmp_path, capsys):
    common = {"tokens": 300, "seed": 0, "device": "cpu", "checkpoint_every": 2, "checks": 2}
    train("qwen2", tmp_path / "run", steps=2, **common)
    train("qwen2", tmp_path / "run", steps=4, **common)
    assert "continues at step 2" in capsys.readouterr().out
    load.check(tmp_path / "run" / "checkpoint")


def test_batches_are_a_function_of_the_seed(tokenizer):
    first, again, other = (make_batches(tokenizer, seed, 100, tokens=500, per_chunk=4) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 4
    assert all(len(batch) * max(len(row.ids) for row in batch) <= 500 for batch in first)


def test_unknown_family_is_said():
    with pytest.raises(InputError, match="allowed: qwen2, llama"):
        reasoner.make_config("gpt2", 512)
