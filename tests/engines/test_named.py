"""Which engine writes an arm's solutions, and what is refused before any work."""

import json

import pytest

from stepmend import InputError, Recipe
from stepmend.arms import AGAIN, FULL
from stepmend.context import Context
from stepmend.engines import named, servers
from stepmend.engines.base import Completion, scorer
from stepmend.engines.local import LocalEngine
from stepmend.locate import run as locating
from stepmend.measure import margins
from stepmend.measure import solve as solving
from stepmend.records import Trace, digest
from tests.scripted_server import Reply, ScriptedServer

W3 = "rtn-w3a16-g128"
SMALL = {
    "schemes": [W3],
    "measure": {"problems": 3, "noise_floor": False},
    "curate": {"problems": 9},
    "quantize": {"calibration": 8},
    "locate": {"locators": ["equations", "rescue"]},
}


def recipe(*engines: str, **locate) -> Recipe:
    return Recipe.make(SMALL | {"measure": {**SMALL["measure"], "engines": engines}, "locate": {**SMALL["locate"], **locate}})


def test_the_engine_of_an_arm_is_the_one_named_for_it_or_for_all():
    here, server = "transformers", "full=m@http://localhost:1/v1"
    for specs, arm, wanted in [
        ([], FULL, (here, "")),
        (["vllm"], f"{W3}+restored", ("vllm", "vllm")),
        ([server], AGAIN, ("openai", server)),
        ([server], W3, (here, "")),
        ([server, "vllm"], W3, ("vllm", "vllm")),
        ([f"{W3}=vllm"], f"{W3}+restored", ("vllm", f"{W3}=vllm")),
        ([f"{W3}=m@http://localhost:1/v1"], f"{W3}+restored", (here, "")),
        ([f"{W3}-restored=m@http://localhost:1/v1"], f"{W3}+restored", ("openai", f"{W3}-restored=m@http://localhost:1/v1")),
        ([f"{W3}=vllm"], FULL, (here, "")),
    ]:
        assert named.of(specs, arm) == wanted


