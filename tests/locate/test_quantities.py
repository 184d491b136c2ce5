"""Numbers and calculations, as people and models write them."""

import pytest

from stepmend.locate import quantities


@pytest.mark.parametrize(
    ("text", "operands", "signs", "result"),
    [
        ("3 * 4 = 12", (3, 4), "*", 12),
        ("so he needs 15 - 6 = <<15-6=9>>9 pens", (15, 6), "-", 9),
        (r"\[ \frac{2100}{5} = 420 \]", (2100, 5), "/", 420),
        (r"\[ 2 \text{ hours} \times 60 \text{ mph} = 120 \text{ miles} \]", (2, 60), "*", 120),
        ("Total = 10 * $2 = $20", (10, 2), "*", 20),
        ("$30,000 - $6000 = $24,000", (30000, 6000), "-", 24000),
        ("3 pens x 5 boxes = 15", (3, 5), "*", 15),
        ("(1/2)(20) = 10", (1, 2, 20), "*/", 10),
        ("90% of 2000 = 1800", (90, 100, 2000), "*/", 1800),
        ("a total profit of 30*4 = 120", (30, 4), "*", 120),
        ("4 bags * $4/bag = $16", (4, 4), "*", 16),
        ("4 bags (large) * 4 = 16", (4, 4), "*", 16),
        ("7 - 9 = -2", (7, 9), "-", -2),
        ("2 + 3(10) = 32", (2, 3, 10), "*+", 32),
        ("3 * 4 = 12 - (6 of them red)", (3, 4), "*", 12),
        ("3 * 4 = 12 - what else?", (3, 4), "*", 12),
        ("3 * 4 = 12 - that is all", (3, 4), "*", 12),
    ],
)
def test_a_calculation(text, operands, signs, result):
    (found,) = quantities.calculations(text)
    assert found.operands == operands
    assert found.operators == frozenset(signs)
    assert found.result == result
    assert found.holds


def test_a_chain_has_the_calculation_that_ends_in_a_number():
    found = quantities.calculations(r"\[ \frac{14400}{3} - 100 = 4800 - 100 = 4700 \]")
    assert [(c.operands, c.result) for c in found] == [((4800, 100), 4700)]


def test_what_does_not_hold():
    (found,) = quantities.calculations("120 miles + 150 miles = 370 miles")
    assert not found.holds
    assert found.value == 270


@pytest.mark.parametrize(
    "text", ["", "x = 3", "there are 25 pupils", "2 + 2", "1/0 = 3", "10^400 = 3", "= = =", "(3 + = 4", "%% = 5", "3 : 4 = 5"]
)
def test_what_is_no_calculation(text):
    assert quantities.calculations(text) == []


def test_parts_are_the_values_on_the_way():
    (found,) = quantities.calculations("2/5 * 1500 = 600")
    assert found.parts == {0.4, 600}


@pytest.mark.parametrize(
    ("one", "other", "alike"), [(1306.67, 1306.6667, True), (0, 0.001, False), (12, 12.004, True), (12, 13, False), (1e9, 1e9 + 1, True)]
)
def test_same_up_to_rounding(one, other, alike):
    assert quantities.same(one, other) == alike


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("two three four five six seven eight nine ten eleven twelve", range(2, 13)),
        ("twenty thirty forty fifty sixty hundred thousand", [20, 30, 40, 50, 60, 100, 1000]),
        ("twice triple quadruple pair dozen", [2, 3, 4, 2, 12]),
        ("half third quarter fifth tenth", [1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 10]),
        ("minute hour day week year", [60, 60, 24, 7, 12]),
    ],
)
def test_what_words_stand_for(text, values):
    assert quantities.worded(text) == [*values]


def test_numbers_in_digits_and_words():
    assert quantities.numbers("$1,200 for 2.5 kg") == [1200, 2.5]
    assert quantities.worded("twice as many in half a dozen weeks") == [2, 0.5, 12, 7]
