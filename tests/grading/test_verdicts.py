"""Answers as real models write them, by kind: what is extracted, and what equals what."""

import pytest

from stepmend import grading
from stepmend.grading import verify

SAID = {
    "thoughts": [
        ("<think>maybe \\boxed{5}</think> The answer is 12.", "12"),
        ("<think>so \\boxed{5} is it", None),
        ("maybe \\boxed{5}\n</think>\n\nIt is \\boxed{7}.", "7"),
        ("<think>a</think> It is \\boxed{7}. <think>was it?</think>", "7"),
        ("<think>\\boxed{5}</think>", None),
        ("<Thinking>\\boxed{5}</Thinking>\n#### 6", "6"),
        ("[THINK]\\boxed{5}[/THINK]so \\boxed{6}", "6"),
        ("◁think▷\\boxed{5}◁/think▷ 6", "6"),
        ("<reasoning>\\boxed{5}</reasoning><answer>6</answer>", "6"),
        ("<|begin_of_thought|>\\boxed{5}<|end_of_thought|> so \\boxed{6}", "6"),
        ("<|channel|>analysis<|message|>\\boxed{3}<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>", "4"),
        ("<|channel|>analysis<|message|>perhaps \\boxed{3}", None),
        ("<|channel|>commentary<|message|>\\boxed{3}<|call|>", None),
        ("analysisWe think \\boxed{3}assistantfinalThe answer is 4.", "4"),
        ("analysisWe think \\boxed{3}", None),
        ("<|im_start|>user\nWhat is 2+2? \\boxed{}<|im_end|>\n<|im_start|>assistant\nIt is \\boxed{4}<|im_end|>", "4"),
    ],
    "run-on questions": [
        ("So 18.\n#### 18\n\nQuestion: Tom has 3.\nAnswer: 1+2\n#### 3", "18"),
        ("She has 9 * 2 = 18 dollars.\n\nQ: Tom has 3.\nA: 1+2=3", "18"),
        ("\\boxed{18}\n\n**Problem 2**\nFind x.\n\\boxed{3}", "18"),
        ("Final Answer: The final answer is $18$. I hope it is correct.\n\nProblem:\nFind x.\n\nSolution: \\boxed{3}", "$18$"),
        ("The answer is 18.\n\nHuman: thanks\n\nAssistant: The answer is 3.", "18"),
        ("#### 18<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n#### 3", "18"),
        ("Question: what is 9 * 2?\nAnswer: 18", "18"),
        ("**Problem:** Find 9 * 2.\n\n**Solution:** it is \\boxed{18}", "18"),
    ],
    "restated exercises": [
        ("Put it into \\boxed{?}.\nSolution: 3 + 4\n#### 7", "7"),
        ("Answer with \\boxed{answer}. So 3 + 4 = 7. The answer is 7.", "7"),
        ("The form is \\boxed{...}: 3 + 4 gives \\boxed{7}", "7"),
    ],
    "several boxes": [
        ("The solutions are \\boxed{-4} and \\boxed{3}.", "-4, 3"),
        ("$x=\\boxed{1}$ or $x=\\boxed{2}$", "1, 2"),
        ("\\boxed{1}, \\boxed{2}, and \\boxed{3}", "1, 2, 3"),
        ("- \\boxed{1}\n- \\boxed{2}", "1, 2"),
        ("\\boxed{1} and so the total is \\boxed{2}", "2"),
        ("It is \\boxed{1}. No, wait: \\boxed{2}", "2"),
        ("\\boxed{12} or \\boxed{12}", "12"),
        ("first \\boxed{12}\n\nagain \\boxed{12}", "12"),
    ],
    "marks and tails": [
        ("FINAL_ANSWER: 41", "41"),
        ("Final answer - 12", "12"),
        ("<answer>12</answer>", "12"),
        ("<answer>\n12\n</answer>", "12"),
        ("**Answer**: 12", "12"),
        ("**Final Answer**\n\n12", "12"),
        ("### Answer\n\n12", "12"),
        ('{"reason": "x", "answer": 12}', "12"),
        ('{"answer": "12"}', "12"),
        ("[ANSWER] 12 [/ANSWER]", "12"),
        ("Ans: 12", "12"),
        ("The answer to the second part is 12.", "12"),
        ("The answer is 42!", "42"),
        ("Answer: 42?", "42"),
        ("so the answer is $12$, and not 14.", "$12$"),
        ("The final answer is $4 + 3i.$", "$4 + 3i$"),
        ("The answers are $3$ and $5$.", "3, 5"),
        ("The answer is 5 apples because 2 + 3 = 5", "5 apples"),
        ("The answer is 12 — not 14.", "12"),
        ("The answer is that she has 18 dollars left.", "18"),
        ("The answer is the sum of 3 and 4, which is 7.", "7"),
        ("答案是 12。", "12"),
        ("La respuesta es 12.", "12"),
    ],
    "loose ends": [
        ("Tom ran \\( 3 \\times 4 = 12 \\) km. Ann ran 12 - 5 = 7 km.", "7"),
        ("so the point is (0, 1)", "(0, 1)"),
        ("which gives 3/4.", "3/4"),
        ("it is 3√5", "3√5"),
        ("that makes 4.5e33", "4.5e33"),
        ("that makes 4.5 × 10^33", "4.5 × 10^33"),
    ],
    "letters": [
        ("The correct option is C.", "C"),
        ("Therefore, (C) is correct.", "C"),
        ("Answer: C. 12 cm", "C. 12 cm"),
        ("I choose option C.", "C"),
        ("The answer is: C) 42", "C) 42"),
        ("Final Answer: (C) The square root of 2", "(C) The square root of 2"),
    ],
    "no answers": [
        ("Final Answer: The", None),
        ("#### <answer>72</answer>", "72"),
        ("The answer is 72<|eot_id|>", "72"),
        ("The answer is 72</s>", "72"),
        ("The answer is 72<|eot", "72"),
        ("so x = 3.\n\\[\\boxed", None),
        ("so x = 3.\n\\[\\boxed{", None),
        ("so x = 3, \\(y = 3 +", None),
        ("\\boxed{7}, no: \\boxed{42", None),
        ("\\boxed{40}. I was told to use \\boxed{}. That took 12 steps.", "40"),
        ("\\boxed{40}, in the form \\boxed{number}", "40"),
        ("\\boxed{40} \\boxed{\\text{your answer}}", "40"),
        ("\\boxed{40} \\boxed{\\ldots}", "40"),
        ("Answer: [your answer here]", None),
        ("The answer is correct.", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), [case for cases in SAID.values() for case in cases])
def test_what_is_extracted(text, answer):
    found = grading.extract(text)
    assert (found.answer if found else None) == answer


CUT = {
    "early mark": ("Thus, the answer is 12. Wait, let me check. Thus, the answer is 12. Wait, let me", None),
    "loose": ("So 3 + 9 = 12", None),
    "a mark that the cut goes through": ("so\n#### 1", None),
    "a mark on a line of its own, then another question": ("so\n#### 12\n\nQuestion: What is 3 + 4", "12"),
    "a mark on a line of its own at the end": ("so\n#### 12\n", "12"),
    "a box": ("It is \\boxed{12}. Wait, let me check", "12"),
    "an open box": ("It is \\boxed{12}. No, \\boxed{1", None),
}


@pytest.mark.parametrize("name", CUT)
def test_a_text_that_was_cut_off_has_no_loose_and_no_early_answer(name):
    text, answer = CUT[name]
    found = grading.extract(text, loose=False)
    assert (found.answer if found else None) == answer
    assert grading.extract(text, loose=True, whole=False) == found


@pytest.mark.parametrize(
    ("text", "answer"), [("12<|eot_id|>", "12"), ("<think>so 5</think>\n\n12", "12"), ("C)", "C)"), ("<think>5", None), ("...", None)]
)
def test_a_field_that_is_nothing_but_an_answer(text, answer):
    found = grading.bare(text)
    assert (found.answer if found else None) == answer


EQUAL = {
    "scientific notation": [
        ("4.5\\times 10^{33}", "4.5e33"),
        ("4.5 \\cdot 10^{-3}", "4.5e-3"),
        ("4.5 × 10^33", "4.5E+33"),
        ("4.5×10³³", "4.5e33"),
        ("4.5*10**33", "4.5e33"),
        ("4.5 x 10^{33}", "4.5e33"),
        ("0.00001", "1e-5"),
        ("45000", "4.5e4"),
        ("10^{33}", "1e33"),
        ("4.5\\times 10^{33}\\ \\text{erg/s}", "4.5e33"),
        ("4.5 \\times 10^{33} \\mathrm{~cm}^{-3}", "4.5e33"),
        ("-1.6e-19", "-1.6\\times10^{-19}"),
    ],
    "spaces, roots and constants": [
        ("9 500", "9500"),
        ("9\\,500", "9500"),
        ("9\u202f500", "9500"),
        ("1 234 567", "1{,}234{,}567"),
        ("3√5", "3\\sqrt5"),
        ("√(1/4)", "0.5"),
        ("3*pi", "3\\pi"),
        ("2π/3", "\\frac{2\\pi}{3}"),
        ("3*sqrt(5)", "3\\sqrt{5}"),
        ("10(26)", "260"),
        ("\\sqrt{1/n}", "\\frac{1}{\\sqrt n}"),
        ("x^(1/2)", "\\sqrt{x}"),
        ("2**10", "1024"),
        ("½", "\\frac12"),
        ("2 1/2", "\\frac52"),
        ("∞", "\\infty"),
        ("5x²", "5x^2"),
    ],
    "letters": [
        (written, "C")
        for written in ("C", "C)", "(C)", "**C**", "C.", "C) 42", "C. 12 cm", "(C) 42", "C: 42", "Option C", "option (C)", "\\text{C}",
                        "\\text{(C)}", "\\textbf{(C) }42", "\\mathrm{(C)}\\ 12", "(c)", "c)", "[C]", "$C$",
                        "The correct option is C", "C – 42")
    ] + [("C", "(C)"), ("C", "C) 42"), ("42", "(C) 42"), ("(A) 12", "A"), ("(A) 12", "12"), ("A and C", "A, C"), ("C, A", "A, C")],
    "words": [
        ("Rome", "rome"),
        ("\\text{Rome}", "Rome"),
        ("the Moon", "Moon"),
        ("\\textbf{East}", "\\text{east}"),
        ("Tom and Ann", "Ann, Tom"),
        ("yx", "xy"),
        ("five", "5"),
    ],
    "units": [("72 pens", "72"), ("72", "72 pens"), ("5.4 cents", "5.4 \\text{ cents}"), ("12 cm", "12"), ("60 km/h", "60")],
    "bases and ellipses": [
        ("2516_{8}", "2516_8"),
        ("2516", "2516_8"),
        ("2516₈", "2516_{\\text{eight}}"),
        ("2516 base 8", "2516_8"),
        ("1, 2, ..., n", "1,2,\\ldots,n"),
        ("1,3,\\dots,2n-1", "1,3,5,\\ldots,2n-1"),
    ],
    "equations and lists": [("x = 5", "5"), ("-2, 1", "(-2,1)"), ("a = 2, b = 3", "b = 3,\\quad a = 2"), ("(p,q)=(3,2)", "(3,2)")],
    "as before": [("3, -4", "-4,3"), ("0.333333", "\\frac13"), ("50\\%", "50"), ("\\$18", "18.00"), ("1+x", "x+1")],
}  # fmt: skip
DIFFERENT = {
    "scientific notation": [
        ("4.5\\times 10^{33}", "4.5e32"), ("4.5\\times 10^{33}", "4.6e33"),
        ("2.4\\times 10^{-19}", "1.6\\times 10^{-19}"), ("6.626e-34", "6.627e-34"),
        ("10^{33}", "10^{32}"), ("2e", "2"),
    ],
    "tiny": [
        ("\\frac{1}{2^{60}}", "\\frac{1}{2^{61}}"), ("0.0000003", "0.0000001"), ("0.00000123", "0.00000124"), ("2^{-40}", "2^{-41}"),
        ("\\left(0, 2\\cdot10^{-9}\\right)", "\\left(0, 3\\cdot10^{-9}\\right)"), ("10^{-9}x", "2\\cdot 10^{-9}x"), ("0.0000001", "0"),
        ("\\sqrt{2}\\cdot 10^{-9}", "\\sqrt{3}\\cdot 10^{-9}"), ("x = 10^{-9}", "x = 2\\cdot 10^{-9}"),
        ("\\begin{pmatrix}10^{-9}\\\\1\\end{pmatrix}", "\\begin{pmatrix}2\\cdot 10^{-9}\\\\1\\end{pmatrix}"),
    ],
    "bases and ellipses": [
        ("2516_8", "2516_7"), ("1101_2", "1011_2"), ("1A_{16}", "1A_{12}"), ("1,2,\\ldots,n", "1,3,5,\\ldots,2n-1"),
        ("1,2,\\ldots,n", "1,2,\\ldots,2n"),
        ("1+2+\\cdots+n", "1+3+\\cdots+n"), ("1,2,n", "1,2,\\ldots,n"),
    ],
    "letters": [("B", "C"), ("B) 42", "C"), ("(A) 42", "C"), ("A, B", "A, C"), ("A", "A, C"), ("C+1", "C"), ("42", "C"), ("Cat", "C")],
    "words": [("Rome", "More"), ("tea", "eat"), ("no", "on"), ("yes", "no"),
        ("\\text{east}", "\\text{seat}"),
        ("even", "12"), ("odd", "\\text{even}")],
    "units": [("5 x", "5"), ("5 xy", "5"), ("5 abc", "5"), ("72 pens", "73")],
    "equations and lists": [("1, -2", "(-2,1)"), ("a + 3z = 0", "0"), ("11a + c", "7 = 11a + c"), ("a = 2, b = 3", "a = 2, b = 4")],
    "signs": [("\\sqrt{x^2}", "x"), ("|x|", "x"), ("-x", "x"), ("9 500", "509"), ("10(26)", "36")],
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    with verify.Verifier(limit=60) as made:
        yield made


@pytest.mark.parametrize(("pairs", "verdict"), [(EQUAL, "equal"), (DIFFERENT, "different")])
def test_what_equals_what(verifier, pairs, verdict):
    asked = [pair for kind in pairs.values() for pair in kind]
    found = verifier.decide(asked)
    assert [
        (pair, said)
        for pair, said in zip(asked, found, strict=True)
        if said != verdict and not (verdict == "different" and said == "parser")
    ] == []


def test_numbers_with_units_are_numbers(verifier):
    pairs = [("72 pens", "72"), ("9 500", "9500"), ("4.5e3", "4500"), ("(A) 12", "12"), ("C) 42", "C"), ("$1,200$", "1200")]
    assert verifier.decide(pairs, "number") == ["equal"] * len(pairs)
    assert verifier.decide([("9 500", "509"), ("4.5e3", "4.5"), ("B) 42", "C")], "number") == ["different"] * 3
