"""What a model is asked."""

import json
import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stepmend import InputError
from stepmend.keys import Chat
from stepmend.models import chat, load


def test_a_template_that_writes_the_date_asks_the_same_tomorrow(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    for today in ("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"):
        tokenizer.chat_template = today + " {{ messages[0].content }}"
        assert chat.render(tokenizer, "plain-1", "How many?") == "01 Jan 2025 How many?"


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
QWEN3 = TURNS + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
"""As Qwen3's: who does not think is given an empty thought."""
R1 = TURNS + "{{ '<think>\\n' }}"
"""As DeepSeek-R1's: the question ends in the thought's beginning."""
MIXED = TURNS + "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
"""As DeepSeek-V3.1's, whose switch has another name."""


def with_template(folder, template):
    tokenizer = load.load_tokenizer(folder)
    tokenizer.chat_template = template
    return tokenizer


def test_a_model_that_may_think_is_asked_for_its_steps_where_nothing_else_is_said(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    assert chat.render(tokenizer, "plain-1", "How many?") == "How many?"


@pytest.mark.parametrize(
    ("template", "wanted", "form"),
    [
        (QWEN3, {}, chat.Form("think-1", thinking=True)),
        (QWEN3, {"thinking": False}, chat.Form("steps-1")),
        (QWEN3, {"thinking": True, "prompt": "steps-1"}, chat.Form("steps-1", thinking=True)),
        (R1, {}, chat.Form("think-1", opening="<think>\n")),
        (R1, {"thinking": True}, chat.Form("think-1", opening="<think>\n")),
        (MIXED, {}, chat.Form("think-1", thinking=True, opening="<think>")),
        (MIXED, {"thinking": False}, chat.Form("steps-1")),
        (TURNS, {}, chat.Form("steps-1")),
        (TURNS, {"system": "Be brief.", "prompt": "Q: {question}"}, chat.Form("Q: {question}", "Be brief.")),
    ],
)
def test_models_are_asked_as_they_are_used(tiny_llama, tmp_path, template, wanted, form):
    tokenizer = with_template(tiny_llama, template)
    assert chat.form_of(tokenizer, str(tmp_path), Chat(**wanted)) == form
    assert form.thinks == (form.prompt == "think-1" or ("thinking" in wanted and wanted["thinking"]))
    assert (form.name == form.prompt) == (form.system is None and not form.thinking)
    asked = form.render(tokenizer, "1 + {x}?")
    assert asked.startswith("[system]Be brief.[user]Q: 1 + {x}?" if form.system else "[user]1 + {x}?")
    assert asked.endswith(form.opening) and (not form.opening or "<think>" in form.opening)


@pytest.mark.parametrize(
    ("template", "wanted", "message"),
    [
        (TURNS, {"thinking": True}, "chat.thinking = true: the model's chat template has no switch for thinking"),
        (R1, {"thinking": False}, "chat.thinking = false: the model's chat template always opens a thought"),
        ("{{ messages[-1].content }}", {"system": "Be brief."}, "chat.system: the model's chat template takes no system message"),
        ("{{ raise_exception('no system role') if messages[0].role == 'system' }}x", {"system": "S"}, "takes no system message"),
    ],
)
def test_what_a_template_cannot_do_is_said(tiny_llama, tmp_path, template, wanted, message):
    with pytest.raises(InputError, match=re.escape(message)):
        chat.form_of(with_template(tiny_llama, template), str(tmp_path), Chat(**wanted))


def test_an_aligned_model_is_asked_as_it_was_taught_without_a_thought(tiny_llama, tmp_path):
    (tmp_path / chat.ALIGNED).write_text(json.dumps({"settings": {"prompt": "steps-1"}}))
    assert chat.form_of(with_template(tiny_llama, QWEN3), str(tmp_path)) == chat.Form("steps-1")


def test_thoughts_are_given_room_as_far_as_the_model_has_positions(tiny_llama):
    config = load.config_of(tiny_llama)
    thinking = chat.Form("think-1", thinking=True)
    config.max_position_embeddings = 4096
    assert chat.tokens_for(thinking, config) == 3072
    config.max_position_embeddings = 131_072
    assert chat.tokens_for(thinking, config) == 32_768
    assert (chat.tokens_for(chat.Form("steps-1"), config), chat.tokens_for(chat.Form("plain-1"), config, builtin=True)) == (1024, 180)


def test_a_token_s_span_is_what_it_adds_to_the_text():
    """Of bytes, which split characters, as of whole decoding of every beginning."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(["two apples and 12 more"], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choice(["two", " apples", " ", "\n", "é", "数", "🍎", "12", "<|end|>"]) for _ in range(40))
        tokens = tokenizer(text)["input_ids"]
        ends = [len(tokenizer.decode(tokens[:count], skip_special_tokens=True)) for count in range(len(tokens) + 1)]
        spans = chat.token_spans(tokenizer, tokens)
        assert all(begin == last for (begin, _), (_, last) in zip(spans[1:], spans, strict=False))
        for (_, end), whole, following in zip(spans, ends[1:], [*ends[2:], ends[-1]], strict=True):
            assert whole == end or whole > following, "a character in pieces may be written as more than it is"


def test_what_is_shown_are_earlier_turns_in_the_same_prompt(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert chat.render(tokenizer, "plain-1", "B?", [("A?", "1")]) == "[user]A?[assistant]1[user]B?"
    assert chat.render(tokenizer, "steps-1", "B?", [("A?", "1")]).count("one step a line") == 2


def test_thoughts_marked_by_special_tokens_are_seen_and_other_special_tokens_are_not(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    text = "[THINK]Step 1: 2 + 2 = 4[/THINK]4<|end|>"
    plain = chat.encode(tokenizer, text)
    assert chat.decode(tokenizer, plain) == "[THINK]Step 1: 2 + 2 = 4[/THINK]4" == tokenizer.decode(plain, skip_special_tokens=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    tokens = chat.encode(tokenizer, text)
    assert "[THINK]" not in tokenizer.decode(tokens, skip_special_tokens=True)
    assert chat.decode(tokenizer, tokens) == "[THINK]Step 1: 2 + 2 = 4[/THINK]4"
    spans = chat.token_spans(tokenizer, tokens)
    assert (spans[0], spans[-1]) == ((0, 7), (33, 33))
