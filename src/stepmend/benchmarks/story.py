"""The built-in benchmark: generated word problems whose programs are known.

One problem, as the generator writes it:

    Tom has 29 apples. Tom buys 4 bags of 12 apples. Ann has 15 fewer apples than Tom.
    How many apples do Tom and Ann have together?

    Step 1: 4 * 12 = 48
    Step 2: 29 + 48 = 77
    Step 3: 77 - 15 = 62
    Step 4: 77 + 62 = 139
    \\boxed{139}

A problem is its *program*: the quantities and the steps over them. Two problems with one program are the same problem, whatever
the names in them; the split of a problem is a function of its program's digest, so no seed can put one problem in two splits.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from stepmend.records import InputError, Problem

LEVELS: dict[str, tuple[int, int]] = {"easy": (2, 3), "medium": (4, 6), "hard": (7, 10)}
"""Steps of a problem, by level: lowest and highest number, both included."""

SPLITS: dict[str, tuple[int, int]] = {"test": (0, 10), "calibration": (10, 15), "curate": (15, 35), "train": (35, 100)}
"""Half-open ranges of the program's digest modulo 100."""

MAX_VALUE = 200
"""No quantity and no result is larger: small enough that a model of a few million parameters learns the arithmetic exactly."""

NAMES = ("Tom", "Ann", "Bob", "Eve", "Sam", "Mia", "Leo", "Zoe", "Max", "Amy", "Dan", "Joy", "Ben", "Ida", "Kim", "Lee")
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "beads", "pens", "eggs", "stones", "cakes", "nuts")
EVENTS: dict[str, tuple[str, ...]] = {
    "+": ("{who} finds {n} more {what}.", "{who} buys {n} {what}.", "{who} gets {n} {what} from a friend."),
    "-": ("{who} loses {n} {what}.", "{who} sells {n} {what}.", "{who} gives away {n} {what}."),
    "*": ("Soon {who} has {n} times as many {what}.", "The {what} of {who} grow to {n} times as many."),
    "/": ("{who} splits the {what} into {n} equal parts and keeps one.",),
    "+*": ("{who} buys {m} bags of {n} {what}.", "{who} finds {m} boxes with {n} {what} each."),
    "-*": ("{who} gives {n} {what} to each of {m} friends.", "{who} sells {m} bags of {n} {what}."),
}
COMPARISONS: dict[str, str] = {
    "+": "{who} has {n} more {what} than {other}.",
    "-": "{who} has {n} fewer {what} than {other}.",
    "*": "{who} has {n} times as many {what} as {other}.",
}


@dataclass(frozen=True)
class Node:
    """One step of a program. An operand is ``q3`` (the fourth quantity of the text) or ``s0`` (the result of the first step)."""

    op: str
    left: str
    right: str


@dataclass(frozen=True)
class Program:
    """What a problem computes: the given quantities in the order of the text, and the steps in the order of the reference solution."""

    quantities: tuple[int, ...]
    nodes: tuple[Node, ...]

    def value(self, operand: str, results: list[int]) -> int:
        return (self.quantities if operand[0] == "q" else results)[int(operand[1:])]

    def results(self) -> list[int]:
        """The result of every step."""
        results: list[int] = []
        for node in self.nodes:
            results.append(apply(node.op, self.value(node.left, results), self.value(node.right, results)) or 0)
        return results

    def solution(self) -> str:
        """The reference solution in the step format."""
        results = self.results()
        lines = [
            f"Step {k + 1}: {self.value(n.left, results)} {n.op} {self.value(n.right, results)} = {results[k]}"
            for k, n in enumerate(self.nodes)
        ]
        return "\n".join([*lines, f"\\boxed{{{results[-1]}}}"])

    def digest(self) -> str:
        text = repr((self.quantities, [(n.op, n.left, n.right) for n in self.nodes]))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def split(self) -> str:
        bucket = int(self.digest(), 16) % 100
        return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


def apply(op: str, left: int, right: int) -> int | None:
    """The exact result of one operation on whole numbers; None if there is none (an inexact division)."""
    if op == "/":
        return left // right if right and left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right}[op]


