"""GGUF files: the values that gguf-py and llama.cpp read, every byte kept that is not restored, and one line for what is not read."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from benchmarks import llama_cpp
from stepmend import InputError
from stepmend.formats import gguf_blocks, gguf_header
from stepmend.models import load
from stepmend.models.gguf import beside
from stepmend.quantize import given
from stepmend.restore import scales
from tests.conftest import make_tiny
from tests.formats import ggufs
from tests.formats.ggufs import IDS, kinds_of, patched
from tests.texts import logits

pytestmark = pytest.mark.filterwarnings("ignore")


def look(parent: str, file: Path) -> Any:
    return given.look(parent, parent, str(file))


def refusal(parent: str, file: Path) -> str:
    with pytest.raises(InputError) as caught:
        look(parent, file)
    line = str(caught.value)
    assert line.startswith("quantized: ")
    assert "\n" not in line
    assert len(line) <= 400
    return line


@pytest.mark.parametrize("kind", ggufs.BLOCKED)
def test_values_are_those_that_gguf_py_reads(tiny, kind, tmp_path):
    ggufs.make(tiny, kinds_of(kind), tmp_path / "a.gguf", head="Q8_0")
    found, wanted = look(tiny, tmp_path / "a.gguf").low_bit, ggufs.dequantized(tmp_path / "a.gguf")
    heads = {"attn_q": 4, "attn_k": 2}
    for layer, tensor in found.tensors.layers.items():
        value = wanted[tensor.name].numpy()
        part = tensor.name.split(".")[2]
        if load.config_of(tiny).model_type == "llama" and part in heads:
            value = value.reshape(heads[part], -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        assert np.array_equal(found.codes(layer).dequantize().numpy(), value), layer
    served = load.load_model(str(found.tensors.folder))
    assert torch.equal(served.model.embed_tokens.weight.cpu(), wanted["token_embd.weight"])
    assert torch.equal(served.lm_head.weight.cpu(), wanted["output.weight"])


@pytest.mark.parametrize("kind", ggufs.BLOCKED)
def test_codes_and_scales_are_written_where_they_are_read(kind):
    of, draw = gguf_blocks.KINDS[kind], torch.Generator().manual_seed(0)
    blocks_MBW = torch.randint(0, 256, (6, 3, of.width), dtype=torch.uint8, generator=draw)
    untouched = blocks_MBW.clone()
    scale_MB = torch.randn(6, 3, generator=draw).half()
    gguf_blocks.put_float16(blocks_MBW, of.scale, scale_MB)
    assert torch.equal(gguf_blocks.float16(blocks_MBW, of.scale), scale_MB)
    assert torch.equal(of.codes(blocks_MBW), of.codes(untouched))
    if of.put:
        codes_MBS = torch.randint(-(1 << of.bits - 1), 1 << of.bits - 1, (6, 3, of.columns), dtype=torch.int8, generator=draw)
        of.put(blocks_MBW, codes_MBS)
        assert torch.equal(of.codes(blocks_MBW), codes_MBS)
        of.put(blocks_MBW, of.codes(untouched))
    gguf_blocks.put_float16(blocks_MBW, of.scale, gguf_blocks.float16(untouched, of.scale))
    assert torch.equal(blocks_MBW, untouched)


def test_writing_what_is_there_changes_no_byte(tiny_llama, file, tmp_path):
    tensors = look(tiny_llama, file).low_bit.tensors
    whole = [name for name, tensor in tensors.stored.items() if tensor.kind in ("F32", "F16")]
    frozen = {f"{layer}.codes" for layer, tensor in tensors.layers.items() if tensor.kind == "Q4_K"}
    parts = [f"{layer}.{part}" for layer in tensors.layers for part in ("codes", "scale")]
    values = {name: tensors.read(name) for name in [*whole, *parts] if name not in frozen}
    assert len(values) > 20
    tensors.write(tmp_path / "out", values)
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_changed_scale_changes_two_bytes_of_the_right_row(tiny_llama, file, tmp_path):
    low = look(tiny_llama, file).low_bit
    layer = "model.layers.0.self_attn.q_proj"
    scale_MB = low.scale(layer).clone()
    scale_MB[1, 2] *= 1.5
    low.tensors.write(tmp_path / "out", low.scaled(layer, scale_MB))
    before, after = (np.frombuffer(one.read_bytes(), np.uint8) for one in (file, tmp_path / "out" / file.name))
    places = (before != after).nonzero()[0]
    tensor = low.tensors.layers[layer]
    row, byte = divmod(int(places[0]) - tensor.start, tensor.shape[1] // 32 * 18)
    assert len(places) <= 2
    assert (row, byte // 18) == (2, 2)  # the model's row 1 is the file's row 2: the halves of a head stand in turn


def test_what_a_file_holds_is_said(tiny_llama, file):
    found = look(tiny_llama, file)
    assert found.name == "Tiny-Q4_K"
    assert found.holds() == "5 layers Q4_0; 5 layers Q4_1; 2 layers Q4_K"
    counts = found.facts()["layers"]
    assert (counts["codes"], counts["left alone"]["left in full precision by its maker"]) == (12, 2)
    assert "llama.cpp" in found.facts()["given"]["loads_in"]
    assert found.warnings == ()


def test_a_head_of_its_own_stays_with_the_file_and_without_one_it_is_the_embeddings(tiny_llama, file, tmp_path):
    ggufs.make(tiny_llama, "Q8_0", tmp_path / "tied.gguf")
    for one, tied in ((file, False), (tmp_path / "tied.gguf", True)):
        served = load.load_model(beside(one, tiny_llama))
        assert (served.lm_head.weight is served.model.embed_tokens.weight) == tied


def test_blocks_of_zeros_have_a_scale_of_zero(tiny_llama, tmp_path):
    parent = Path(make_tiny("llama3.2", tmp_path / "zeros"))
    from safetensors.torch import load_file, save_file

    held = load_file(parent / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][:3] = 0
    save_file(held, parent / "model.safetensors", metadata={"format": "pt"})
    ggufs.make(str(parent), "Q4_0", tmp_path / "a.gguf")
    found = look(str(parent), tmp_path / "a.gguf")
    assert bool((found.low_bit.scale("model.layers.0.mlp.up_proj")[:3] == 0).all())
    student = scales.attach(found.folder, _recipe())
    layer = student.model.layers[0].mlp.up_proj
    from stepmend.restore import grid

    weight_MN = torch.randn(256, 128) * 0.1
    weight_MN[:3] = 0
    sums = grid.Sums(128, "cpu")
    inputs_TN = torch.randn(200, 128)
    sums.add(inputs_TN, inputs_TN, torch.ones(200), torch.arange(200) % 2)
    assert grid.resolve([layer], weight_MN, sums, True) > 0
    assert bool(torch.isfinite(layer.weight()).all())
    assert float(layer.weight()[:3].abs().max()) == 0
    scales.trained(student)


def _recipe():
    from stepmend.keys import Restore

    return Restore()


def test_k_quants_alone_have_no_codes_to_solve(tiny_llama, tmp_path):
    from stepmend.keys import Restore
    from stepmend.restore import tune
    from tests.restore.made import bullets

    ggufs.make(tiny_llama, {"ffn_down": "Q6_K"}, tmp_path / "k.gguf")
    folder = Path(look(tiny_llama, tmp_path / "k.gguf").folder)
    said: list[str] = []
    recipe = Restore.model_validate({"steps": 2, "batch_size": 2, "learning_rate": 0.01, "validation": 0, "solve_tokens": 1024})
    done = tune.restore(tiny_llama, folder, bullets(4), recipe, tmp_path / "out", seed=0, say=said.append)
    assert (done.moved, done.layers["solved"], done.layers["rescaled"]) == (0.0, 0, 2)
    assert any("codes of 2 quantized layers stay as they are" in line for line in said)
    with pytest.raises(InputError, match="its codes stay as they are"):
        tune.restore(tiny_llama, folder, bullets(4), Restore.model_validate({"tune": "codes"}), tmp_path / "no", seed=0)


# What is refused.


def entry(file: Path, name: str) -> int:
    """Where the header's entry of a tensor goes on behind its name."""
    data, key = file.read_bytes(), name.encode()
    return data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)


