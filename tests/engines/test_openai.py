"""Completions from an OpenAI-compatible server: a real one on this machine, whose answers a test scripts."""

import json
import time

import pytest

from stepmend import InputError, Problem
from stepmend.engines import servers
from stepmend.engines.openai import ServerEngine
from stepmend.locate import completers
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from tests.scripted_server import Reply, ScriptedServer, refusal

FOLDER = str(CHECKPOINTS / "qwen2")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def written(text, finish="stop"):
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    return Reply(json.dumps({"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}))


def echo(request):
    """What is written says what was asked: the prompt, and the seed."""
    return written(f"{request.body['prompt']}|{request.body['seed']}", "length" if request.body["prompt"] == "long" else "stop")


@pytest.fixture
def engine():
    tokenizer = load.load_tokenizer(FOLDER)

    def make(server, **more):
        return ServerEngine("big", "m", server.url, tokenizer, 20, **more)

    return make


def test_texts_are_continued_as_they_are(engine):
    with ScriptedServer(echo) as server:
        found = dict(engine(server).generate(["Step 1: 3", "long"], temperature=0.5, seed=4))
        bodies = [request.body for request in server.requests]
    assert {request.path for request in server.requests} == {"/v1/completions"}
    assert {i: c.text.partition("|")[0] for i, c in found.items()} == {0: "Step 1: 3", 1: "long"}
    assert {i: c.finish for i, c in found.items()} == {0: "stop", 1: "length"}
    assert all(c.tokens for c in found.values())
    for body in bodies:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 20, 0.5)


def test_a_texts_nth_completion_is_the_same_in_any_order_and_company(engine):
    with ScriptedServer(echo) as server:
        made = engine(server, concurrency=3)
        whole = dict(made.generate(["a", "b", "a", "a"], temperature=1.0, seed=1))
        part = dict(made.generate(["a", "a"], temperature=1.0, seed=1, done={0}))
        other = dict(made.generate(["a"], temperature=1.0, seed=2))
    assert part == {1: whole[2]}
    assert len({c.text for c in whole.values()}) == 4
    assert other[0] != whole[0]


def test_the_key_goes_to_the_server_only(engine, monkeypatch):
    monkeypatch.setenv("STEPMEND_JUDGE_KEY_BIG", "sk-test-completions")
    with ScriptedServer(lambda request: refusal(401, "the key sk-test-completions is wrong")) as server:
        with pytest.raises(InputError, match="HTTP 401") as caught:
            list(engine(server).generate(["a"]))
        assert server.requests[0].headers["authorization"] == "Bearer sk-test-completions"
    assert "sk-test" not in str(caught.value)


@pytest.mark.parametrize("body", ["{}", '{"choices": []}', '{"choices": [{"index": 0}]}'])
def test_what_is_no_completion_is_one_line(engine, body):
    with ScriptedServer(lambda request: Reply(body)) as server, pytest.raises(InputError, match="completer big") as caught:
        list(engine(server).generate(["a"]))
    assert "\n" not in str(caught.value)


def test_a_server_that_only_chats_is_told_apart(engine):
    with ScriptedServer(lambda request: refusal(404)) as server, pytest.raises(InputError, match="/v1/completions"):
        list(engine(server).generate(["a"]))


def test_a_server_that_drips_and_one_that_redirects_are_one_line(engine):
    with ScriptedServer(lambda request: Reply(drip=0.05)) as server, pytest.raises(InputError, match=r"no whole answer within 0\.5 s"):
        list(engine(server, timeout=0.5).generate(["a", "b"]))
    with ScriptedServer(echo) as other:
        moved = Reply("", 307, {"Location": other.url + "/completions"})
        with ScriptedServer(lambda request: moved) as server, pytest.raises(InputError, match="HTTP 307"):
            list(engine(server).generate(["a"]))
        assert other.requests == []


@pytest.mark.parametrize("drips", ["status", "headers", "interim"])
@pytest.mark.parametrize("each", [1.0, 0.05])
def test_what_comes_before_an_answer_has_the_same_deadline(engine, drips, each):
    """A byte a second would last for hours, and no pause is ever long; the client's own repetitions are within the deadline."""
    with ScriptedServer(lambda request: Reply(drip=each, drips=drips)) as server:
        begin = time.perf_counter()
        with pytest.raises(InputError, match=r"completer big: no answer within 1\.5 s"):
            list(engine(server, timeout=1.5).generate(["a"]))
        assert time.perf_counter() - begin < 4
        assert len(server.requests) == 1


def test_an_answer_is_bounded(engine, monkeypatch):
    monkeypatch.setattr(servers, "LARGEST", 1 << 20)
    with ScriptedServer(lambda request: written("x" * (1 << 20))) as server, pytest.raises(InputError, match="larger than"):
        list(engine(server).generate(["a"]))


def test_what_is_not_waited_for_ends_at_once(engine):
    with ScriptedServer(lambda request: Reply(hang=True) if request.body["prompt"] == "b" else echo(request)) as server:
        found = engine(server).generate(["a", "b"])
        assert next(found)[0] == 0
        begin = time.perf_counter()
        found.close()  # as Ctrl-C does
        assert time.perf_counter() - begin < 2


PROBLEM = Problem(id="p", benchmark="story", split="test", level="all", question="What is 3 * 4?", answer="12")


def test_a_completer_by_folder_and_by_server():
    local = completers.make("builtin:qwen2", 30, 2)
    assert local.prompt_of(PROBLEM) == chat.render(load.load_tokenizer(FOLDER), "plain-1", PROBLEM.question)
    assert local.engine.max_new_tokens == 30
    with ScriptedServer(echo) as server:
        made = completers.make(f"big={FOLDER}@{server.url}", 30, 2)
        assert made.prompt_of(PROBLEM).count(PROBLEM.question) == 1
        ((_, completion),) = made.engine.generate([made.prompt_of(PROBLEM)])
    assert completion.text.startswith(made.prompt_of(PROBLEM))
    assert local.engine.identity != made.engine.identity


@pytest.mark.parametrize(
    ("spec", "said"),
    [("./nowhere", "completer: ./nowhere"), ("big=nobody/nothing@http://localhost:1/v1", "completer big"), ("x@y", "completer: x")],
)
def test_a_completer_that_is_none_is_one_line(spec, said):
    with pytest.raises(InputError, match=said) as caught:
        completers.make(spec, 30, 2)
    assert "\n" not in str(caught.value)
