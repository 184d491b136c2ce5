"""Runs shards on the workers of a Ray cluster, or of Ray on this machine: one worker per GPU, or one for every few CPU cores.

Workers may die, hang or lose their machine. If a worker is lost, another one runs its shard again, and records that have already arrived
are not returned twice. All nodes must see the checkpoints under the same paths.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

from stepmend.engines.base import Engine
from stepmend.engines.named import Spec
from stepmend.executors.base import R, S, Task, find, name_of
from stepmend.records import InputError, Record

LOCAL = "local"
"""The address that means Ray on this machine."""
TRIES = 3
"""Number of workers lost with the same shard after which the shard is considered the cause."""
BEAT, SILENT, STUCK, START, REACH = 5.0, 120.0, 1800.0, 600.0, 10.0
"""Seconds between two polls of a worker; after which a worker that does not answer is lost, and one that answers but produces nothing; and
within which the first worker must start, and a cluster must accept a connection."""
HAND = 0.5
"""Seconds for which a worker buffers records."""
ENGINES = 2
"""Number of engines that a worker keeps loaded: full precision and one low-bit model."""


class Worker:
    """The actor on a node: runs shards with engines that stay loaded, and answers polls at the same time."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.engines: dict[Spec, Engine] = {}
        self.made = 0

    def device(self) -> str:
        """The kind of device of this worker."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def beat(self) -> int:
        """The number of tokens and records produced so far; answering at all shows that the worker is alive."""
        return self.made

    def do(self, task: str, shard: Any) -> Iterator[list[Record]]:
        """The records of a shard, in small batches."""
        gathered, last = list[Record](), time.monotonic()
        for record in find(task)(shard, self.open):
            gathered.append(record)
            self.made += 1
            if time.monotonic() - last >= HAND:
                yield gathered
                gathered, last = [], time.monotonic()
        yield gathered

    def open(self, spec: Spec) -> Engine:
        """The engine of a spec, loaded once; the least recently used one is unloaded if there are too many."""
        from stepmend.engines.make import make
        from stepmend.models import load

        engine = self.engines.pop(spec, None)
        while engine is None and len(self.engines) >= ENGINES:
            self.engines.pop(next(iter(self.engines)))
            load.free()
        self.engines[spec] = engine = engine or make(spec, written=self._written)
        return engine

    def _written(self, count: int) -> None:
        self.made += count


@dataclass
class _Job:
    """A shard, the records that have arrived, and the number of workers lost with it."""

    shard: Any
    came: set[Record] = field(default_factory=set)
    lost: int = 0

    def fresh(self, records: Sequence[Any]) -> Iterator[Any]:
        """The records that have not arrived before."""
        for record in records:
            if record not in self.came:
                self.came.add(record)
                yield record


@dataclass
class _Hand:
    """A worker, as the driver sees it: ``ready`` is pending until it has started, ``stream`` has the records of ``job``, ``asked`` is a
    poll."""

    actor: Any
    ready: Any
    stream: Any = None
    job: _Job | None = None
    asked: Any = None
    since: float = 0.0
    made: int = -1
    moved: float = 0.0


def _reach(address: str) -> None:
    """Raises OSError if nothing listens at an address with a port: Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()