def put(data: bytearray, at: int, layout: str, *values) -> None:
    data[at : at + struct.calcsize(layout)] = struct.pack(layout, *values)


def without_end(data: bytearray) -> bytes:
    return bytes(data[:-4000])


DAMAGE = [
    (lambda data: data[:1], "is not a GGUF file"),
    (lambda data: b"GGUF", "is not a GGUF file"),
    (lambda data: b"PK" + data[2:], "is not a GGUF file"),
    (lambda data: put(data, 4, "<I", 1), "version 1 of GGUF is not supported; allowed: 2, 3"),
    (lambda data: put(data, 4, ">I", 3), "or it is in big-endian order"),
    (lambda data: put(data, 8, "<Q", 2**63), "names 9223372036854775808 entries, which it has no room for"),
    (lambda data: put(data, 16, "<Q", 2**63), "entries, which it has no room for"),
    (lambda data: put(data, 16, "<Q", 100_000), "entries, which it has no room for"),
    (lambda data: put(data, 24, "<Q", 2**64 - 1), "its header ends early"),
    (without_end, "lies outside of the file"),
    (lambda data: data[:600], "which it has no room for"),
    (lambda data: data[:1800], "its header ends early"),
    (lambda data: put(data, data.index(b"general.alignment") + 21, "<I", 3), "an alignment of 3 is not possible"),
    (lambda data: put(data, data.index(b"general.alignment") + 21, "<I", 0), "an alignment of 0 is not possible"),
    (lambda data: put(data, data.index(b"general.alignment") + 17, "<I", 77), "a value of type 77 is not known"),
    (lambda data: put(data, data.index(b"general.architecture") + 20, "<IIQ", 9, 8, 2**61), "entries, which it has no room for"),
    (lambda data: put(data, data.index(b"general.architecture") + 20, "<IIQ", 9, 0, 2**61), "entries, which it has no room for"),
    (lambda data: put(data, data.index(b"general.architecture") + 20, "<II", 9, 9), "a value of type 9 is not known"),
]


