"""The whole vote, or one locator, on labelled solutions: without a run's folder, resumable, with reliabilities written to a file."""

import json

import pytest
from typer.testing import CliRunner

from stepmend import InputError
from stepmend.cli import app
from stepmend.keys import Locate
from stepmend.locate import bench, labelled, labelling, reliability
from stepmend.progress import Stages
from tests.locate.questions import said
from tests.scripted_server import ScriptedServer, completion

RIGHT = "8-4=$<<8-4=4>>4 a bag.\n30*4=$<<30*4=120>>120.\n#### 120"
QUESTION = "A bag costs $4 and is sold for $8. What is the profit of 30 bags?"


def row(number: int, steps: list[str], label: int, **more):
    return {"id": f"gsm8k-{number}", "problem": QUESTION, "steps": steps, "label": label, **more}


ROWS = [
    row(0, ["We find the profit.\n\n", "8 - 4 = 4\n\n", "30 + 4 = 34\n\n", "So \\boxed{34}."], 2, **{"class": "procedural"}),
    row(1, ["We find the profit.\n\n", "8 - 4 = 5\n\n", "30 * 5 = 150\n\n", "So \\boxed{150}."], 1, also=[2], **{"class": "computational"}),
    row(2, ["We find the profit.\n\n", "8 - 4 = 4\n\n", "So \\boxed{4}."], 2, **{"class": "contextual_oversight"}),
    row(3, ["We find the profit.\n\n", "8 - 4 = 4\n\n", "30 * 4 = 120\n\n", "So \\boxed{120}."], -1),
]


