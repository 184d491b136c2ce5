"""The records that stages pass to each other: frozen, typed, versioned, one JSON object per line.

Indices are 0-based; spans are half-open character offsets into the trace's own text; probabilities are in [0, 1]; logits and
log-probabilities are natural-log float32. An unknown field is an error. This module imports neither torch nor transformers.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ErrorClass = Literal[
    "conceptual_misunderstanding",
    "contextual_oversight",
    "procedural",
    "formula_rule",
    "computational",
    "symbolic_manipulation",
    "logical_reasoning",
    "degenerate",
]
"""Conceptual, Conceptual, Method, Method, Execution, Execution, Reasoning; and what is not a step error: loops, truncation, no answer."""

EXECUTION: frozenset[str] = frozenset({"computational", "symbolic_manipulation"})
"""The classes of the precursor's "numerical computation" (2501.03035); the other step errors are its "reasoning planning"."""

Outcome = Literal["correct", "wrong", "unscored"]


LINE = 400
"""Characters of a line that says what is wrong; of a longer one, which repeats what was given, the middle is left out."""


def one_line(text: str) -> str:
    """A text on one line of at most ``LINE`` characters: its start, which says where, and its end, which says what is allowed."""
    text = " ".join(text.split())
    half = LINE // 2
    return text if len(text) <= LINE else f"{text[: half - 3]} … {text[-half:]}"


class InputError(ValueError):
    """An error that the user can correct: one line that says what is wrong, where, and what is allowed. The command line exits with code
    2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Record(BaseModel):
    """Base of all records: immutable, and strict about fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1


class Problem(Record):
    """A question with a known answer, of one benchmark and one split.

    ``program`` is known for generated problems only; ``solution`` is the benchmark's worked solution, empty if it has none.
    """

    id: str
    benchmark: str
    split: str
    level: str
    subject: str | None = None
    question: str
    answer: str
    program: str | None = None
    solution: str = Field(default="", exclude_if=lambda solution: not solution)


class Made(Record):
    """A record of one arm's work on one problem; ``arm`` is its name (``arms.py``), ``made_by`` the digest of all its inputs.

    ``sample`` is the index, from 0, of the arm's solution of the problem that this record is or refers to.
    """

    problem: str
    arm: str
    made_by: str
    sample: int = Field(default=0, exclude_if=lambda sample: sample == 0)


class Trace(Made):
    """One model's written solution: its text, the ids of its tokens (the end token included), and how it finished.

    ``opening`` is the start of a thought that the question was rendered with, such as ``<think>``: then the text starts in the thought.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]
    opening: str = Field(default="", exclude_if=lambda opening: not opening)

    @property
    def said(self) -> str:
        """The text with the start of the thought that it continues."""
        return self.opening + self.text


class Continuation(Record):
    """A model's continuation of one text, kept until its stage is finished; ``key`` is the digest of the request."""

    key: str
    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]


class Grade(Made):
    """The grade of a trace. ``unscored`` always has a reason (``no_answer``, ``truncated``, ``timeout``, ``parser``).

    ``outcome`` is the mathematics alone. ``form`` says how the answer was given: ``boxed`` as requested, ``marked`` in another common way,
    ``loose`` at the end of the text; only a boxed answer is correct under the ``strict`` grade.
    """

    outcome: Outcome
    extracted: str | None = None
    form: Literal["boxed", "marked", "loose"] | None = None
    reason: str | None = None

    @property
    def strict(self) -> Outcome:
        """The strict grade, which requires the format too: an answer that was not boxed is unscored."""
        return self.outcome if self.form == "boxed" else "unscored"


class Vote(Record):
    """One locator's vote on one trace: the first faulty step, or None if it abstains; and its evidence.

    ``confidence`` is the locator's own probability that it is right about this trace, where it states one; ``error_class`` is what a judge
    says of the step. ``likelihood`` is the likelihood of the locator's observations, up to a common factor, for each step as the first
    faulty one, and last for no faulty step; empty if the locator only names a step.
    """

    locator: str
    step: int | None
    evidence: str
    confidence: float | None = None
    error_class: ErrorClass | None = None
    likelihood: tuple[float, ...] = Field(default=(), exclude_if=lambda likelihood: not likelihood)


class Judgement(Record):
    """One judge's answer to one question, kept so that nothing is asked twice; ``asked`` is the digest of all that was asked.

    ``content`` is the answer as it came, ``tokens`` what it cost (prompt and answer together, as the server counts).
    """

    asked: str
    judge: str
    model: str
    content: str
    tokens: int


class Fault(Made):
    """The first faulty step of a trace.

    ``outcome`` says how locating ended: ``located``; ``abstained``, where the locators contradict each other or none speaks; ``misread``,
    if full precision reaches the correct answer from the end of the trace, so that only its answer is wrong or missing; ``unrescuable``, if
    full precision does not reach it even from the start. ``step`` is None unless it is ``located``, and ``confidence`` the vote's
    probability of it; ``span`` is the step's place in the text. ``frontier`` is the index, among the trace's tokens, of the first token of
    that step where the reference token's margin is positive in full precision and not in the quantized model; ``reference`` is that
    reference token's text. ``margins`` are, per token of the trace, the quantized model's margin of the full-precision model's token
    (natural-log units), and ``token_ends`` where each token ends in the text. ``chosen`` is full precision's own step at that place and
    ``continuation`` the rest of its solution, kept only where it arrives at the right answer. ``spent`` is what rescue cost: completions,
    and their tokens.
    """

    outcome: Literal["located", "abstained", "misread", "unrescuable"]
    confidence: float | None = None
    step: int | None
    steps: int
    span: tuple[int, int] | None
    error_class: ErrorClass | None
    votes: tuple[Vote, ...]
    frontier: int | None = None
    reference: str | None = None
    margins: tuple[float, ...] = ()
    token_ends: tuple[int, ...] = ()
    chosen: str | None = None
    continuation: str | None = None
    spent: tuple[int, int] = Field(default=(0, 0), exclude_if=lambda spent: spent == (0, 0))


class Blame(Made):
    """The effect of each module's rounding on full precision's token at a fault's frontier (``blame/scores.py``), by measure.

    Scores are in natural-log units, in the order of the arm's linear layers with codes; positive where rounding takes the token away.
    """

    scores: dict[str, tuple[float, ...]]


class Bullet(Made):
    """A Silver Bullet: the step chosen and the step rejected after the same correct start of a solution.

    ``prompt`` is the rendered question with that start, ``prefix``, at its end: a file of bullets is a preference dataset as TRL
    reads one. ``continuation`` is what follows the chosen step in full precision's verified solution, ``rejected_rest`` what followed
    the rejected one; the texts join without separators. ``cut`` says that the low-bit model did not end its solution by itself: no end
    of text is after it. ``solution`` is full precision's own solution from the start, and ``place`` the span in it of its step
    with the number ``step`` (its last one, if it has fewer).
    """

    prompt: str
    prefix: str
    chosen: str
    rejected: str
    continuation: str
    rejected_rest: str
    solution: str
    place: tuple[int, int]
    step: int
    error_class: ErrorClass | None
    cut: bool = Field(default=False, exclude_if=lambda cut: not cut)

    @property
    def question(self) -> str:
        """The rendered question: the prompt without the solution's start."""
        return self.prompt.removesuffix(self.prefix)


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits that name these parts (anything JSON can hold)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
