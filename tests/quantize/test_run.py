"""Quantizing for real: what is saved is what llm-compressor made, for every family and method."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stepmend import InputError
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.quantize import run, schemes
from tests.texts import calibration_texts, logits

ALL = (
    "rtn-w3a16-g128",
    "rtn-w4a16-g64",
    "rtn-w4a16-asym",
    "rtn-w8a8",
    "gptq-w3a16-g128",
    "gptq-w4a16-g128-kv8",
    "awq-w3a16-g64",
    "awq-w4a16-g128",
    "smoothquant-w8a8",
)

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs


def check_reload(parent: str, name: str, out) -> None:
    """The logits of the saved checkpoint are those of the quantizer's model."""
    tokenizer = load.load_tokenizer(parent)
    texts = calibration_texts(tokenizer, 8)
    ids = chat.encode(tokenizer, texts[0])
    model, tokenizer = run.compress(parent, schemes.parse(name), texts)
    with torch.no_grad():
        before = logits(model, ids)
        run.save(model, tokenizer, out, parent)
        after = logits(load.load_model(str(out)), ids)
        full = logits(load.load_model(parent), ids)
    # Beside a GPU the quantizer leaves its model on the CPU; a last bit's difference is a whole step where activations are rounded.
    near = 0.1 if torch.cuda.is_available() and ("a8" in name or "kv8" in name) else 1e-3
    assert (before - after).abs().max() < near * before.abs().max()
    assert (after - full).abs().max() > 1e-3 * before.abs().max(), "nothing was quantized"


EACH = [*(("qwen2", name) for name in ALL), *(("llama", name) for name in ("gptq-w3a16-g128", "awq-w3a16-g64", "smoothquant-w8a8"))]
"""Every scheme on one reasoner, and every method on the other: a product shows no more."""


@pytest.mark.parametrize(("family", "name"), EACH)
def test_reasoner_reloads_with_the_logits_of_the_quantizer(family, name, tmp_path):
    check_reload(str(CHECKPOINTS / family), name, tmp_path / "out")


@pytest.mark.parametrize("name", ["gptq-w3a16-g128", "awq-w4a16-g64", "smoothquant-w8a8-kv8"])
def test_real_architectures_reload_too(tiny, name, tmp_path):
    check_reload(tiny, name, tmp_path / "out")


def test_autoround_exports_compressed_tensors_in_the_parents_dtype(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(schemes, "ITERATIONS", 2)
    run.quantize(tiny_llama, schemes.parse("autoround-w4a16-g128"), calibration_texts(load.load_tokenizer(tiny_llama), 4), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_quantizing_twice_gives_the_same_bytes(tiny_llama, tmp_path):
    texts = calibration_texts(load.load_tokenizer(tiny_llama), 8)
    for name in ("one", "two"):
        run.quantize(tiny_llama, schemes.parse("gptq-w4a16-g128"), texts, tmp_path / name)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()


def test_the_checkpoint_is_small_and_in_the_parents_dtype(tiny_llama, tmp_path):
    run.quantize(tiny_llama, schemes.parse("rtn-w4a16-g128"), [], tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("weight_scale")}
    assert scales
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["quantization_config"]["format"] == "pack-quantized"


def test_a_quantized_parent_and_missing_texts_are_refused(tiny_llama, tmp_path):
    run.quantize(tiny_llama, schemes.parse("rtn-w4a16-g128"), [], tmp_path / "out")
    with pytest.raises(InputError, match="quantized already"):
        run.quantize(str(tmp_path / "out"), schemes.parse("rtn-w4a16-g128"), [], tmp_path / "again")
    with pytest.raises(InputError, match="no calibration texts"):
        run.quantize(tiny_llama, schemes.parse("gptq-w4a16-g128"), [], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_group_that_does_not_fit_is_refused_before_work(tiny_llama, tmp_path):
    config = json.loads((load.Path(tiny_llama) / "config.json").read_text())
    assert config["intermediate_size"] == 256
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps({**config, "intermediate_size": 192}))
    with pytest.raises(InputError, match=r"do not divide the 192 columns of model.layers.0.mlp.down_proj; groups of 32, 64 do"):
        run.quantize(str(odd), schemes.parse("rtn-w4a16-g128"), [], tmp_path / "out")
