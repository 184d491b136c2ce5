"""What restoring did: effects against noise, controls against located bullets, and what is exported."""

import json
from dataclasses import replace

import pytest

from stepmend import InputError
from stepmend.facts import Control, Effects, Facts
from stepmend.recipe import Recipe
from stepmend.records import Grade, Problem, Trace
from stepmend.report import card, page, summary
from stepmend.report.sections import controls, effects
from stepmend.store.notes import as_facts

SCHEME, N = "rtn-w3a16-g128", 60
RESTORED = f"{SCHEME}+restored"
COUNTS = {"checked": 3, "same": 1, "overlap": 1, "near": 1, "clean": 0}


def found(right: dict[str, set[int]], notes=None, **restore) -> summary.Found:
    """A run of ``N`` problems, half of them easy; of every arm, which ones it solves."""
    levels = ("easy", "hard")
    problems = [Problem(id=f"p{i}", benchmark="story", split="test", level=levels[i % 2], question="Q", answer="1") for i in range(N)]
    traces = {a: {p.id: Trace(problem=p.id, arm=a, made_by="t", text="1", tokens=(1,), finish="stop") for p in problems} for a in right}
    grades = {
        a: {p.id: Grade(problem=p.id, arm=a, made_by="g", outcome="correct" if i in of else "wrong") for i, p in enumerate(problems)}
        for a, of in right.items()
    }
    recipe = Recipe.make({"schemes": [SCHEME], "restore": restore})
    facts = Facts(as_facts({"card": {"leakage": {"curate": COUNTS}}, **(notes or {})}))
    return summary.Found(recipe, facts, {p.id: p for p in problems}, traces, grades, {}, {})


FULL, LOW = set(range(N)), set(range(30))
BETTER = {name: {"before": 1.0, "after": 0.5, "n": N, "value": -0.5, "low": -0.6, "high": -0.4} for name in effects.MEASURES}
MEASURE = {"before": 1.0, "after": 1.5, "n": N, "value": 0.5, "low": 0.4, "high": 0.6}


def test_nothing_worse_is_said_where_nothing_is():
    run = found({"full": FULL, SCHEME: LOW, RESTORED: FULL - {3}})
    of = effects.effects(run, SCHEME)
    assert (of.accuracy.gained, of.accuracy.lost, of.worse) == (30, 1, [])
    assert "no measure is shown to be worse" in effects.lines(effects.figures(run))[0]
    assert (of.accuracy.n, of.accuracy.verdict, of.margin) == (N, "not worse", 1.0)
    assert "accuracy +48.3 (+32.4 to +62.7) points" in effects.lines(effects.figures(run))[0]
    assert "n = 60: not worse by more than 1.0 points (95 %)" in effects.lines(effects.figures(run))[0]


def test_what_is_shown_neither_way_is_said():
    of = effects.effects(found({"full": FULL, SCHEME: LOW, RESTORED: LOW}), SCHEME)
    assert (of.worse, of.accuracy.verdict) == ([], "not shown")
    assert of.undecided == ["easy", "hard", "cut off", "in a loop", "without a boxed answer"]
    assert "not shown to be within 1.0 points; not shown either way: easy, hard" in of.shown
    wide = found({"full": FULL, SCHEME: LOW, RESTORED: LOW})
    wide = replace(wide, recipe=Recipe.make({"schemes": [SCHEME], "measure": {"margin": 20}}))
    assert (effects.effects(wide, SCHEME).undecided, effects.effects(wide, SCHEME).accuracy.verdict) == ([], "not worse")


def test_a_level_that_got_worse_is_said_though_the_whole_got_better():
    lost = set(range(0, 20, 2))  # ten easy ones, while every hard one is won
    of = effects.effects(found({"full": FULL, SCHEME: LOW, RESTORED: (FULL - lost) - {i for i in range(30, N) if i % 2 == 0}}), SCHEME)
    assert of.accuracy.gained > of.accuracy.lost
    assert [line.split(":")[0] for line in of.worse] == ["easy"]


def test_loss_on_text_and_kl_count_only_beyond_noise():
    arms = {"full": FULL, SCHEME: LOW, RESTORED: FULL}
    worse = found(arms, {f"effects-{RESTORED}": {"question": MEASURE, "kl": {**MEASURE, "low": -0.1}}})
    assert effects.effects(worse, SCHEME).worse == ["loss on the questions' text (nats per token): 1.0000 before, 1.5000 after"]


