"""LLM judges on OpenAI-compatible servers, which name the first faulty step; their quorum and their agreement.

An answer is a vote only if it has exactly the requested form; all others are counted and ignored. Every answer is stored unchanged, so that
no question is asked (and paid for) twice. Keys are read from the environment and sent only to the judge.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stepmend.records import ErrorClass, InputError, Vote

LOCATOR = "judges"
VALID = ("fault", "none")
"""The outcomes that are votes."""
OPEN = ("failed: ", "not asked: ")
"""How the evidence of votes starts that stand for no answer."""
TAKEN = frozenset({"equations", "rescue", "margins", "reference", "solution", LOCATOR})
"""The other locators' names, which no judge can have."""
SPEC = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)=(?P<model>\S+)@(?P<url>https?://\S*)", re.IGNORECASE)
LABEL = r"[A-Za-z0-9_-]{1,63}"
URL = re.compile(rf"https?://({LABEL}(\.{LABEL})*\.?|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{{1,5}}))?(/[^?#]*)?", re.IGNORECASE)

PROMPT = "judge-1"
"""Version of the prompt; change it with the prompt, so that answers to other prompts are not reused."""
CLASSES: dict[ErrorClass, str] = {
    "conceptual_misunderstanding": "Conceptual: the step misunderstands what the problem asks or what one of its notions means.",
    "contextual_oversight": "Conceptual: the step overlooks, forgets or misquotes a condition or a quantity that is given.",
    "logical_reasoning": "Reasoning: the step does not follow from what stands before it, or contradicts it.",
    "procedural": "Method: the step is the wrong operation, comes in the wrong order, or a necessary step is left out before it.",
    "formula_rule": "Method: the step uses a wrong formula, theorem or rule, or uses one where it does not hold.",
    "computational": "Execution: the arithmetic of the step is wrong.",
    "symbolic_manipulation": "Execution: the algebra of the step is wrong: signs, brackets, terms, rewriting.",
}
"""The classes of step errors, the first that fits before the others: Conceptual, Reasoning, Method, Execution."""
SYSTEM = f"""You examine a written solution of a mathematics problem and name the first step that is faulty.

Go through the steps in order and check each against the problem and the steps before it. A step is faulty if it says something false, \
computes something wrongly, takes something from the problem wrongly, or does something that does not lead to what is asked. The first \
faulty step is the one that brings the error in: a step that is right in itself but builds on an earlier error is not it. An unusual way, \
clumsy wording, rounding as the problem allows, and steps that are superfluous but true are no faults. If the right answer is given, a \
solution that ends at another one has a fault somewhere; a solution that ends at the right answer may still have one.

Give the faulty step one of these classes. When several fit, choose the one listed first.
{"".join(f"{chr(10)}- {name}: {meaning}" for name, meaning in CLASSES.items())}

Answer with one JSON object and nothing else, with exactly these three keys:
- "reason": one or two sentences that say what is wrong in that step, or why no step is faulty
- "first_faulty_step": the number of the step, or null if no step is faulty
- "error_class": one of the classes above, or null if no step is faulty"""
SCHEMA: dict[str, Any] = {
    "reason": {"type": "string"},  # first: who writes in this order gives the reason before deciding
    "first_faulty_step": {"type": ["integer", "null"]},
    "error_class": {"type": ["string", "null"], "enum": [*CLASSES, None]},
}
SCHEMA = {"type": "object", "properties": SCHEMA, "required": list(SCHEMA), "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": SCHEMA}}
FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Judge:
    """A model at an OpenAI-compatible address, by the name it votes under."""

    name: str
    model: str
    url: str


