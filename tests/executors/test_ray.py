"""The records of a Ray cluster are those of one process, and neither a worker nor a node that is lost takes any with it."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from stepmend.engines.make import make
from stepmend.engines.named import Spec
from stepmend.engines.spread import Spread
from stepmend.executors import ray as executor
from stepmend.executors.local import Local
from stepmend.executors.ray import Ray
from stepmend.models import chat
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.records import InputError
from tests.command import stepmend
from tests.conftest import RUN
from tests.executors.tasks import Broken, Number, Numbers, count, where

pytest.importorskip("ray")
FOLDER = str(CHECKPOINTS / "qwen2")
WORDS = "Ann has {} apples and buys {} more. How many apples does Ann have?"


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def cluster(said):
    """Ray on this machine."""
    with Ray("local", 1, said.append) as made:
        yield made


def numbers_of(found):
    return sorted(one.number for one in found)


@pytest.fixture(scope="module")
def engine():
    return make(Spec(kind="transformers", checkpoint=FOLDER, tokenizer=FOLDER, max_new_tokens=40, dtype="float32", slots=4))


@pytest.fixture
def spread(cluster, engine):
    spec = Spec(kind="transformers", checkpoint=FOLDER, tokenizer=FOLDER, max_new_tokens=40, dtype="float32", slots=4, content="x")
    return Spread(cluster, spec, engine.tokenizer, cluster.device)


@pytest.fixture
def texts(engine):
    asked = [WORDS.format(n, n * n) for n in (1, 5, 12, 3, 200, 7)]
    return [chat.render(engine.tokenizer, "plain-1", text) for text in [*asked, *asked[:2]]]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_completions_are_those_of_one_process(engine, spread, texts, temperature):
    of = {"temperature": temperature, "seed": 3}
    whole = engine.complete(texts, **of)
    assert spread.complete(texts, **of) == whole
    rest = dict(spread.generate(texts, **of, done={0, 2, 5}))
    assert rest == {i: whole[i] for i in (1, 3, 4, 6, 7)}
    assert spread.identity == engine.identity


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_where_batches_decide_completions_shards_are_whole_batches(engine, spread, texts, temperature, monkeypatch):
    here = Local(lambda spec: dataclasses.replace(engine), workers=2)
    monkeypatch.setattr(type(engine), "batched", property(lambda self: True))
    whole, spread = engine.complete(texts, temperature=temperature), dataclasses.replace(spread, executor=here)
    assert spread.batched
    assert spread.complete(texts, temperature=temperature) == whole
    assert dict(spread.generate(texts, temperature=temperature, done={1, 2})) == {i: one for i, one in enumerate(whole) if i not in (1, 2)}


def test_scores_are_those_of_one_process(engine, spread, texts):
    rows = [chat.encode(engine.tokenizer, text) for text in texts]
    begins = [len(row) // 2 for row in rows]
    mine = engine.score(rows, begins)
    assert spread.score(rows, begins) == mine
    asked = [[5] * (len(row) - begin) for row, begin in zip(rows, begins, strict=True)]
    assert spread.score(rows, begins, asked) == engine.score(rows, begins, asked)


def test_shards_are_done_at_the_same_time_and_records_come_as_they_are_made(cluster):
    if cluster.workers < 2:
        pytest.skip("one CPU core: one worker")
    found = list(cluster.map(where, [Numbers(numbers=(n,), seconds=1.0) for n in range(4)]))
    assert len({one.process for one in found}) == 2
    times = []
    for _ in cluster.map(count, [Numbers(numbers=(1, 2, 3), seconds=1.0)]):
        times.append(time.monotonic())
    assert all(later - earlier > 0.5 for earlier, later in pairwise(times))


@pytest.mark.parametrize(("what", "why"), [("die", "ActorDiedError"), ("stop", "no answer for 4 s"), ("hang", "nothing made for 3 s")])
def test_the_shard_of_a_lost_worker_is_done_again_and_nothing_comes_twice(cluster, said, tmp_path, monkeypatch, what, why):
    for name, seconds in {"BEAT": 0.5, "SILENT": 4.0, "STUCK": 3.0 if what == "hang" else 600.0}.items():
        monkeypatch.setattr(executor, name, seconds)
    said.clear()
    shards = [
        Numbers(numbers=tuple(range(6)), seconds=0.6, what=what, at=4, marker=str(tmp_path / "once")),
        Numbers(numbers=(10, 11)),
        Numbers(numbers=(20,)),
    ]
    assert numbers_of(cluster.map(count, shards)) == [0, 1, 2, 3, 4, 5, 10, 11, 20]
    assert said == [f"  ray: a worker was lost ({why}); its shard runs again"]


def test_a_shard_that_no_worker_survives_ends_the_run_with_one_line(cluster):
    with pytest.raises(InputError, match=r"3 workers were lost with the same shard \(ActorDiedError\); if memory is short, lower measure"):
        list(cluster.map(count, [Numbers(numbers=(1, 2, 3), what="die", at=2)]))
    assert numbers_of(cluster.map(count, [Numbers(numbers=(1, 2))])) == [1, 2]


@pytest.mark.parametrize(("what", "error"), [("refuse", InputError), ("short of memory", MemoryError)])
def test_what_a_task_raises_is_raised_here_and_what_came_before_is_kept(cluster, what, error):
    found = []
    with pytest.raises(error):
        for one in cluster.map(count, [Numbers(numbers=(1, 2, 3), seconds=0.6, what=what, at=3)]):
            found.append(one)
    assert Number(number=1, process=0) in found


def test_work_that_is_left_halfway_does_not_disturb_what_follows(cluster):
    first = cluster.map(count, [Numbers(numbers=tuple(range(100)), seconds=0.3)])
    assert next(first).number == 0
    first.close()
    assert numbers_of(cluster.map(count, [Numbers(numbers=(7,))])) == [7]


def test_workers_that_cannot_start_end_the_run_with_one_line(cluster, said, monkeypatch):
    said.clear()
    with monkeypatch.context() as patch:
        patch.setattr(executor, "Worker", Broken)
        for hand in list(cluster._hands):
            cluster._replace(hand)
        with pytest.raises(InputError, match=r"3 workers did not start \(ActorDiedError\); is stepmend installed on every node"):
            list(cluster.map(count, [Numbers(numbers=(1,))]))
        with pytest.raises(InputError, match="workers did not start"):
            _ = cluster.device
    for hand in list(cluster._hands):
        cluster._replace(hand)
    assert numbers_of(cluster.map(count, [Numbers(numbers=(5,))])) == [5]


def test_a_cluster_that_cannot_be_reached_or_is_too_small_is_refused(cluster, tmp_path):
    cluster.close()  # the last test of the module: one process has one cluster
    with pytest.raises(InputError, match="ray: a worker takes 4000 CPU cores, and the cluster has"):
        Ray("local", 4000)
    out = tmp_path / "run"
    done = stepmend("run", "--quick", "--ray", "127.0.0.1:1", "--out", out)
    assert done.returncode == 2
    assert "ray: no cluster at '127.0.0.1:1'" in done.stderr and "Traceback" not in done.stderr
    done = stepmend("run", "--quick", "--cpus-per-worker", "2", "--out", out)
    assert (done.returncode, out.exists()) == (2, False)
    assert "--cpus-per-worker goes with --ray" in done.stderr


@pytest.mark.slow
def test_a_node_that_is_removed_takes_nothing_with_it(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(executor, "BEAT", 0.5)
    monkeypatch.setattr(executor, "SILENT", 20.0)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second, said = nodes.add_node(num_cpus=1), []
    try:
        with Ray(nodes.address, 1, said.append) as cluster:
            assert cluster.workers == 2
            found = []
            for one in cluster.map(count, [Numbers(numbers=tuple(range(k, k + 8)), seconds=0.7) for k in (0, 10, 20)]):
                found.append(one)
                if len({n.number // 10 for n in found}) == 2 and second:
                    nodes.remove_node(second, allow_graceful=False)
                    second = None
            assert numbers_of(found) == [*range(8), *range(10, 18), *range(20, 28)]
            assert any("a worker was lost" in line for line in said)
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_a_run_on_a_cluster_whose_driver_is_killed_ends_with_the_records_of_one_process(finished_run, tmp_path):
    out = tmp_path / "run"
    asked = [sys.executable, "-m", "stepmend.cli", *RUN, "--out", str(out), "--ray", "local"]
    child = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 300
    while not (out / "traces.jsonl").exists() or (out / "traces.jsonl").stat().st_size < 20_000:
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("problems", "traces", "grades", "faults", "bullets"):
        assert (out / f"{name}.jsonl").read_bytes() == (finished_run / f"{name}.jsonl").read_bytes(), name
    for folder in finished_run.glob("*-restored"):
        assert (out / folder.name / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(executor, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'stepmend\[cluster\]'"):
        Ray()
