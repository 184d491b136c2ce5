"""LLM judges that name the first faulty step, behind any OpenAI-compatible address; their quorum, and how far they agree.

An answer is a vote only where it is exactly what was asked for; everything else is counted as what it is and decides nothing. Every
answer is kept as it came, so that nothing is asked (and paid) twice. Keys come from the environment and go nowhere but to the judge.
"""

import itertools
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepmend.progress import Tick
from stepmend.records import ErrorClass, InputError, Judgement, Vote, digest

if TYPE_CHECKING:
    from openai import OpenAI, OpenAIError

LOCATOR = "judges"
VALID = ("fault", "none")
"""The outcomes that are votes."""
TAKEN = frozenset({"equations", "rescue", "margins", LOCATOR})
"""The other locators' names, which no judge can have."""
SPEC = re.compile(r"(?P<name>[A-Za-z0-9_-]+)=(?P<model>\S+)@(?P<url>https?://\S*)", re.IGNORECASE)
LABEL = r"[A-Za-z0-9_-]{1,63}"
URL = re.compile(rf"https?://({LABEL}(\.{LABEL})*\.?|\[[0-9a-f:.]+\])(:\d{{1,5}})?(/[^?#]*)?", re.IGNORECASE)

PROMPT = "judge-1"
"""Version of the prompt; change it with the prompt, and nothing asked with another one counts as asked."""
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

TALLIED = ("asked", "from_kept", "faults", "none", "off_menu", "failed", "not_asked", "tokens")
UNREACHED = 5
"""So many questions in a row for which a judge cannot be reached, and it is given up for the rest of the run."""
NO_KEY = "the key is refused (it is read from {variable}, else from OPENAI_API_KEY)"
REFUSALS = {401: NO_KEY, 402: "nothing is left to pay with", 403: NO_KEY, 404: "no such model or address (most end in /v1)"}
"""Answers after which there is no use in asking a judge anything more."""
GATEWAY = (502, 503, 504)
"""A gateway's words for a server that cannot be reached."""
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT = 0.5, 8.0, 120.0
"""Seconds before asking again: the first, doubling to the longest; and the longest that a server may make us wait."""


@dataclass(frozen=True)
class Judge:
    """A model at an OpenAI-compatible address, by the name it votes under."""

    name: str
    model: str
    url: str