class Ray:
    """The executor of a Ray cluster; a context manager, which releases the workers at its end."""

    def __init__(self, address: str = LOCAL, cpus: int = 1, say: Callable[[str], None] = lambda line: None) -> None:
        """Connect to a cluster and request its workers.

        Args:
            address: ``local`` for Ray on this machine, ``auto`` for the cluster that this machine belongs to, or a cluster's address.
            cpus: CPU cores of each worker, if the cluster has no GPU.
            say: Called with a message when a worker is lost.

        Raises InputError if Ray is not installed, the cluster cannot be reached, or it is too small for one worker.
        """
        if find_spec("ray") is None:
            raise InputError("ray: Ray is not installed; install it with: pip install 'stepmend[cluster]'")
        ray: Any = import_module("ray")
        self.ray, self.say = ray, say
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers by default
        try:
            _reach(address)
            here = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}  # else a busy machine starves the workers
            where = here if address == LOCAL else {"address": address}
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(f"ray: no cluster at {address[:100]!r}; allowed: local, auto, an address ({str(error)[:100]})") from None
        total = ray.cluster_resources()
        self.cpus, self.gpus = cpus, int(total.get("GPU", 0))
        self.workers = self.gpus or int(total.get("CPU", 0)) // cpus
        if not self.workers:
            self.close()
            raise InputError(f"ray: a worker takes {cpus} CPU cores, and the cluster has {int(total.get('CPU', 0))}")
        self._hands, self._unstarted = [self._hand() for _ in range(self.workers)], 0

    @property
    def device(self) -> str:
        """The kind of device of the workers. Raises InputError if no worker starts."""
        self._wait_for_one()
        hand = next(one for one in self._hands if one.ready is None)
        return self.ray.get(hand.actor.device.remote(), timeout=SILENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect from the cluster, which ends the workers."""
        self.ray.shutdown()

    def map(self, task: Task[S, R], shards: Sequence[S]) -> Iterator[R]:
        """See ``base.Executor``. Raises InputError if several workers are lost with the same shard."""
        name, waiting = name_of(task), deque(_Job(shard) for shard in shards)
        try:
            while waiting or any(hand.job for hand in self._hands):
                self._wait_for_one()
                self._give(name, waiting)
                for hand in self._heard():
                    yield from self._records(hand, waiting)
                self._watch(waiting)
        finally:
            for hand in self._hands:
                if hand.job:  # nobody waits for it any more
                    self._replace(hand)

    def _hand(self) -> _Hand:
        resources = {"num_gpus": 1, "num_cpus": 0} if self.gpus else {"num_cpus": self.cpus}
        actor = self.ray.remote(Worker).options(max_concurrency=2, **resources).remote(self.cpus)
        return _Hand(actor, actor.beat.remote(), since=time.monotonic())

    def _give(self, name: str, waiting: deque[_Job]) -> None:
        """Assign a shard to each idle worker."""
        for hand in self._hands:
            if waiting and hand.ready is None and not hand.job:
                hand.job = waiting.popleft()
                hand.stream = hand.actor.do.options(num_returns="streaming").remote(name, hand.job.shard)
                hand.moved = time.monotonic()

    def _heard(self) -> list[_Hand]:
        """The workers with news: records, the end of their shard, or that they have started."""
        by = {hand.ready or hand.stream: hand for hand in self._hands if hand.ready or hand.job}
        ready, _ = self.ray.wait(list(by), num_returns=1, timeout=BEAT)
        return [by[one] for one in ready]

    def _records(self, hand: _Hand, waiting: deque[_Job]) -> Iterator[Any]:
        """The records that a worker has sent. Raises what its task raised."""
        try:
            if hand.ready:
                self.ray.get(hand.ready, timeout=SILENT)
                hand.ready, self._unstarted = None, 0
                return
            assert hand.job
            found = self.ray.get(next(hand.stream), timeout=SILENT)
            hand.moved = time.monotonic()
        except StopIteration:
            hand.job = hand.stream = hand.asked = None
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            self._lost(hand, waiting, type(error).__name__)
        else:
            yield from hand.job.fresh(found)

    def _watch(self, waiting: deque[_Job]) -> None:
        """Poll every busy worker; those that do not answer, or produce nothing, are lost."""
        now = time.monotonic()
        for hand in self._hands:
            if not hand.job:
                continue
            if hand.asked is None:
                if now - hand.since >= BEAT:
                    hand.asked, hand.since = hand.actor.beat.remote(), now
            elif self.ray.wait([hand.asked], timeout=0)[0]:
                with suppress(self.ray.exceptions.RayError):  # then its stream says so as well
                    made = self.ray.get(hand.asked, timeout=SILENT)
                    hand.moved = now if made != hand.made else hand.moved
                    hand.made = made
                hand.asked = None
            elif now - hand.since > SILENT:
                self._lost(hand, waiting, f"no answer for {SILENT:g} s")
                continue
            if now - hand.moved > STUCK:
                self._lost(hand, waiting, f"nothing made for {STUCK:g} s")

    def _started(self) -> bool:
        return any(hand.ready is None for hand in self._hands)

    def _wait_for_one(self) -> None:
        """Wait until a worker has started. Raises InputError if none does."""
        until = time.monotonic() + START
        while not self._started():
            if time.monotonic() > until:
                raise InputError(f"ray: no worker has started within {START:g} s; see 'ray status' on the cluster")
            for hand in self._heard():
                list(self._records(hand, deque()))

    def _lost(self, hand: _Hand, waiting: deque[_Job], why: str) -> None:
        """Put a lost worker's shard at the front of the queue, and request another worker. Raises InputError if this happens too often."""
        job = hand.job
        self._replace(hand)
        if job is None:
            self._unstarted += 1
            if self._unstarted >= TRIES and not self._started():
                raise InputError(f"ray: {self._unstarted} workers did not start ({why}); is stepmend installed on every node?")
            self.say(f"  ray: a worker did not start ({why}); another one is requested")
            return
        job.lost += 1
        if job.lost >= TRIES:
            raise InputError(f"ray: {job.lost} workers were lost with the same shard ({why}); if memory is short, lower measure.batch_size")
        self.say(f"  ray: a worker was lost ({why}); its shard runs again")
        waiting.appendleft(job)

    def _replace(self, hand: _Hand) -> None:
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(hand.actor, no_restart=True)
        self._hands[self._hands.index(hand)] = self._hand()
