"""Loops, cuts by the limit and unclosed thoughts of other tools' logs: paired, tested, and not known where a log does not tell."""

import json

import pytest

from stepmend import logs
from stepmend.logs import Fields, Log, Sample
from stepmend.measure import endings, statistics
from stepmend.measure.compare import compare
from stepmend.report import compared
from tests.command import stepmend
from tests.logs.test_logs import LM_EVAL, inspect_sample, jsonl

LOOP = "so 2 + 2 = 4 and then again " * 40
FINE = "The answer is \\boxed{4}."
OPEN = "<think>Let me see. 2 + 2 is"


def arm(name, *samples):
    """A log of problems p0, p1, …; a problem may have several samples."""
    return Log(name, "table", None, None, None, {f"p{i}": s if isinstance(s, list) else [s] for i, s in enumerate(samples)})


def by_name(pair):
    return {ending.name: ending for ending in pair.endings}


def test_each_ending_has_its_own_exact_test_and_holms():
    first = arm("full", *[Sample(True, FINE, cut=False)] * 40)
    ends = [Sample(False, LOOP, cut=True)] * 10 + [Sample(False, OPEN, cut=True)] * 2 + [Sample(True, FINE, cut=False)] * 28
    (pair,) = compare([first, arm("w3", *ends)])
    found = by_name(pair)
    counts = {"loops": 10, "cut_off": 12, "unclosed": 2}
    assert {name: of.tested.pair.only_second for name, of in found.items()} == counts
    assert {name: (of.problems, of.first, of.second) for name, of in found.items()} == {n: (40, 0.0, c / 40) for n, c in counts.items()}
    p_values = [statistics.mcnemar(0, count) for count in counts.values()]
    assert [of.tested.p for of in found.values()] == p_values
    assert [of.tested.holm for of in found.values()] == statistics.holm(p_values)
    for name, count in counts.items():
        assert found[name].tested.change == statistics.paired_interval(statistics.Paired(0, count, 0, 40 - count, 0.0))
    assert (found["loops"].tested.holm < 0.05, found["unclosed"].tested.holm > 0.05) == (True, True)


def test_what_a_log_does_not_tell_is_not_known():
    without, half = arm("full", *[Sample(True)] * 6), arm("w4", *[Sample(True, FINE, cut=True)] * 3, *[Sample(True, FINE)] * 3)
    (pair,) = compare([without, half])
    assert {(of.problems, of.first, of.tested) for of in pair.endings} == {(0, None, None)}
    assert {of.name: of.second for of in pair.endings} == {"loops": 0.0, "cut_off": 1.0, "unclosed": 0.0}
    assert pair.figures()["endings"]["cut_off"] == {
        "pairs": 0, "first": None, "second": 1.0, "only_first": None, "only_second": None, "difference": None, "p": None, "holm": None,
    }  # fmt: skip
    assert compared.ending_table([pair]) is None
    said = [line for line in compared.notices([pair]) if line.startswith("Not known")]
    assert said == [
        "Not known which solutions are in a loop or in an unclosed thought: full has no texts.",
        "Not known which solutions are cut off: full has no field that says how a text finished.",
    ]
    (pair,) = compare([arm("full", *[Sample(True, FINE, cut=False)] * 6), half])
    assert by_name(pair)["cut_off"].problems == 3, "the other three are not known, and not uncut"
    assert by_name(pair)["loops"].problems == 6


def test_holm_is_over_what_is_known_alone():
    first, second = (arm(n, *[Sample(True, FINE if n == "a" else LOOP)] * 6 + [Sample(True, FINE)] * 9) for n in "ab")
    found = by_name(compare([first, second])[0])
    assert found["cut_off"].tested is None
    assert found["loops"].tested.holm == pytest.approx(2 * statistics.mcnemar(0, 6))


def test_several_samples_a_problem_are_shares():
    first = arm("a", *[[Sample(True, FINE)] * 4] * 12)
    second = arm("b", *[[Sample(True, LOOP)] + [Sample(True, FINE)] * 3] * 6, *[[Sample(True, LOOP)] * 2 + [Sample(True, FINE)] * 2] * 6)
    (pair,) = compare([first, second])
    of = by_name(pair)["loops"]
    assert (of.first, of.second, of.tested.change.value) == (0.0, pytest.approx(0.375), pytest.approx(0.375))
    assert of.tested.p == statistics.permutation(*(statistics.per_problem(x) for x in _shares(pair)))


def _shares(pair):
    import numpy as np

    return tuple(np.array(list(endings.known(log, "loops", pair.problems).values())) for log in (pair.first, pair.second))


