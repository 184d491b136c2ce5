"""Restoring from the command line: controls, export, and what it refuses. On copies of one small finished run."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stepmend import ablation, pipeline
from stepmend.arms import Arm
from stepmend.context import Context
from stepmend.curate import rounds
from stepmend.facts import Card, Control, Curated, Effects, Tuned
from stepmend.measure import solve as solving
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.progress import Stages
from stepmend.recipe import Recipe
from stepmend.report import summary
from stepmend.restore import texts
from tests.command import stepmend
from tests.conftest import LOSSY
from tests.texts import logits

RESTORED = f"{LOSSY}+restored"
FOLDER = f"{LOSSY}-restored"


@pytest.fixture
def run_copy(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_control_is_tuned_measured_and_removed_and_the_restored_model_exported(run_copy, tmp_path):
    before = (run_copy / "traces.jsonl").read_bytes()
    done = stepmend("restore", run_copy, "--scheme", LOSSY, "--controls", "solved-problems", "--seeds", "1", "--export", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memory: about" in done.stderr
    assert "located minus solved-problems, equal steps" in done.stderr
    assert (run_copy / "traces.jsonl").read_bytes().startswith(before), "what was measured before is measured again"
    assert not list(run_copy.glob("*solved-problems*")), "a control's checkpoint is left behind"
    fact = summary.read(run_copy).facts.get(Control, f"{LOSSY}+solved-problems-steps-s0")
    assert (fact.control, fact.seed, fact.steps) == ("solved-problems", 0, 60)
    low, out = load_file(run_copy / LOSSY / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert {n for n, t in low.items() if not t.equal(out[n])} == {
        n for n in low if n.endswith(("weight_packed", "weight_scale")) or "norm" in n
    }
    assert f"# builtin:qwen2, {LOSSY}, restored" in (tmp_path / "out/README.md").read_text()
    refused = stepmend("restore", run_copy, "--scheme", LOSSY)
    assert refused.returncode == 2
    assert "needs --export" in refused.stderr
    again = stepmend("restore", run_copy, "--controls", "solved-problems", "--seeds", "1")
    assert again.returncode == 0
    assert "memory: about" not in again.stderr, "what was tuned before is tuned again"


def test_a_run_says_what_else_restoring_changed_and_what_leaked(finished_run):
    found = summary.read(finished_run)
    note, card = found.facts.get(Effects, RESTORED).model_dump(), found.facts.get(Card)
    tokenizer = load.load_tokenizer(finished_run / LOSSY)
    full, low, restored = (load.load_model(str(folder)) for folder in (CHECKPOINTS / "qwen2", finished_run / LOSSY, finished_run / FOLDER))
    asked = {p.id: chat.encode(tokenizer, chat.render(tokenizer, card.prompt, p.question)) for p in found.test}
    both = [p.id for p in found.test if all(found.grades[arm][p.id].outcome == "correct" for arm in ("full", LOSSY))]
    for when, model in (("before", low), ("after", restored)):
        losses, kl = [], []
        with torch.no_grad():
            for name, ids in asked.items():
                text = [*ids, *found.traces["full"][name].tokens]
                mine, theirs = (logits(m, text).double().log_softmax(-1) for m in (model, full))
                losses.append(-mine[: len(ids) - 1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item())
                if name in both:
                    kl.append((theirs.exp() * (theirs - mine)).sum(-1)[len(ids) - 1 : -1].mean().item())
        assert note["question"][when] == pytest.approx(np.mean(losses), rel=1e-3)
        assert note["kl"][when] == pytest.approx(np.mean(kl), rel=1e-2, abs=1e-6)
    for measure, n in (("question", len(found.test)), ("kl", len(both))):
        assert note[measure]["n"] == n
        assert note[measure]["value"] == pytest.approx(note[measure]["after"] - note[measure]["before"], abs=1e-9)
        assert note[measure]["low"] <= note[measure]["value"] <= note[measure]["high"]
    for split, checked in (("calibration", 9), ("curate", 216)):
        counts = card.leakage[split]
        assert counts["checked"] == checked == sum(count for kind, count in counts.items() if kind != "checked")


@pytest.mark.slow
def test_rounds_go_on_from_the_restored_model(tmp_path):
    small = ["measure.problems=10", "measure.noise_floor=false", "curate.problems=90", "curate.round=90", "restore.rounds=2"]
    # One step far too large, which nothing checks: it mends nothing.
    small += ["restore.steps=1", "restore.learning_rate=0.6", "restore.tune=scales+norms", "restore.validation=0"]
    done = stepmend(
        "run", "--scheme", LOSSY, "--out", tmp_path / "run", "--set", "restore.within_noise=true", *(a for s in small for a in ("--set", s))
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = summary.read(tmp_path / "run")
    assert found.arms == ["full", LOSSY, RESTORED, RESTORED + "-2"]
    assert summary.final(found, LOSSY) == RESTORED + "-2"
    assert found.facts.get(Curated, RESTORED), "the second round took no bullets of its own"
    fresh = found.bullets[RESTORED]
    assert fresh
    assert {b.rejected for b in fresh} != {b.rejected for b in found.bullets[LOSSY]}, "the second round's faults are the first one's"
    assert found.facts.get(Tuned, RESTORED + "-2").bullets >= found.facts.get(Tuned, RESTORED).bullets
    assert "Round by round" in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_a_restoration_that_is_no_better_is_returned_unchanged_and_said(tmp_path):
    small = ["measure.problems=10", "measure.noise_floor=false", "curate.problems=90", "curate.round=90", "restore.within_noise=true"]
    small += ["restore.steps=1", "restore.learning_rate=0.6", "restore.tune=scales+norms"]  # one step far too large
    done = stepmend("run", "--scheme", LOSSY, "--out", tmp_path / "run", *(a for s in small for a in ("--set", s)))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the quantized model is returned unchanged" in " ".join(done.stderr.split())
    before, after = (load_file(tmp_path / f"run/{name}/model.safetensors") for name in (LOSSY, FOLDER))
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert summary.read(tmp_path / "run").arms == ["full", LOSSY]
    refused = stepmend("restore", tmp_path / "run", "--export", tmp_path / "out")
    assert refused.returncode == 2
    assert "was not restored" in refused.stderr


@pytest.mark.filterwarnings("ignore")
def test_anchors_are_both_models_solutions_right_or_wrong_each_once(run_copy):
    recipe = Recipe.make(json.loads((run_copy / "recipe.json").read_text()))
    with Context(recipe, run_copy, Stages(Console(file=io.StringIO()))) as context:
        bullets, parts, held = rounds.bullets(context, LOSSY), list(rounds.rounds(context, LOSSY)), rounds.held(context)
        anchors, few = (
            texts.anchors(parts, bullets, held, restore) for restore in (recipe.restore, recipe.restore.model_copy(update={"anchors": 5}))
        )
        solved = {problem: one for part in parts for problem, one in part.items()}
        right = {arm: solving.outcomes(context, [one.problem for one in solved.values()], arm) for arm in ("full", LOSSY)}
    used = {anchor.problem for anchor in anchors}
    assert len(set(anchors)) == len(anchors)
    assert used == set(solved) - {bullet.problem for bullet in bullets} - {one.problem for one in texts.held_out(parts, held)}
    written = {(problem, trace.tokens) for problem, one in solved.items() for trace in (one.full, one.quantized)}
    assert {(anchor.problem, anchor.tokens) for anchor in anchors} == {pair for pair in written if pair[0] in used}
    wrong = {problem for problem, *good in zip(solved, *right.values(), strict=True) if not all(good)}
    assert used & wrong, "only what both models solve is taught"
    assert few == anchors[:5]


def test_equal_tokens_are_measured_only_where_they_differ_from_equal_steps(run_copy, monkeypatch):
    recipe = Recipe.make(json.loads((run_copy / "recipe.json").read_text()))
    made = list[tuple[Arm, int]]()
    with Context(recipe, run_copy) as context:
        pipeline.run(context)
        monkeypatch.setattr(ablation, "measure", lambda context, control, restore, *_: made.append((control, restore.steps)))
        ablation.compare(context, LOSSY, ["full-tuned", "solved-problems"], 2, ("steps", "tokens"), context.problems("test"))
    made = [(control.variant, control.budget, steps) for control, steps in made]
    steps = recipe.restore.steps
    assert made[:4] == [("located", "steps", steps)] * 2 + [("full-tuned", "steps", steps)] * 2
    assert made[4:6] == [("solved-problems", "steps", steps)] * 2
    assert [(name, budget) for name, budget, _ in made[6:]] == [("solved-problems", "tokens")] * 2
    assert all(other != steps for _, _, other in made[6:])


def test_bullets_train_in_trl_unchanged(finished_run, tmp_path, recwarn):
    from datasets import load_dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    data = load_dataset("json", data_files=str(finished_run / "bullets.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    folder = str(CHECKPOINTS / "qwen2")
    options = DPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(load.load_model(folder), args=options, train_dataset=data, processing_class=load.load_tokenizer(folder))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    assert 0 < losses[0] < 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("restore", "nowhere"), "nowhere holds no run"),
        (("restore", "RUN", "--export", "RUN"), "exists already"),
        (("restore", "RUN", "--guard"), "--guard needs --export"),
        (("restore", "RUN", "--scheme", "rtn-w8a8"), "has no scheme 'rtn-w8a8'; it has gptq-w4a16-g128"),
        (("restore", "RUN", "--controls", "nonsense"), "controls: unknown nonsense; allowed: random-step"),
        (("restore", "RUN", "--controls", "random-step"), "random-step would be tuned exactly like the located bullets"),
        (("restore", "RUN", "--seeds", "2"), "--seeds needs --controls"),
        (("run", "--match", "both", "--out", "new"), "--match needs --controls"),
        (("run", "--set", "restore.rounds=0"), "restore.rounds = 0"),
        (("run", "--set", "restore.tune=zeros"), "restore.tune = 'zeros': input should be 'codes', 'scales', 'norms'"),
        (("align", "builtin:qwen2", "RUN"), "exists already"),
        (("align", "builtin:qwen2", "new", "--benchmark", "nonsense"), "allowed: story"),
    ],
)
def test_bad_input_is_one_line(finished_run, arguments, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = stepmend(*(finished_run if a == "RUN" else a for a in arguments))
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
