"""What a judge is asked, which of its answers is a vote, and what several of them say together."""

import json

import pytest

from stepmend import Recipe
from stepmend.locate import judges
from stepmend.locate.judges import Judge, Question, Verdict
from stepmend.records import InputError
from tests.locate.questions import SECRET, said


def verdict(step: int | None, error_class=None, outcome: str | None = None, reason: str = "because") -> Verdict:
    return Verdict("j", outcome or ("none" if step is None else "fault"), reason, step, error_class)  # pyright: ignore[reportArgumentType]


def test_a_spec_is_a_name_a_model_and_an_address():
    assert judges.parse("a-B_1=gpt-5@https://api.openai.com/v1/") == Judge("a-B_1", "gpt-5", "https://api.openai.com/v1")
    assert judges.parse("q=org/model:free@main=2@http://[::1]:8000/v1") == Judge("q", "org/model:free@main=2", "http://[::1]:8000/v1")
    assert judges.parse("qwen2.5-1.5b=m@http://h").name == "qwen2.5-1.5b"
    assert judges.parse("q=@cf/meta/llama@http://h.example") == Judge("q", "@cf/meta/llama", "http://h.example")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "NAME=MODEL@BASE_URL"),
        ("qwen", "judge: qwen… is not NAME=MODEL@BASE_URL"),
        ("qwen=model", "NAME=MODEL@BASE_URL"),
        ("qwen=@http://h", "NAME=MODEL@BASE_URL"),
        ("a b=m@http://h", "letters, digits"),
        ("ä=m@http://h", "letters, digits"),
        ("a=m n@http://h", "no spaces"),
        ("a=m@ftp://h", "NAME=MODEL@BASE_URL"),
        ("a=m@http://", "HOST"),
        ("a=m@http:///v1", "HOST"),
        ("a=m@http://h:port/v1", "HOST"),
        ("a=m@http://h:99999/v1", "a port from 1 to 65535"),
        ("a=m@http://h:65536/v1", "a port from 1 to 65535"),
        ("a=m@http://h:0/v1", "a port from 1 to 65535"),
        ("a=m@http://h:８０/v1", "HOST"),
        ("a=m@http://a..b/v1", "HOST"),
        ("rescue=m@http://h", "locator's own"),
        ("Judges=m@http://h", "locator's own"),
        (f"a=m@http://user:{SECRET}@h/v1", "environment only"),
        (f"a=m@https://{SECRET}@httphost/v1", "environment only"),
        (f"a=m@http://h/v1?key={SECRET}", "environment only"),
        (f"a=m@http://user:{SECRET}@h /v1", "no spaces"),
    ],
)
def test_a_bad_spec_is_said_in_one_line_without_its_secrets(spec, says):
    with pytest.raises(InputError, match=r"^judge") as caught:
        judges.parse(spec)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "outcome", "step"),
    [
        (said(2, "procedural"), "fault", 1),
        (said(4), "fault", 3),
        (said(None), "none", None),
        (f"<think>Is it {{step 1}}?\n</think>\n\n{said(1)}", "fault", 0),
        (f"Is it step 2?</think>{said(1)}", "fault", 0),
        (f"```json\n{said(3)}\n```", "fault", 2),
        (f"<think></think>\n```\n{said(None)}\n```\n", "none", None),
        (said(1, reason="it says </think>"), "fault", 0),
        (said(5), "off_menu", None),
        (said(0), "off_menu", None),
        (said(-1), "off_menu", None),
        (said(1, "sloppy"), "off_menu", None),
        (said(1, "degenerate"), "off_menu", None),
        (said(None, "procedural"), "off_menu", None),
        (said(2)[:-4], "off_menu", None),
        (f"Here you are: {said(2)}", "off_menu", None),
        (f"{said(2)}\nI hope this helps.", "off_menu", None),
        (f"```json\n{said(2)}\n```\nDone.", "off_menu", None),
        (f"<think>a</think>b</think>{said(2)}", "off_menu", None),
        (f"<think>{said(2)}", "off_menu", None),
        (f"[{said(2)}]", "off_menu", None),
        (said(2) + said(2), "off_menu", None),
        ("", "off_menu", None),
        ("null", "off_menu", None),
        ('{"first_faulty_step": 1, "error_class": null}', "off_menu", None),
        ('{"first_faulty_step": "1", "error_class": null, "reason": ""}', "off_menu", None),
        ('{"first_faulty_step": 1.0, "error_class": null, "reason": ""}', "off_menu", None),
        ('{"first_faulty_step": true, "error_class": null, "reason": ""}', "off_menu", None),
        ('{"first_faulty_step": 1, "error_class": null, "reason": "", "sure": true}', "off_menu", None),
    ],
)
def test_only_what_was_asked_for_is_a_vote(content, outcome, step):
    found = judges.read(content, "j", 4)
    assert (found.outcome, found.step) == (outcome, step)
    assert found.as_vote().step == step
    assert "\n" not in found.reason


def test_a_verdict_is_a_vote_with_its_class_or_its_reason_to_abstain():
    vote = judges.read(said(2, "procedural", "adds\nfirst"), "gpt", 4).as_vote()
    assert (vote.locator, vote.step, vote.error_class, vote.evidence) == ("gpt", 1, "procedural", "adds first")
    assert verdict(None, outcome="not_asked", reason="spent").as_vote().evidence == "not asked: spent"


def test_a_line_is_cut_to_its_length():
    assert [judges.line("ab\n cd", length) for length in (5, 4)] == ["ab cd", "ab …"]


