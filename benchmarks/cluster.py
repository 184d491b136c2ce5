"""Ray beside one process, on the CPU cores of this machine. Writes docs/results/cluster.md.

python benchmarks/cluster.py                # some ten minutes on two idle cores
python benchmarks/cluster.py --texts 120    # fewer problems

The built-in Qwen2 reasoner solves the same problems in this process, on one Ray worker and on two, in turn, each with one thread; workers
have loaded the model before the clock starts. The simulation puts the measured seconds of one problem on more workers.
"""

import argparse
import heapq
import os
import random
import statistics
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from stepmend.benchmarks import sources
from stepmend.engines.make import make
from stepmend.engines.named import Spec
from stepmend.engines.spread import PIECES, Spread
from stepmend.executors.local import Local
from stepmend.executors.ray import Ray
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS

PAGE = Path(__file__).parents[1] / "docs/results/cluster.md"
FOLDER, SLOTS, NEW = str(CHECKPOINTS / "qwen2"), 32, 180
PROBLEMS = 1319
"""Test problems of the simulation."""
TEXT = """# Ray beside one process

`python benchmarks/cluster.py` wrote this page: {texts} problems, the built-in Qwen2 reasoner, {slots} slots, one thread a worker, {cores}
cores; {rounds} rounds in turn; medians, and the least and largest ratio of a round. Completions were the same in every round.

| | seconds | ratio |
|---|---|---|
| this process, no Ray | {alone:.1f} | |
| one worker | {one:.1f} | {overhead} of this process's seconds; target: at most 1.05 |
| two workers | {two:.1f} | {gain} times as fast as one; target: at least 1.6 |

## Simulated: more workers

{problems:,} problems, one arm, at the measured {each:.1f} ms a problem and {serial:.2f} ms of the driver a problem, cut into pieces as a
run cuts them, which take 0.8 to 1.2 of their mean time. Not measured. The limits: a piece is done by one worker, so the last one decides;
and the driver's part does not get faster. Quantizing, tuning and the report are not spread.

| workers | seconds | times as fast as one | busy |
|---|---|---|---|
{rows}
"""


def timed(engine: Spread, texts: list[str]) -> tuple[float, list[str]]:
    """Seconds of completing the texts, and what came."""
    start = time.perf_counter()
    found = engine.complete(texts)
    return time.perf_counter() - start, [one.text for one in found]


def simulated(seconds: float, rows: int, workers: int, slots: int, serial: float) -> float:
    """Seconds of a stage: pieces as ``Spread`` cuts them, each given to the worker that is free first, and a serial part of the driver."""
    size = max(min(slots, -(-rows // workers)), -(-rows // (PIECES * workers)))
    pieces = [min(size, rows - start) for start in range(0, rows, size)]
    draw, free = random.Random(0), [0.0] * workers
    for piece in pieces:
        heapq.heappush(free, heapq.heappop(free) + seconds * piece * draw.uniform(0.8, 1.2))
    return max(free) + serial * rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=384, help="problems to solve")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured, in turn")
    options = parser.parse_args()
    tokenizer = load.load_tokenizer(FOLDER)
    problems = sources.Data("story", None).measured(options.texts // 3, 0)
    texts = [chat.render(tokenizer, "plain-1", problem.question) for problem in problems]
    spec = Spec(kind="transformers", checkpoint=FOLDER, tokenizer=FOLDER, max_new_tokens=NEW, dtype="float32", slots=SLOTS)
    engine = make(spec, tokenizer)
    with Ray("local", 1) as cluster:
        arms = {"this process": Local(lambda spec: engine), "one worker": One(cluster), "two workers": cluster}
        spreads = {name: Spread(executor, spec, tokenizer, "cpu") for name, executor in arms.items()}
        for one in spreads.values():  # every worker loads the model
            timed(one, texts[:SLOTS])
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(options.rounds):
            said = []
            for name, one in spreads.items():
                spent, found = timed(one, texts)
                seconds[name].append(spent)
                said.append(found)
            assert said[0] == said[1] == said[2], "records differ"
            print({name: round(of[-1], 1) for name, of in seconds.items()}, flush=True)
    PAGE.write_text(page(seconds, len(texts), cluster.workers))
    print(PAGE.read_text())


class One:
    """The cluster with one of its workers in use."""

    workers = 1

    def __init__(self, cluster: Ray) -> None:
        self.cluster = cluster

    def map(self, task, shards):  # noqa: ANN001, ANN201
        hands, self.cluster._hands = self.cluster._hands, self.cluster._hands[:1]
        try:
            yield from self.cluster.map(task, shards)
        finally:
            self.cluster._hands = self.cluster._hands + hands[1:]


def ratio(above: list[float], below: list[float]) -> str:
    """The median ratio of rounds, with the least and the largest."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def page(seconds: dict[str, list[float]], texts: int, workers: int) -> str:
    alone, one, two = seconds.values()
    each = statistics.median(alone) / texts
    serial = max(0.0, statistics.median(one) - statistics.median(alone)) / texts
    rows = [(k, simulated(each, PROBLEMS, k, SLOTS, serial)) for k in (1, 2, 8, 64)]
    return TEXT.format(
        texts=texts, slots=SLOTS, cores=workers, rounds=len(alone), alone=statistics.median(alone), one=statistics.median(one),
        two=statistics.median(two), overhead=ratio(one, alone), gain=ratio(one, two), problems=PROBLEMS, each=each * 1000,
        serial=serial * 1000,
        rows="\n".join(f"| {k} | {s:.1f} | {rows[0][1] / s:.1f} | {100 * each * PROBLEMS / k / s:.0f} % |" for k, s in rows),
    )  # fmt: skip


if __name__ == "__main__":
    main()
