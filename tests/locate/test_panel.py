"""Judges behind real HTTP servers that answer, delay, refuse, break off and hang as scripted."""

import itertools
import random
import signal
import socket
import threading
import time

import pytest
from scipy.stats import binom

from stepmend.engines import servers
from stepmend.locate import judges
from stepmend.locate.judges import Judge, Verdict
from stepmend.locate.panel import Panel
from stepmend.records import InputError, Judgement
from tests.locate.questions import SECRET, question, said
from tests.scripted_server import Reply, Request, ScriptedServer, completion, refusal


def number_of(request: Request) -> int:
    return int(request.text.split("Problem ")[1].split(":")[0])


def ask(url: str, count: int = 1, model: str = "m", **settings) -> tuple[list[Verdict], list[Judgement], dict]:
    """One judge's verdicts on some questions, what was kept, and the tally."""
    kept: list[Judgement] = []
    panel = Panel([Judge("j", model, url)], kept.append, **{"timeout": 5, **settings})
    verdicts = panel.ask([question(i) for i in range(count)])
    return [row[0] for row in verdicts], kept, panel.tally()["j"]


def interrupt_soon(seconds: float) -> None:
    """What Ctrl-C does, from a server's thread."""
    main = threading.main_thread().ident
    assert main
    threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT)).start()


