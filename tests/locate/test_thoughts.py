"""Models that think: their thoughts are split, located in, graded and ended as such, from a small reasoner to DeepSeek-R1's texts."""

import csv
import itertools

import numpy as np
import pytest

from stepmend import InputError, Recipe, grading, pipeline
from stepmend.arms import FULL
from stepmend.context import Context
from stepmend.engines.base import Completion
from stepmend.facts import Tuned
from stepmend.grading import verify
from stepmend.grading.visible import visible
from stepmend.locate import locators, steps
from stepmend.locate.rescue import SampledRescue
from stepmend.measure import behaviour
from stepmend.measure import solve as solving
from stepmend.records import Problem, Trace
from stepmend.report import export, page, summary, terminal
from stepmend.report.sections import effects, regularities
from stepmend.restore import checkpoint as restoring
from tests import thinking

SCHEME = "rtn-w3a16"
R1 = "solutions/r1-distill-1.5b-quantized/gptq_w3_wrong_w4_right_math500.csv"


def trace_of(text, finish="stop", opening="<think>\n", problem="p"):
    return Trace(problem=problem, arm="a", made_by="t", text=text, tokens=(1,), finish=finish, opening=opening)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nStep 1: a\nStep 2: b\n</think>\n\n\\boxed{3}", ["<think>\nStep 1: a\n", "Step 2: b\n", "</think>\n\n\\boxed{3}"]),
        ("Step 1: a\nStep 2: b\n</think>\n\n\\boxed{3}", ["Step 1: a\n", "Step 2: b\n", "</think>\n\n\\boxed{3}"]),
        ("First.\n\nThen.</think>So.\n\nIt is 3.", ["First.\n\n", "Then.", "</think>So.\n\n", "It is 3."]),
        ("<think>\n\n</think>\n\nFirst.\n\nThen.", ["<think>\n\n", "</think>\n\nFirst.\n\n", "Then."]),
        ("<think>First.\n\nThen", ["<think>First.\n\n", "Then"]),
        ("First.\n\nThen.</think>\n", ["First.\n\n", "Then.</think>\n"]),
        ("[THINK]First.\n\nThen.[/THINK]3", ["[THINK]First.\n\n", "Then.", "[/THINK]3"]),
        ("<think>", ["<think>"]),
    ],
)
def test_thought_and_answer_are_split_each_for_itself(text, parts):
    assert [text[start:end] for start, end in steps.split(text)] == parts


def test_texts_without_a_thought_are_split_as_ever():
    for text in ("Step 1: a\nStep 2: b\n\\boxed{3}", "So 1 < 2 and 3 > 2.\n\nThen.", "I think</b> so.\n\nYes."):
        assert steps.answer_start(text) is None
        assert steps.split(text) == steps._Splitter(text).spans()


def test_deepseek_r1s_texts_have_sections_an_answer_or_no_end(shared_data):
    """Of 1.5B in 3 and 4 bits on MATH-500, the thought begun by the prompt; the counts are of the first 40 problems."""
    csv.field_size_limit(1 << 30)
    with (shared_data / R1).open() as file:
        rows = list(itertools.islice(csv.DictReader(file), 40))
    ends = {bits: [row[f"full_text_{bits}bit"] for row in rows] for bits in (3, 4)}
    starts, others = [], []
    for text in [*ends[3][:20], *ends[4][:20]]:
        found = steps.split(text)
        assert "".join(text[start:end] for start, end in found) == text
        sections = steps.section_starts(text, found)
        assert len(sections) <= 2 * steps.SECTIONS
        answer = steps.answer_start(text)
        assert (answer is None) == ("</think>" not in text)
        assert answer is None or answer in {start for start, _ in found}
        starts += [steps.TURN.match(text, found[i][0]) is not None for i in sections[1:]]
        others += [steps.TURN.match(text, start) is not None for start, _ in found]
    assert np.mean(starts) > 2 * np.mean(others), "sections begin where the thought turns, where they can"
    unclosed = {bits: [not visible("<think>\n" + text).whole for text in texts] for bits, texts in ends.items()}
    assert [of == ["</think>" not in text for text in ends[bits]] for bits, of in unclosed.items()] == [True, True]
    assert sum(unclosed[3]) > sum(unclosed[4])
    assert sum(map(behaviour.loops, ends[3])) > sum(map(behaviour.loops, ends[4]))


