"""What AWQ and SmoothQuant scale: exact in every family, whatever llm-compressor has registered for it, or refused before any work."""

import json

import pytest
import torch
import transformers

from stepmend import InputError
from stepmend.models import load
from stepmend.quantize import mappings, run, schemes
from stepmend.restore import scales
from tests.models.test_families import KINDS, SIZE, make
from tests.texts import calibration_texts

pytestmark = pytest.mark.filterwarnings("ignore")

NORMS_OF = {
    "linear layers of a class of its own": {"input_layernorm": 2},
    "a decoder inside the body": {"self_attn_layer_norm": 3, "final_layer_norm": 1},
    "a head that scales its logits": {"input_layernorm": 3, "post_attention_layernorm": 2},
    "a head that caps its logits, norms of one plus weight": {"input_layernorm": 3, "pre_feedforward_layernorm": 2},
    "dropout": {"input_layernorm": 3, "post_attention_layernorm": 1},
    "tensors that are renamed": {"input_layernorm": 1, "post_attention_layernorm": 1},
    "experts by names of their own": {"input_layernorm": 3},
    "convolutions with state": {"operator_norm": 3, "ffn_norm": 2},
    "windows": {"input_layernorm": 3, "post_attention_layernorm": 2},
    "fused projections": {"input_layernorm": 1, "post_attention_layernorm": 1},
}
"""Norms whose output linear layers alone read, and how many of these, in the last decoder layer. Mixtral's router reads the other one."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_what_is_scaled_leaves_the_model_as_it_is(kind, method, tmp_path):
    parent = make(kind, tmp_path / "parent")
    found = mappings.of(load.skeleton(load.config_of(parent)), method)
    model = load.load_model(parent, "float32")
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(4, 300, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for one in found:
            scale(model, one)
        after = model(input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    last = [one for one in found if ".1." in one.smooth and "norm" in one.smooth]
    assert {one.smooth.rpartition(".")[2]: len(one.balance) for one in last} == NORMS_OF[kind]


def scale(model, one: mappings.Mapping) -> None:
    """Divide the output of one layer, and multiply the columns of those behind it, by random factors, as llm-compressor does."""
    first, columns = model.get_submodule(one.smooth), model.get_submodule(one.balance[0]).in_features
    factors = 0.5 + torch.rand(columns, generator=torch.Generator().manual_seed(columns))
    offset = 0.0 if isinstance(first, torch.nn.Linear) else scales.offset_of(first)
    divided = (first.weight[-columns:] + offset) / (factors if first.weight.ndim == 1 else factors[:, None]) - offset
    first.weight.data[-columns:] = divided
    if getattr(first, "bias", None) is not None:
        first.bias.data /= factors
    for name in one.balance:
        model.get_submodule(name).weight.data *= factors


@pytest.mark.parametrize("scheme", ["awq-w4a16-g32", "smoothquant-w8a8"])
@pytest.mark.parametrize("kind", ["a decoder inside the body", "tensors that are renamed", "dropout", "fused projections"])
def test_families_that_llm_compressor_has_no_mappings_for_are_quantized(kind, scheme, tmp_path):
    parent = make(kind, tmp_path / "parent")
    texts = calibration_texts(load.load_tokenizer(parent), 4)
    run.quantize(parent, schemes.parse(scheme), texts, tmp_path / "low")
    full, low = (run._logits(load.load_model(str(f)), load.load_tokenizer(parent)) for f in (parent, tmp_path / "low"))
    assert 0 < (full - low).norm() < 0.5 * full.norm()


@pytest.mark.parametrize(
    ("kind", "values", "scheme"),
    [
        ("Olmo2", SIZE, "smoothquant-w8a8"),  # its norms come after what they are named for
        ("Olmo", {key: value for key, value in SIZE.items() if key != "head_dim"}, "smoothquant-w8a8"),  # its norms hold no weights
    ],
)
def test_a_family_with_nothing_to_scale_is_refused_from_the_configuration(tmp_path, kind, values, scheme):
    config = getattr(transformers, f"{kind}Config")(vocab_size=300, **values)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(InputError, match=r"smoothquant has nothing to scale in olmo2?: .*; use rtn or gptq"):
        run.preflight(str(tmp_path), schemes.parse(scheme))


def test_registered_mappings_that_would_change_the_model_are_not_taken():
    """llm-compressor lets SmoothQuant scale Gemma 2's norm after attention, whose output goes into the residual stream."""
    model = load.skeleton(transformers.Gemma2Config(**SIZE, vocab_size=300))
    registered = {one.smooth.rpartition(".")[2] for one in mappings._registered(model, "smoothquant")}
    taken = {one.smooth.rpartition(".")[2] for one in mappings.of(model, "smoothquant")}
    assert "post_attention_layernorm" in registered
    assert taken == {"input_layernorm", "pre_feedforward_layernorm"}


def test_registered_mappings_that_hold_are_taken():
    """For Gemma 3 llm-compressor leaves out the norm before attention: scaled, it does worse than rounding."""
    model = load.skeleton(transformers.Gemma3TextConfig(**SIZE, vocab_size=300))
    taken = {one.smooth.rpartition(".")[2] for one in mappings.of(model, "awq")}
    assert "input_layernorm" not in taken and "pre_feedforward_layernorm" in taken
