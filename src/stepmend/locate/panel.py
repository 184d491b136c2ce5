"""Concurrent client for judges, with retries, stored answers and a token budget. Keys are sent only to their judges."""

import itertools
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from stepmend.engines.servers import Servers, UnfinishedError, key_variable
from stepmend.locate.judges import FORMAT, PROMPT, Judge, Question, Verdict, line, messages, read
from stepmend.progress import Tick, silent
from stepmend.records import InputError, Judgement, digest

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

TALLIED = ("asked", "from_kept", "faults", "none", "off_menu", "failed", "not_asked", "tokens")
UNREACHED = 5
"""A judge is no longer asked after this many consecutive questions for which it could not be reached."""
NO_KEY = "the key is refused (it is read from {variable}, else from OPENAI_API_KEY)"
REFUSALS = {401: NO_KEY, 402: "nothing is left to pay with", 403: NO_KEY, 404: "no such model or address (most end in /v1)"}
REDIRECT = "it redirects to another address, which is not asked; name that address if you trust it"
"""Answers after which there is no use in asking a judge anything more."""
GATEWAY = (502, 503, 504)
"""Gateways' messages for a server that cannot be reached."""
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT = 0.5, 8.0, 120.0
"""Seconds before asking again: the first, doubling to the longest; and the longest that a server may make us wait."""


class _Reply(BaseModel):
    """The fields of a chat completion that are read."""

    class Choice(BaseModel):
        class Message(BaseModel):
            content: str | None = None

        message: Message

    choices: list[Choice] = Field(min_length=1)
    usage: dict[str, Any] | None = None


class _JudgeState:
    """The state of one judge: its key, whether and how it is still asked, and its answers."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.variable = key_variable(judge.name)
        self.key = os.environ.get(self.variable, "").strip() or os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError(f"judge {judge.name}: the key in {self.variable} or OPENAI_API_KEY contains invalid characters")
        self.client: AsyncOpenAI | None = None
        self.plain = False
        self.unreached = 0
        self.given_up: str | None = None
        self.counts: Counter[str] = Counter()

    def name_of(self, question: Question) -> str:
        """The digest of all inputs of an answer."""
        return digest(self.judge.model, self.judge.url, PROMPT, messages(question))

    def hide(self, text: str) -> str:
        """A server's message with our key removed, in case it is repeated (short keys are dummies, and may occur in any text)."""
        return text.replace(self.key, "[key]") if len(self.key) >= 8 else text

    def failed(self, error: "OpenAIError | ValueError", timeout: float) -> str:
        """Why a question has no answer; stops asking the judge if further requests are useless."""
        import openai

        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if isinstance(error, openai.APITimeoutError):
            why = f"no answer within {timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            why = "it cannot be reached"
        elif final := _final(error):
            why = self.given_up = f"HTTP {status}: {final.format(variable=self.variable)}"
        elif isinstance(error, UnfinishedError):
            why = str(error)
        else:
            why = f"HTTP {status}: {line(self.hide(str(error)), 200)}" if status else "what came back is no chat completion"
        self.unreached = self.unreached + 1 if isinstance(error, openai.APIConnectionError) or status in GATEWAY else 0
        if self.unreached >= UNREACHED and not self.given_up:
            self.given_up = f"{why}, {UNREACHED} times in a row"
        return why


def _final(error: Exception) -> str | None:
    """Why a judge can no longer be asked; None if it can."""
    if getattr(error, "code", None) == "insufficient_quota":
        return REFUSALS[402]
    status = getattr(error, "status_code", 0)
    return REDIRECT if 300 <= status < 400 else REFUSALS.get(status)