def test_an_answer_in_a_thought_that_is_not_closed_is_none():
    problem = Problem(id="p", benchmark="math", split="test", level="all", question="Q", answer="12")
    texts = {
        "so it is \\boxed{12}": "unscored",
        "so \\boxed{12}</think>\\boxed{13}": "wrong",
        "so \\boxed{13}</think>\\boxed{12}": "correct",
    }
    with verify.Verifier() as verifier:
        found = grading.grade_all([trace_of(text) for text in texts], [problem] * 3, "g", verifier)
        assert [grade.outcome for grade in found] == [*texts.values()]
        (open_,) = grading.grade_all([trace_of("so it is \\boxed{12}", opening="")], [problem], "g", verifier)
        assert open_.outcome == "correct", "the same text, where no thought was begun"


def world(count, fault):
    """A thought of ``count`` steps; full precision arrives from before the faulty one, and never from after it."""
    text = "".join(f"Wait, part {i} of the thought.\n\n" if i % 9 == 0 else f"Part {i} goes on.\n\n" for i in range(count))
    case = locators.make_case("Q", trace_of(text), trace_of("right"))
    asked = []

    def step_of(text):
        return next((i for i, (start, _) in enumerate(case.spans) if start == len(text)), len(case.spans))

    def arrive(checked):
        return [text.endswith("good") for _, text, _ in checked]

    def complete_one(text):
        cut = step_of(text.removeprefix("Q"))
        asked.append(cut)
        return Completion("good" if cut <= fault else "bad", (1,), "stop")

    return case, asked, arrive, complete_one


@pytest.mark.parametrize("fault", [0, 31, 117, 298])
def test_in_a_long_thought_the_section_is_found_first(fault):
    case, asked, arrive, one = world(300, fault)
    sections = {*steps.section_starts(case.trace.text, case.spans), len(case.spans)}
    assert len(sections) < len(case.spans) == 300
    rescue = SampledRescue(lambda of: [[one(a.text) for _ in range(a.start, a.end)] for a in of], arrive, 8)
    flat = np.full(301, 1 / 301)
    (found,) = rescue([case], [flat], [flat])
    assert (found.outcome, found.vote.step) == ("located", fault)
    inside = [cut not in sections for cut in asked]
    assert not any(inside[: inside.index(True)] if True in inside else inside)
    assert len(asked) <= 8 * (9 + 2) + 4


@pytest.mark.parametrize("fault", [0, 31, 117, 298])
def test_greedily_too(fault):
    case, asked, _, one = world(300, fault)

    def right(checked):
        return [text == "right" or text.endswith("good") for _, text, _ in checked]

    (found,) = locators.Rescue(lambda texts: [one(text) for text in texts], right)([case])
    assert (found.outcome, found.vote.step) == ("located", fault)
    sections = {*steps.section_starts(case.trace.text, case.spans), len(case.spans)}
    inside = [cut not in sections for cut in asked]
    assert True not in inside or all(inside[inside.index(True) :]), "once inside a section, it is not left"
    assert len(asked) <= 12