@dataclass(frozen=True)
class Question:
    """One solution to judge: its problem, the known right answer where there is one, and its steps."""

    problem: str
    answer: str | None
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of one question to one judge; only ``fault`` (with its step, 0-based) and ``none`` (it finds no fault) are votes.

    ``off_menu`` is an answer other than what was asked for, ``failed`` none at all, ``not_asked`` a question the budget left over.
    """

    judge: str
    outcome: Literal["fault", "none", "off_menu", "failed", "not_asked"]
    reason: str
    step: int | None = None
    error_class: ErrorClass | None = None

    def as_vote(self) -> Vote:
        """The judge as a locator: it abstains where it names no step, and the evidence says why."""
        evidence = self.reason if self.outcome == "fault" else f"{self.outcome.replace('_', ' ')}: {self.reason}"
        return Vote(locator=self.judge, step=self.step, evidence=evidence, error_class=self.error_class)


@dataclass(frozen=True)
class Decision:
    """What the judges say together: ``fault`` or ``none`` (no step is faulty) where enough of them do, else ``abstained``."""

    outcome: Literal["fault", "none", "abstained"]
    vote: Vote


def parse(spec: str) -> Judge:
    """A judge from ``NAME=MODEL@BASE_URL``. Raises InputError, which never repeats the address: there may be a key in it."""
    match = SPEC.fullmatch(spec)
    if not match:
        raise InputError(
            f"judge: {re.split(r'[^A-Za-z0-9_-]', spec)[0][:40]}… is not NAME=MODEL@BASE_URL, as in 'qwen=Qwen/Qwen3-32B@http://localhost:8000/v1' "
            "(NAME: letters, digits, - and _; no blanks anywhere)"
        )
    name, model, url = match["name"], match["model"], match["url"]
    if name.lower() in TAKEN:
        raise InputError(f"judge: the name {name} is a locator's own; choose another than {', '.join(sorted(TAKEN))}")
    if "@" in url.split("/")[2] or re.search("[?#]", url):
        raise InputError(f"judge {name}: the address has credentials, '?' or '#' in it; keys come from the environment only")
    if not URL.fullmatch(url):
        raise InputError(f"judge {name}: the address is not http(s)://HOST[:PORT][/PATH]")
    return Judge(name, model, url.rstrip("/"))


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


class _Reply(BaseModel):
    """What we read of a chat completion."""

    class Choice(BaseModel):
        class Message(BaseModel):
            content: str | None = None

        message: Message

    choices: list[Choice] = Field(min_length=1)
    usage: dict[str, Any] | None = None


def read(content: str, judge: str, steps: int) -> Verdict:
    """An answer as a verdict on a solution of so many steps; strict: what is not exactly the object asked for is off the menu.

    Taken off before: what a reasoning model thinks aloud, up to ``</think>`` (its template may have swallowed the opening tag), and one
    code fence around the whole.
    """
    thought, closed, after = content.partition("</think>")
    text = (after if closed and not thought.lstrip().startswith("{") else content).strip()
    fenced = FENCE.fullmatch(text)
    try:
        answer = _Answer.model_validate_json(fenced[1] if fenced else text)
    except ValidationError:
        return Verdict(judge, "off_menu", f"not the object asked for: {_line(text, 80) or 'nothing'}")
    step, kind, reason = answer.first_faulty_step, answer.error_class, _line(answer.reason, 400)
    if step is None:
        if kind is not None:
            return Verdict(judge, "off_menu", f"{kind}, but no step")
        return Verdict(judge, "none", reason)
    if not 1 <= step <= steps:
        return Verdict(judge, "off_menu", f"step {step} of {steps}")
    if kind is not None and kind not in CLASSES:
        return Verdict(judge, "off_menu", f"{kind} is no class of step errors")
    return Verdict(judge, "fault", reason, step - 1, kind)


def _line(text: str, length: int) -> str:
    """A text on one line, cut to a length."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


class _Seat:
    """One judge at the panel: its key, whether it is still asked and how, and what it has answered."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.variable = "STEPMEND_JUDGE_KEY_" + judge.name.upper().replace("-", "_")
        self.key = (os.environ.get(self.variable) or os.environ.get("OPENAI_API_KEY") or "none").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError(f"judge {judge.name}: the key in {self.variable} or OPENAI_API_KEY has characters that no key has")
        self.client: OpenAI | None = None
        self.plain = False
        self.unreached = 0
        self.given_up: str | None = None
        self.counts: Counter[str] = Counter()

    def name_of(self, question: Question) -> str:
        """The digest of all that decides an answer."""
        return digest(self.judge.model, self.judge.url, PROMPT, messages(question))

    def hide(self, text: str) -> str:
        """A server's words without our key, should it repeat it (a short key is a dummy, and any text may hold it)."""
        return text.replace(self.key, "[key]") if len(self.key) >= 8 else text

    def failed(self, error: "OpenAIError | ValueError", timeout: float) -> str:
        """Why a question has no answer; gives the judge up where there is no use in asking more."""
        import openai

        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if isinstance(error, openai.APITimeoutError):
            why = f"no answer within {timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            why = "it cannot be reached"
        elif final := _final(error):
            why = self.given_up = f"HTTP {status}: {final.format(variable=self.variable)}"
        else:
            why = f"HTTP {status}: {_line(self.hide(str(error)), 200)}" if status else "what came back is no chat completion"
        self.unreached = self.unreached + 1 if isinstance(error, openai.APIConnectionError) or status in GATEWAY else 0
        if self.unreached >= UNREACHED and not self.given_up:
            self.given_up = f"{why}, {UNREACHED} times in a row"
        return why


