"""How a scheme was restored, as the page says it; and the loss recovered and accuracy kept, by these names everywhere."""

import io
import re

import pytest
from rich.console import Console

from stepmend import InputError
from stepmend.recipe import Recipe
from stepmend.report import card, page, summary, terminal
from stepmend.report.sections import restoring, verdict
from tests.report.test_restoring import FULL, LOW, RESTORED, SCHEME, N, found

NOTE = {
    "seconds": 12.0, "bullets": 7, "anchors": 14, "losses": [0.1] * 36, "moved": 0.257, "solved": [0.00259, 0.00138],
    "rates": {"scales": 0.01}, "tested": {"norms": [[0.0001, 0.00141], [0.001, 0.0015]], "scales": [[0.001, 0.00137], [0.01, 0.00125]]},
    "curve": [[0, 0.00138], [6, 0.00094], [12, 0.00081], [18, 0.00085]], "verdict": {"before": 0.0012, "after": 0.00044, "low": -0.00127,
    "high": -0.00034, "problems": 24}, "other": [0.2631, 0.3102], "kept": True, "endings": {"lost": 0, "gained": 0, "p": 1.0, "n": 48},
}  # fmt: skip
ARMS = {"full": FULL, SCHEME: LOW, RESTORED: set(range(45))}


def html(note, arms=ARMS, **restore) -> str:
    """The page, with its text on one line."""
    run = found(arms, {f"restore-{RESTORED}": note} if note else {}, **restore)
    return " ".join(page.html(run).split())


def visible(text: str) -> str:
    """The words of a page without its data, style and scripts."""
    return re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)


