"""Tuning for real: what is frozen stays, what is exported is what was trained, and a stopped tuning continues."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepmend import InputError
from stepmend.curate import controls
from stepmend.keys import Restore
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.report import card
from stepmend.restore import adapter, scales, training, tune
from stepmend.restore.losses import Loss
from tests.restore.made import bullets, each, quantized
from tests.texts import logits

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs


@pytest.mark.parametrize("what", ["scales", "norms", "scales+norms", "lora"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "distill"])
def test_every_objective_lowers_its_loss_and_exports_what_it_trained(tiny_llama, low_bit, tmp_path, what, objective):
    recipe = Restore.model_validate({"tune": what, "objective": objective, "steps": 12, "batch_size": 4})
    tuned = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "restored", seed=0)
    assert tuned.losses[-1] < tuned.losses[0]
    assert tuned.export_error < 1e-3
    assert not list(tmp_path.glob("*.state"))


@pytest.mark.parametrize("what", ["scales", "scales+norms"])
def test_restored_differs_in_what_was_tuned_and_in_nothing_else(tiny_llama, low_bit, tmp_path, what):
    def chosen(name: str) -> bool:
        return name.endswith("weight_scale") or ("norm" in name and "norms" in what)

    out = tmp_path / "restored"
    tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=6, tune=what, learning_rate=0.01), out, seed=0)
    before, after = load_file(low_bit / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape)
        assert torch.equal(tensor, after[name]) != chosen(name), name
    names = sorted(file.name for file in low_bit.iterdir())
    assert names == sorted(file.name for file in out.iterdir())
    for name in names:
        one, other = (low_bit / name).read_bytes(), (out / name).read_bytes()
        assert len(one) == len(other)
        assert name == "model.safetensors" or one == other
    # The file itself: its header and every byte outside the tuned tensors.
    one, other = (low_bit / "model.safetensors").read_bytes(), (out / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(one[:8], "little")
    places = {n: t["data_offsets"] for n, t in json.loads(one[8:header]).items() if chosen(n)}
    tuned_bytes = {header + i for begin, end in places.values() for i in range(begin, end)}
    assert all(i in tuned_bytes for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def test_a_range_test_sees_steps_that_rounding_would_undo(low_bit):
    """A checkpoint's scales are bfloat16: a change of a twentieth of a percent is lost in them."""
    model = scales.attach(str(low_bit), Restore(tune="scales+norms"))
    norms = [m for m in model.modules() if torch.nn.utils.parametrize.is_parametrized(m, "weight")]
    tensors = [*(layer.weight for layer in scales.scales(model).values()), *(lambda n=n: n.weight for n in norms)]
    before = [make().detach().clone() for make in tensors]
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 5e-4
    rounded = [make().detach() for make in tensors]
    assert all(torch.equal(*pair) for pair in zip(before, rounded, strict=True))
    with scales.unrounded(model):
        for start, exact in zip(before, (make().detach() for make in tensors), strict=True):
            assert torch.allclose(exact, start * 1.0005, rtol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(before, (make().detach() for make in tensors), strict=True))


def test_norms_alone_leave_every_scale(tiny_llama, low_bit, tmp_path):
    tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=6, tune="norms", learning_rate=0.01), tmp_path / "restored", seed=0)
    before, after = load_file(low_bit / "model.safetensors"), load_file(tmp_path / "restored/model.safetensors")
    assert {name for name, t in before.items() if not torch.equal(t, after[name])} == {name for name in before if "norm" in name}


FROZEN = Restore(tune="scales+norms", steps=2, learning_rate=0.01)
"""Codes stay as they are."""
FORMATS = ["rtn-w3a16", "awq-w3a16-g64", "gptq-w3a16-g128-asym", "smoothquant-w8a8", "gptq-w4a16-g128-kv8"]


@pytest.mark.parametrize(("tiny", "scheme"), each(FORMATS), indirect=["tiny"])
def test_every_format_tunes_and_serves_what_was_trained(tiny, scheme, tmp_path):
    quantized(tiny, scheme, tmp_path / "low")
    recipe = FROZEN.model_copy(update={"steps": 4})
    tuned = tune.restore(tiny, tmp_path / "low", bullets(), recipe, tmp_path / "restored", seed=0)
    # Rounding of activations turns a last-bit difference into a whole grid step, so those formats agree less closely.
    assert tuned.export_error < (0.3 if "a8" in scheme or "kv8" in scheme else 1e-3)
    assert tuned.export_error <= tuned.export_tolerance
    if "a8" not in scheme:  # eight bits lose next to nothing, so there is no loss to lower
        assert tuned.losses[-1] < tuned.losses[0]