class _Writer:
    """Builds one problem sentence by sentence; operands of the program are made as the text is."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.what = rng.choice(THINGS)
        self.names = rng.sample(NAMES, 3)
        self.quantities: list[int] = []
        self.nodes: list[Node] = []
        self.results: list[int] = []
        self.sentences: list[str] = []
        self.held: dict[str, tuple[str, int]] = {}

    def quantity(self, value: int) -> str:
        self.quantities.append(value)
        return f"q{len(self.quantities) - 1}"

    def step(self, op: str, left: str, right: str) -> tuple[str, int]:
        values = [(self.quantities if o[0] == "q" else self.results)[int(o[1:])] for o in (left, right)]
        result = apply(op, *values)
        assert result is not None and 0 < result <= MAX_VALUE, (op, values)
        self.nodes.append(Node(op, left, right))
        self.results.append(result)
        return f"s{len(self.nodes) - 1}", result

    def start(self, who: str) -> None:
        n = self.rng.randint(5, 90)
        self.held[who] = (self.quantity(n), n)
        self.sentences.append(f"{who} has {n} {self.what}.")

    def event(self, who: str, room: int) -> None:
        """One thing that happens to what ``who`` holds; takes one step, or two where ``room`` allows."""
        operand, value = self.held[who]
        kinds = _possible(value, two=room >= 2)
        kind = self.rng.choice(kinds)
        template = self.rng.choice(EVENTS[kind])
        if len(kind) == 2:
            limit = MAX_VALUE - value if kind == "+*" else value - 1
            m = self.rng.randint(2, min(9, limit // 2))
            n = self.rng.randint(2, min(20, limit // m))
            first, second = (m, n) if template.index("{m}") < template.index("{n}") else (n, m)
            product, _ = self.step("*", self.quantity(first), self.quantity(second))
            self.held[who] = self.step(kind[0], operand, product)
            self.sentences.append(template.format(who=who, what=self.what, m=m, n=n))
            return
        n = _amount(self.rng, kind, value)
        self.held[who] = self.step(kind, operand, self.quantity(n))
        self.sentences.append(template.format(who=who, what=self.what, n=n))

    def compare(self, who: str, other: str) -> None:
        """A new person who holds so many more, fewer or times as many as another does at this point of the story."""
        operand, value = self.held[other]
        kind = self.rng.choice([k for k in _possible(value, two=False) if k in COMPARISONS])
        n = _amount(self.rng, kind, value)
        self.held[who] = self.step(kind, operand, self.quantity(n))
        self.sentences.append(COMPARISONS[kind].format(who=who, other=other, what=self.what, n=n))

    def ask(self) -> None:
        """The question: what the last person holds, or two people's sum or difference (one more step)."""
        (first, (a, x)), (second, (b, y)) = list(self.held.items())[-2:]
        told = self.nodes and self.nodes[-1].left == a and b == f"s{len(self.nodes) - 1}"  # the difference was just said
        if told and x + y > MAX_VALUE:
            return  # not a problem worth asking: the caller tries again
        if x + y <= MAX_VALUE and (told or self.rng.random() < 0.6):
            self.step("+", a, b)
            self.sentences.append(f"How many {self.what} do {first} and {second} have together?")
        elif x != y:
            more, less, left, right = (first, second, a, b) if x > y else (second, first, b, a)
            self.step("-", left, right)
            self.sentences.append(f"How many more {self.what} does {more} have than {less}?")
        else:
            self.event(first, room=1)
            self.ask()


def _possible(value: int, *, two: bool) -> list[str]:
    kinds = [*(["+"] if value <= MAX_VALUE - 2 else []), *(["-"] if value >= 3 else [])]
    kinds += ["*"] if value * 2 <= MAX_VALUE else []
    kinds += ["/"] if any(value % d == 0 for d in range(2, min(10, value))) else []
    if two:
        kinds += [*(["+*"] if value <= MAX_VALUE - 12 else []), *(["-*"] if value >= 16 else [])]
    return kinds


def _amount(rng: random.Random, kind: str, value: int) -> int:
    if kind == "+":
        return rng.randint(2, min(90, MAX_VALUE - value))
    if kind == "-":
        return rng.randint(2, min(90, value - 1))
    if kind == "*":
        return rng.randint(2, min(9, MAX_VALUE // value))
    return rng.choice([d for d in range(2, min(10, value)) if value % d == 0])


def write(rng: random.Random, steps: int) -> tuple[str, Program]:
    """One problem of exactly ``steps`` steps: its question and its program."""
    while True:
        writer = _Writer(rng)
        _tell(writer, steps)
        if len(writer.nodes) == steps:
            return " ".join(writer.sentences), Program(tuple(writer.quantities), tuple(writer.nodes))


def _tell(writer: _Writer, steps: int) -> None:
    """One to three people, one after another; each starts on their own or by comparison; the last two are joined by the question."""
    people = min(writer.rng.choice((1, 2, 2, 3)), 1 + steps // 3)
    asks = 1 if people > 1 else 0
    for index, who in enumerate(writer.names[:people]):
        # The second of three is always tied to the first, so that no step of the program is idle.
        if index and ((people == 3 and index == 1) or writer.rng.random() < 0.6):
            writer.compare(who, writer.names[index - 1])
        else:
            writer.start(who)
        until = (steps - asks) * (index + 1) // people
        while len(writer.nodes) < until:
            writer.event(who, room=until - len(writer.nodes))
    if people == 1:
        writer.sentences.append(f"How many {writer.what} does {writer.names[0]} have now?")
    else:
        writer.ask()


def problems(split: str, level: str, *, seed: int) -> Iterator[Problem]:
    """Endless problems of one split and level, no program twice. Raises InputError for an unknown split or level."""
    if split not in SPLITS or level not in LEVELS:
        raise InputError(f"story: no split {split!r} with level {level!r}; splits: {', '.join(SPLITS)}; levels: {', '.join(LEVELS)}")
    rng = random.Random(f"story {split} {level} {seed}")
    seen: set[str] = set()
    while True:
        question, program = write(rng, rng.randint(*LEVELS[level]))
        digest = program.digest()
        if program.split() != split or digest in seen:
            continue
        seen.add(digest)
        yield Problem(
            id=f"story/{level}/{digest}",
            benchmark="story",
            split=split,
            level=level,
            question=question,
            answer=str(program.results()[-1]),
            program=dump(program),
        )


def dump(program: Program) -> str:
    """The program as one line of text, as a Problem keeps it: ``29 4 12 15; * q1 q2; + q0 s0; …``."""
    return "; ".join([" ".join(map(str, program.quantities)), *(f"{n.op} {n.left} {n.right}" for n in program.nodes)])


def program_of(problem: Problem) -> Program:
    """The program of a ``story`` problem."""
    assert problem.program is not None, f"{problem.id} has no program"
    return parse(problem.program)


def parse(text: str) -> Program:
    """The inverse of ``dump``."""
    quantities, *nodes = text.split("; ")
    return Program(tuple(map(int, quantities.split())), tuple(Node(*node.split()) for node in nodes))
