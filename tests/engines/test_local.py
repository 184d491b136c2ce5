"""Generation: order, limits, and batches that do not depend on what is left to do."""

import pytest

from stepmend.engines.local import LocalEngine, batches, complete_all
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS

QUESTIONS = (
    "Tom has 29 apples. Tom finds 12 more apples. How many apples does Tom have now?",
    "Ann has 7 books. Ann buys 3 bags of 4 books. Ann loses 5 books. How many books does Ann have now?",
    "Leo has 40 coins. Leo sells 8 coins. Leo finds 2 more coins. How many coins does Leo have now?",
)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    folder = str(CHECKPOINTS / "llama")
    return LocalEngine(load.load_model(folder), load.load_tokenizer(folder), 120)


def test_completions_come_in_the_order_of_the_texts_and_end_by_themselves(engine):
    texts = [chat.render(engine.tokenizer, "plain-1", q) for q in QUESTIONS]
    together = complete_all(engine, texts, 2)
    assert [c.text for c in together] == [engine.complete([text])[0].text for text in texts]
    assert {c.finish for c in together} == {"stop"}
    assert all(c.tokens[-1] == engine.tokenizer.eos_token_id for c in together)


def test_a_limit_cuts_and_says_so(engine):
    (cut,) = LocalEngine(engine.model, engine.tokenizer, 5).complete([chat.render(engine.tokenizer, "plain-1", QUESTIONS[0])])
    assert (len(cut.tokens), cut.finish) == (5, "length")


def test_batches_hold_everything_once_longest_first():
    texts = ["a" * n for n in (3, 9, 1, 9, 4)]
    assert list(batches(texts, 2)) == [[1, 3], [4, 0], [2]]


def test_token_spans_join_back(engine):
    (completion,) = engine.complete([chat.render(engine.tokenizer, "plain-1", QUESTIONS[1])])
    spans = chat.token_spans(engine.tokenizer, completion.tokens)
    assert "".join(completion.text[a:b] for a, b in spans) == completion.text