@pytest.mark.parametrize("scheme", [*FORMATS[1:], "rtn-w4a16-asym", "awq-w4a16-g128", "rtn-w8a8"])
def test_codes_stay_and_an_adapter_lies_over_every_format(tiny_llama, scheme, tmp_path):
    quantized(tiny_llama, scheme, tmp_path / "low")
    tune.restore(tiny_llama, tmp_path / "low", bullets(), FROZEN, tmp_path / "restored", seed=0)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("low", "restored"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.endswith("weight_scale") or "norm" in name for name in changed)
    tuned = tune.restore(tiny_llama, tmp_path / "low", bullets(), Restore(tune="lora", steps=4), tmp_path / "adapted", seed=0)
    assert tuned.losses[-1] < tuned.losses[0]
    config = json.loads((tmp_path / "adapted/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "..", "this machine's path is in the adapter"
    assert str(tmp_path) not in "".join(f.read_text() for f in (tmp_path / "adapted/adapter").iterdir() if f.suffix in {".json", ".md"})


def test_an_adapter_loads_as_its_card_says(tiny_llama, low_bit, tmp_path):
    tune.restore(tiny_llama, low_bit, bullets(), Restore(tune="lora", steps=4), tmp_path / "adapted", seed=0)
    code = "\n".join(card.ADAPTED).partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code.replace('folder = "."', f'folder = "{tmp_path / "adapted"}"'), names)
    with torch.no_grad():
        theirs, ours = (logits(m, [5, 6, 7, 8]) for m in (names["model"].eval(), load.load_model(str(tmp_path / "adapted"))))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_models_lie_where_they_are_computed(low_bit):
    """Nothing is left of the layer by which compressed-tensors keeps a tensor on one device and shows a copy of it on another."""
    models = load.load_model(str(low_bit)), scales.attach(str(low_bit), Restore()), adapter.attach(str(low_bit), Restore(tune="lora"))
    assert all(type(module._parameters) is dict for model in models for module in model.modules())


def test_an_export_that_is_not_what_was_trained_is_refused_and_not_kept(tiny_llama, low_bit, tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "export", lambda model, folder, out: shutil.copytree(folder, out))  # nothing of the training
    with pytest.raises(InputError, match=r"the exported weight of model\.layers\.\d.* % from the tuned one"):
        tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=4), tmp_path / "restored", seed=0)
    assert not (tmp_path / "restored").exists()


def test_the_untuned_layer_is_the_exporters_own_dequantization(low_bit):
    attached, served = scales.attach(str(low_bit), Restore()), load.load_model(str(low_bit))
    layers = scales.scales(attached)
    assert len(layers) == 14
    for name, layer in layers.items():
        assert torch.equal(layer.weight(), served.get_submodule(name).weight)


@pytest.mark.parametrize("scheme", ["rtn-w3a16", "rtn-w3a16-g64"])
def test_a_layer_is_its_dequantized_weight_forward_and_backward(tiny, scheme, tmp_path):
    quantized(tiny, scheme, tmp_path / "low")
    for layer in scales.scales(scales.attach(str(tmp_path / "low"), Restore())).values():
        with torch.no_grad():
            layer.change.uniform_(-0.1, 0.1)
            if layer.bias is not None:
                layer.bias.uniform_(-1, 1)
        x_BN, found = torch.randn(5, layer.centred_MN.shape[1], device=layer.centred_MN.device), []
        for y_BM in (layer(x_BN), torch.nn.functional.linear(x_BN, layer.weight(), layer.bias)):
            found.append((y_BM, *torch.autograd.grad(y_BM.square().sum(), layer.change)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_scale_through_rounded_activations(tiny_llama, tmp_path):
    quantized(tiny_llama, "smoothquant-w8a8-kv8", tmp_path / "low")
    model = scales.attach(str(tmp_path / "low"), Restore())
    ids = chat.encode(load.load_tokenizer(tiny_llama), bullets()[0].prompt)
    with scales.straight_through():
        logits(model, ids).logsumexp(-1).sum().backward()
    assert all(layer.change.grad.abs().sum() > 0 for layer in scales.scales(model).values())


def test_a_stopped_tuning_continues_to_the_same_bytes(tiny_llama, low_bit, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 3)
    recipe = Restore(steps=10, batch_size=4)
    whole = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "whole", seed=0)

    count = [0]

    def stop(done: int) -> None:
        count[0] += done
        if count[0] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune.restore(tiny_llama, low_bit, bullets(6), recipe, tmp_path / "stopped", seed=0, tick=stop)
    count[0] = 0  # the state that is left is of other bullets, and must not be continued
    with pytest.raises(KeyboardInterrupt):
        tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "stopped", seed=0, tick=stop)
    resumed = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "stopped", seed=0)
    assert resumed.losses == whole.losses
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "stopped/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("what", "objective"),
    [
        *((what, "distill") for what in ("scales", "norms", "scales+norms", "lora")),
        ("scales+norms", "sft"),
        ("scales+norms", "dpo"),
        ("lora", "dpo"),
    ],
)
def test_a_model_computed_in_its_own_dtype_is_tuned_too(tiny_llama, low_bit, tmp_path, monkeypatch, what, objective):
    """As on a GPU, where a bfloat16 checkpoint is computed in bfloat16: what is tuned stays float32, and what is exported is served."""
    device, _ = load.placement(tiny_llama)
    monkeypatch.setattr(load, "placement", lambda folder, dtype="auto": (device, "auto"))
    recipe = Restore.model_validate({"tune": what, "objective": objective, "steps": 12, "batch_size": 4})
    assert load.load_model(str(low_bit)).dtype == torch.bfloat16
    tuned = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "restored", seed=0)
    assert tuned.losses[-1] < tuned.losses[0]
    assert tuned.export_error < 0.1


