"""The oracle of ``story``: the first faulty step of a trace and its error class, found by evaluating each step against the program. It is
used to measure locators, and is never used as a locator.
"""

import re
from dataclasses import dataclass

from stepmend.benchmarks.story import Program, apply
from stepmend.records import ErrorClass

LINE = re.compile(r"Step \d+: (\d+) ([-+*/]) (\d+) = (\d+)")
ANSWER = re.compile(r"\\boxed\{(-?\d+)\}")


@dataclass(frozen=True)
class Truth:
    """The first faulty step (0-based, in the lines of the trace) and its class; both None for a faultless trace."""

    step: int | None
    error_class: ErrorClass | None


class _State:
    """What has been computed so far: each program step that is done, and its result."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.results: dict[int, int] = {}

    def value(self, operand: str) -> int | None:
        index = int(operand[1:])
        return self.program.quantities[index] if operand[0] == "q" else self.results.get(index)

    def ready(self) -> list[int]:
        """Steps not done whose operands are known."""
        nodes = self.program.nodes
        return [i for i, n in enumerate(nodes) if i not in self.results and None not in (self.value(n.left), self.value(n.right))]

    def match(self, left: int, op: str, right: int) -> int | None:
        """A ready step that this equation carries out; addition and multiplication have no order."""
        for index in self.ready():
            node = self.program.nodes[index]
            operands = (self.value(node.left), self.value(node.right))
            if node.op == op and (operands == (left, right) or (op in "+*" and operands == (right, left))):
                return index
        return None

    def known(self) -> list[int]:
        return [*self.program.quantities, *self.results.values()]


def judge(program: Program, text: str) -> Truth:
    """Judge a trace in the step format, one step per line. A correct step in another valid order is correct."""
    lines = text.splitlines()
    state = _State(program)
    answered = ANSWER.search(text) is not None
    for index, line in enumerate(lines):
        match = LINE.fullmatch(line.strip())
        if match is None:
            return _judge_answer(state, line, index, answered)
        left, op, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        done = state.match(left, op, right)
        if done is None:
            return Truth(index, _class_of(state, left, op, right, lines[index:], answered))
        if result != apply(op, left, right):
            return Truth(index, "computational" if answered else "degenerate")
        state.results[done] = result
    return Truth(max(len(lines) - 1, 0), "degenerate")


def _judge_answer(state: _State, line: str, index: int, answered: bool) -> Truth:
    match = ANSWER.fullmatch(line.strip())
    if match is None:
        return Truth(index, "symbolic_manipulation" if answered else "degenerate")
    last = len(state.program.nodes) - 1
    right = state.results.get(last) == int(match[1])
    return Truth(None, None) if right else Truth(index, "contextual_oversight")


def _class_of(state: _State, left: int, op: str, right: int, rest: list[str], answered: bool) -> ErrorClass:
    if not answered:
        return "degenerate"
    for index in state.ready():
        node = state.program.nodes[index]
        if sorted((state.value(node.left), state.value(node.right))) == sorted((left, right)):  # pyright: ignore
            return "procedural"
    if left not in state.known() or right not in state.known():
        return "contextual_oversight"
    # Known quantities, wrongly combined: an order fault where what was skipped is still used later, else it was overlooked.
    skipped = {state.value(o) for i in state.ready() for n in [state.program.nodes[i]] for o in (n.left, n.right) if o[0] == "q"}
    later = {int(v) for line in rest[1:] if (m := LINE.fullmatch(line.strip())) for v in (m[1], m[3])}
    unused = skipped - {left, right}
    return "procedural" if not unused or unused & later else "contextual_oversight"