@pytest.mark.parametrize(("change", "said"), DAMAGE)
def test_a_damaged_file_is_one_line(tiny_llama, file, tmp_path, change, said):
    assert said in refusal(tiny_llama, patched(file, tmp_path / "b.gguf", change))


TENSOR = "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    ("at", "layout", "values", "said"),
    [
        (0, "<I", (7,), "has 7 dimensions"),
        (0, "<I", (0,), "has 0 dimensions"),
        (4, "<Q", (100,), "has 100 columns, no whole number of Q4_1's blocks of 32"),
        (4, "<Q", (2**62,), "lies outside of the file"),
        (4, "<QQ", (0, 4), "has 0 columns"),
        (12, "<Q", (128,), "is [128, 128], and in the model [256, 128]"),
        (20, "<I", (999,), "type 999 is not known"),
        (20, "<I", (4,), "type 4 is not known"),
        (20, "<I", (20,), "is of type IQ4_NL, which is not supported; allowed: F32, F16, BF16, Q4_0"),
        (24, "<Q", (2**63,), "lies outside of the file"),
        (24, "<Q", (65,), "is not aligned to 64 bytes"),
        (24, "<Q", (0,), "overlap"),
    ],
)
def test_a_tensor_that_is_not_read_is_named(tiny_llama, file, tmp_path, at, layout, values, said):
    line = refusal(tiny_llama, patched(file, tmp_path / "b.gguf", lambda data: put(data, entry(file, TENSOR) + at, layout, *values)))
    assert said in line
    assert TENSOR in line or said == "overlap"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("blk.1.ffn_up.weight", "blk.0.ffn_up.weight", "holds blk.0.ffn_up.weight twice"),
        ("blk.1.ffn_up.weight", "blk.7.ffn_up.weight", "holds blk.7.ffn_up.weight, which is not a tensor of the model"),
        ("output_norm.weight", "output_norm.weighs", "which is not a tensor of the model"),
        ("blk.1.ffn_up.weight", "ffn_up_exps.weight1", "holds several experts in one tensor"),
        ("general.architecture", "general.architectura", "cannot read GGUF files of the architecture ''"),
    ],
)
def test_names_that_do_not_fit_are_named(tiny_llama, file, tmp_path, old, new, said):
    assert said in refusal(tiny_llama, patched(file, tmp_path / "b.gguf", lambda data: bytes(data).replace(old.encode(), new.encode())))