def test_the_last_round_is_what_counts():
    run = found({"full": FULL, SCHEME: LOW, RESTORED: LOW, RESTORED + "-2": FULL}, rounds=2)
    assert summary.final(run, SCHEME) == RESTORED + "-2"
    assert summary.recovery(run, SCHEME).value == 1.0
    assert summary.recovery(run, SCHEME, RESTORED).value == 0.0


def controls_of(located: set[int], other: set[int], span="step", control="random-step", seeds=3) -> summary.Found:
    arms, notes = {"full": FULL, SCHEME: LOW, RESTORED: located}, {}
    for name, of in (("located", located), (control, other)):
        for seed in range(seeds):
            arm = f"{SCHEME}+{name}-steps-s{seed}"
            arms[arm] = of
            facts = {"scheme": SCHEME, "control": name, "budget": "steps", "seed": seed, "tokens": 100, "seconds": 1.0, "bullets": 5}
            notes[f"control-{arm}"] = facts
    return found(arms, notes, span=span)


def test_located_steps_mattered_where_they_are_better_beyond_noise():
    of = controls.controls(controls_of(FULL, LOW), SCHEME)
    (row,) = of.rows
    assert row.difference.value == 0.5
    assert row.p < 0.01
    assert (row.seeds, row.tokens) == (3, 100)
    assert "mattered here: +50.0 points" in of.sentence
    assert "did harm here" in controls.controls(controls_of(LOW, FULL), SCHEME).sentence


@pytest.mark.parametrize(("control", "budget"), [("random-step", "tokens"), ("shuffled-step", "steps")])
def test_a_claim_must_hold_against_either_step_under_every_budget(control, budget):
    run = controls_of(FULL, LOW)
    for seed in range(3):
        arm = f"{SCHEME}+{control}-{budget}-s{seed}"
        run.grades[arm], run.traces[arm] = run.grades["full"], run.traces["full"]
        fact = run.facts.get(Control, f"{SCHEME}+random-step-steps-s{seed}")
        run.facts.put(fact.model_copy(update={"arm": arm, "control": control, "budget": budget}))
    sentence = controls.controls(run, SCHEME).sentence
    assert (
        sentence == f"Located steps were not shown to matter here: +0.0 points (−8.9 to +8.9, p = 1) against {control}, at equal {budget}."
    )


def test_what_is_not_shown_is_said_to_be_not_shown():
    assert "not shown to matter" in controls.controls(controls_of(FULL, FULL - {1}), SCHEME).sentence
    assert "(seeds: 1; take at least 3)" in controls.controls(controls_of(FULL, LOW, seeds=1), SCHEME).sentence
    assert (
        "not tested: neither random-step nor shuffled-step"
        in controls.controls(controls_of(FULL, LOW, control="sft-chosen"), SCHEME).sentence
    )
    assert controls.controls(found({"full": FULL, SCHEME: LOW}), SCHEME) is None


def test_the_page_shows_controls_effects_and_leakage(tmp_path):
    run = controls_of(FULL, LOW)
    run.facts.put(Effects.model_validate({"arm": RESTORED, "question": MEASURE, "kl": MEASURE}))
    page.write(run, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "Did the located steps matter?" in html
    assert "random-step, equal steps" in html
    assert "worse beyond noise: loss on the questions" in html
    assert "3 checked, 1 the same and 1 overlapping (dropped), 1 near" in html


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run" / f"{SCHEME}-restored"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "run"


def test_an_export_is_the_checkpoint_and_a_card(checkpoint, tmp_path):
    run = found(
        {"full": FULL, SCHEME: LOW, RESTORED: FULL},
        {f"restore-{RESTORED}": {"bullets": 7, "checkpoint": "abc", "export_error": 0.0}, f"effects-{RESTORED}": BETTER},
    )
    card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"weights"
    text = (tmp_path / "out/README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "on 7 bullets" in text
    assert "Turned right: 30; turned wrong: 0." in text
    shown = json.loads(text.partition("```json\n")[2].partition("```")[0])
    assert (shown["checkpoint"], shown["recipe"]["schemes"]) == ("abc", [SCHEME])
    with pytest.raises(InputError, match="exists already"):
        card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=True)


def test_the_guard_refuses_what_got_worse_and_without_it_the_card_says_so(checkpoint, tmp_path):
    run = found({"full": FULL, SCHEME: LOW, RESTORED: FULL}, {f"effects-{RESTORED}": {"question": MEASURE}})
    with pytest.raises(InputError, match="refused by --guard"):
        card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=True)
    assert not (tmp_path / "out").exists()
    card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=False)
    assert "Worse than before, beyond noise" in (tmp_path / "out/README.md").read_text()


