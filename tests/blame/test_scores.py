"""Scores are the change of the target to first order, whoever's rounding it is; and nothing of either model is left changed."""

import copy

import numpy as np
import pytest
import torch

from stepmend import InputError, formats
from stepmend.blame import modules as holding
from stepmend.blame import scores as scoring
from stepmend.blame.modules import Module
from stepmend.blame.run import Pair
from stepmend.blame.scores import Mark
from stepmend.engines.local import LocalEngine
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes

FULL = str(CHECKPOINTS / "qwen2")


@pytest.fixture(scope="module")
def low(tmp_path_factory) -> str:
    """A checkpoint of three bits."""
    out = tmp_path_factory.mktemp("low") / "w3"
    quantizer.quantize(FULL, schemes.parse("rtn-w3a16-g128"), [], out)
    return str(out)


@pytest.fixture(scope="module")
def pair(low) -> Pair:
    tokenizer = load.load_tokenizer(FULL)
    full, quantized = (LocalEngine(load.load_model(one), tokenizer, 8) for one in (FULL, low))
    return Pair.of(full, quantized, low, "w3")


@pytest.fixture(scope="module")
def mark(pair) -> Mark:
    text = chat.render(pair.full.tokenizer, "plain-1", "Tom has 12 eggs and buys 30 more. How many eggs does Tom have?")
    row = tuple(chat.encode(pair.full.tokenizer, text + "Step 1: 12 + 30 = "))
    (read,) = pair.full.score([[*row, row[-1]]], [len(row)])
    return Mark("p", row, read.tokens[0])


def target(model, mark: Mark) -> dict[str, float]:
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([mark.row])).logits[0, -1].double()
    others_V = torch.cat([logits_V[: mark.token], logits_V[mark.token + 1 :]])
    return {"log-probability": float(logits_V.log_softmax(-1)[mark.token]), "margin": float(logits_V[mark.token] - others_V.max())}


def towards(pair: Pair, name: str, share: float):
    """Full precision with one module moved a share of the way to its rounding."""
    model = copy.deepcopy(pair.full.model)
    with torch.no_grad():
        weight = model.get_parameter(f"{name}.weight")
        weight += share * (pair.low.model.get_parameter(f"{name}.weight") - weight)
    return model


def test_a_score_is_the_loss_to_first_order(pair, mark):
    found = scoring.scores(pair.full.model, pair.low.model, pair.modules, mark, at=("full",))
    assert set(found) == {"log-probability at full", "margin at full"}
    for index in (0, 5, 20):
        name, share = pair.modules[index].name, 0.02
        before, after = target(towards(pair, name, -share), mark), target(towards(pair, name, share), mark)
        for kind in scoring.TARGETS:
            measured = (before[kind] - after[kind]) / (2 * share)  # what the whole rounding takes away, at this slope
            assert found[f"{kind} at full"][index] == pytest.approx(measured, rel=0.03, abs=2e-4)


def test_both_ends_together_come_near_the_whole_change(pair, mark):
    found = scoring.measures([scoring.scores(pair.full.model, pair.low.model, pair.modules, mark)])
    before, after = target(pair.full.model, mark), target(pair.low.model, mark)
    change = before["margin"] - after["margin"]
    assert abs(float(found["margin at both"].sum()) - change) < 0.5 * max(1.0, abs(change))
    assert np.allclose(found["margin at both"], (found["margin at full"] + found["margin at low"]) / 2)


def test_scoring_leaves_both_models_as_they_were(pair, mark):
    wanted = [p.requires_grad for p in pair.full.model.parameters()]
    scoring.scores(pair.full.model, pair.low.model, pair.modules, mark)
    assert [p.requires_grad for p in pair.full.model.parameters()] == wanted
    assert all(p.grad is None for model in (pair.full.model, pair.low.model) for p in model.parameters())


def test_modules_are_put_back_for_as_long_as_asked(pair, mark):
    name = pair.modules[3].name
    weight = pair.low.model.get_parameter(f"{name}.weight")
    before, other = weight.detach().clone(), pair.low.model.get_parameter(f"{pair.modules[4].name}.weight").detach().clone()
    with pytest.raises(RuntimeError, match="stop"), holding.restored(pair.full.model, pair.low.model, [name]):
        assert torch.equal(weight, pair.full.model.get_parameter(f"{name}.weight"))
        assert torch.equal(pair.low.model.get_parameter(f"{pair.modules[4].name}.weight"), other)
        raise RuntimeError("stop")
    assert torch.equal(weight, before)


def test_all_modules_put_back_are_full_precision(pair, mark):
    (margin,) = [one.margins[0] for one in pair.full.score([[*mark.row, mark.token]], [len(mark.row)], [[mark.token]])]
    assert margin > 0
    assert pair.frontiers([mark], pair.names) == [True]


def test_the_modules_are_those_with_codes(pair):
    assert len(pair.modules) == 28
    first = pair.modules[0]
    assert (first.name, first.layer, first.part) == ("model.layers.0.self_attn.q_proj", 0, "self_attn.q_proj")
    assert (first.weights, first.bits, first.size) == (256 * 256, 3, 3 + 16 / 128)
    squared, relative = pair.errors[first.name]
    assert 0 < relative < 0.2 < squared


def test_a_scaled_model_is_refused(pair, low):
    other = copy.deepcopy(pair.low.model)
    with torch.no_grad():
        other.get_parameter("model.layers.0.input_layernorm.weight").mul_(2)
    low_bit = formats.detect(low)
    assert low_bit
    with pytest.raises(InputError, match=r"input_layernorm\.weight differs from full precision"):
        holding.check(pair.full.model, other, low_bit, pair.modules, "x")
    holding.check(pair.full.model, pair.low.model, low_bit, pair.modules, "x")


def test_rounded_activations_are_refused(pair, tmp_path):
    quantizer.quantize(FULL, schemes.parse("rtn-w8a8"), [], tmp_path / "w8a8")
    low_bit = formats.detect(tmp_path / "w8a8")
    assert low_bit
    with pytest.raises(InputError, match="rounds activations"):
        holding.check(pair.full.model, pair.low.model, low_bit, pair.modules, "x")


SIZES = {"a": 10, "b": 40, "c": 20, "d": 30}
MODULES = [Module(name, i, name, weights, 3, 3.125) for i, (name, weights) in enumerate(SIZES.items())]


@pytest.mark.parametrize(
    ("share", "chosen"), [(0.05, []), (0.1, ["a"]), (0.3, ["c", "a"]), (0.4, ["b"]), (0.6, ["b", "c"]), (1.0, ["b", "c", "d", "a"])]
)
def test_a_share_of_the_weights_is_filled_in_order(share, chosen):
    assert holding.fill(MODULES, ["b", "c", "d", "a"], share) == chosen


def test_modules_are_ordered_by_value_a_weight():
    assert holding.by_density(MODULES, {"a": 1.0, "b": 2.0, "c": -1.0, "d": 0.0}) == ["a", "b"]