def test_the_page_and_the_notices_show_them():
    first = arm("full", *[Sample(True, FINE, cut=False)] * 20)
    second = arm("w3", *[Sample(False, LOOP, cut=True)] * 8, *[Sample(True, FINE, cut=False)] * 12)
    pairs = compare([first, second])
    line = next(line for line in compared.notices(pairs) if "in a loop" in line)
    assert line.startswith("w3: 40.0 % of the solutions are in a loop, 0.0 % of full's (+40.0 points, +")
    assert line.endswith("Holm p = 0.023, 20 pairs).")
    assert [line for line in compared.notices(pairs) if "unclosed" in line] == ["No solution of w3 or full is in an unclosed thought."]
    blob = compared.blob(pairs)
    assert [(row["arm"], row["ending"], row["only_second"]) for row in blob["endings"]] == [
        ("w3", "in a loop", 8), ("w3", "cut off", 8), ("w3", "in an unclosed thought", 0),
    ]  # fmt: skip
    assert (blob["arms"][1]["loops"], blob["arms"][1]["cut_off"], blob["arms"][1]["unclosed"]) == (0.4, 0.4, 0.0)
    table = compared.ending_table(pairs)
    assert list(table.columns[1].cells) == ["in a loop", "cut off"]
    assert next(iter(table.columns[7].cells)).startswith("+40.0 (+")
    assert compared.ending_table(compare([first, arm("w4", *[Sample(True, FINE, cut=False)] * 20)])) is None


def test_a_finish_field_that_says_nothing_of_a_row_leaves_it_open(tmp_path):
    rows = [{"id": i, "correct": 1, "finish_reason": why} for i, why in enumerate(("stop", "length", None, "", "purple", "MAX_TOKENS"))]
    log = logs.read(jsonl(tmp_path / "a.jsonl", rows))
    assert [s.cut for (s,) in log.samples.values()] == [False, True, None, None, None, True]


def test_texts_of_tables_that_are_scored_already(tmp_path):
    rows = [{"id": i, "correct": 1, "response": text} for i, text in enumerate((LOOP, FINE, OPEN))]
    log = logs.read(jsonl(tmp_path / "a.jsonl", rows))
    assert [endings.known(log, name, list(log.samples)) for name in ("loops", "unclosed")] == [
        {"0": 1.0, "1": 0.0, "2": 0.0},
        {"0": 0.0, "1": 0.0, "2": 1.0},
    ]


def test_what_each_tools_log_tells(tmp_path):
    """Thoughts kept apart from texts, stop reasons, limits."""
    thought = [{"type": "reasoning", "reasoning": LOOP}, {"type": "text", "text": ""}]
    samples = [
        {**inspect_sample(1, "I"), "output": {"choices": [{"message": {"content": thought}, "stop_reason": "max_tokens"}]}},
        {**inspect_sample(2, "C"), "output": {"choices": [{"message": {"content": FINE}, "stop_reason": "stop"}]}},
        {**inspect_sample(3, "I"), "output": {"choices": [{"message": {"content": FINE}}]}, "limit": {"type": "token", "limit": 9}},
        {**inspect_sample(4, "I"), "output": {"choices": [{"message": {"content": FINE}, "stop_reason": "unknown"}]}},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"eval": {"task": "t"}, "samples": samples}))
    log = logs.read(tmp_path / "a.json")
    assert [s.cut for (s,) in log.samples.values()] == [True, False, True, None]
    assert list(endings.known(log, "unclosed", list(log.samples)).values()) == [1, 0, 0, 0]
    assert list(endings.known(log, "loops", list(log.samples)).values()) == [1, 0, 0, 0]

    state = {"id": "x", "task_states": {"cases": {"t_0_1": {"status": "ok", "correct": False, "response": "", "reasoning_content": LOOP}}}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert endings.share(logs.read(tmp_path / "state.json"), "unclosed") == 1

    stats = [{"name": {"name": n}, "mean": m} for n, m in (("exact_match", 1.0), ("finish_reason_length", 1.0))]
    unknown = [{"name": {"name": n}, "mean": m} for n, m in (("exact_match", 1.0), ("finish_reason_unknown", 1.0))]
    rows = [{"instance_id": "a", "stats": stats}, {"instance_id": "b", "stats": unknown}]
    (tmp_path / "per_instance_stats.json").write_text(json.dumps(rows))
    helm = logs.read(tmp_path / "per_instance_stats.json", Fields(metric="exact_match"))
    assert [s.cut for (s,) in helm.samples.values()] == [True, None]

    log = logs.read(jsonl(tmp_path / "samples_a_2026-01-01T00-00-00.jsonl", [LM_EVAL]))
    assert (endings.share(log, "cut_off"), endings.share(log, "loops")) == (None, 0.0)


def test_the_command_shows_them(tmp_path):
    for name, text, why in (("full", FINE, "stop"), ("w3", LOOP, "length")):
        jsonl(tmp_path / f"{name}.jsonl", [{"id": i, "correct": 1, "response": text, "finish_reason": why} for i in range(8)])
    command = ["compare", tmp_path / "full.jsonl", tmp_path / "w3.jsonl", "--out", tmp_path / "page.html"]
    done = stepmend(*command)
    assert done.stdout.startswith("w3 is a broken run: 8 of 8 texts loop."), "before any accuracy"
    assert "how solutions end" in done.stdout
    assert "How solutions end" in (tmp_path / "page.html").read_text()
    (figures,) = json.loads(stepmend(*command, "--json").stdout)
    assert {name: (of["pairs"], of["only_second"]) for name, of in figures["endings"].items()} == {
        "loops": (8, 8), "cut_off": (8, 8), "unclosed": (8, 0),
    }  # fmt: skip