def test_the_guard_refuses_what_is_not_shown_to_be_within_the_margin(checkpoint, tmp_path):
    run = found({"full": FULL, SCHEME: LOW, RESTORED: LOW}, {f"effects-{RESTORED}": BETTER})
    with pytest.raises(InputError, match=r"\+0.0 \(−8.9 to \+8.9\) points on 60 problems, not shown to be within 1.0 points"):
        card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=True)
    assert not (tmp_path / "out").exists()


def test_a_scheme_that_the_gate_held_back_says_why_it_was_not_restored():
    why = "no loss beyond noise on 900 curate problems (McNemar p = 0.4); not restored"
    assert summary.recovery(found({"full": FULL, SCHEME: LOW}, {f"gate-{SCHEME}": {"why": why}}), SCHEME).reason == why


def test_several_schemes_are_adjusted_together_and_restored_ones_apart():
    arms = {"full": FULL, SCHEME: LOW, "rtn-w4a16-g128": FULL - set(range(6)), RESTORED: FULL - {1}}
    run = replace(found(arms), recipe=Recipe.make({"schemes": [SCHEME, "rtn-w4a16-g128"]}))
    of = summary.against_full(run)
    assert of["rtn-w4a16-g128"]["mcnemar_p"] == of["rtn-w4a16-g128"]["holm"] == 0.03125
    assert of[SCHEME]["holm"] == pytest.approx(2 * of[SCHEME]["mcnemar_p"])
    assert (of[RESTORED]["holm"], of[RESTORED]["n"]) == (1.0, N)
    shown = summary.figures(run)
    assert shown["schemes"][SCHEME]["holm"] == shown["arms"][SCHEME]["against_full"]["holm"] == of[SCHEME]["holm"]
    assert shown["arms"]["full"]["against_full"] is None


def test_the_guard_refuses_what_was_not_measured(checkpoint, tmp_path):
    run = found({"full": FULL, SCHEME: LOW, RESTORED: FULL})
    with pytest.raises(InputError, match="refused by --guard, not measured: loss on the questions"):
        card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=True)


def test_odd_endings_count_beyond_noise():
    run = found({"full": FULL, SCHEME: LOW, RESTORED: FULL})
    said = effects.effects(run, SCHEME)
    assert [row.name for row in said.endings] == ["cut off", "in a loop", "without a boxed answer"]
    assert (said.endings[2].before, said.endings[2].after, said.worse) == (N, N, [])
    for count, worse in ((2, []), (12, ["solutions cut off: 0 before, 12 after (p = 0.0015)"])):
        traces = {i: t.model_copy(update={"finish": "length"}) if int(i[1:]) < count else t for i, t in run.traces[RESTORED].items()}
        run.traces[RESTORED] = traces
        assert effects.effects(run, SCHEME).worse == worse


def test_a_preference_won_at_the_chosen_texts_cost_is_said():
    run = found({"full": FULL, SCHEME: LOW, RESTORED: FULL}, {f"restore-{RESTORED}": {"chosen_change": -0.25}}, objective="dpo")
    assert effects.effects(run, SCHEME).worse == [
        "the bullets' own chosen texts: 0.250 nats per token less likely (raise restore.keep_chosen)"
    ]


def test_an_adapters_card_says_how_to_load_it():
    arms = {"full": FULL, SCHEME: LOW, RESTORED: FULL}
    assert "PeftModel.from_pretrained" in card.text(found(arms, tune="lora"), SCHEME, RESTORED)
    assert "vllm serve" not in card.text(found(arms, tune="lora"), SCHEME, RESTORED), "vLLM has no kernel for three bits"
    low = "gptq-w4a16-g128"
    four = found({"full": FULL, low: LOW, f"{low}+restored": FULL}, tune="lora")
    assert "vllm serve" in card.text(four, low, f"{low}+restored")
    assert "PeftModel" not in card.text(found(arms), SCHEME, RESTORED)


def test_what_was_not_restored_or_is_gone_is_said(tmp_path):
    with pytest.raises(InputError, match="was not restored"):
        card.export(found({"full": FULL, SCHEME: LOW}), tmp_path, SCHEME, tmp_path / "out", guard=False)
    with pytest.raises(InputError, match="is not there any more"):
        card.export(found({"full": FULL, SCHEME: LOW, RESTORED: FULL}), tmp_path, SCHEME, tmp_path / "out", guard=False)
