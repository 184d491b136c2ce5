"""A GGUF file as the full-precision model: converted, checked from its header alone, and refused if it is damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import stepmend
from stepmend import InputError, formats
from stepmend.formats import gguf_header, gguf_reader
from stepmend.models import load
from stepmend.models.gguf import full
from tests.conftest import make_tiny
from tests.formats import ggufs
from tests.formats.ggufs import IDS, kinds_of, patched
from tests.texts import logits

pytestmark = pytest.mark.filterwarnings("ignore")


def with_merges(folder: str) -> str:
    """Give a checkpoint a tokenizer that merges bytes, as real ones do: transformers makes no other one from a GGUF file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float32)])
def test_a_file_is_the_full_precision_model(tmp_path, monkeypatch, kind, dtype):
    parent = with_merges(make_tiny("qwen2.5", tmp_path / "qwen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ggufs.make(parent, kind, tmp_path / "one.gguf", texts=True)
    folder = load.locate(str(tmp_path / "one.gguf"))
    assert Path(folder).is_relative_to(tmp_path / "cache")
    assert load.config_of(folder).dtype == dtype
    model, wanted = load.load_model(folder), ggufs.dequantized(tmp_path / "one.gguf")
    assert torch.equal(model.model.embed_tokens.weight.cpu(), wanted["token_embd.weight"])
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight.cpu(), wanted["blk.1.ffn_up.weight"])
    if kind != "Q8_0":
        assert (logits(model, IDS) - logits(load.load_model(parent), IDS)).abs().max() < 2e-2
    first, second = (load.load_tokenizer(one) for one in (parent, folder))
    text = "Tom has 12 eggs."
    assert first.get_vocab() == second.get_vocab()
    assert first(text)["input_ids"] == second(text)["input_ids"]
    assert first.chat_template == second.chat_template
    assert load.ends_of(folder) == {first.eos_token_id}
    before = (Path(folder) / "config.json").stat().st_mtime_ns
    assert full(tmp_path / "one.gguf") == folder
    assert (Path(folder) / "config.json").stat().st_mtime_ns == before


def test_no_model_is_made_of_a_damaged_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InputError, match=r"^model: .*version 0 of GGUF"):
        load.locate(str(tmp_path / "a.gguf"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
def test_check_of_a_file_reads_its_header_alone_and_writes_nothing(tmp_path, monkeypatch, kind):
    parent, home = with_merges(make_tiny("qwen2.5", tmp_path / "parent")), tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ggufs.make(parent, kinds_of(kind), home / "one.gguf", texts=True)

    def refuse(*of: Any) -> None:
        raise AssertionError(f"tensor data are read: {of}")

    with monkeypatch.context() as inside:
        inside.setattr(formats.gguf, "_bytes", refuse)
        found = stepmend.check(str(home / "one.gguf"), ["rtn-w4a16-g32"])
        described = load.locate(str(home / "one.gguf"), whole=False)
    assert [one.name for one in home.iterdir()] == ["one.gguf"]
    assert not (tmp_path / "cache").exists()
    assert not any(file.suffix in (".safetensors", ".gguf") for file in Path(described).iterdir())
    folder = load.locate(str(home / "one.gguf"))
    whole = stepmend.check(folder, ["rtn-w4a16-g32"])
    assert (found.layers, found.parameters, found.dtype, found.memory) == (whole.layers, whole.parameters, whole.dtype, whole.memory)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (Path(described) / name).read_text() == (Path(folder) / name).read_text()


def test_check_of_a_file_refuses_what_a_run_refuses(tmp_path):
    parent = with_merges(make_tiny("qwen2.5", tmp_path / "parent"))
    ggufs.make(parent, "F16", tmp_path / "one.gguf", texts=True)
    bad = patched(tmp_path / "one.gguf", tmp_path / "bad.gguf", lambda data: bytes(data).replace(b"blk.1.attn_q", b"blk.1.attn_x"))
    with pytest.raises(InputError, match=r"^model: .*holds blk.1.attn_x.bias, which is not a tensor of the model"):
        stepmend.check(str(bad), ["rtn-w4a16-g32"])


def test_transformers_makes_the_same_of_the_header_as_of_gguf_pys_reader(tiny_llama, file, tmp_path):
    parent = with_merges(make_tiny("qwen2.5", tmp_path / "qwen"))
    ggufs.make(parent, "Q8_0", tmp_path / "one.gguf", texts=True)
    for one in (tmp_path / "one.gguf", file):
        wanted = load_gguf_checkpoint(str(one))
        with gguf_reader.of(gguf_header.read(one)):
            found = load_gguf_checkpoint(str(one))
        for of in (found, wanted):
            del of["ignore"]  # counts of the file itself, which transformers sets aside
        assert found == wanted
    assert len(wanted["config"]) > 5