def test_a_missing_tensor_is_named(tiny_llama, file, tmp_path):
    def renamed(data: bytearray) -> bytes:
        return bytes(data).replace(b"output_norm.weight", b"rope_frequs.weight")

    assert "holds rope_frequs.weight, which is not a tensor of the model" in refusal(
        tiny_llama, patched(file, tmp_path / "a.gguf", renamed)
    )
    ggufs.make(tiny_llama, "Q4_0", tmp_path / "b.gguf")
    tensors = gguf_header.read(tmp_path / "b.gguf").tensors
    dropped = next(tensor for tensor in tensors if tensor.name == "blk.1.ffn_up.weight")

    def shorter(data: bytearray) -> bytes:
        at = entry(tmp_path / "b.gguf", dropped.name) - 8 - len(dropped.name)
        end = at + 8 + len(dropped.name) + 4 + 8 * len(dropped.shape) + 4 + 8
        put(data, 8, "<Q", len(tensors) - 1)
        return bytes(data[:at] + data[end:])  # tensors then begin earlier, by a multiple of the alignment or in the padding

    assert f"lacks {dropped.name}, the model's model.layers.1.mlp.up_proj.weight" in refusal(
        tiny_llama, patched(tmp_path / "b.gguf", tmp_path / "c.gguf", shorter)
    )


def test_a_file_of_another_model_is_refused(file, tmp_path):
    other = make_tiny("qwen3", tmp_path / "qwen3")
    assert "blk.0.attn_k.weight is [64, 128], and in the model [128, 128]" in refusal(other, file)


def test_a_minimum_that_is_no_number_is_refused(tiny_llama, file, tmp_path):
    tensor = look(tiny_llama, file).low_bit.tensors.layers["model.layers.1.mlp.up_proj"]
    line = refusal(tiny_llama, patched(file, tmp_path / "b.gguf", lambda data: put(data, tensor.start + 2, "<e", float("nan"))))
    assert f"a minimum of {TENSOR} is not finite" in line


def test_a_scale_that_is_no_number_is_refused(tiny_llama, file, tmp_path):
    tensor = look(tiny_llama, file).low_bit.tensors.layers["model.layers.1.mlp.up_proj"]
    line = refusal(tiny_llama, patched(file, tmp_path / "b.gguf", lambda data: put(data, tensor.start, "<e", float("inf"))))
    assert "a scale of model.layers.1.mlp.up_proj is zero or not finite" in line


def test_full_precision_parts_folders_and_missing_files_are_one_line(tiny_llama, file, tmp_path):
    ggufs.make(tiny_llama, "F16", tmp_path / "f16.gguf")
    assert "is in full precision (its layers are F16, F32)" in refusal(tiny_llama, tmp_path / "f16.gguf")
    ggufs.make(tiny_llama, "Q4_0", tmp_path / "other.gguf")
    assert "holds 2 GGUF files; name one of them" in refusal(tiny_llama, tmp_path)
    (tmp_path / "f16.gguf").unlink()
    assert look(tiny_llama, tmp_path).holds() == "14 layers Q4_0"
    assert "no such file" in refusal(tiny_llama, tmp_path / "none.gguf")
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "is one of 3 parts of a model" in refusal(tiny_llama, tmp_path / "part.gguf")


def test_random_damage_never_raises_anything_else(tiny_llama, file, tmp_path):
    data, draw = file.read_bytes(), np.random.default_rng(0)
    header = gguf_header.read(file)
    end = min(tensor.start for tensor in header.tensors)
    for number in range(150):
        bad = bytearray(data)
        for place in draw.integers(0, end, draw.integers(1, 5)):
            bad[place] = draw.integers(0, 256)
        one = tmp_path / f"{number}.gguf"
        one.write_bytes(bad if number % 3 else bad[: draw.integers(0, len(bad))])
        try:
            gguf_header.read(one)
        except InputError as error:
            assert "\n" not in str(error)
        one.unlink()