def test_a_further_round_goes_on_from_the_adapter_of_the_last(tiny_llama, low_bit, tmp_path):
    recipe = Restore(tune="lora", steps=12, batch_size=8)
    first = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "first", seed=0)
    second = tune.restore(tiny_llama, tmp_path / "first", bullets(), recipe, tmp_path / "second", seed=0)
    assert second.losses[0] == pytest.approx(first.losses[-1], rel=0.2)
    assert second.losses[-1] < first.losses[-1]


def test_what_cannot_learn_is_refused_before_it_starts(tiny_llama, low_bit, tmp_path):
    same = [b.model_copy(update={"rejected": b.chosen, "rejected_rest": b.continuation}) for b in bullets()]
    recipe = Restore(objective="dpo", keep_chosen=0, steps=2)
    with pytest.raises(InputError, match="no gradient reaches"):
        tune.restore(tiny_llama, low_bit, same, recipe, tmp_path / "restored", seed=0)
    assert not (tmp_path / "restored").exists()


def test_a_broken_checkpoint_is_refused_before_it_starts(tiny_llama, low_bit, tmp_path):
    shutil.copytree(low_bit, tmp_path / "low")
    tensors = load_file(tmp_path / "low/model.safetensors")
    tensors[next(n for n in tensors if n.endswith("weight_scale"))][:] = float("inf")
    save_file(tensors, tmp_path / "low/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the loss is"):
        tune.restore(tiny_llama, tmp_path / "low", bullets(), FROZEN, tmp_path / "restored", seed=0)


@pytest.mark.parametrize(
    ("kind", "value", "line"), [("norms", 0.0, "no gradient reaches the norms"), ("scales", float("nan"), "of scales is nan")]
)
def test_every_kind_must_have_a_gradient_that_is_a_number(tiny_llama, low_bit, tmp_path, monkeypatch, kind, value, line):
    attach = scales.attach

    def hooked(folder, recipe, dtype):
        model = attach(folder, recipe, dtype)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and tune._kind(name, recipe) == kind:
                parameter.register_hook(lambda grad: torch.full_like(grad, value))
        return model

    monkeypatch.setattr(scales, "attach", hooked)
    with pytest.raises(InputError, match=line):
        tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=2), tmp_path / "restored", seed=0)


def test_a_preferences_reference_is_read_once(tiny_llama, low_bit, tmp_path, monkeypatch):
    calls, preferences = [], Loss.preferences
    monkeypatch.setattr(Loss, "preferences", lambda loss: calls.append(loss) or preferences(loss))
    tuned = tune.restore(tiny_llama, low_bit, bullets(), Restore(objective="dpo", steps=6), tmp_path / "restored", seed=0)
    assert len(calls) == 2, "once before training, and once to see how the chosen texts fared"
    assert tuned.chosen_change is not None


def test_full_precision_is_tuned_for_comparison_too(tiny_llama, tmp_path):
    recipe = controls.recipe_of("full-tuned", Restore(steps=4))
    tuned = tune.restore(tiny_llama, Path(tiny_llama), bullets(), recipe, tmp_path / "tuned", seed=0)
    assert tuned.losses[-1] < tuned.losses[0]
    assert tuned.export_error < 1e-3
    assert (tmp_path / "tuned/adapter").is_dir()


def test_a_preference_is_tuned_far_more_gently_than_a_distribution():
    rates = {objective: tune.rate_of(Restore.model_validate({"objective": objective})) for objective in ("distill", "sft", "dpo")}
    assert rates["dpo"] < rates["sft"] / 3 < rates["distill"] / 8
    assert tune.rate_of(Restore(objective="dpo", learning_rate=0.5)) == 0.5


def test_no_bullets_is_said(tiny_llama, low_bit, tmp_path):
    with pytest.raises(InputError, match="no bullets"):
        tune.restore(tiny_llama, low_bit, [], Restore(steps=4), tmp_path / "restored", seed=0)


def test_the_reasoners_restore_too(family, tmp_path):
    parent = str(CHECKPOINTS / family)
    quantized(parent, "gptq-w3a16-g128", tmp_path / "low")
    tuned = tune.restore(parent, tmp_path / "low", bullets(), Restore(steps=4), tmp_path / "restored", seed=0)
    assert tuned.export_error < 1e-2