@pytest.mark.parametrize(
    ("engines", "line"),
    [
        (["tgi"], "engine: 'tgi': an engine is transformers, vllm"),
        (["m@http://localhost:1/v1"], "engine: 'm': an engine is"),
        (["full=m"], "engine: 'full=m'"),
        (["full=m@ftp://x/v1"], "engine: full… is not NAME=MODEL@BASE_URL"),
        (["full=m@http://me:secret@x/v1"], "engine full: the address has credentials"),
        (["w4=vllm"], f"engine: there is no arm 'w4'; allowed: full, {W3}, {W3}-restored"),
        (["vllm", "transformers"], "engine: two engines are named for all arms"),
        (["full=vllm", "full=m@http://localhost:1/v1"], "engine: two engines are named for full"),
    ],
)
def test_a_wrong_engine_is_one_line(engines, line):
    with pytest.raises(InputError) as caught:
        recipe(*engines)
    assert line in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("engines", "locate", "line"),
    [
        (["full=m@http://localhost:1/v1"], {"locators": ["equations", "margins"]}, "locate.locators=[equations]"),
        ([f"{W3}=m@https://far.example/v1"], {"locators": ["margins"]}, f"openai, of {W3}, cannot score"),
        (["full=m@http://far.example/v1"], {}, "engine full: plain http to another machine"),
        (["vllm"], {}, r"engine vllm: vllm is not installed; install it with: pip install 'stepmend[vllm]'"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(engines, locate, line, tmp_path):
    with pytest.raises(InputError) as caught:
        Context(recipe(*engines, **locate), tmp_path / "run")
    assert line in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_named_engine_has_the_digests_it_always_had():
    assert "engines" not in Recipe().model_dump()["measure"]
    assert "measure.engines" not in Recipe().deciding()
    one = recipe("full=m@http://localhost:1/v1")
    assert one.differences(recipe()) == recipe().differences(one) == ["measure.engines"]
    assert named.identity(*named.of((), FULL), "float32") == ()
    first, second = (named.identity("openai", f"full=m@http://localhost:{port}/v1", "float32") for port in (1, 2))
    assert first != second and first == (digest("openai", "m", "http://localhost:1/v1"),)


def test_the_report_says_whose_solutions_are_whose():
    assert named.described((), [FULL, W3]) == ""
    assert named.described(("vllm",), [FULL, W3]) == f"Engines: vLLM wrote full, {W3}."
    said = named.described(("full=m@http://localhost:1/v1",), [FULL, AGAIN, W3])
    assert said.startswith(f"Engines: a server wrote full, full+again; transformers wrote {W3}. What differs")


class Silent:
    """An engine that generates and does not score."""

    identity = "silent"
    max_new_tokens = 8

    def generate(self, texts, *, temperature=0.0, seed=0, done=()):
        yield from ((i, Completion(text, (1,), "stop")) for i, text in enumerate(texts) if i not in done)


def test_only_what_scores_is_a_scorer():
    with pytest.raises(InputError, match="silent cannot score"):
        scorer(Silent())
    engine = LocalEngine(None, None, 8)
    assert scorer(engine) is engine


def answer(request):
    """Every question is answered; the model's name says who is asked."""
    text = f" Step 1: 1 + 1 = 2 ({request.model})"
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return Reply(json.dumps({"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}))


def test_a_run_goes_on_where_its_server_was_killed(tmp_path, monkeypatch):
    """Nothing that had come is asked again, and what in the end is kept is what one call would have kept."""
    monkeypatch.setattr(servers, "GRACE", 0.1)
    monkeypatch.setattr("openai._constants.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    left = []

    def dying(request):
        if not left:
            left.append(request)
            return answer(request)
        return Reply(hang=True)  # until it is closed

    with ScriptedServer(dying) as first:
        made = recipe(f"full=m@{first.url}")
        port = int(first.url.rsplit(":", 1)[1].partition("/")[0])
        with Context(made, tmp_path / "run") as context:
            problems, had = context.problems("test"), []
            for trace in context.executor(FULL).map(solving.write, [_shard(context, problems)]):
                had.append(trace)
                context.dir.append([trace])
                break
    with (
        Context(made, tmp_path / "run") as context,
        pytest.raises(InputError, match="start it and run the same command again"),
    ):
        solving.solve(context, FULL, problems, "test")
    with ScriptedServer(answer, port) as second, Context(made, tmp_path / "run") as context:
        traces = solving.solve(context, FULL, problems, "test")
        assert len(second.requests) == len(problems) - 1
        assert traces[had[0].problem] == had[0]
        assert [*traces] == [problem.id for problem in problems]
        assert all(trace.tokens[-1] == context.tokenizer.eos_token_id for trace in traces.values())
        others = solving.is_solved(context, W3, problems)
    assert not others


def _shard(context, problems):
    texts, ids = [context.prompt_of(p) for p in problems], [p.id for p in problems]
    _, made_by = solving._inputs(context, FULL, texts, ids)
    return solving.Shard(engine=context.spec(FULL, 8), arm=FULL, made_by=made_by, texts=texts, ids=ids)


def test_stages_of_a_served_run_ask_its_server_and_leave_margins_out(tmp_path):
    """Rescue continues at the server; margins are left out, and that is said; faults carry the engine in their digest."""
    said = []
    with ScriptedServer(answer) as server, Context(recipe(f"full=m@{server.url}"), tmp_path / "run") as context:
        monkey = context.stages
        monkey.say = said.append
        problem = context.problems("test")[0]
        text = "Step 1: 1 + 1 = 2\nStep 2: 2 + 2 = 5"
        trace = Trace(problem=problem.id, arm=W3, made_by="", text=text, tokens=(1,), finish="stop")
        full = {problem.id: trace.model_copy(update={"arm": FULL, "text": f"Step 1: \\boxed{{{problem.answer}}}"})}
        margins.damage(context, W3, [problem], full)
        (fault,) = locating.locate(context, W3, [problem], full, {problem.id: trace}, "test")
    assert len(said) == 1 and "margins are skipped" in said[0]
    assert server.requests and {request.path for request in server.requests} == {"/v1/completions"}
    assert fault.margins == () and fault.frontier is None
