"""What a model is asked."""

from stepmend.models import chat, load


def test_a_template_that_writes_the_date_asks_the_same_tomorrow(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    for today in ("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"):
        tokenizer.chat_template = today + " {{ messages[0].content }}"
        assert chat.render(tokenizer, "plain-1", "How many?") == "01 Jan 2025 How many?"


def test_what_is_shown_are_earlier_turns_in_the_same_prompt(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert chat.render(tokenizer, "plain-1", "B?", [("A?", "1")]) == "[user]A?[assistant]1[user]B?"
    assert chat.render(tokenizer, "steps-1", "B?", [("A?", "1")]).count("one step a line") == 2
