"""One tiny random model of each kind of architecture: what is checked before work holds, and every step gives what is served."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from stepmend import InputError
from stepmend.keys import Restore
from stepmend.models import check, forward, load, reasoner
from stepmend.quantize import run, schemes
from stepmend.restore import adapter, objectives, scales, tune
from tests.restore.made import bullets

pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "linear layers of a class of its own": ("Falcon", {"intermediate_size": None, "num_key_value_heads": None, "head_dim": None}),
    "a decoder inside the body": (
        "OPT",
        {"ffn_dim": 128, "word_embed_proj_dim": 64, "intermediate_size": None, "num_key_value_heads": None},
    ),
    "a head that scales its logits": ("Granite", {"logits_scaling": 8.0, "embedding_multiplier": 4.0}),
    "a head that caps its logits, norms of one plus weight": ("Gemma2", {"final_logit_softcapping": 2.0, "sliding_window": 32}),
    "dropout": ("Starcoder2", {"residual_dropout": 0.3, "embedding_dropout": 0.3, "attention_dropout": 0.3}),
    "tensors that are renamed": ("GPTNeoX", {"num_key_value_heads": None, "head_dim": None}),
    "experts by names of their own": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "convolutions with state": ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128}),
    "windows": ("Mistral", {"sliding_window": 8}),
    "fused projections": ("Phi3", {}),
}
ROUTERS = {"a router that is a linear layer by class": ("Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2})}
WITHOUT = {"norms without weights": ("Olmo", {"head_dim": None})}
"""What is peculiar, by the family that stands for it and what its configuration sets; all steps are tried on those of KINDS."""
SCHEME = "rtn-w4a16-g32"


def make(kind: str, folder: Path) -> str:
    """Save a tiny random checkpoint in bfloat16."""
    family, own = (KINDS | WITHOUT | ROUTERS)[kind]
    tokenizer = reasoner.make_tokenizer()
    torch.manual_seed(0)
    values = {key: value for key, value in (SIZE | own).items() if value is not None or key == "bos_token_id"}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **values)
    model = load.kind_of(config)(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=list(KINDS))
def made(request, tmp_path_factory):
    """Kind, parent and its checkpoint at four bits."""
    home = tmp_path_factory.mktemp("family")
    parent = make(request.param, home / "parent")
    run.quantize(parent, schemes.parse(SCHEME), [], home / "low")
    return request.param, parent, home / "low"


def test_what_check_says_is_quantized_holds_codes(made):
    kind, parent, low = made
    layers = run.preflight(parent, schemes.parse(SCHEME))
    student = scales.attach(str(low), Restore())
    assert {layer.name for layer in layers if layer.tuned} == scales.scales(student).keys()
    held = [name for name in load_file(low / "model.safetensors") if name.endswith("weight_packed")]
    assert len(held) >= sum(layer.quantized for layer in layers)
    assert check.summary(layers)["share quantized"] > 0.4
    experts = 2 * 4 * 3 if kind == "experts by names of their own" else 0
    left = scales.untuned(student)
    assert len(left) == experts
    assert all(".block_sparse_moe.experts." in name for name in left)


def test_losses_are_those_of_the_models_own_logits(made):
    _, parent, low = made
    ids = torch.randint(4, 300, (1, 24), generator=torch.Generator().manual_seed(1))
    for folder in (parent, str(low)):
        model = load.load_model(folder)
        with torch.no_grad():
            logits_TV = model(input_ids=ids).logits[0, :-1].float()
        wanted = torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:]).item()
        (found,) = forward.losses(model, ids.tolist(), [1], 0)
        assert found == pytest.approx(wanted, rel=1e-3)


def test_restoring_by_distillation_changes_what_is_served(made, tmp_path):
    kind, parent, low = made
    recipe = Restore(steps=3, batch_size=2, learning_rate=0.01, tune="scales+norms")
    said: list[str] = []
    done = tune.restore(parent, low, bullets(4), recipe, tmp_path / "out", seed=0, say=said.append)
    assert done.export_error <= done.export_tolerance
    left = [line for line in said if "quantized layers stay as they are" in line]
    assert ["24 quantized layers" in line and ".experts." in line for line in left] == [True] * (kind == "experts by names of their own")
    assert done.layers["rescaled"] == len(scales.scales(scales.attach(str(low), recipe)))
    assert (done.layers["untuned"], done.layers["solved"]) == (24 if kind == "experts by names of their own" else 0, 0)
    before, after = load_file(low / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("weight_scale") for name in changed)
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}


def test_each_side_of_a_pair_is_read_as_it_is_alone(made):
    kind, _, low = made
    recipe, tokenizer = Restore(objective="dpo", tune="scales+norms"), load.load_tokenizer(str(low))
    model = scales.attach(str(low), recipe)
    rows = [(objectives.chosen_row(tokenizer, b, "step"), objectives.rejected_row(tokenizer, b, "step")) for b in bullets(2)]
    pairs = [objectives.pack(*both) for both in rows]
    with torch.no_grad():
        packed = objectives.packs(model, pairs, 0)
        found = torch.stack(objectives.pairs_of(model, pairs, 0, packed=packed))
        wanted = [[-objectives.sft(model, [row], 0).item() * sum(row.targets) for row in side] for side in zip(*rows, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-3, atol=1e-2)
    if kind in ("convolutions with state", "windows"):
        assert not packed


def test_nothing_is_dropped_out_while_tuning(tmp_path):
    parent = make("dropout", tmp_path / "parent")
    run.quantize(parent, schemes.parse(SCHEME), [], tmp_path / "low")
    for recipe in (Restore(), Restore(tune="lora")):
        student = (tune.adapter if recipe.tune == "lora" else scales).attach(str(tmp_path / "low"), recipe)
        ids = torch.randint(4, 300, (1, 24), generator=torch.Generator().manual_seed(1))
        first, second = (student(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second)


def test_an_adapter_leaves_routers_alone(tmp_path):
    parent = make(next(iter(ROUTERS)), tmp_path / "parent")
    facts = run.quantize(parent, schemes.parse(SCHEME), [], tmp_path / "low")
    assert facts["codes"] == 2 * (4 + 3 * 4), "attention's layers, and three of each expert"
    recipe = Restore(tune="lora", steps=2, batch_size=2)
    done = tune.restore(parent, tmp_path / "low", bullets(2), recipe, tmp_path / "out", seed=0)
    assert done.layers["adapted"] == 2 * 4
    adapted = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert not any("router" in name for name in adapted)
    assert load.load_model(str(tmp_path / "out")) is not None


def test_an_adapter_of_a_vision_language_model_is_trained_on_the_weights_that_are_served(tmp_path):
    tokenizer = reasoner.make_tokenizer()
    text = {key: value for key, value in SIZE.items() if value is not None} | {"vocab_size": len(tokenizer), "sliding_window": 32}
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=4)
    load.kind_of(config)(config).to(torch.bfloat16).save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    run.quantize(str(tmp_path / "parent"), schemes.parse("rtn-w3a16-g32"), [], tmp_path / "low")
    trained, served = adapter.attach(str(tmp_path / "low"), Restore(tune="lora")), load.load_model(str(tmp_path / "low"))
    ids_BT = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.equal(trained(input_ids=ids_BT).logits, served(input_ids=ids_BT).logits)


def test_norms_of_one_plus_weight_move_relative_to_what_they_multiply_by(tmp_path):
    config = transformers.Gemma2Config(**SIZE, vocab_size=300)
    model = transformers.Gemma2ForCausalLM(config)
    assert scales.offset_of(model.model.norm) == 1
    assert scales.offset_of(torch.nn.LayerNorm(8)) == 0
    assert scales.offset_of(torch.nn.RMSNorm(8)) == 0
    stored = scales.Stored(torch.zeros(3), torch.float32, offset=1.0)
    assert torch.equal(stored(torch.full((3,), 0.25)), torch.full((3,), 0.25))


def test_a_model_whose_norms_hold_no_weights_is_tuned_without(tmp_path):
    parent = make("norms without weights", tmp_path / "parent")
    run.quantize(parent, schemes.parse(SCHEME), [], tmp_path / "low")
    done = tune.restore(parent, tmp_path / "low", bullets(2), Restore(steps=2, tune="scales+norms"), tmp_path / "out", seed=0)
    assert len(done.losses) == 2
    with pytest.raises(InputError, match="has no such parameters"):
        tune.restore(parent, tmp_path / "low", bullets(2), Restore(steps=2, tune="norms"), tmp_path / "norms", seed=0)


def test_float32_tensors_of_a_16_bit_checkpoint_stay_so(tmp_path):
    parent = Path(make("fused projections", tmp_path / "parent"))
    tensors = load_file(parent / "model.safetensors")
    tensors["model.norm.weight"] = torch.linspace(0.99, 1.01, 64)
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    run.quantize(str(parent), schemes.parse(SCHEME), [], tmp_path / "low")
    assert torch.equal(load_file(tmp_path / "low" / "model.safetensors")["model.norm.weight"], tensors["model.norm.weight"])


def test_a_layer_that_was_left_in_full_precision_is_an_error(tmp_path):
    parent = make("fused projections", tmp_path / "parent")
    scheme = schemes.parse(SCHEME)
    model, _ = run.compress(parent, scheme, [])
    del model.model.layers[1].mlp.down_proj.quantization_scheme
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj \(Linear\) was not quantized"):
        run._check_codes(model, run.preflight(parent, scheme), scheme)


def test_a_checkpoint_that_is_another_model_when_loaded_anew_is_refused_and_not_kept(tmp_path, monkeypatch):
    parent = make("fused projections", tmp_path / "parent")
    store = run._store

    def damaged(file, *rest):
        store(file, *rest)
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith("weight_scale"))
        save_file(tensors | {name: 3 * tensors[name]}, file, metadata={"format": "pt"})

    monkeypatch.setattr(run, "_store", damaged)
    with pytest.raises(InputError, match="reloaded"):
        run.quantize(parent, schemes.parse(SCHEME), [], tmp_path / "low")
    assert not (tmp_path / "low").exists()


@pytest.mark.parametrize(
    ("kind", "values", "scheme", "said"),
    [
        ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4}, SCHEME, "Conv1D"),
        ("GptOss", {**SIZE, "num_local_experts": 4, "layer_types": ["full_attention"] * 2}, SCHEME, "one tensor"),
        *(
            ("Mixtral", {**SIZE, "num_local_experts": 4}, name, "symmetric, weight-only")
            for name in ("rtn-w8a8", "fp8-dynamic", "nvfp4a16")
        ),
        ("Qwen3Moe", {**SIZE, "num_experts": 4, "moe_intermediate_size": 48}, SCHEME, "do not divide the 48 columns"),
    ],
)
def test_what_cannot_be_done_is_refused_from_the_configuration(tmp_path, kind, values, scheme, said):
    config = getattr(transformers, f"{kind}Config")(vocab_size=300, **values)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(InputError, match=said):
        run.preflight(str(tmp_path), schemes.parse(scheme))
