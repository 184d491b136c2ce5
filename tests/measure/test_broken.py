"""Broken runs are called so."""

from stepmend.measure.broken import broken


def test_what_is_broken():
    good = [f"The {i} of {i} is {i}, and so the answer is \\boxed{{{i}}}." for i in range(10)]
    assert broken(good) is None
    assert broken([*good[:4], *["0" * 30] * 6]) == "6 of 10 texts loop"
    assert broken([*good[:4], *["so it is \\boxed{460} " * 1000] * 6]) == "6 of 10 texts loop"
    assert broken([*good[:4], *[""] * 6]) == "6 of 10 texts are empty"
    assert broken([*good[:2], *["I am sorry, but I cannot help with this request at all."] * 8]) == "8 of 10 texts are the same"
    assert broken(["C"] * 10) is None, "a letter is an answer"
    assert broken(["000000000000"] * 3) is None, "too few to tell"
    assert broken([None] * 10) is None