@pytest.fixture
def interruptible():
    """Ctrl-C raises, even where the shell that started the tests has told its children to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_two_judges_have_two_names_and_are_two_voices():
    one = Judge("a", "m", "http://h")
    with pytest.raises(InputError, match="a is given twice"):
        Panel([one, Judge("a", "n", "http://h")], print)
    with pytest.raises(InputError, match="a and b are the same model"):
        Panel([one, Judge("b", "m", "http://h")], print)


def test_a_question_is_put_as_documented_and_its_answer_kept_as_it_came():
    content = f"<think>hm</think>{said(2, 'computational')}"
    with ScriptedServer(lambda request: completion(content, 123)) as server:
        verdicts, kept, tally = ask(server.url)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body["temperature"] == 0
    schema = request.body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert sorted(schema["schema"]["required"]) == ["error_class", "first_faulty_step", "reason"]
    assert request.headers["authorization"] == "Bearer none"
    assert verdicts == [Verdict("j", "fault", "because", 1, "computational")]
    assert [(k.judge, k.model, k.content, k.tokens) for k in kept] == [("j", "m", content, 123)]
    assert tally == {
        "asked": 1, "from_kept": 0, "faults": 1, "none": 0, "off_menu": 0, "failed": 0, "not_asked": 0, "tokens": 123, "given_up": None,
    }  # fmt: skip


def test_the_quorum_of_three_is_as_often_right_as_probability_says():
    count, rate = 400, 0.9
    truth = [None if i % 10 == 0 else i % 5 for i in range(count)]
    chance = random.Random(7)
    answers = {}
    for model, i in itertools.product("abc", range(count)):
        others = [step for step in (None, 0, 1, 2, 3, 4) if step != truth[i]]
        answers[model, i] = truth[i] if chance.random() < rate else chance.choice(others)

    def script(request: Request) -> Reply:
        step = answers[request.model, number_of(request)]
        return completion(said(None if step is None else step + 1))

    ticks: list[int] = []
    with ScriptedServer(script) as server:
        panel = Panel([Judge(model, model, server.url) for model in "abc"], lambda kept: None)
        rows = panel.ask([question(i, 5) for i in range(count)], ticks.append)
    assert sum(ticks) == 3 * count
    assert [[v.step for v in row] for row in rows] == [[answers[model, i] for model in "abc"] for i in range(count)]
    decisions = [judges.quorum(row) for row in rows]
    wrong = 1 - rate  # spread evenly over five other answers: two agree on a wrong one in a fifth of the cases, three in a 25th
    expected = {
        "right": rate**3 + 3 * rate**2 * wrong,
        "abstained": 3 * rate * wrong**2 * 4 / 5 + wrong**3 * 12 / 25,
        "wrong": 3 * rate * wrong**2 / 5 + wrong**3 * 13 / 25,
    }
    assert sum(expected.values()) == pytest.approx(1)
    found = dict.fromkeys(expected, 0)
    for decision, step in zip(decisions, truth, strict=True):
        right = decision.vote.step == step and decision.outcome == ("none" if step is None else "fault")
        found["abstained" if decision.outcome == "abstained" else "right" if right else "wrong"] += 1
    for what, number in found.items():
        low, high = binom.interval(0.99, count, expected[what])
        assert low <= number <= high, (what, number)
    shares = [truth.count(step) / count for step in (None, 0, 1, 2, 3, 4)]
    by_chance = sum((rate * share + wrong * (1 - share) / 5) ** 2 for share in shares)
    assert judges.agreement(rows) == pytest.approx((rate**2 + wrong**2 / 5 - by_chance) / (1 - by_chance), abs=0.05)


def test_nothing_is_asked_twice_and_nothing_is_lost():
    kept: list[Judgement] = []
    outcomes = {0: said(1), 1: said(None), 2: "I think step 3.", 3: said(9)}

    def script(request: Request) -> Reply:
        return completion(outcomes[number_of(request) % 4], delay=0.002 * (number_of(request) % 3))

    with ScriptedServer(script) as server:
        table = [Judge(model, model, server.url) for model in "ab"]
        questions = [question(i) for i in (*range(20), *range(10))]
        first = Panel(table, kept.append)
        rows = first.ask(questions)
        assert len(server.requests) == len(kept) == 40
        assert first.ask(questions) == rows
        restored = [Judgement.model_validate_json(k.model_dump_json()) for k in kept]
        second = Panel(table, kept.append, restored, budget=0)
        assert second.ask(questions) == rows
        assert len(server.requests) == len(kept) == 40
        other = Panel([Judge("a", "c", server.url)], kept.append, restored)
        other.ask(questions[:1])
        assert len(server.requests) == 41
    assert max(request.count for request in server.requests) == 0
    assert [[v.outcome for v in row] for row in rows[:4]] == [["fault"] * 2, ["none"] * 2, ["off_menu"] * 2, ["off_menu"] * 2]
    assert rows[20:] == rows[:10]
    assert first.used
    tally = first.tally()["a"]
    assert (tally["asked"], tally["from_kept"], tally["tokens"]) == (20, 40, 2000)
    tally = second.tally()["b"]
    assert (tally["asked"], tally["from_kept"], tally["tokens"], tally["not_asked"]) == (0, 30, 0, 0)
    assert tally["faults"] + tally["none"] + tally["off_menu"] == 30


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(429, Retry_After="0"),
        refusal(429, retry_after_ms="5"),
        refusal(500, Retry_After="0.01"),
        refusal(503, retry_after_ms="1"),
        refusal(500),
    ],
    ids=str,
)
def test_passing_trouble_is_waited_out(trouble):
    with ScriptedServer(lambda request: trouble if request.count == 0 else completion(said(1))) as server:
        verdicts, kept, tally = ask(server.url, 3)
    assert [v.outcome for v in verdicts] == ["fault"] * 3
    assert len(server.requests) == 6
    assert (tally["asked"], len(kept)) == (3, 3)


def test_trouble_that_stays_fails_and_is_not_kept():
    with ScriptedServer(lambda request: refusal(429, "slow\n down", retry_after="0")) as server:
        verdicts, kept, tally = ask(server.url, 7, retries=2)
    assert {v.outcome for v in verdicts} == {"failed"}
    assert "HTTP 429" in verdicts[0].reason
    assert "slow" in verdicts[0].reason
    assert len(server.requests) == 21
    assert kept == []
    assert (tally["failed"], tally["given_up"]) == (7, None)


def test_a_server_that_wants_more_than_two_minutes_is_not_waited_for():
    with ScriptedServer(lambda request: refusal(429, retry_after="3600")) as server:
        verdicts, _, _ = ask(server.url)
    assert verdicts[0].outcome == "failed"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply("<html>Welcome</html>", headers={"Content-Type": "text/html"}),
        Reply('{"choices": [{"message": {"content": "cut'),
        Reply('{"choices": []}'),
        Reply('{"error": {"message": "upstream"}}'),
        Reply(""),
    ],
    ids=lambda reply: reply.body[:12],
)
def test_what_is_no_chat_completion_is_a_failure(reply):
    with ScriptedServer(lambda request: reply) as server:
        verdicts, kept, _ = ask(server.url)
    assert (verdicts[0].outcome, verdicts[0].reason) == ("failed", "what came back is no chat completion")
    assert kept == []


@pytest.mark.parametrize("counted", [None, 0])
def test_an_answer_without_text_is_off_the_menu_and_tokens_are_estimated_where_none_are_counted(counted):
    with ScriptedServer(lambda request: completion(None, counted)) as server:
        verdicts, kept, tally = ask(server.url)
    assert verdicts[0].outcome == "off_menu"
    asked = "".join(message["content"] for message in judges.messages(question(0)))
    assert kept[0].tokens == tally["tokens"] == len(asked) // 4


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_format_is_asked_without_it_from_then_on(status):
    def script(request: Request) -> Reply:
        return refusal(status, "response_format?") if "response_format" in request.body else completion(said(2))

    with ScriptedServer(script) as server:
        verdicts, _, tally = ask(server.url, 5, concurrency=1)
    assert [v.step for v in verdicts] == [1] * 5
    assert ["response_format" in request.body for request in server.requests] == [True] + [False] * 5
    assert tally["asked"] == 5


def test_a_question_that_is_refused_says_nothing_of_the_format():
    def script(request: Request) -> Reply:
        return refusal(400, "context too long") if number_of(request) == 0 else completion(said(2))

    with ScriptedServer(script) as server:
        verdicts, _, _ = ask(server.url, 3, concurrency=1)
    assert [v.outcome for v in verdicts] == ["failed", "fault", "fault"]
    assert "context too long" in verdicts[0].reason
    assert ["response_format" in request.body for request in server.requests] == [True, False, True, True]


def test_a_hung_connection_fails_in_time_and_the_judge_is_given_up():
    def script(request: Request) -> Reply:
        return Reply(hang=True) if request.model == "hung" else completion(said(1))

    kept: list[Judgement] = []
    with ScriptedServer(script) as server:
        panel = Panel([Judge(m, m, server.url) for m in ("hung", "good")], kept.append, timeout=0.2, retries=1, concurrency=8)
        begin = time.perf_counter()
        rows = panel.ask([question(i) for i in range(60)])
        assert time.perf_counter() - begin < 5
    hung = [row[0] for row in rows]
    assert {v.outcome for v in hung} == {"failed"}
    assert hung[0].reason == "no answer within 0.2 s"
    assert hung[-1].reason == "given up: no answer within 0.2 s, 5 times in a row"
    assert panel.tally()["hung"]["given_up"] == "no answer within 0.2 s, 5 times in a row"
    assert 5 <= panel.tally()["hung"]["asked"] < 20
    assert [row[1].outcome for row in rows] == ["fault"] * 60
    assert len(kept) == 60


def test_a_dead_port_is_given_up_and_the_rest_go_on():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        verdicts, kept, tally = ask(dead, 30, retries=0, concurrency=1)
        assert tally["asked"] == 5
    assert {v.outcome for v in verdicts} == {"failed"}
    assert verdicts[4].reason == "it cannot be reached"
    assert verdicts[5].reason == "given up: it cannot be reached, 5 times in a row"
    assert kept == []


def test_a_judge_that_answers_now_and_then_is_not_given_up():
    def script(request: Request) -> Reply:
        return completion(said(1)) if number_of(request) % 5 == 4 else refusal(503)

    with ScriptedServer(script) as server:
        verdicts, _, tally = ask(server.url, 20, retries=0, concurrency=1)
    assert [v.outcome for v in verdicts].count("fault") == 4
    assert tally["given_up"] is None


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(401, f"Incorrect API key: {SECRET}"), "HTTP 401: the key is refused"),
        (refusal(403), "STEPMEND_JUDGE_KEY_J"),
        (refusal(404, "no model m"), "HTTP 404: no such model"),
        (refusal(429, code="insufficient_quota"), "HTTP 429: nothing is left to pay with"),
    ],
)
def test_a_judge_that_will_never_answer_is_given_up_at_once(monkeypatch, reply, says):
    monkeypatch.setenv("STEPMEND_JUDGE_KEY_J", SECRET)
    with ScriptedServer(lambda request: reply) as server:
        verdicts, _, tally = ask(server.url, 10, concurrency=1)
    assert len(server.requests) == 1
    assert says in str(tally["given_up"])
    assert {v.outcome for v in verdicts} == {"failed"}
    assert SECRET not in repr((verdicts, tally))


def test_the_budget_ends_it_cleanly_and_kept_answers_cost_nothing():
    kept: list[Judgement] = []
    with ScriptedServer(lambda request: completion(said(1), 100)) as server:
        table = [Judge(model, model, server.url) for model in "ab"]
        questions = [question(i) for i in range(20)]
        first = Panel(table, kept.append, budget=1000, concurrency=1)
        rows = first.ask(questions)
        assert [[v.outcome for v in row] for row in rows] == [["fault"] * 2] * 5 + [["not_asked"] * 2] * 15
        assert rows[-1][0].reason == "the budget of 1000 tokens is spent"
        assert len(kept) == len(server.requests) == 10
        second = Panel(table, kept.append, kept, budget=1000, concurrency=4)
        rows = second.ask(questions)
        assert {v.outcome for row in rows[:10] for v in row} == {"fault"}
        assert len(server.requests) == len(kept) <= 20 + 3
        assert {v.outcome for v in Panel(table, kept.append, budget=0).ask(questions)[0]} == {"not_asked"}
    assert sum(int(t["not_asked"] or 0) for t in second.tally().values()) == 40 - len(kept)


def test_keys_come_from_the_environment_and_go_nowhere_but_to_the_judge(monkeypatch, caplog):
    monkeypatch.setenv("STEPMEND_JUDGE_KEY_MY_JUDGE_1_5B", f" {SECRET}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "other-key-of-all")
    kept: list[Judgement] = []

    def script(request: Request) -> Reply:
        key = request.headers["authorization"].removeprefix("Bearer ")
        return [completion(said(1, reason=f"I was told {key}")), refusal(400, f"bad: {key}"), completion(key)][number_of(request)]

    with caplog.at_level("DEBUG"), ScriptedServer(script) as server:
        panel = Panel([Judge("my-judge-1.5b", "m", server.url), Judge("b", "n", server.url)], kept.append)
        rows = panel.ask([question(i) for i in range(3)])
    sent = {(request.model, request.headers["authorization"]) for request in server.requests}
    assert sent == {("m", f"Bearer {SECRET}"), ("n", "Bearer other-key-of-all")}
    assert [v.outcome for v in rows[0] + rows[1] + rows[2]] == ["fault"] * 2 + ["failed"] * 2 + ["off_menu"] * 2
    everything = repr((kept, rows, panel.tally(), [v.as_vote() for row in rows for v in row])) + caplog.text
    assert SECRET not in everything
    assert "other-key-of-all" not in everything
    monkeypatch.setenv("STEPMEND_JUDGE_KEY_B", SECRET + "é")
    with pytest.raises(InputError) as caught:
        Panel([Judge("b", "n", "http://h")], kept.append)
    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_keeps_what_was_answered_and_puts_nothing_more():
    kept: list[Judgement] = []

    def script(request: Request) -> Reply:
        if number_of(request) == 10:
            interrupt_soon(0.05)
        return completion(said(1), delay=0.3) if number_of(request) >= 10 else completion(said(1))

    with ScriptedServer(script) as server:
        panel = Panel([Judge("j", "m", server.url)], kept.append, concurrency=2)
        with pytest.raises(KeyboardInterrupt):
            panel.ask([question(i) for i in range(200)])
        count = len(server.requests)
        assert 11 <= count <= 14
        assert len(kept) == count
        time.sleep(0.1)
        assert len(server.requests) == count
        assert len(panel.ask([question(i) for i in range(12)])) == 12
    assert max(request.count for request in server.requests) == 0


@pytest.mark.parametrize(
    ("drips", "reason", "attempts"), [("body", "no whole answer within 1 s", 1), ("headers", "no answer within 1 s", 2)]
)
def test_a_server_that_drips_has_its_time_and_no_more(drips, reason, attempts):
    with ScriptedServer(lambda request: Reply(drip=0.05, drips=drips)) as server:
        begin = time.perf_counter()
        verdicts, kept, _ = ask(server.url, timeout=1, retries=1)
        assert time.perf_counter() - begin < attempts + 4
        assert len(server.requests) == attempts
    assert (verdicts[0].outcome, verdicts[0].reason, kept) == ("failed", reason, [])


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_answer_is_bounded(monkeypatch, status):
    monkeypatch.setattr(servers, "LARGEST", 1 << 20)
    body = said(1) + " " * (1 << 20)
    with ScriptedServer(lambda request: completion(body, status=status)) as server:
        verdicts, kept, _ = ask(server.url, retries=0)
    assert (verdicts[0].outcome, kept) == ("failed", [])
    assert "its answer is larger than" in verdicts[0].reason


def test_an_answer_is_read_as_it_came_and_never_unpacked():
    with ScriptedServer(lambda request: completion(said(1), headers={"Content-Encoding": "gzip"})) as server:
        verdicts, _, _ = ask(server.url)
        assert server.requests[0].headers["accept-encoding"] == "identity"
    assert verdicts[0].outcome == "fault"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(monkeypatch, status):
    monkeypatch.setenv("STEPMEND_JUDGE_KEY_J", SECRET)
    with ScriptedServer(lambda request: completion(said(1))) as other:
        with ScriptedServer(lambda request: Reply("", status, {"Location": other.url + "/chat/completions"})) as server:
            verdicts, _, tally = ask(server.url, 3, concurrency=1)
        assert other.requests == []
    assert len(server.requests) == 1
    assert f"HTTP {status}: it redirects to another address" in verdicts[0].reason
    assert "redirects" in tally["given_up"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("reply", [Reply(drip=0.05), Reply(drip=0.05, drips="headers"), Reply(hang=True)], ids=["body", "headers", "hang"])
def test_an_interruption_ends_what_does_not_answer(reply):
    began = []

    def script(request: Request) -> Reply:
        began.append(time.perf_counter())
        interrupt_soon(0.1)
        return reply

    with ScriptedServer(script) as server:
        with pytest.raises(KeyboardInterrupt):
            ask(server.url, timeout=60)
        assert time.perf_counter() - began[0] < 2


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_does_not_wait_for_the_next_attempt():
    def script(request: Request) -> Reply:
        interrupt_soon(0.1)
        return refusal(503, retry_after="60")

    with ScriptedServer(script) as server:
        begin = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            ask(server.url)
        assert time.perf_counter() - begin < 3


def test_an_answer_that_cannot_be_kept_stops_the_run():
    def keep(judgement: Judgement) -> None:
        raise OSError(28, "No space left on device")

    with ScriptedServer(lambda request: completion(said(1))) as server:
        with pytest.raises(OSError, match="No space"):
            Panel([Judge("j", "m", server.url)], keep, concurrency=2).ask([question(i) for i in range(100)])
        assert len(server.requests) < 50


def test_answers_are_kept_by_one_thread_at_a_time():
    inside, most = 0, 0

    def keep(judgement: Judgement) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1

    with ScriptedServer(lambda request: completion(said(1))) as server:
        Panel([Judge("j", "m", server.url)], keep).ask([question(i) for i in range(40)])
    assert most == 1