def _pause(error: "OpenAIError", attempt: int) -> float | None:
    """Seconds to wait before the next attempt: as the server says, or doubling; None if another attempt is useless."""
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
    """Judges that are asked concurrently.

    ``keep`` is called with each new answer (from any thread, one at a time); ``known`` are stored answers, whose questions are not asked
    again. ``budget`` is in tokens of all judges together: once it is spent, no new question is sent. An attempt has ``timeout`` seconds
    from the request to the answer's last byte; one that brought no answer is repeated ``retries`` times if that may help.
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
        """Raises InputError if two judges have the same name, or are the same model at the same address."""
        for one, other in itertools.combinations(judges, 2):
            if one.name == other.name:
                raise InputError(f"judge: {one.name} is given twice")
            if (one.model, one.url) == (other.model, other.url):
                raise InputError(f"judge: {one.name} and {other.name} are the same model at the same address; a model has one vote")
        self.budget, self.timeout, self.concurrency, self.retries = budget, timeout, concurrency, retries
        self._keep = keep
        self._kept = {judgement.asked: judgement.content for judgement in known}
        self._seats = [_JudgeState(judge) for judge in judges]
        self._spent = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def ask(self, questions: Sequence[Question], tick: Tick = silent) -> list[list[Verdict]]:
        """Per question one verdict of each judge, in order; ``tick`` counts verdicts.

        When interrupted, it sends no more questions, waits a second for pending answers (which are stored too), and raises.
        """
        rows = [[seat.name_of(question) for seat in self._seats] for question in questions]
        places = Counter(itertools.chain(*rows))
        put: dict[str, tuple[_JudgeState, Question]] = {}
        for question, row in zip(questions, rows, strict=True):
            put |= {name: (seat, question) for seat, name in zip(self._seats, row, strict=True) if name not in self._kept}
        tick(sum(count for name, count in places.items() if name not in put))
        lost = self._put_all(put, lambda name: tick(places[name])) if put else {}

        def verdict(seat: _JudgeState, name: str, steps: int) -> Verdict:
            found = lost.get(name) or read(self._kept[name], seat.judge.name, steps)
            seat.counts.update(["faults" if found.outcome == "fault" else found.outcome], from_kept=name not in lost)
            return found

        return [
            [verdict(seat, name, len(question.steps)) for seat, name in zip(self._seats, row, strict=True)]
            for question, row in zip(questions, rows, strict=True)
        ]

    @property
    def used(self) -> bool:
        """Whether any verdict was given."""
        return any(seat.counts for seat in self._seats)

    def tally(self) -> dict[str, dict[str, int | str | None]]:
        """By judge: questions put, verdicts from kept answers, verdicts by outcome, tokens spent, and why it was given up."""
        return {seat.judge.name: {name: seat.counts[name] for name in TALLIED} | {"given_up": seat.given_up} for seat in self._seats}

    def _put_all(self, put: dict[str, tuple[_JudgeState, Question]], done: Callable[[str], None]) -> dict[str, Verdict]:
        """Sends the questions and stores the answers; returns the verdicts of those without an answer."""
        self._stop.clear()
        lost = {}
        with Servers(self.timeout) as self._servers:
            for seat in self._seats:
                seat.client = self._servers.client(seat.judge.url, seat.key)
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judges")
            try:
                futures = {pool.submit(self._put, name, *asked): name for name, asked in put.items()}
                for future in as_completed(futures):
                    if verdict := future.result():
                        lost[futures[future]] = verdict
                    done(futures[future])
            except BaseException:
                self._stop.set()
                self._servers.stop()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        return lost

    def _put(self, name: str, seat: _JudgeState, question: Question) -> Verdict | None:
        """Sends one question and stores its answer; returns a verdict if there is none."""
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

    def _answer(self, seat: _JudgeState, asked: list[dict[str, str]]) -> tuple[str, int]:
        """An answer's text and its cost. If a server rejects the response format but not the question, later requests omit the format."""
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

    def _post(self, seat: _JudgeState, asked: list[dict[str, str]], form: dict[str, Any]) -> str:
        """The body of the server's answer; asks again, with growing pauses, if that may help."""
        import openai

        assert seat.client
        create = seat.client.chat.completions.with_streaming_response.create
        attempt = 0
        while True:
            try:
                return self._servers.ask(create, model=seat.judge.model, messages=asked, temperature=0, **form)
            except openai.APIError as error:
                pause = _pause(error, attempt)
                if pause is None or attempt >= self.retries or seat.given_up or self._stop.wait(pause):
                    raise
                attempt += 1
