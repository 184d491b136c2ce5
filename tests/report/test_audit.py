"""The audit: the sample hides every answer, the score adds up, damaged files are said, and the page works in a real browser."""

import dataclasses
import json
import re
import shutil

import pytest
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from stepmend.facts import Facts
from stepmend.locate import steps
from stepmend.recipe import Recipe
from stepmend.records import ErrorClass, Fault, Grade, InputError, Problem, Trace, Vote
from stepmend.report import audit, summary

FOUR, THREE = "rtn-w4a16-g128", "rtn-w3a16-g128"
TRAP = "</script><script>document.title = 'broken'</script><b>bold</b> & \\(\\frac{1}{2}\\) \u2028"
HIDDEN = "what the locator saw"
CLASSES = ErrorClass.__args__
KEYS = {"computational": "f", "procedural": "d", "logical_reasoning": "c"}


def problem(number, split="test"):
    return Problem(
        id=f"{split}-{number:02}", benchmark="story", split=split, level="easy", question=f"Question {number}: {TRAP}", answer=f"{number}"
    )


def trace(arm, of, lines=4):
    text = "\n".join(f"Step {k + 1}: {TRAP.replace(chr(0x2028), '')} of {of.id} {len(arm)}" for k in range(lines))
    return Trace(problem=of.id, arm=arm, made_by="t", text=text, tokens=(1,), finish="stop")


def fault(of: Trace, step, error_class=None, outcome="located"):
    spans = steps.split(of.text)
    votes = (Vote(locator="rescue", step=step, evidence=HIDDEN),)
    return Fault(
        problem=of.problem, arm=of.arm, made_by="f", outcome=outcome, confidence=0.75, step=step, steps=len(spans),
        span=None if step is None else spans[step], error_class=error_class, votes=votes, chosen=HIDDEN, continuation=HIDDEN,
    )  # fmt: skip


def make(*marks, lines=4):
    """A run whose three-bit arm failed one problem a mark: (step, class) or (step, class, outcome)."""
    problems = [problem(number) for number in range(len(marks))]
    traces = {arm: {p.id: trace(arm, p, lines) for p in problems} for arm in ("full", FOUR, THREE, f"{THREE}+restored")}
    faults = {THREE: {p.id: fault(traces[THREE][p.id], *mark) for p, mark in zip(problems, marks, strict=True)}}
    grades = {arm: {p.id: Grade(problem=p.id, arm=arm, made_by="g", outcome="wrong") for p in problems} for arm in traces}
    recipe = Recipe(schemes=(FOUR, THREE))
    return summary.Found(recipe, Facts(), {p.id: p for p in problems}, traces, grades, faults, {})


MARKS = [
    (0, "computational"), (1, "procedural"), (2, "computational"), (3, "logical_reasoning"), (1, None),
    (None, None, "misread"), (None, None, "abstained"), (2, "computational"),
]  # fmt: skip


@pytest.fixture
def found():
    return make(*MARKS)