def test_without_the_package_one_line_says_what_to_install(tiny_llama, file, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert "pip install 'stepmend[gguf]'" in refusal(tiny_llama, patched(file, tmp_path / "c.gguf", lambda data: None))


# llama.cpp itself.


@pytest.fixture
def runtime() -> None:
    if llama_cpp.library_file() is None:
        pytest.skip("no llama.cpp: install xllamacpp, or name its library in STEPMEND_LLAMA_CPP")


@pytest.mark.parametrize("kind", ggufs.BLOCKED)
def test_llama_cpp_computes_the_same(runtime, tiny, kind, tmp_path):
    """Its kernels round activations to 8 bits, which moves logits by some percent of the largest, and ours do not."""
    ggufs.make(tiny, kinds_of(kind), tmp_path / "a.gguf", head="Q8_0")
    ours_TV = logits(load.load_model(beside(tmp_path / "a.gguf", tiny)), IDS).detach().numpy()
    with llama_cpp.Model(tmp_path / "a.gguf", 256) as model:
        theirs_TV = model.logits(IDS)
    assert np.abs(ours_TV - theirs_TV).max() < 0.06 * np.abs(ours_TV).max()


def test_llama_cpp_computes_the_same_in_16_bits(runtime, tiny, tmp_path):
    ggufs.make(tiny, {"blk.1": "Q8_0", "none": ""}, tmp_path / "a.gguf")
    ours_TV = logits(load.load_model(beside(tmp_path / "a.gguf", tiny)), IDS).detach().numpy()
    with llama_cpp.Model(tmp_path / "a.gguf", 256) as model:
        assert np.abs(ours_TV - model.logits(IDS)).max() < 0.04 * np.abs(ours_TV).max()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K"])
def test_a_changed_file_is_the_changed_model_in_llama_cpp(runtime, tiny_llama, kind, tmp_path):
    """What is written is what llama.cpp then computes, rows in the order of each."""
    ggufs.make(tiny_llama, kinds_of(kind), tmp_path / "a.gguf")
    folder = look(tiny_llama, tmp_path / "a.gguf").folder
    student = scales.attach(folder, _recipe())
    draw = torch.Generator().manual_seed(0)
    for layer in scales.scales(student).values():
        layer.change.data.copy_(0.3 * torch.rand(layer.change.shape, generator=draw))
        if not layer.frozen:
            codes_MN = layer.codes()
            layer.set_codes(torch.where(torch.rand(codes_MN.shape, generator=draw) < 0.2, codes_MN // 2, codes_MN))
            layer.solved = True
    scales.export(student, Path(folder), tmp_path / "out")
    with torch.no_grad():
        ours_TV = logits(student, IDS).numpy()
    with llama_cpp.Model(tmp_path / "out" / "a.gguf", 256) as model, llama_cpp.Model(tmp_path / "a.gguf", 256) as before:
        theirs_TV, before_TV = model.logits(IDS), before.logits(IDS)
    assert np.abs(ours_TV - theirs_TV).max() < 0.06 * np.abs(ours_TV).max() < np.abs(before_TV - theirs_TV).max()


def test_answers_of_a_built_in_reasoner_are_the_same_in_llama_cpp(runtime, family, tmp_path):
    from stepmend.benchmarks import story
    from stepmend.engines.local import LocalEngine
    from stepmend.models import chat

    parent = load.locate(f"builtin:{family}")
    ggufs.make(parent, {"ffn_down": "Q4_K", "blk": "Q8_0"}, tmp_path / "a.gguf")
    tokenizer = load.load_tokenizer(parent)
    problems = [one for one, _ in zip(story.problems("test", "easy", seed=0), range(8), strict=False)]
    prompts = [chat.render(tokenizer, chat.prompt_for(parent, True), problem.question) for problem in problems]
    engine = LocalEngine(load.load_model(beside(tmp_path / "a.gguf", parent)), tokenizer, 120)
    ours = [list(one.tokens) for one in engine.complete(prompts)]
    with llama_cpp.Model(tmp_path / "a.gguf", 512) as model:
        theirs = [model.greedy(chat.encode(tokenizer, prompt), 120, load.ends_of(parent)) for prompt in prompts]
    assert sum(mine == other for mine, other in zip(ours, theirs, strict=True)) >= 7  # rounded activations may turn a near tie
