"""Runs shards in this process, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepmend.executors.base import Open, R, S, Task, name_of


@dataclass(frozen=True)
class Local:
    """The executor of a machine alone; ``open`` gives the engines that this process has loaded."""

    open: Open
    workers: int = 1

    def map(self, task: Task[S, R], shards: Sequence[S]) -> Iterator[R]:
        """See ``base.Executor``."""
        name_of(task)  # what works here works elsewhere
        for shard in shards:
            yield from task(shard, self.open)
