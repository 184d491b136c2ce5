"""Shards are plain data, tasks are found by name, results are records: the same, however the work is cut and wherever it is done."""

import pytest

from stepmend.arms import FULL
from stepmend.engines.make import make
from stepmend.engines.named import Spec
from stepmend.executors.base import find, name_of
from stepmend.executors.local import Local
from stepmend.measure import solve
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.records import Trace

FOLDER = str(CHECKPOINTS / "qwen2")
QUESTIONS = ("Ann has 3 apples and buys 4 more. How many apples does Ann have?", "Bob has 9 pens and loses 2. How many are left?", "1?")


class Elsewhere:
    """Does each shard as another process would: everything crosses as text, and engines are made anew."""

    def map(self, task, shards):
        for sent in [shard.model_dump_json() for shard in shards]:
            found = find(name_of(task))
            engines = {}
            for record in found(solve.Shard.model_validate_json(sent), lambda spec, had=engines: had.setdefault(spec, make(spec))):
                yield Trace.model_validate_json(record.model_dump_json())


@pytest.fixture(scope="module")
def shard():
    tokenizer = load.load_tokenizer(FOLDER)
    texts = [chat.render(tokenizer, "plain-1", question) for question in QUESTIONS]
    engine = Spec(kind="transformers", checkpoint=FOLDER, tokenizer=FOLDER, max_new_tokens=24, dtype="float32", slots=2)
    return solve.Shard(engine=engine, arm=FULL, made_by=["d"], texts=texts, ids=["a", "b", "c"])


def test_the_same_records_here_and_elsewhere_however_the_work_is_cut(shard):
    engine = make(shard.engine)
    opened = []
    here = Local(lambda spec: opened.append(spec) or engine)
    whole = {trace.problem: trace for trace in here.map(solve.write, [shard])}
    cut = [shard.model_copy(update={"done": frozenset({0, 1, 2} - part)}) for part in ({1}, {0, 2})]
    for executor in (here, Elsewhere()):
        found = [trace for trace in executor.map(solve.write, cut)]
        assert found[0].problem == "b" and len(found) == 3
        assert {trace.problem: trace for trace in found} == whole
    assert opened == [shard.engine] * 3


def test_a_task_that_no_other_process_could_find_is_refused(shard):
    assert find("stepmend.measure.solve:write") is solve.write

    def inside(shard, open_engine):
        yield from ()

    for task in (inside, lambda shard, open_engine: iter(())):
        with pytest.raises(ValueError, match="a function at the top of a module"):
            list(Local(make).map(task, [shard]))
