"""Bullets: what becomes one, what does not, and what leaks."""

from stepmend import Fault, Problem, Trace, curate

TEXT = "Step 1: 2 + 2 = 4\nStep 2: 4 + 3 = 8\n\\boxed{8}"
BEGIN, END = TEXT.index("Step 2"), TEXT.index("\\boxed")
QUESTION = "Tom has 2 eggs. Tom buys 2 eggs. Tom finds 3 more eggs. How many eggs does Tom have now?"


def problem(name: str, split: str, question: str = QUESTION) -> Problem:
    return Problem(id=name, benchmark="story", split=split, level="easy", question=question, answer="7")


def fault(name: str, **changes) -> Fault:
    common = {"problem": name, "arm": "q", "made_by": "t", "step": 1, "steps": 3, "span": (BEGIN, END), "error_class": "computational"}
    return Fault(**{**common, "outcome": "located", "votes": (), "chosen": "Step 2: 4 + 3 = 7\n", "continuation": "\\boxed{7}", **changes})


def collect(faults, *, held_out=(), limit=10):
    names = [f.problem for f in faults]
    traces = {n: Trace(problem=n, arm="q", made_by="t", text=TEXT, tokens=(), finish="stop") for n in names}
    return curate.curate(
        {n: problem(n, "curate") for n in names}, dict.fromkeys(names, "P"), traces, faults, held_out, limit=limit, made_by="c"
    )


def test_a_bullet_joins_without_separators():
    (bullet,), leaked = collect([fault("a")])
    assert leaked == 0
    assert bullet.prefix + bullet.rejected + bullet.rejected_rest == TEXT
    assert bullet.prefix + bullet.chosen + bullet.continuation == TEXT.replace("8", "7")


def test_only_verified_and_different_steps_become_bullets():
    faults = [
        fault("unlocated", step=None, span=None),
        fault("unverified", chosen=None, continuation=None),
        fault("same", chosen=TEXT[BEGIN:END]),
        fault("good"),
    ]
    bullets, _ = collect(faults)
    assert [b.problem for b in bullets] == ["good"]


def test_the_limit_keeps_the_first():
    bullets, _ = collect([fault(name) for name in "abcd"], limit=2)
    assert [b.problem for b in bullets] == ["a", "b"]


def test_thirteen_words_shared_with_a_held_out_question_are_a_leak():
    near = problem("t", "test", QUESTION.replace("now", "today"))
    far = problem("t", "test", QUESTION.replace("2 eggs. Tom", "9 eggs. Ann"))
    assert collect([fault("a")], held_out=[near]) == ([], 1)
    assert collect([fault("a")], held_out=[far])[1] == 0
