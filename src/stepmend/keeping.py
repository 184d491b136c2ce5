"""Saving while generating: records are saved every few seconds, and worker processes grade meanwhile."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, Self, TypeVar

from stepmend import grading
from stepmend.grading import verify
from stepmend.records import Grade, Problem, Record, Trace
from stepmend.rundir import RunDir

T = TypeVar("T", bound=Record)

AT_ONCE = 256
"""Traces per grading batch …"""
AHEAD = 8
"""… and the maximum number of waiting batches, to limit memory: a resumed run reads traces faster than they are graded."""
EVERY = 2.0
"""Seconds between saves: an interruption loses at most this much finished work."""


class Keeper(Generic[T]):
    """Buffers records, and saves them every ``EVERY`` seconds, at the end, and after an error."""

    def __init__(self, keep: Callable[[list[T]], Any]) -> None:
        self.keep, self.fresh, self.last = keep, list[T](), time.monotonic()

    def __call__(self, record: T) -> None:
        self.fresh.append(record)
        if time.monotonic() - self.last >= EVERY:
            self.hand()

    def hand(self) -> None:
        """Save the buffered records."""
        if self.fresh:
            self.keep(self.fresh)
        self.fresh, self.last = [], time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.hand()


class Grades:
    """The grades of one arm's solutions of some problems: made in a thread, which waits for the verifier's workers, and kept in the run.

    ``digests`` are those of the grades of every sample; ``done`` are the grades by sample and problem.
    """

    def __init__(self, run: RunDir, verifier: verify.Verifier, digests: Sequence[str], problems: Sequence[Problem]) -> None:
        self.run, self.verifier, self.digests = run, verifier, digests
        self.problems = {problem.id: problem for problem in problems}
        self.done = {(n, problem): grade for n, by in enumerate(digests) for problem, grade in run.of(Grade, by).items()}
        self.asked: deque[Future[list[Grade]]] = deque()
        self.thread = ThreadPoolExecutor(1)

    def add(self, traces: Iterable[Trace]) -> None:
        """Grade these traces, if they are not graded yet; keep what has been graded meanwhile."""
        fresh = (trace for trace in traces if (trace.sample, trace.problem) not in self.done)
        while part := list(islice(fresh, AT_ONCE)):
            of = [self.problems[trace.problem] for trace in part]
            by = [self.digests[trace.sample] for trace in part]
            self.asked.append(self.thread.submit(grading.grade_all, part, of, by, self.verifier))
            while self.asked and (self.asked[0].done() or len(self.asked) > AHEAD):
                self._keep()
        while self.asked and self.asked[0].done():
            self._keep()

    def _keep(self) -> None:
        found = self.asked.popleft().result()
        self.run.append(found)
        self.done |= {(grade.sample, grade.problem): grade for grade in found}

    def settled(self) -> list[Grade]:
        """All grades, sample by sample, in the order of the problems, in which they now are in the run as well."""
        for made_by in self.digests:
            self.run.settle(Grade, made_by, list(self.problems))
        return [self.done[n, problem] for n in range(len(self.digests)) for problem in self.problems]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        try:
            while self.asked:
                self._keep()
        finally:
            self.thread.shutdown(cancel_futures=True)
