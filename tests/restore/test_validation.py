"""Held-out divergence, the range test, early stopping, and that a state which is no better is never returned."""

import pytest
import torch
from safetensors.torch import load_file

from stepmend.keys import Restore
from stepmend.models import load
from stepmend.restore import training, tune, validation
from stepmend.restore.training import Group, train
from stepmend.restore.validation import Readings, range_test
from tests.restore.made import bullets
from tests.restore.test_codes import solutions
from tests.texts import logits

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs


def test_divergences_are_those_of_whole_logits(tiny_llama, low_bit):
    tokenizer, (full, low) = load.load_tokenizer(tiny_llama), (load.load_model(str(folder)) for folder in (tiny_llama, low_bit))
    rows = [one.row(tokenizer) for one in solutions(tiny_llama, 20)]
    found = Readings(full, rows, tokenizer.pad_token_id).compare(low)
    assert len(found) == 20
    for row, (kl, same) in zip(rows, found, strict=True):
        mine, theirs = (logits(m, list(row.ids)).double().log_softmax(-1)[row.question - 1 : -1] for m in (low, full))
        assert kl == pytest.approx(float((theirs.exp() * (theirs - mine)).sum(-1).mean()), rel=1e-3)
        assert same == pytest.approx(float((theirs.argmax(-1) == mine.argmax(-1)).double().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "chosen", "tried"),
    [
        ([0.9, 0.8, 0.5, 0.7, 0.1, 0.0], 0.001, 4),  # the first that is worse ends it: what lies further is not tried
        ([1.0, 1.0, 1.0, 0.9, 0.8, 0.7], 0.03162278, 6),
        ([1.1, 1.2, 1.6, 0.1, 0.1, 0.1], None, 3),  # worse, and then much worse: no rate will do
    ],
)
def test_the_range_test_takes_the_rate_that_lowers_it_most(values, chosen, tried):
    given = iter(values)
    rate, attempts = range_test(1.0, lambda rate: next(given))
    assert (rate, len(attempts)) == (chosen, tried)


def test_training_ends_where_validation_stops_falling_with_the_best_state(tmp_path):
    parameter = torch.nn.Parameter(torch.tensor(0.0))

    def backward(step: int) -> float:  # always towards larger values; validation wants 0.05
        (-parameter).backward()
        return -float(parameter)

    trained = train(
        [Group([parameter], 0.01)],
        backward,
        steps=100,
        state_file=tmp_path / "state",
        made_by="t",
        validate=lambda: abs(float(parameter) - 0.05),
    )
    assert len(trained.losses) < 100
    best_step, best = min(trained.curve, key=lambda one: one[1])
    assert 0 < best_step < len(trained.losses)
    assert abs(float(parameter) - 0.05) == pytest.approx(best)
    assert [value for _, value in trained.curve[-training.PATIENCE :]] == sorted(value for _, value in trained.curve[-training.PATIENCE :])


def test_the_direction_of_a_range_test_is_where_adam_goes(tmp_path):
    parameters = [torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.tensor(3.0))]
    slopes = torch.tensor([0.5, -4.0])

    def backward(step: int) -> float:  # a plane: its gradients are the same wherever the steps lead
        loss = (slopes * parameters[0]).sum() * (1 + step) + 2 * parameters[1]
        loss.backward()
        return float(loss)

    towards = training.direction(parameters, backward, 4)
    assert [p.tolist() for p in parameters] == [[1.0, -2.0], 3.0]
    assert all(p.grad is None for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=0.01, **training.ADAMW)
    for step in range(4):
        backward(step)
        optimizer.step()
        optimizer.zero_grad()
    for parameter, start, change in zip(parameters, (torch.tensor([1.0, -2.0]), torch.tensor(3.0)), towards, strict=True):
        assert torch.allclose(parameter.detach(), start + 0.01 * change, atol=1e-6)


def test_a_better_state_is_shown_on_problems_that_did_not_choose_it(tiny_llama, low_bit, tmp_path):
    texts = solutions(tiny_llama, 40)
    tuned = tune.restore(
        tiny_llama, low_bit, bullets(), Restore(steps=10), tmp_path / "out", seed=0, anchors=texts[:24], held_out=texts[24:]
    )
    assert tuned.kept
    assert tuned.verdict.better and tuned.verdict.after < tuned.verdict.before
    assert tuned.verdict.problems == 8
    assert tuned.solved[1] < tuned.solved[0]
    assert {kind for kind, attempts in tuned.tested.items() if attempts} == {"scales", "norms"}
    assert all(rate in validation.RATES for rate in tuned.rates.values())
    assert tuned.other[0] > 0


def test_a_state_that_is_not_better_is_not_returned(tiny_llama, low_bit, tmp_path, monkeypatch):
    texts, said = solutions(tiny_llama, 16), []
    monkeypatch.setattr(validation.Validation, "judge", lambda self, student: [1.0, 2.0, 3.0])
    tuned = tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=4), tmp_path / "out", seed=0, held_out=texts, say=said.append)
    assert not tuned.kept
    assert "  3 further held-out problems: KL 2 before, 2 after; change +0 (+0 to +0, 95 %)" in said
    for start in ("memory: about", "codes: solving on", "range test: norms", "plain prose: KL "):
        assert any(line.startswith(f"  {start}") for line in said), start
    before, after = load_file(low_bit / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_it_takes_six_problems_to_show_that_a_state_is_better():
    before, after = [0.3, 0.2, 0.4, 0.3, 0.2, 0.5], [0.1, 0.1, 0.2, 0.2, 0.1, 0.2]
    assert validation.verdict(before, after).better
    for count in (1, 5):
        assert not validation.verdict(before[:count], after[:count]).better


def test_codes_that_do_not_help_are_left_as_they_were(tiny_llama, low_bit, tmp_path, monkeypatch):
    values, said = iter([1.0, 2.0]), []
    choose = validation.Validation.choose
    monkeypatch.setattr(validation.Validation, "choose", lambda self, student: next(values, None) or choose(self, student))
    held = solutions(tiny_llama, 12)
    recipe = Restore(tune="codes")
    tuned = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "out", seed=0, held_out=held, say=said.append)
    assert "  codes: validation KL 1 before, 2 after: not better, so the quantized codes are kept" in said
    assert tuned.moved == 0
    assert not tuned.kept