def _final(error: Exception) -> str | None:
    """Why a judge cannot be asked anything more; None where it can."""
    if getattr(error, "code", None) == "insufficient_quota":
        return REFUSALS[402]
    return REFUSALS.get(getattr(error, "status_code", 0))


def _pause(error: "OpenAIError", attempt: int) -> float | None:
    """Seconds to wait before asking again, as the server says or twice as long each time; None where there is no use in it."""
    import openai

    if isinstance(error, openai.APIStatusError):
        if _final(error) or (error.status_code not in (408, 409, 429) and error.status_code < 500):
            return None
        for header, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
            value = error.response.headers.get(header, "")
            if re.fullmatch(r"\d{1,9}(\.\d*)?", value):
                return seconds if (seconds := float(value) / unit) <= LONGEST_WAIT else None
    # Spread, so that what was refused together does not come again together.
    return min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1)


class Panel:
    """Judges that are asked together.

    ``keep`` gets each answer as it comes (from any thread, one at a time); ``known`` are those kept before, which are not asked again.
    ``budget`` is in tokens, of all judges together: once it is spent, no new question is put. An attempt ends when nothing comes for
    ``timeout`` seconds, and is repeated ``retries`` times where that may help.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        keep: Callable[[Judgement], None],
        known: Iterable[Judgement] = (),
        *,
        budget: int | None = None,
        timeout: float = 60,
        concurrency: int = 8,
        retries: int = 4,
    ) -> None:
        """Raises InputError where two judges have one name, or are the same model at the same address: one voice has one vote."""
        for one, other in itertools.combinations(judges, 2):
            if one.name == other.name:
                raise InputError(f"judge: {one.name} is there twice; each name once")
            if (one.model, one.url) == (other.model, other.url):
                raise InputError(f"judge: {one.name} and {other.name} are the same model at the same address, which has one vote")
        self.budget, self.timeout, self.concurrency, self.retries = budget, timeout, concurrency, retries
        self._keep = keep
        self._kept = {judgement.asked: judgement.content for judgement in known}
        self._seats = [_Seat(judge) for judge in judges]
        self._spent = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def ask(self, questions: Sequence[Question], tick: Tick = lambda count: None) -> list[list[Verdict]]:
        """Per question one verdict of each judge, in their order; ``tick`` counts verdicts.

        When interrupted it puts no more questions, waits for those already put (their answers are kept, too), and raises.
        """
        rows = [[seat.name_of(question) for seat in self._seats] for question in questions]
        places = Counter(itertools.chain(*rows))
        put: dict[str, tuple[_Seat, Question]] = {}
        for question, row in zip(questions, rows, strict=True):
            put |= {name: (seat, question) for seat, name in zip(self._seats, row, strict=True) if name not in self._kept}
        tick(sum(count for name, count in places.items() if name not in put))
        lost = self._put_all(put, lambda name: tick(places[name])) if put else {}

        def verdict(seat: _Seat, name: str, steps: int) -> Verdict:
            found = lost.get(name) or read(self._kept[name], seat.judge.name, steps)
            seat.counts.update(["faults" if found.outcome == "fault" else found.outcome], from_kept=name not in lost)
            return found

        return [
            [verdict(seat, name, len(question.steps)) for seat, name in zip(self._seats, row, strict=True)]
            for question, row in zip(questions, rows, strict=True)
        ]

    def tally(self) -> dict[str, dict[str, int | str | None]]:
        """By judge: questions put, verdicts from kept answers, verdicts by outcome, tokens spent, and why it was given up."""
        return {seat.judge.name: {name: seat.counts[name] for name in TALLIED} | {"given_up": seat.given_up} for seat in self._seats}

    def _put_all(self, put: dict[str, tuple[_Seat, Question]], done: Callable[[str], None]) -> dict[str, Verdict]:
        """Puts the questions and keeps the answers; gives the verdicts of those that have none."""
        import openai

        self._stop.clear()
        lost = {}
        with ExitStack() as stack:
            for seat in self._seats:
                # We ask again ourselves: the client's own waits could not be interrupted.
                client = openai.OpenAI(api_key=seat.key, base_url=seat.judge.url, timeout=self.timeout, max_retries=0)
                seat.client = stack.enter_context(client)
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judges")
            try:
                futures = {pool.submit(self._put, name, *asked): name for name, asked in put.items()}
                for future in as_completed(futures):
                    if verdict := future.result():
                        lost[futures[future]] = verdict
                    done(futures[future])
            except BaseException:
                self._stop.set()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        return lost

    def _put(self, name: str, seat: _Seat, question: Question) -> Verdict | None:
        """Puts one question and keeps its answer; a verdict where there is none."""
        import openai

        with self._lock:
            if seat.given_up:
                return Verdict(seat.judge.name, "failed", f"given up: {seat.given_up}")
            if self._stop.is_set() or (self.budget is not None and self._spent >= self.budget):
                return Verdict(seat.judge.name, "not_asked", f"the budget of {self.budget} tokens is spent")
            seat.counts["asked"] += 1
        try:
            content, tokens = self._answer(seat, messages(question))
        except (openai.OpenAIError, ValueError) as error:
            with self._lock:
                return Verdict(seat.judge.name, "failed", seat.failed(error, self.timeout))
        judgement = Judgement(asked=name, judge=seat.judge.name, model=seat.judge.model, content=content, tokens=tokens)
        with self._lock:
            seat.unreached = 0
            seat.counts.update(tokens=tokens, from_kept=-1)  # the first verdict it gives is not from what was kept
            self._spent += tokens
            self._keep(judgement)
            self._kept[name] = content
        return None

    def _answer(self, seat: _Seat, asked: list[dict[str, str]]) -> tuple[str, int]:
        """An answer's text and what it cost. A server that refuses our format, but not the question, is asked without it from then on."""
        import openai

        form = {} if seat.plain else {"response_format": FORMAT}
        try:
            text = self._post(seat, asked, form)
        except openai.APIStatusError as error:
            if not form or error.status_code not in (400, 422):
                raise
            text = self._post(seat, asked, {})
            seat.plain = True
        reply = _Reply.model_validate_json(seat.hide(text))
        content = reply.choices[0].message.content or ""
        counted = (reply.usage or {}).get("total_tokens")
        if not isinstance(counted, int) or counted <= 0:
            counted = (sum(len(message["content"]) for message in asked) + len(content)) // 4
        return content, counted

    def _post(self, seat: _Seat, asked: list[dict[str, str]], form: dict[str, Any]) -> str:
        """The body of the server's answer; asks again, with growing pauses, where that may help."""
        import openai

        assert seat.client
        create = seat.client.chat.completions.with_raw_response.create
        attempt = 0
        while True:
            try:
                return create(model=seat.judge.model, messages=cast(Any, asked), temperature=0, **form).text
            except openai.APIError as error:
                pause = _pause(error, attempt)
                if pause is None or attempt >= self.retries or seat.given_up or self._stop.wait(pause):
                    raise
                attempt += 1


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

    1 is perfect agreement, 0 is chance's. None where it is not defined: no question with two votes, or all votes alike.
    """
    import krippendorff
    import numpy as np

    votes = [[float(-1 if v.step is None else v.step) if v.outcome in VALID else np.nan for v in row] for row in verdicts]
    paired = [row for row in votes if np.count_nonzero(~np.isnan(row)) > 1]
    if len({vote for row in paired for vote in row if not np.isnan(vote)}) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=np.array(paired).T, level_of_measurement="nominal"))