@dataclass(frozen=True)
class Question:
    """One solution to judge: its problem, the known right answer if there is one, and its steps."""

    problem: str
    answer: str | None
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of one question to one judge; only ``fault`` (with its step, 0-based) and ``none`` (it finds no fault) are votes.

    ``off_menu`` is an answer of another form, ``failed`` no answer, ``not_asked`` a question not sent because of the budget.
    """

    judge: str
    outcome: Literal["fault", "none", "off_menu", "failed", "not_asked"]
    reason: str
    step: int | None = None
    error_class: ErrorClass | None = None

    @staticmethod
    def is_open(vote: Vote) -> bool:
        """Whether a vote stands for a question without an answer, which a later run asks again."""
        return vote.step is None and vote.evidence.startswith(OPEN)

    def as_vote(self) -> Vote:
        """The judge as a locator: it abstains where it names no step, and the evidence says why."""
        evidence = self.reason if self.outcome == "fault" else f"{self.outcome.replace('_', ' ')}: {self.reason}"
        return Vote(locator=self.judge, step=self.step, evidence=evidence, error_class=self.error_class)


@dataclass(frozen=True)
class Decision:
    """What the judges say together: ``fault`` or ``none`` (no step is faulty) where enough of them do, else ``abstained``."""

    outcome: Literal["fault", "none", "abstained"]
    vote: Vote


def parse(spec: str, what: str = "judge") -> Judge:
    """A judge, or ``what`` else, from ``NAME=MODEL@BASE_URL``. Raises InputError, which never repeats the address: a key may be in it."""
    match = SPEC.fullmatch(spec)
    if not match:
        start = re.split(r"[^A-Za-z0-9_-]", spec)[0][:40]
        raise InputError(
            f"{what}: {start}… is not NAME=MODEL@BASE_URL, as in 'qwen=Qwen/Qwen3-32B@http://localhost:8000/v1' "
            "(NAME: letters, digits, '.', '-' and '_'; no spaces)"
        )
    name, model, url = match["name"], match["model"], match["url"]
    if name.lower() in TAKEN:
        raise InputError(f"{what}: the name {name} is a locator's own; choose another than {', '.join(sorted(TAKEN))}")
    if "@" in url.split("/")[2] or re.search("[?#]", url):
        raise InputError(f"{what} {name}: the address has credentials, '?' or '#' in it; keys come from the environment only")
    address = URL.fullmatch(url)
    if not address or not 0 < int(address["port"] or 443) < 1 << 16:
        raise InputError(f"{what} {name}: the address is not http(s)://HOST[:PORT][/PATH] with a port from 1 to 65535")
    return Judge(name, model, url.rstrip("/"))


LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Hosts that are this machine."""


def _host(judge: Judge) -> tuple[str, str]:
    """The protocol and the host of an address."""
    protocol, _, address = judge.url.lower().partition("://")
    return protocol, re.sub(r":[0-9]+$", "", address.split("/")[0])


def asked(specs: Iterable[str], *, plain_http: bool, what: str = "judge") -> list[Judge]:
    """The judges, or ``what`` else, to be asked. Raises InputError for plain http to another machine, unless it is allowed."""
    found = [parse(spec, what) for spec in specs]
    for judge in found:
        protocol, host = _host(judge)
        if protocol != "https" and host not in LOCAL and not plain_http:
            raise InputError(
                f"{what} {judge.name}: plain http to another machine exposes the API key and the questions; use https, or allow "
                "it with --set locate.plain_http=true (bench: --plain-http)"
            )
    return found


def unknown(specs: Iterable[str], named: Iterable[str]) -> str | None:
    """The name of the first ``NAME=MODEL@BASE_URL`` among ``specs`` that is not in ``named`` and would be sent a key somewhere else."""
    for judge in (parse(spec) for spec in specs if spec not in {*named}):
        protocol, host = _host(judge)
        if host not in LOCAL and (protocol, host) != ("https", "api.openai.com"):  # the one that OPENAI_API_KEY belongs to
            return judge.name
    return None