def blob_of(file):
    (blob,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    return json.loads(blob)


def saved(found, said, tmp_path, **changes):
    """A saved file of labels: (step, class) by the problem's number."""
    items = audit.sample(found, 100, 0)
    keys = {fault.problem: key for key, fault in audit._failures(found).items()}
    file = {
        "stepmend_audit": 1,
        "run": audit._run(found, [item.key for item in items]),
        "seed": 0,
        "keys": [item.key for item in items],
        "labels": [{"key": keys[f"test-{n:02}"], "step": step, "error_class": name, "note": ""} for n, (step, name) in said.items()],
        "skipped": [],
    }
    path = tmp_path / "audit-labels.json"
    path.write_text(json.dumps(file | changes))
    return path


def test_the_sample_is_the_seeds_whatever_the_order_of_the_records(found):
    backwards = dataclasses.replace(found, faults={THREE: dict(reversed(found.faults[THREE].items()))})
    first = audit.sample(found, 4, 7)
    assert first == audit.sample(backwards, 4, 7)
    assert len({item.key for item in first}) == 4
    assert len({tuple(item.key for item in audit.sample(found, 4, seed)) for seed in range(6)}) > 3
    assert len(audit.sample(found, 100, 0)) == len(MARKS)
    for item in first:
        assert len(item.steps) == 4
        assert "".join(item.steps) in {t.text for t in found.traces[THREE].values()}


def test_only_quantized_arms_and_held_out_problems_are_sampled(found):
    other = problem(0, "curate")
    found.problems[other.id] = other
    for arm in ("full", FOUR, f"{THREE}+restored"):
        found.faults[arm] = {"test-00": fault(found.traces[arm]["test-00"], 1)}
    found.traces[FOUR][other.id] = trace(FOUR, other)
    found.faults[FOUR][other.id] = fault(found.traces[FOUR][other.id], 1)
    items = audit.sample(found, 100, 0)
    texts = {"".join(item.steps) for item in items}
    assert len(items) == len(MARKS) + 1
    assert texts == {t.text for t in found.traces[THREE].values()} | {found.traces[FOUR]["test-00"].text}


def test_a_run_without_failures_or_a_sample_of_none_is_one_clear_line(found):
    with pytest.raises(InputError, match="no located failures"):
        audit.sample(make(), 50, 0)
    with pytest.raises(InputError, match="at least 1"):
        audit.sample(found, 0, 0)


def test_the_page_holds_no_answer_of_the_pipeline(found, tmp_path):
    file = tmp_path / "audit.html"
    assert audit.write(found, 5, 3, file) == 5
    blob = blob_of(file)
    assert set(blob) == {"title", "run", "seed", "total", "items"}
    assert blob["total"] == len(MARKS)
    assert all(set(item) == {"key", "question", "answer", "steps"} for item in blob["items"])
    assert all(re.fullmatch("[0-9a-f]{16}", item["key"]) for item in blob["items"])
    for secret in (THREE, FOUR, "rescue", HIDDEN, "located", "misread", *CLASSES):
        assert secret not in json.dumps(blob)
    text = file.read_text()
    for secret in (THREE, FOUR, HIDDEN, "rescue"):
        assert secret not in text


def test_the_page_is_one_file_and_no_trace_can_break_it(found, tmp_path):
    file = tmp_path / "audit.html"
    audit.write(found, 5, 0, file)
    text = file.read_text()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://|innerHTML""", text)
    assert "<script>document.title" not in text
    assert text.count("<script") == 2
    assert sorted(re.findall(r'name="class" value="(\w+)"', text)) == sorted(CLASSES)


def test_the_score_adds_up(found, tmp_path):
    labels = {
        0: (0, "computational"),  # same step, same class
        1: (1, "computational"),  # same step, another class
        2: (1, "procedural"),  # one step beside
        3: (0, None),  # far away
        4: (1, "procedural"),  # same step, the pipeline has no class
        5: (None, None),  # both: no faulty step
        6: (2, "computational"),  # the pipeline abstains
    }
    file = saved(found, labels, tmp_path, skipped=[{"key": _key(found, "test-07"), "note": "?"}])
    got = audit.score(found, file)
    assert (got["labelled"], got["skipped"], got["abstained"], got["unclassified"]) == (7, 1, 1, 1)
    low, high = proportion_confint(4, 7, method="wilson")
    assert got["exact"] == {"n": 7, "right": 4, "accuracy": 4 / 7, "low": pytest.approx(low), "high": pytest.approx(high)}
    assert got["within_one"]["right"] == 5
    assert (got["classes"]["n"], got["classes"]["right"]) == (3, 1)
    assert got["kappa_step"] == pytest.approx(_kappa([0, 1, 1, 0, 1, None], [0, 1, 2, 3, 1, None]))
    assert got["kappa_class"] == pytest.approx(_kappa(["c", "c"], ["c", "p"]))
    assert [row["problem"] for row in got["rows"]] == ["test-01", "test-02", "test-03", "test-04", "test-06"]
    assert got["rows"][1] == {
        **{"key": _key(found, "test-02"), "problem": "test-02", "arm": THREE},
        "person": {"step": 1, "error_class": "procedural", "note": ""},
        "pipeline": {"outcome": "located", "step": 2, "error_class": "computational"},
    }
    json.dumps(got)


def test_a_person_who_finds_no_faulty_step_agrees_with_misread_alone(tmp_path):
    found = make((0, None), (None, None, "misread"), (None, None, "abstained"), (None, None, "unrescuable"))
    got = audit.score(found, saved(found, {n: (None, None) for n in range(4)}, tmp_path))
    assert got["exact"]["right"] == got["within_one"]["right"] == 1
    assert got["abstained"] == 2
    assert got["classes"] == {"n": 0, "right": 0, "accuracy": None, "low": None, "high": None}
    assert got["kappa_class"] is None


def _key(found, name):
    return next(key for key, f in audit._failures(found).items() if f.problem == name)


def _kappa(first, second):
    """Cohen's kappa as statsmodels has it."""
    names = list(dict.fromkeys([*first, *second]))
    pairs = list(zip(first, second, strict=True))
    return cohens_kappa([[pairs.count((a, b)) for b in names] for a in names], return_results=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [("aabbc", "abbbc"), ("abcabc", "cabcab"), ("aaab", "aaab"), ("ab", "ba"), ("aaaa", "abab"), ("abcdeabcde", "abcdeaacce")],
)
def test_kappa_is_that_of_statsmodels(first, second):
    assert audit.kappa(first, second) == pytest.approx(_kappa(first, second))


def test_kappa_is_undefined_where_chance_alone_agrees():
    assert audit.kappa([], []) is None
    assert audit.kappa("aaa", "aaa") is None


def test_no_such_file_or_no_json(found, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        audit.score(found, tmp_path / "absent.json")
    with pytest.raises(InputError, match="not a regular file"):
        audit.score(found, tmp_path)
    file = tmp_path / "labels.json"
    for content, said in [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=said):
            audit.score(found, file)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"labels": []}', '{"stepmend_audit": 2}'])
def test_another_files_json(found, tmp_path, content):
    file = tmp_path / "labels.json"
    file.write_text(content)
    with pytest.raises(InputError, match="not an audit file"):
        audit.score(found, file)


def test_labels_of_another_run(found, tmp_path):
    file = saved(found, {0: (0, None)}, tmp_path)
    assert audit.score(found, file)["labelled"] == 1
    reseeded = dataclasses.replace(found, recipe=Recipe(schemes=(FOUR, THREE), seed=1))
    for other in (make(*MARKS, lines=5), make(*MARKS[:3]), reseeded):
        with pytest.raises(InputError, match="another run"):
            audit.score(other, file)
    with pytest.raises(InputError, match="another run"):
        audit.score(found, saved(found, {0: (0, None)}, tmp_path, keys=["0" * 16]))


def test_bad_labels_one_by_one(found, tmp_path):
    key = _key(found, "test-00")

    def refused(said, *labels, **more):
        made = [{"key": key, "step": 0, "error_class": None, "note": ""} | label for label in labels]
        with pytest.raises(InputError, match=said) as raised:
            audit.score(found, saved(found, {}, tmp_path, labels=made, **more))
        assert "\n" not in str(raised.value)

    refused("holds no labels")
    refused(r"labels.0.error_class = 'typo\\nerror': input should be 'conceptual_mis", {"error_class": "typo\nerror"})
    refused(r"labels.0.step = 4: out of range; the trace has 4", {"step": 4})
    refused("labels.0.step = -1: input should be greater", {"step": -1})
    refused("labels.0.step = '1'", {"step": "1"})
    refused("labels.0.step = True", {"step": True})
    refused("labels.0.other = 1: extra", {"other": 1})
    refused("labelled twice", {}, {})
    refused("labelled twice", {}, skipped=[{"key": key, "note": ""}])
    refused("not on the page", {"key": "f" * 16})


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()


@pytest.fixture
def tab(browser):
    """A page in a fresh profile, which must not complain nor ask for anything but files."""
    context = browser.new_context(accept_downloads=True, viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    trouble = []
    opened.on("console", lambda message: message.type in ("error", "warning") and trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("request", lambda request: request.url.startswith(("file:", "blob:")) or trouble.append(request.url))
    yield opened
    context.close()
    assert trouble == []


def open_audit(tab, found, file):
    """Open the page; the problems' numbers in its order."""
    audit.write(found, 50, 0, file)
    tab.goto(file.as_uri())
    return [int(item["question"].split()[1].rstrip(":")) for item in blob_of(file)["items"]]


def progress(tab):
    return tab.locator("#progress").inner_text()


def save(tab, file):
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save labels").click()
    assert download.value.suggested_filename == "audit-labels.json"
    download.value.save_as(file)
    return file


def test_a_person_labels_by_clicks_and_keys_and_the_score_is_right(found, tmp_path, tab):
    numbers = open_audit(tab, found, tmp_path / "audit.html")
    assert tab.title() == "stepmend: Audit of builtin:qwen2 on story"
    assert progress(tab) == "0 of 8 labelled"
    assert tab.locator("#question").text_content() == found.problems[f"test-{numbers[0]:02}"].question
    texts = [s.rstrip() for s in audit.sample(found, 50, 0)[0].steps]
    assert tab.locator("#steps .text").all_text_contents() == texts
    assert tab.locator("#steps b, #steps script").count() == 0
    assert tab.get_by_role("radio", name="computational").is_disabled()

    for index, number in enumerate(numbers):
        step, name, *_ = MARKS[number]
        if index % 2:
            tab.keyboard.type(("s" if number == 7 else "0" if step is None else str(step + 1)) + KEYS.get(name, "") + "n")
            continue
        choices = tab.locator(".others button")
        (choices.nth(1) if number == 7 else choices.nth(0) if step is None else tab.locator("#steps button").nth(step)).click()
        if name and number != 7:
            tab.locator(f"input[value={name}]").check()
        tab.get_by_role("button", name="Next", exact=True).click()
    assert progress(tab) == "7 of 8 labelled, 1 skipped"
    assert tab.get_by_role("button", name="Next unlabelled").is_disabled()

    # Back to one whose step was right, to change it; the note takes letters and digits for itself.
    for _ in range(7 - numbers.index(3)):
        tab.keyboard.press("ArrowLeft")
    assert tab.locator("#heading").inner_text() == f"Solution {numbers.index(3) + 1} of 8"
    assert tab.locator("#steps button").nth(3).get_attribute("aria-pressed") == "true"
    assert tab.locator("input[value=logical_reasoning]").is_checked()
    tab.locator("#note").press_sequentially("2n sure")
    tab.keyboard.press("Escape")
    tab.keyboard.press("3")
    assert tab.locator("#steps button[aria-pressed=true]").count() == 1

    got = audit.score(found, save(tab, tmp_path / "labels.json"))
    assert (got["labelled"], got["skipped"], got["abstained"]) == (7, 1, 1)
    assert (got["exact"]["right"], got["within_one"]["right"]) == (5, 6)
    assert (got["classes"]["n"], got["classes"]["right"], got["kappa_class"]) == (3, 3, 1.0)
    changed = {row["problem"]: row for row in got["rows"]}
    assert set(changed) == {"test-03", "test-06"}
    assert changed["test-03"]["person"] == {"step": 2, "error_class": "logical_reasoning", "note": "2n sure"}


def test_labels_outlive_the_tab_and_come_back_from_the_file(found, tmp_path, tab):
    file = tmp_path / "audit.html"
    open_audit(tab, found, file)
    asked = []
    tab.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    tab.get_by_role("button", name="Save labels").click()
    assert "nothing was saved" in tab.locator("#message").inner_text()
    tab.locator("#steps button").nth(1).click()
    tab.keyboard.type("nsn0")
    tab.keyboard.press("u")
    tab.reload()
    assert asked == ["beforeunload"]
    assert progress(tab) == "2 of 8 labelled, 1 skipped"
    assert tab.locator("#heading").inner_text() == "Solution 4 of 8"
    labels = save(tab, tmp_path / "labels.json")
    tab.reload()
    assert asked == ["beforeunload"]

    tab.keyboard.type("ppp")
    tab.get_by_role("button", name="Clear").click()
    assert progress(tab) == "1 of 8 labelled, 1 skipped"
    tab.locator("#file").set_input_files(labels)
    tab.wait_for_function("document.getElementById('progress').textContent.startsWith('2 of 8')")
    assert asked == ["beforeunload", "confirm"]
    assert tab.locator("#steps button").nth(1).get_attribute("aria-pressed") == "true"
    assert save(tab, tmp_path / "again.json").read_text() == labels.read_text()

    other, alien = tmp_path / "other.json", labels.read_text().replace('"run": "', '"run": "0')
    for content, said in [("{", "not valid JSON"), ("[]", "not a file that"), (alien, "another page")]:
        other.write_text(content)
        tab.locator("#file").set_input_files(other)
        tab.locator("#message", has_text=said).wait_for()
        assert progress(tab) == "2 of 8 labelled, 1 skipped"


def test_without_storage_the_page_says_so_and_works(found, tmp_path, tab):
    tab.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })")
    open_audit(tab, found, tmp_path / "audit.html")
    assert "keeps no drafts" in tab.locator("#undrafted").inner_text()
    tab.keyboard.press("1")
    assert audit.score(found, save(tab, tmp_path / "labels.json"))["labelled"] == 1


def test_two_digits_choose_a_late_step_and_a_narrow_screen_needs_no_sideways_scrolling(tmp_path, tab):
    found = make((11, None), lines=14)
    tab.set_viewport_size({"width": 400, "height": 800})
    open_audit(tab, found, tmp_path / "audit.html")
    tab.keyboard.type("12")
    assert audit.score(found, save(tab, tmp_path / "labels.json"))["exact"]["right"] == 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