VALUES = {
    "schemes": [SCHEME], "chat": {"prompt": "plain-1"}, "locate": {"samples": 1, "own_failures": 1},
    "measure": {"problems": 24, "batch_size": 24, "max_new_tokens": 180, "noise_floor": False},
    "curate": {"problems": 90, "round": 90, "bullets": 4}, "quantize": {"calibration": 8},
    "restore": {"steps": 2, "learning_rate": 0.001, "within_noise": True, "validation": 6, "anchors": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory):
    return thinking.make(tmp_path_factory.mktemp("thinking") / "reasoner")


@pytest.fixture(scope="module")
def run(reasoner, tmp_path_factory):
    """A whole small run of a reasoner that thinks."""
    out = tmp_path_factory.mktemp("run") / "run"
    with Context(Recipe.make({"model": reasoner, **VALUES}), out) as context:
        pipeline.run(context)
    return out


@pytest.mark.slow
def test_a_reasoner_that_thinks_goes_through_the_whole_loop(run, tmp_path):
    found = summary.read(run)
    full = [trace for _, trace, _ in found.solutions(FULL)]
    assert {trace.opening for trace in full} == {thinking.OPENING}
    closed = [trace for trace in full if thinking.CLOSING in trace.text]
    assert len(closed) > 0.9 * len(full)
    assert found.outcomes(FULL).mean() > 0.8
    assert not any(visible(trace.said).text.startswith("Step") for trace in closed)
    located = [fault for fault in found.faults[SCHEME].values() if fault.span]
    assert located
    places = regularities.thoughts(found, SCHEME)
    assert places["thought"] == sum(found.trace(SCHEME, f.problem).text[slice(*(f.span or ()))].startswith("Step") for f in located)
    assert any(f"the thought {places['thought']}" in line for line in terminal.notices(found))
    bullets = found.bullets[SCHEME]
    assert bullets
    for bullet in bullets:
        assert bullet.question.endswith(thinking.OPENING)
        assert thinking.CLOSING not in bullet.prefix, "the fault is in the thought"
        assert thinking.CLOSING in bullet.chosen + bullet.continuation, "and the thought that is taught is closed"
    assert found.facts.get(Tuned, f"{SCHEME}+restored") is not None
    page.write(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<th>unclosed thought</th>" in text
    assert "lie in the thought" in text
    assert not any("step format" in line and "align" in line for line in summary.fit(found).warnings(found.recipe))
    (log, *_) = export.write(found, run, "every-eval-ever", tmp_path / "logs")
    assert thinking.OPENING.strip() in log.read_text().splitlines()[0]


def test_what_is_asked_is_in_the_digest_of_what_depends_on_it_and_of_nothing_else(reasoner, tmp_path):
    def labels(**changes):
        recipe = Recipe.make({"model": reasoner, **VALUES, "measure": {**VALUES["measure"], "problems": 1}, **changes})
        with Context(recipe, tmp_path / "run") as context:
            test = context.problems("test")
            return solving._inputs(context, FULL, [context.prompt_of(p) for p in test], ["p"])[1], context.prompt

    base = labels()
    assert base == labels()
    assert labels(restore={"steps": 7}) == base
    system, prompt = labels(chat={"prompt": "plain-1", "system": "Think."}), labels(chat={"prompt": "So: {question}"})
    assert len({base[0][0], system[0][0], prompt[0][0]}) == 3
    assert (base[1], prompt[1]) == ("plain-1", "So: {question}")
    assert system[1] == '{"prompt": "plain-1", "system": "Think."}'


def test_the_guard_counts_every_odd_ending_by_itself(reasoner, tmp_path):
    """Loops give way to unclosed thoughts: no more solutions end oddly than before, and yet more thoughts are not closed."""
    ids = [f"p{i}" for i in range(20)]
    whole, loop = "a</think>b", "go on and on " * 60 + "</think>3"
    with Context(Recipe.make({"model": reasoner, **VALUES}), tmp_path / "run") as context:
        (tmp_path / "run" / SCHEME).mkdir()
        (tmp_path / "run" / f"{SCHEME}-restored").mkdir()

        def judged(before, after):
            context.digests |= {SCHEME: "d", f"{SCHEME}+restored": "r"}
            context.dir.keep(Tuned(arm=f"{SCHEME}+restored", kept=True, made_by=""))
            arms = ({p: trace_of(text, problem=p) for p, text in zip(ids, texts, strict=True)} for texts in (before, after))
            restoring.judge(context, SCHEME, f"{SCHEME}+restored", *arms)
            return restoring.tuned(context, f"{SCHEME}+restored")

        (tmp_path / "run" / SCHEME / "config.json").write_text("{}")
        kept = judged([loop] * 12 + [whole] * 8, [whole] * 20)
        assert (kept.kept, kept.endings.lost, kept.endings.gained, kept.endings.kinds) == (True, 0, 12, {})
        refused = judged([loop] * 12 + [whole] * 8, ["a"] * 12 + [whole] * 8)
        assert (refused.kept, refused.endings.lost, refused.endings.gained) == (False, 0, 0)
        assert set(refused.endings.kinds) == {"in a loop", "in an unclosed thought"}
        assert "in an unclosed thought (12 new, 0 fewer, p = 0.00098)" in restoring.refused(context, f"{SCHEME}+restored")


@pytest.mark.slow
def test_unclosed_thoughts_are_an_ending_of_their_own_where_a_model_thinks(run):
    found = summary.read(run)
    assert list(effects.endings_of(found)) == ["truncated", "loops", "unclosed", "unboxed"]


def test_a_wish_that_the_template_cannot_fulfil_is_refused_before_any_work(reasoner, tmp_path):
    with pytest.raises(InputError, match="always opens a thought"):
        Context(Recipe.make({"model": reasoner, **VALUES, "chat": {"thinking": False}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
