"""Loading: what is wrong with a checkpoint is said before anything is loaded."""

import json
import shutil
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepmend import InputError
from stepmend.models import load
from stepmend.models.load import placement
from stepmend.models.reasoner import CHECKPOINTS


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(CHECKPOINTS / "qwen2", tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("config.json", None, "holds no model"),
        ("config.json", b"{", "config.json is not a valid JSON object"),
        ("config.json", b"[]", "config.json is not a valid JSON object"),
        ("model.safetensors", None, "holds no weights"),
        ("model.safetensors.index.json", b"{}", None),
        ("model.safetensors", b"", "truncated or damaged"),
        ("model.safetensors", b"\xff" * 64, "truncated or damaged"),
        ("tokenizer.json", None, "holds no tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_said(copy, name, content, line):
    (copy / "tokenizer_config.json").unlink()
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=line) if line else nullcontext():
        load.locate(str(copy))


@pytest.mark.parametrize("content", [b"{}", b'{"model_type": "qwen9"}', b'{"model_type": "qwen2", "hidden_size": "wide"}'])
def test_a_configuration_that_is_none_is_said(copy, content):
    (copy / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json cannot be read by transformers \(.+\)$"):
        load.config_of(str(copy))


def test_a_tokenizer_that_was_cut_is_said(copy):
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"tokenizer of .* cannot be read"):
        load.load_tokenizer(str(copy))


def test_a_missing_shard_is_named(copy):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(InputError, match=r"lacks model-2\.safetensors"):
        load.locate(str(copy))


def rewritten(folder, change):
    """The copy with its tensors changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def drop(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add(tensors):
    tensors["model.layers.0.mlp.gate.weight"] = torch.zeros(4)


def reshape(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (drop, r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        (add, r"holds an unexpected tensor, model\.layers\.0\.mlp\.gate\.weight"),
        (reshape, r"model\.norm\.weight|cannot be loaded"),
    ],
)
def test_every_tensor_is_accounted_for(copy, change, line):
    with pytest.raises(InputError, match=line):
        load.load_model(rewritten(copy, change))


def test_more_layers_in_the_configuration_than_in_the_file(copy):
    """They would be random numbers."""
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks the tensor model\.layers\.\d+\..* and \d+ more; its config\.json and its weights"):
        load.load_model(str(copy))


def test_a_checkpoints_own_code_never_runs_and_nobody_is_asked(copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match=r"config.json cannot be read by transformers"):
        load.config_of(str(copy))


def test_what_is_neither_folder_nor_hub_name(copy):
    with pytest.raises(InputError, match="does not exist"):
        load.locate("/no/such/folder")
    with pytest.raises(InputError, match="is a file"):
        load.locate(str(copy / "config.json"))


def test_a_folder_is_the_same_from_any_directory(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    found = load.locate("./copy")
    monkeypatch.chdir("/")
    assert load.checkpoint_digest(found) == load.checkpoint_digest(copy)


def test_what_the_hub_gives_is_looked_at_too(copy, monkeypatch):
    (copy / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(copy))
    with pytest.raises(InputError, match="holds no weights"):
        load.locate("some/model")


def test_a_hub_name_that_cannot_be_had_is_one_line():
    with pytest.raises(InputError, match="could not be downloaded from the hub") as caught:
        load.locate("stepmend/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_chat_template_is_said(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        load.load_tokenizer(str(copy))


def test_digest_follows_content(copy):
    before = load.checkpoint_digest(copy)
    assert before == load.checkpoint_digest(CHECKPOINTS / "qwen2")
    config = copy / "config.json"
    config.write_text(config.read_text() + " ")
    assert load.checkpoint_digest(copy) != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in the checkpoint's own dtype")
def test_cpu_models_compute_in_float32():
    assert load.load_model(str(CHECKPOINTS / "llama")).dtype == torch.float32


@pytest.mark.parametrize(
    ("fast", "dtype", "wanted"), [(True, "auto", "bfloat16"), (False, "auto", "float32"), (True, "float32", "float32")]
)
def test_large_16_bit_checkpoints_are_computed_in_what_the_cpu_is_fast_in(tiny_llama, monkeypatch, fast, dtype, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(load, "fast_bfloat16", lambda: fast)
    assert placement(tiny_llama, dtype) == ("cpu", torch.float32), "a small one stays in float32"
    monkeypatch.setattr(load, "LARGE", 1000)
    assert placement(tiny_llama, dtype) == ("cpu", getattr(torch, wanted))


def test_the_probe_of_bfloat16_takes_no_time():
    start = time.perf_counter()
    assert load.fast_bfloat16() in (True, False)
    assert time.perf_counter() - start < 5
