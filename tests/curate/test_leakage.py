"""What counts as a leak: planted ones are found, every one of a mix-up is, and what is another problem is clean."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmend import Problem
from stepmend.benchmarks.sources import Data
from stepmend.curate import leakage
from stepmend.curate.leakage import Hit, Index, check_all

QUESTION = (
    "Maria's bakery sold 1,250 loaves on Monday at $3.50 each, and twice as many loaves on Tuesday. "
    "She gave away 40 of them to the school next door. How much money did the bakery make on both days?"
)
OTHERS = (
    "A tank holds 90 litres of water and loses 2 litres an hour. After how many hours is it half empty?",
    "What is the sum of the first 20 odd numbers?",
)


def problem(question: str, name: str = "tuning", split: str = "train") -> Problem:
    return Problem(id=name, benchmark="b", split=split, level="all", question=question, answer="1")


def against(question: str, *evaluation: str) -> Hit | None:
    return Index([problem(text, f"e{i}", "test") for i, text in enumerate(evaluation)]).check(problem(question))


def planted(question: str) -> tuple[str, str] | None:
    """The kind and the evaluation question of a hit, where QUESTION stands between others."""
    hit = against(question, OTHERS[0], QUESTION, OTHERS[1])
    return hit and (hit.kind, hit.held_out)


def gsm8k(folder, split: str) -> list[Problem]:
    lines = (folder / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [problem(json.loads(line)["question"], f"{split}-{i}", split) for i, line in enumerate(lines)]


@pytest.mark.parametrize(
    "written",
    [
        QUESTION,
        QUESTION.upper(),
        QUESTION.replace(",", "").replace("'", "’").replace("?", " !"),
        QUESTION.replace(" ", "\n\t "),
        QUESTION.replace("door. How", "door.How"),
        QUESTION.replace("1,250", "1250").replace("$", "\\$"),
        QUESTION.replace("1,250", "1 250"),
        QUESTION.replace("1,250", "1\u202f250"),
        QUESTION.replace("1,250", "$1{,}250$"),
        QUESTION.replace("1,250", "1,\\!250"),
        QUESTION.replace("1,250", "１,２５０").replace("Maria", "Ｍａｒｉａ"),
        QUESTION.replace("bakery", "ba\u200bke\u00adry").replace("40", "\u200f40\u200e"),
    ],
)
def test_a_planted_question_is_the_same_however_it_is_written(written):
    assert planted(written) == ("same", "e1")


def test_another_number_is_not_the_same():
    assert planted(QUESTION.replace("3.50", "350")) == ("overlap", "e1")
    assert against("What is 3.5 of 100?", "What is 35 of 100?").kind == "near"
    assert against("What is 17 of 100?", "What is 18 of 100?").kind == "near"


def test_signs_and_spaces_count_for_nothing():
    assert against("What is 16-100?", "What is 16 - 100?").kind == "same"
    assert against("The mean of 90, 100 and 7?", "the mean of 90 100 and 7").kind == "same"
    assert against("What is 2 + 3?", "What is 2 - 3?").kind == "same"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $\\dfrac{1}{2}+\\left(x\\right)$.", "Find $\\frac12+(x)$."),
        ("كم ثمن ١٬٢٥٠ تفاحة؟", "\u200fكم ثمن 1250 تفاحة"),
        ("汤姆有12个苹果。他有多少？", "汤姆有 12 个苹果, 他有多少?"),
        ("हिन्दी में २० सेब", "हिन्दी में 20 सेब।"),
        ("Straße Σίσυφος", "STRASSE ΣΊΣΥΦΟΣ"),
    ],
)
def test_other_scripts_and_latex_are_the_same(one, other):
    assert against(one, other).kind == "same"


def test_vowel_signs_are_part_of_words():
    assert against("कि", "की") is None


def test_the_same_id_is_the_same_problem():
    index = Index([problem(QUESTION, "a"), problem(OTHERS[0], "b")])
    assert index.check(problem("Another question.", "b")) == Hit("b", "b", "same", 0.0)
    assert index.check(problem("", "b")) == Hit("b", "b", "same", 0.0)
    assert index.check(problem(QUESTION, "c")) == Hit("c", "a", "same", 1.0)


def test_a_question_embedded_in_a_longer_text_overlaps():
    hit = against(f"Read this with care, then answer in one line.\n{QUESTION}\nThink first.", OTHERS[0], QUESTION)
    assert (hit.kind, hit.held_out) == ("overlap", "e1")
    assert 0.5 < hit.shared < 1


def test_thirteen_words_are_needed():
    words = [f"w{letter}" for letter in "abcdefghijklm"]
    assert against(" ".join(["before", *words, "after"]), " ".join(["other", *words, "end"])) == Hit("tuning", "e0", "overlap", 1 / 3)
    assert against(" ".join(["before", *words[1:], "after"]), " ".join(["other", *words[1:], "end"])) is None
    assert against(" ".join(words[:5]), " ".join(words)) is None, "a short text is one run"


def test_the_evaluation_question_that_shares_most_is_named():
    start = " ".join(QUESTION.split()[:16])
    assert against(QUESTION, start, f"{QUESTION} Round it.", f"{QUESTION} Be exact.").held_out == "e1"


SHOP = "Tom buys {} bags with {} red apples each and eats {} of them, then {} friends take {} each. How many red apples are left?"


def test_other_numbers_are_near():
    one, other = SHOP.format(4, 12, 3, 2, 5), SHOP.format("1,400", 9.5, "three", "twenty-one", 60)
    assert against(one, OTHERS[0], other) == against(other, OTHERS[0], one) == Hit("tuning", "e1", "near", 1.0)
    assert against("What is 17 + 4?", "What is 3 - thirty?") == Hit("tuning", "e0", "near", 1.0)


def test_near_needs_half_of_the_runs():
    numbered = SHOP.format(4, 12, 3, 2, 5)
    other = SHOP.format(5, 13, 7, 8, 6)
    assert against(f"{numbered} Give a number.", other).kind == "near"
    assert against(f"{numbered} {OTHERS[0]}", other) is None


def test_the_gravest_kind_is_named():
    question = SHOP.format(4, 12, 3, 2, 5)
    near, overlap = SHOP.format(5, 13, 7, 8, 6), f"Ann has pears. {question[-72:]}"
    assert against(question, near).kind == "near"
    assert against(question, near, overlap).kind == "overlap"
    assert against(question, near, overlap, question).kind == "same"


def test_other_names_and_another_structure_are_clean():
    assert (
        against(
            "Ann has 3 jars of 12 pickles, sells 4 of all of them, and shares the rest with 2 people. How many has each?",
            SHOP.format(4, 12, 3, 2, 5),
        )
        is None
    )
    assert (
        planted("Tom's garage washed 1,250 cars in May and 40 fewer in June. How much did it earn in June, at $3.50 for one car?") is None
    )


@pytest.mark.parametrize("question", ["", " ", "?!…—", "$$\\$", "\u200b\u200f", "😀 ❤️"])
def test_a_question_without_words_is_clean(question):
    assert against(question, "", "?", question) is None


@pytest.mark.parametrize("sign", ["word 7 ", "a", "1", "1,000", "1 000 ", "one ", "\\", "汉", "e\u0301"])
def test_a_text_of_a_megabyte(sign):
    text = sign * (1_000_000 // len(sign))
    begin = time.perf_counter()
    hit = against(text, text, QUESTION)
    assert (hit and hit.kind) == (None if sign == "\\" else "same")
    assert against(text, QUESTION) is None
    assert time.perf_counter() - begin < 30


def test_no_problem_of_a_mix_up_gets_through_of_story():
    test = Data("story").problems("test", 90, 0)
    renamed = [p.model_copy(update={"id": f"renamed-{i}"}) for i, p in enumerate(test)]
    for tuned in (test, renamed):
        hits, counts = check_all(tuned, Index(test))
        assert [(h.problem, h.held_out) for h in hits] == [(t.id, e.id) for t, e in zip(tuned, test, strict=True)]
        assert counts == {"checked": 90, "same": 90, "overlap": 0, "near": 0, "clean": 0}


def test_no_problem_of_a_mix_up_gets_through_of_gsm8k(shared_data):
    test = gsm8k(shared_data, "test")
    shouted = [problem(p.question.upper().replace(",", ""), f"shouted-{i}") for i, p in enumerate(test)]
    assert check_all(shouted, Index(test))[1] == {"checked": 1319, "same": 1319, "overlap": 0, "near": 0, "clean": 0}


def test_gsm8k_is_split_with_four_overlaps(shared_data):
    train, test = gsm8k(shared_data, "train"), gsm8k(shared_data, "test")
    begin = time.perf_counter()
    index = Index(test)
    check_all(train[:4500], index)
    assert time.perf_counter() - begin < 30
    hits, counts = check_all(train, index)
    assert counts == {"checked": 7473, "same": 0, "overlap": 4, "near": 1, "clean": 7468}
    assert [h.held_out for h in hits if h.kind == "overlap"] == ["test-632", "test-581", "test-602", "test-602"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tom's 1,000 Eggs!", "tom s 1000 eggs"),
        ("1{,}000 1,\\!000 1\\,000 1'000 1’000 1,234,567.5 12,34,567 ١٬٢٥٠", "1000 1000 1000 1000 1000 1234567.5 1234567 1250"),
        ("12,34 1,2,300 0.123,456 12,3456", "12 34 1 2 300 0.123 456 12 3456"),
        ("ba\u200bke\u00adry \u200f40\u200e ❤\ufe0f e\u200d\u0301", "bakery 40 \u00e9"),
        ("\\left(x\\right) \\leftarrow \\tfrac ½", "x leftarrow frac 1 2"),
    ],
)
def test_ngrams_are_of_normalised_words(text, words):
    assert leakage.ngrams(text) == {words}


def test_there_are_as_many_ngrams_as_places():
    assert leakage.ngrams("?") == set()
    assert len(leakage.ngrams(" ".join(f"w{i}" for i in range(20)))) == 20 - leakage.NGRAM + 1


TEXT = st.one_of(
    st.text(), st.text(alphabet="ab1, .'\\{}!\u200b\u0301one", max_size=60), st.lists(st.sampled_from(QUESTION.split())).map(" ".join)
)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=5), st.lists(TEXT, max_size=5))
def test_any_text_can_be_checked(tuned, evaluation):
    problems = [problem(text, f"t{i}") for i, text in enumerate(tuned)]
    hits, counts = check_all(problems, Index([problem(text, f"e{i}") for i, text in enumerate(evaluation)]))
    assert counts["checked"] == len(tuned) == sum(counts[kind] for kind in ("same", "overlap", "near", "clean"))
    assert len(hits) == counts["checked"] - counts["clean"]
    assert all(0 < h.shared <= 1 for h in hits if h.kind != "same") and all(0 <= h.shared <= 1 for h in hits)


@settings(deadline=None)
@given(TEXT.filter(lambda text: any(sign.isalnum() for sign in text)))
def test_a_question_is_the_same_as_itself(text):
    assert against(text, "", text) == Hit("tuning", "e1", "same", 1.0)


@settings(deadline=None)
@given(TEXT)
def test_the_order_of_the_evaluation_decides_nothing_but_between_equals(text):
    evaluation = [problem(QUESTION, "a"), problem(f"{QUESTION} More.", "b"), problem(OTHERS[0], "c")]
    one, other = Index(evaluation).check(problem(text)), Index(evaluation[::-1]).check(problem(text))
    assert (one and (one.kind, one.shared)) == (other and (other.kind, other.shared))