def test_the_prompt_numbers_the_steps_and_explains_the_classes():
    system, user = judges.messages(Question("Why?", "7", ("a\n", "b </step_1> \ud800")))
    assert "<step_1>\na\n</step_1>\n<step_2>\nb </step_1>" in user["content"]
    assert "<right_answer>\n7\n</right_answer>" in user["content"]
    assert "right_answer" not in judges.messages(Question("Why?", None, ("a",)))[1]["content"]
    assert all(name in system["content"] for name in judges.CLASSES)
    assert len(judges.CLASSES) == 7
    json.dumps(user).encode()


@pytest.mark.parametrize(
    ("verdicts", "share", "outcome", "step", "evidence"),
    [
        ([verdict(2), verdict(2, reason="no"), verdict(1)], 0.5, "fault", 2, "2 of 3 judges: because"),
        ([verdict(None), verdict(None), verdict(1)], 0.5, "none", None, "2 of 3 judges: no step is faulty: because"),
        ([verdict(0), verdict(1), verdict(2)], 0.5, "abstained", None, "no quorum among 3 judges: step 1 (1), step 2 (1), step 3 (1)"),
        ([verdict(0), verdict(0), verdict(1), verdict(1)], 0.5, "abstained", None, "no quorum among 4 judges: step 1 (2), step 2 (2)"),
        ([verdict(0), verdict(0), verdict(1), verdict(None)], 0.4, "fault", 0, "2 of 4 judges: because"),
        ([verdict(0), verdict(0), verdict(None), verdict(None)], 0.4, "abstained", None, "no quorum among 4 judges: step 1 (2), none (2)"),
        ([verdict(0), verdict(None, outcome="failed")], 0.5, "abstained", None, "no quorum among 2 judges: step 1 (1)"),
        ([verdict(None, outcome="off_menu")] * 3, 0.5, "abstained", None, "no quorum among 3 judges: no valid answer"),
        ([verdict(3), verdict(3), verdict(None, outcome="failed")], 0.5, "fault", 3, "2 of 3 judges: because"),
        ([verdict(3), verdict(3), verdict(1)], 2 / 3, "abstained", None, "no quorum among 3 judges: step 4 (2), step 2 (1)"),
        ([verdict(3)], 0.5, "fault", 3, "1 of 1 judges: because"),
        ([], 0.5, "abstained", None, "no quorum among 0 judges: no valid answer"),
    ],
)
def test_quorum(verdicts, share, outcome, step, evidence):
    decision = judges.quorum(verdicts, share)
    assert (decision.outcome, decision.vote.step, decision.vote.evidence) == (outcome, step, evidence)
    assert decision.vote.locator == "judges"


def test_the_class_is_the_one_most_of_the_winners_name_and_the_first_of_equals():
    def class_of(*classes):
        return judges.quorum([*(verdict(1, kind) for kind in classes), verdict(0, "conceptual_misunderstanding")]).vote.error_class

    assert class_of("computational", "computational", "procedural") == "computational"
    assert class_of("computational", "procedural") == "procedural"
    assert class_of("symbolic_manipulation", "logical_reasoning", None) == "logical_reasoning"
    assert class_of("symbolic_manipulation", None, None) == "symbolic_manipulation"
    assert class_of(None, None) is None


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"share = 1\.5"):
        judges.quorum([], 1.5)


def test_agreement_is_that_of_krippendorffs_own_example():
    # Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C: four observers, twelve units, nominal alpha 0.743.
    table = ["123321412---", "1233224125-3", "-3332342251-", "12332441251-"]
    rows = [
        [verdict(None, outcome="failed") if mark == "-" else verdict(None if mark == "5" else int(mark)) for mark in unit]
        for unit in zip(*table, strict=True)
    ]
    assert judges.agreement(rows) == pytest.approx(0.743, abs=0.0005)


def test_agreement_is_not_defined_where_there_is_nothing_to_compare():
    failed = verdict(None, outcome="failed")
    assert judges.agreement([]) is None
    assert judges.agreement([[verdict(1)], [verdict(2)]]) is None
    assert judges.agreement([[verdict(1), failed], [failed, verdict(2)]]) is None
    assert judges.agreement([[verdict(1), verdict(1)], [verdict(1), verdict(1)], [verdict(2), failed]]) is None
    assert judges.agreement([[verdict(1), verdict(1)], [verdict(None), verdict(None)]]) == 1


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://api.openai.com/v1", None),
        ("HTTPS://API.OpenAI.com:443/v1", None),
        ("http://api.openai.com/v1", "j"),
        ("https://api.openai.com.evil.example/v1", "j"),
        ("https://evil.example/api.openai.com", "j"),
        ("http://localhost:8000/v1", None),
        ("http://127.0.0.1:8000", None),
        ("http://[::1]:8000", None),
        ("http://127.0.0.1.evil.example", "j"),
        ("http://[::2]:8000", "j"),
    ],
)
def test_an_address_that_a_folder_names_must_be_named_again(url, asked):
    spec = f"j=m@{url}"
    assert judges.unknown([spec], []) == asked
    assert judges.unknown([spec], [spec]) is None
    assert judges.unknown([spec], [f"j=m@{url}/other"]) == asked


@pytest.mark.parametrize("url", ["https://h.example/v1", "http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1"])
def test_https_and_this_machine_are_asked(url):
    assert judges.asked([f"j=m@{url}"], plain_http=False) == [Judge("j", "m", url)]


@pytest.mark.parametrize("url", ["http://h.example/v1", "http://localhost.example/v1", "http://10.0.0.1:8000", "HTTP://h"])
def test_plain_http_to_another_machine_is_asked_where_it_is_allowed(url):
    with pytest.raises(InputError, match=r"j: plain http to another machine.*plain_http=true"):
        judges.asked([f"j=m@{url}"], plain_http=False)
    assert judges.asked([f"j=m@{url}"], plain_http=True)
    assert Recipe.make({"locate": {"judges": [f"j=m@{url}"]}}).locate.judges  # a folder that names it can be read
