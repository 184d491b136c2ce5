"""An engine over an executor: splits texts into shards, which engines with the same spec run wherever the executor puts them.

Completions and scores equal those of one engine in this process: a completion does not depend on the other texts, and if it depends on its
batch, shards are whole batches.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from stepmend.engines import local
from stepmend.engines.base import Completion, Scored, scorer
from stepmend.engines.named import Spec
from stepmend.executors.base import Executor, Open
from stepmend.records import Record

PIECES = 4
"""Shards per worker, if there is enough work: small shards let workers finish at about the same time."""


class Texts(BaseModel):
    """A shard of texts to complete, except those that are ``done``; ``indices`` are the texts' indices in the whole work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Spec
    texts: tuple[str, ...]
    indices: tuple[int, ...]
    done: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Written(Record):
    """A completion of the text with an index."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]


def write(shard: Texts, open_engine: Open) -> Iterator[Written]:
    """Complete the texts of a shard."""
    drawn: dict[str, Any] = {"temperature": shard.temperature, "top_p": shard.top_p, "seed": shard.seed}
    for i, c in open_engine(shard.engine).generate(shard.texts, done=shard.done, **drawn):
        yield Written(index=shard.indices[i], text=c.text, tokens=c.tokens, finish=c.finish)


class Rows(BaseModel):
    """A shard of rows to score, as in ``base.Scorer.score``; ``indices`` are the rows' indices in the whole work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Spec
    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...] | None
    indices: tuple[int, ...]


class Read(Record):
    """The scores of the row with an index."""

    index: int
    tokens: tuple[int, ...]
    margins: tuple[float, ...]


def read(shard: Rows, open_engine: Open) -> Iterator[Read]:
    """Score the rows of a shard."""
    found = scorer(open_engine(shard.engine)).score(shard.rows, shard.starts, shard.asked)
    for i, one in zip(shard.indices, found, strict=True):
        yield Read(index=i, tokens=one.tokens, margins=one.margins)


class Batched(Record):
    """Whether an engine's completions depend on its batches."""

    batched: bool


def ask(shard: Texts, open_engine: Open) -> Iterator[Batched]:
    """Whether the shard's engine decodes in batches."""
    yield Batched(batched=getattr(open_engine(shard.engine), "batched", False))


@dataclass(frozen=True)
class Spread:
    """An engine that runs its work on an executor. ``written`` is called with the token count of each completion."""

    executor: Executor
    spec: Spec
    tokenizer: Any
    device: str
    written: Callable[[int], None] = lambda count: None

    @property
    def identity(self) -> str:
        """That of the engine in this process."""
        return f"{self.spec.checkpoint} torch.{self.spec.dtype} {self.device}"

    @property
    def max_new_tokens(self) -> int:
        """Tokens after which a completion is cut off."""
        return self.spec.max_new_tokens

    @cached_property
    def batched(self) -> bool:
        """Whether the engines decode in fixed batches; a worker is asked once."""
        (found,) = self.executor.map(ask, [Texts(engine=self.spec, texts=(), indices=())])
        return found.batched

    def generate(
        self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """See ``base.Engine``."""
        done = frozenset(done)
        if len(done) == len(texts):
            return
        drawn: dict[str, Any] = {"engine": self.spec, "temperature": temperature, "top_p": top_p, "seed": seed}
        every, shards = tuple(range(len(texts))), list[Texts]()
        for piece in self._pieces(texts, done):
            if temperature:  # samples depend on how often a text has occurred before: send all texts
                shards.append(Texts(texts=tuple(texts), indices=every, done=frozenset(every) - (frozenset(piece) - done), **drawn))
            else:
                had = frozenset(n for n, i in enumerate(piece) if i in done)
                shards.append(Texts(texts=tuple(texts[i] for i in piece), indices=tuple(piece), done=had, **drawn))
        for one in self.executor.map(write, shards):
            self.written(len(one.tokens))
            yield one.index, Completion(one.text, one.tokens, one.finish)

    def complete(self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[Completion]:
        """``generate``, in the order of the texts."""
        found = dict(self.generate(texts, temperature=temperature, top_p=top_p, seed=seed))
        return [found[i] for i in range(len(texts))]

    def _pieces(self, texts: Sequence[str], done: frozenset[int]) -> list[list[int]]:
        """Indices of the texts, in pieces, long texts first. If the engine has batches: whole batches with at least one text left."""
        count = PIECES * self.executor.workers
        if self.batched:
            batches = [batch for batch in local.batches_of(texts, self.spec.slots) if not done.issuperset(batch)]
            size = max(1, len(batches) // count)
            return [[*chain.from_iterable(batches[start : start + size])] for start in range(0, len(batches), size)]
        order = sorted((i for i in range(len(texts)) if i not in done), key=lambda i: (-len(texts[i]), i))
        size = max(min(self.spec.slots, -(-len(order) // self.executor.workers)), -(-len(order) // count))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def score(self, rows: Sequence[Sequence[int]], starts: Sequence[int], asked: Sequence[Sequence[int]] | None = None) -> list[Scored]:
        """See ``base.Scorer``. A shard is one scoring pass."""
        shards = [
            Rows(
                engine=self.spec,
                rows=tuple(tuple(rows[i]) for i in group),
                starts=tuple(starts[i] for i in group),
                asked=tuple(tuple(asked[i]) for i in group) if asked is not None else None,
                indices=tuple(group),
            )
            for group in local.groups([len(row) for row in rows], torch.device(self.device))
        ]
        found = {one.index: Scored(one.tokens, one.margins) for one in self.executor.map(read, shards)}
        return [found[i] for i in range(len(rows))]