def test_the_page_says_how_a_scheme_was_restored():
    text = html(NOTE)
    assert f"How it was restored: {SCHEME}" in text
    assert "On 24 held-out problems that no state was chosen on: KL 0.00120 before, <b>0.000440</b> after;" in text
    assert "paired change −0.000760 (−0.00127 to −0.000340, 95 %)" in text
    assert "On prose: KL 0.2631 before, 0.3102 after." in text
    states = re.findall(r'<th scope="row">(quantized|codes solved|tuned)</th><td>(.*?)</td><td><small>(.*?)</small>', text)
    assert states == [
        ("quantized", "0.00259", ""),
        ("codes solved", "0.00138", "25.7 % of the codes moved"),
        ("tuned", "0.000810", "state of step 12, of 36 taken"),
    ]
    assert "<td>none: not tuned</td>" in text
    assert "<td>0.01</td>" in text
    assert "<b>0.00125</b>" in text
    (points,) = re.findall(r'<polyline points="(.*?)"/>', text)
    places = [tuple(map(float, place.split(","))) for place in points.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert max(places, key=lambda place: place[1]) == places[2], "the best state is not the lowest point"


def test_solved_codes_that_were_not_better_are_said_to_be_kept_as_they_were():
    (of,) = restoring.restoring(found(ARMS, {f"restore-{RESTORED}": {**NOTE, "solved": [0.002, 0.003], "moved": 0.0}}), SCHEME)
    assert [row.note for row in of.states][1] == "not better: quantized codes kept"


def test_stages_that_were_left_out_have_no_row():
    (of,) = restoring.restoring(found(ARMS, {f"restore-{RESTORED}": {**NOTE, "solved": None}}), SCHEME)
    assert [(row.state, row.kl) for row in of.states] == [("quantized", 0.00138), ("tuned", 0.00081)]
    (of,) = restoring.restoring(found(ARMS, {f"restore-{RESTORED}": {**NOTE, "curve": [], "rates": {}, "tested": {}}}), SCHEME)
    assert [row.state for row in of.states] == ["quantized", "codes solved"]
    assert "<polyline" not in html({**NOTE, "curve": [], "rates": {}, "tested": {}})


def test_without_held_out_problems_the_page_says_so():
    text = html({**NOTE, "verdict": None, "other": None, "solved": None, "curve": [], "tested": {}, "endings": None})
    assert "No problems were held out, so no state was chosen or judged. 25.7 % of the codes moved." in text
    assert "Range test" not in text


REFUSED = {**NOTE, "kept": False, "endings": None}


@pytest.mark.parametrize(
    ("note", "sentence"),
    [
        (REFUSED, "No state was better on held-out problems: the quantized model is returned unchanged."),
        (
            {**REFUSED, "endings": {"lost": 9, "gained": 1, "p": 0.021, "n": 48}},
            "More solutions of held-out problems are cut off or loop (9 new, 1 fewer, p = 0.021): "
            "the quantized model is returned unchanged.",
        ),
    ],
)
def test_a_state_that_was_not_accepted_is_one_sentence(note, sentence):
    text = html(note, {"full": FULL, SCHEME: LOW})
    assert f"<p><b>{sentence}</b></p>" in text
    assert "<polyline" not in text
    assert "Range test" not in text
    assert "no state was better on held-out problems; the quantized model is returned unchanged." in text
    assert "nothing was restored" not in text


def test_an_arm_whose_restoration_was_not_accepted_does_not_count_though_it_was_solved_before(tmp_path):
    run = found(ARMS, {f"restore-{RESTORED}": REFUSED})
    assert run.arms == ["full", SCHEME]
    assert summary.figures(run)["schemes"][SCHEME]["accuracy_kept"]["restored"] is None
    with pytest.raises(InputError, match=r"was not restored in .* \(no state was better on held-out problems"):
        card.export(run, tmp_path, SCHEME, tmp_path / "out", guard=False)


@pytest.mark.parametrize("note", [None, {"seconds": 12.0, "bullets": 7, "losses": [0.1], "tokens": 70}])
def test_runs_of_earlier_versions_still_render(note):
    assert "How it was restored" not in html(note)
    assert "of the loss recovered" in html(note)


def test_each_round_has_its_part():
    notes = {f"restore-{RESTORED}": NOTE, f"restore-{RESTORED}-2": REFUSED}
    run = found({**ARMS, RESTORED + "-2": LOW}, notes, rounds=2)
    assert summary.final(run, SCHEME) == RESTORED, "the second round gave nothing better"
    text = page.html(run)
    assert f"<h3>{RESTORED}</h3>" in text
    assert f"<h3>{RESTORED}-2</h3>" in text
    assert restoring.NOT_BETTER in text


def test_loss_recovered_and_accuracy_kept_are_two_figures():
    run = found(ARMS, {f"restore-{RESTORED}": NOTE})
    figures = summary.figures(run)
    of = figures["schemes"][SCHEME]
    assert of["loss_recovered"] == of["recovery"]
    assert of["loss_recovered"]["value"] == 0.5  # (45 - 30) / (60 - 30)
    assert of["accuracy_kept"] == {"quantized": 30 / N, "restored": 45 / N}
    assert [arm["accuracy_kept"] for arm in figures["arms"].values()] == [1.0, 0.5, 0.75]
    (sentence,) = map(verdict.sentence, verdict.figures(run))
    assert sentence.startswith("accuracy kept 50.0 % quantized, 75.0 % restored; loss recovered 50.0 % (")
    text = card.text(run, SCHEME, RESTORED)
    assert "Loss recovered, (restored − quantized) / (full − quantized): 50.0 % (" in text
    assert "Accuracy kept, over full precision's: 50.0 % quantized, 75.0 % restored." in text
    assert "Only codes, scales and norms differ from the quantized checkpoint: same size, same kernels." in text


def test_accuracy_kept_of_a_model_that_solves_nothing_is_undefined():
    figures = summary.figures(found({"full": set(), SCHEME: set()}))
    assert figures["schemes"][SCHEME]["accuracy_kept"] == {"quantized": None, "restored": None}


def test_no_figure_is_called_recovery_alone():
    run = found(ARMS, {f"restore-{RESTORED}": NOTE})
    screen = Console(width=110, file=io.StringIO())
    screen.print(terminal.table(run))
    said = " ".join(terminal.notices(run)) + screen.file.getvalue() + card.text(run, SCHEME, RESTORED)  # pyright: ignore
    for text in (visible(html(NOTE)), said):
        assert "recovery" not in text.lower().replace("recovery stays", "")
        assert "recovered" in text


def test_a_loss_within_noise_is_said_to_be_undefined_by_its_name():
    run = found({"full": FULL, SCHEME: FULL - {1}, RESTORED: FULL})
    assert verdict.sentence(*verdict.figures(run)) == (
        "accuracy kept 98.3 % quantized, 100.0 % restored; loss recovered undefined, the loss of 1.7 points is within noise (McNemar p = 1)"
    )


def test_the_headline_says_that_a_scheme_within_noise_was_restored():
    (headline,) = re.findall(r'<p class="verdict">(.*?)</p>', html(NOTE, {"full": FULL, SCHEME: FULL - {1}, RESTORED: FULL}))
    assert "is within noise (McNemar p = 1). Restoring codes, scales and norms" in headline
    assert "accuracy kept 98.3 % quantized, <b>100.0 %</b> restored" in headline
    assert "None" not in headline


def test_the_page_warns_of_a_weak_model_and_of_one_without_steps():
    text = html(None, {"full": {1, 2}, SCHEME: set()})
    assert "Full precision solves only 3.3 % of the problems: no scheme is restored." in text
    assert "Only 0.0 % of full precision&#39;s solutions follow the step format" in text
    assert "stepmend align builtin:qwen2 OUT" in text
    assert "Full precision follows it in 0.0 % of its solutions." in text
    assert "full precision solves under 5 %" in summary._unrestored(found({"full": {1, 2}, SCHEME: set()}), SCHEME)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.0000"),
        (1.23456, "1.2346"),
        (0.5102, "0.5102"),
        (0.00138, "0.00138"),
        (7.06e-5, "0.0000706"),
        (-0.001, "−0.00100"),
    ],
)
def test_divergences_have_three_significant_digits(value, text):
    assert restoring.nats(value) == text


def test_what_is_restored_in_words():
    assert [summary.kinds_text(tune) for tune in ("codes+scales+norms", "scales+norms", "codes", "lora")] == [
        "codes, scales and norms",
        "scales and norms",
        "codes",
        "an adapter",
    ]
    assert Recipe().restore.tune == "codes+scales+norms"