def messages(question: Question) -> list[dict[str, str]]:
    """The prompt, with the steps numbered from 1."""
    steps = "\n".join(f"<step_{number}>\n{step.strip()}\n</step_{number}>" for number, step in enumerate(question.steps, 1))
    parts = [f"<problem>\n{question.problem.strip()}\n</problem>", f"<solution>\n{steps}\n</solution>"]
    if question.answer is not None:
        parts.insert(1, f"<right_answer>\n{question.answer.strip()}\n</right_answer>")
    user = "\n\n".join(parts).encode("utf-8", "replace").decode()  # half a surrogate pair could not be sent
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    first_faulty_step: int | None
    error_class: ErrorClass | None
    reason: str


def read(content: str, judge: str, steps: int) -> Verdict:
    """An answer parsed as a verdict on a solution with this many steps; anything but exactly the requested object is ``off_menu``.

    Taken off before: what a reasoning model thinks aloud, up to ``</think>`` (its template may have swallowed the opening tag), and one
    code fence around the whole.
    """
    thought, closed, after = content.partition("</think>")
    text = (after if closed and not thought.lstrip().startswith("{") else content).strip()
    fenced = FENCE.fullmatch(text)
    try:
        answer = _Answer.model_validate_json(fenced[1] if fenced else text)
    except ValidationError:
        return Verdict(judge, "off_menu", f"not the object asked for: {line(text, 80) or 'nothing'}")
    step, kind, reason = answer.first_faulty_step, answer.error_class, line(answer.reason, 400)
    if step is None:
        if kind is not None:
            return Verdict(judge, "off_menu", f"{kind}, but no step")
        return Verdict(judge, "none", reason)
    if not 1 <= step <= steps:
        return Verdict(judge, "off_menu", f"step {step} of {steps}")
    if kind is not None and kind not in CLASSES:
        return Verdict(judge, "off_menu", f"{kind} is no class of step errors")
    return Verdict(judge, "fault", reason, step - 1, kind)


def line(text: str, length: int) -> str:
    """A text on one line, cut to a length."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def quorum(verdicts: Sequence[Verdict], share: float = 0.5) -> Decision:
    """What more than ``share`` of all judges say, those without a valid answer included; a tie abstains.

    The class is the one most of those judges name, and of equals the first in ``CLASSES``.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share = {share!r}: at least 0 and less than 1")
    valid = [verdict for verdict in verdicts if verdict.outcome in VALID]
    ranked = Counter(verdict.step for verdict in valid).most_common()
    if not ranked or ranked[0][1] <= share * len(verdicts) or [count for _, count in ranked].count(ranked[0][1]) > 1:
        said = ", ".join(f"{'none' if step is None else f'step {step + 1}'} ({count})" for step, count in ranked)
        evidence = f"no quorum among {len(verdicts)} judges: {said or 'no valid answer'}"
        return Decision("abstained", Vote(locator=LOCATOR, step=None, evidence=evidence))
    step = ranked[0][0]
    voices = [verdict for verdict in valid if verdict.step == step]
    classes = [verdict.error_class for verdict in voices if verdict.error_class]
    kind = max(CLASSES, key=classes.count) if classes else None
    finding = "" if step is not None else "no step is faulty: "
    evidence = f"{len(voices)} of {len(verdicts)} judges: {finding}{voices[0].reason}"
    return Decision("none" if step is None else "fault", Vote(locator=LOCATOR, step=step, evidence=evidence, error_class=kind))


def agreement(verdicts: Sequence[Sequence[Verdict]]) -> float | None:
    """Krippendorff's alpha (nominal; Krippendorff 2011) of the judges' valid votes, a step or none, one row of verdicts a question.

    1 is perfect agreement, 0 is chance level. None if undefined: no question with two votes, or all votes equal.
    """
    import krippendorff
    import numpy as np

    votes = [[float(-1 if v.step is None else v.step) if v.outcome in VALID else np.nan for v in row] for row in verdicts]
    paired = [row for row in votes if np.count_nonzero(~np.isnan(row)) > 1]
    if len({vote for row in paired for vote in row if not np.isnan(vote)}) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=np.array(paired).T, level_of_measurement="nominal"))
