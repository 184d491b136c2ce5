"""Executors: the protocol that stages use to run shards of work. Imports no torch.

A shard is plain data (a frozen pydantic model), a task a function at the top of a module, found by its name, and results are records: each
can go to another process and come back. A task gets engines from ``Open`` alone, so that a process loads a model once for many shards.
How work is divided into shards, and where and in which order these run, does not change any record.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from stepmend.engines.base import Engine
from stepmend.engines.named import Spec
from stepmend.records import Record

S = TypeVar("S", bound=BaseModel)
R = TypeVar("R", bound=Record)

Open = Callable[[Spec], Engine]
"""Gives the engine of a description, loaded once."""
Task = Callable[[S, Open], Iterator[R]]
"""Work on one shard; yields records as they are made."""


class Executor(Protocol):
    """Runs a task on every shard."""

    @property
    def workers(self) -> int:
        """How many shards run at the same time."""
        ...

    def map(self, task: Task[S, R], shards: Sequence[S]) -> Iterator[R]:
        """Run the task on all shards; yields records as they arrive. Raises the task's exceptions; records yielded before remain valid."""
        ...


def name_of(task: Callable[..., Any]) -> str:
    """The name by which another process finds a task, ``module:function``. Raises ValueError for one that cannot be found so."""
    name = f"{task.__module__}:{task.__qualname__}"
    if "<" in name or find(name) is not task:
        raise ValueError(f"task {name}: a function at the top of a module is needed")
    return name


def find(name: str) -> Callable[..., Any]:
    """The task of a name."""
    module, _, function = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in function.split("."):
        found = getattr(found, part)
    return found