@pytest.fixture
def files(tmp_path):
    data, problems = tmp_path / "labels.jsonl", tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    problems.write_text(json.dumps({"question": QUESTION, "answer": RIGHT}) + "\n")
    return data, problems


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["bench", "locate", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_records_are_read_whole(files):
    solutions = bench.read(files[0], problems=files[1])
    assert [s.answer for s in solutions] == ["120"] * 4
    assert solutions[0].worked == RIGHT
    assert (solutions[1].also, solutions[1].error_class, solutions[1].benchmark, solutions[1].group) == (
        (2,),
        "computational",
        "gsm8k",
        "gsm8k-1",
    )
    assert solutions[0].text == "".join(ROWS[0]["steps"])
    assert solutions[0].text[solutions[0].middle(2)] in ROWS[0]["steps"][2]


def test_steps_without_white_space_of_their_own_are_joined_by_empty_lines():
    solution = bench.Solution("p", ("a b", "c d", "c d"), 2)
    assert solution.text == "a b\n\nc d\n\nc d"
    assert solution.middle(2) == 11


def test_exact_is_the_very_step_and_one_calculation():
    solution = bench.Solution("p", ("Now 3 * 4 = 12 ", "and 12 + 5 = 18 ", "for all of them."), 1)
    one = labelled.Labelled.of(solution)
    together = labelled.Labelled(one.solution, one.problem, one.case, 0, frozenset())
    assert one.exact(one.truth) == one.single(one.truth)
    whole = one.case.__class__("", one.case.trace, ((0, len(solution.text)),), None)
    assert not labelled.Labelled(solution, one.problem, whole, 0, frozenset()).exact(0)
    assert not together.exact(None)


def test_a_share_in_words():
    assert labelled.share(12, 20) == "12 of 20: 60.0 % (38.7 to 78.1)"
    assert labelled.share(0, 0) == "0 of 0"


def test_the_reference_alone(files, tmp_path):
    figures = json.loads(
        run("--data", files[0], "--problems", files[1], "--locator", "reference", "--out", tmp_path / "o", "--json").stdout
    )
    assert (figures["n"], figures["faulty"], figures["named"], figures["exact"], figures["alarms"]) == (4, 3, 3, 3, 0)
    assert figures["classes"]["labelled_step"] == {"right": 3, "given": 3, "n": 3}
    assert figures["outcomes"] == {"located": 3, "abstained": 1, "misread": 0, "unrescuable": 0}


def test_equations_by_own_steps(files, tmp_path):
    figures = json.loads(run("--data", files[0], "--locator", "equations", "--own-steps", "--out", tmp_path / "o", "--json").stdout)
    assert (figures["named"], figures["exact"]) == (1, 1)


def test_the_vote_saves_what_it_measured_and_reads_it_back(files, tmp_path):
    rates = tmp_path / "rates.json"
    common = "--data", files[0], "--problems", files[1], "--locator", "vote", "--out", tmp_path / "o"
    done = run(*common, "--save", rates)
    assert "without the benchmark's worked solutions" in done.output
    kept = reliability.read(rates)
    assert kept.tables.keys() == {"gsm8k/free", "*/free"}
    assert kept.tables["gsm8k/free"].n == 4
    assert kept.judges_see_answer is True
    assert kept.tables["gsm8k/free"].locators["reference"].exact > kept.tables["gsm8k/free"].locators["reference"].late
    figures = json.loads(run(*common, "--reliabilities", rates, "--json").stdout)
    assert figures["exact"] == 3
    assert figures["without_reference"]["named"] <= figures["named"]


def test_without_a_locator_the_vote_is_that_of_the_others(files, tmp_path):
    solutions = bench.read(files[0], problems=files[1])

    def located(*locators):
        return labelling.run(solutions, labelling.Setup(Locate(locators=locators)), tmp_path / "-".join(locators), Stages())

    (ready, both), (_, alone) = located("equations", "reference"), located("equations")
    rest = labelled.without(ready, both, "reference", Locate().threshold, reliability.DEFAULT)
    assert [(fault.step, fault.confidence) for fault in rest] == [(fault.step, fault.confidence) for fault in alone]
    assert [fault.step for fault in both] != [fault.step for fault in alone]


def test_a_killed_call_continues(files, tmp_path):
    """The second call makes only what the first, cut in the middle of a line, has not kept."""
    solutions = bench.read(files[0], problems=files[1])
    setup = labelling.Setup(Locate(locators=("equations", "reference")))
    _, whole = labelling.run(solutions, setup, tmp_path / "o", Stages())
    file = tmp_path / "o" / "faults.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:30])
    _, again = labelling.run(solutions, setup, tmp_path / "o", Stages())
    assert again == whole
    assert file.read_bytes().startswith(b"".join(lines[:2]))
    assert len(file.read_bytes().splitlines()) == 2 + 1 + 2
    labelling.run(solutions, setup, tmp_path / "o", Stages())
    assert len(file.read_bytes().splitlines()) == 2 + 1 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--locator", "rescue"), "needs --model"),
        (("--locator", "margins", "--model", "builtin:qwen2"), "needs --quantized"),
        (("--locator", "judges"), "--judge"),
        (("--locator", "reference", "--judge", "a=b@http://x/v1"), "--judge"),
        (("--locator", "reference", "--save", "rates.json"), "--save needs"),
        (("--locator", "vote", "--model", "builtin:qwen2"), "have no right answer"),
        (("--locator", "vote", "--reliabilities", "none.json"), "cannot read"),
        (("--locator", "vote", "--completer", "x@y"), "completer: x"),
    ],
)
def test_what_does_not_go_together_is_one_line(files, tmp_path, arguments, message):
    done = CliRunner().invoke(app, ["bench", "locate", "--data", str(files[0]), "--out", str(tmp_path / "o"), *arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_builtin_reasoner_rescues_labelled_solutions(tmp_path):
    """With both models: all locators vote, and a second call asks no model."""
    solved = ["Step 1: 4 * 12 = 48\n", "Step 2: 48 + 29 = 77\n", "\\boxed{77}"]
    question = "Mia has 4 boxes of 12 pens and 29 more. How many pens has she?"
    rows = [
        {
            "id": "s",
            "problem": question,
            "answer": "77",
            "steps": ["Step 1: 4 * 12 = 46\n", "Step 2: 46 + 29 = 75\n", "\\boxed{75}"],
            "label": 0,
        },
        {"id": "t", "problem": question, "answer": "77", "steps": [solved[0], "Step 2: 48 - 29 = 19\n", "\\boxed{19}"], "label": 1},
    ]
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    arguments = (
        "--data",
        data,
        "--locator",
        "vote",
        "--model",
        "builtin:qwen2",
        "--quantized",
        "builtin:llama",
        "--out",
        tmp_path / "o",
        "--json",
    )
    figures = json.loads(run(*arguments).stdout)
    assert figures["locators"] == ["equations", "rescue", "margins", "reference", "solution"]
    kept = {file.name: file.read_bytes() for file in (tmp_path / "o").iterdir()}
    assert {"faults.jsonl", "continuations.jsonl"} <= kept.keys()
    assert json.loads(run(*arguments).stdout) == figures
    assert {file.name: file.read_bytes() for file in (tmp_path / "o").iterdir()} == kept


def test_judges_are_told_the_answer_unless_it_is_hidden(files, tmp_path):
    with ScriptedServer(lambda request: completion(said(2, None))) as server:
        common = "--data", files[0], "--problems", files[1], "--locator", "judges", "--judge", f"one=m@{server.url}", "--json"
        told = json.loads(run(*common, "--answers", tmp_path / "a.jsonl").stdout)
        hidden = json.loads(run(*common, "--answers", tmp_path / "b.jsonl", "--hide-answer").stdout)
        texts = [request.text for request in server.requests]
    assert (told["judges_see_answer"], hidden["judges_see_answer"]) == (True, False)
    assert sum("<right_answer>\n120" in text for text in texts) == 4
    assert sum("<right_answer>" not in text for text in texts) == 4


def test_a_measured_judge_is_in_the_file(files, tmp_path):
    with ScriptedServer(lambda request: completion(said(2, None))) as server:
        rates = tmp_path / "rates.json"
        run(
            "--data",
            files[0],
            "--problems",
            files[1],
            "--locator",
            "vote",
            "--judge",
            f"one=m@{server.url}",
            "--save",
            rates,
            "--out",
            tmp_path / "o",
        )
    assert {"one", "judges", "equations", "reference"} <= reliability.read(rates).tables["gsm8k/free"].locators.keys()
