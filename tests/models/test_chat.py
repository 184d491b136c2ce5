"""What a model is asked."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stepmend.models import chat, load


def test_a_template_that_writes_the_date_asks_the_same_tomorrow(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    for today in ("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"):
        tokenizer.chat_template = today + " {{ messages[0].content }}"
        assert chat.render(tokenizer, "plain-1", "How many?") == "01 Jan 2025 How many?"


def test_a_model_that_may_think_is_asked_for_its_steps(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    assert chat.render(tokenizer, "plain-1", "How many?") == "How many?"


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
