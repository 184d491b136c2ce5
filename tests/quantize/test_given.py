"""A checkpoint that somebody else made: taken where it is one of the model, and refused by name, or warned of, where it is not."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepmend import InputError
from stepmend.keys import Restore
from stepmend.models import load
from stepmend.quantize import given
from stepmend.restore import tune
from tests.conftest import make_tiny
from tests.formats import layouts
from tests.restore.made import bullets, quantized

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = [layouts.Kind("awq"), layouts.Kind("gptq", ordered=True)]


@pytest.fixture(scope="module")
def home(tiny_llama, tmp_path_factory) -> Path:
    """A folder with a checkpoint of the tiny model in every format."""
    home = tmp_path_factory.mktemp("given")
    for kind in KINDS:
        layouts.make(tiny_llama, kind, home / kind.method)
    quantized(tiny_llama, "rtn-w4a16-g64-asym", home / "compressed-tensors")
    return home


@pytest.fixture(params=["awq", "gptq", "compressed-tensors"])
def low(request, home, tmp_path) -> Path:
    """A copy of a checkpoint in each format, to be changed."""
    return Path(shutil.copytree(home / request.param, tmp_path / request.param))


@pytest.fixture
def gptq(home, tmp_path) -> Path:
    return Path(shutil.copytree(home / "gptq", tmp_path / "gptq"))


def edit(file: Path, **changes) -> None:
    held = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (held | changes).items() if value is not None}))


def retensor(folder: Path, change) -> None:
    """Rewrite a checkpoint's tensors."""
    file = folder / "model.safetensors"
    save_file({name: t.clone().contiguous() for name, t in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def refusal(parent: str, low: Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(InputError) as caught:
        given.look(parent, parent, str(low))
    line = str(caught.value)
    assert line.startswith("quantized: ")
    assert "\n" not in line
    return line


def test_a_checkpoint_of_the_model_fits(tiny_llama, low):
    found = given.look(tiny_llama, tiny_llama, str(low))
    assert (found.name, found.low_bit.name, found.warnings) == (low.name, low.name, ())
    facts = found.facts()
    assert facts["layers"]["codes"] == facts["layers"]["quantized"] == facts["layers"]["tuned"] == 14
    wanted = {"awq": "32 columns", "gptq": "32 columns", "compressed-tensors": "64 columns"}[low.name]
    assert facts["given"]["holds"] == f"14 layers int4, a scale {wanted}, zero points"


def test_layers_that_its_maker_left_are_counted_and_left(tiny_llama, home, tmp_path):
    def one_dense(tensors):
        weight = load_file(Path(tiny_llama) / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        kept = {name: t for name, t in tensors.items() if ".layers.0.mlp.up_proj." not in name}
        return kept | {"model.layers.0.mlp.up_proj.weight": weight}

    shutil.copytree(home / "gptq", tmp_path / "part")
    retensor(tmp_path / "part", one_dense)
    counts = given.look(tiny_llama, tiny_llama, str(tmp_path / "part")).facts()["layers"]
    assert (counts["codes"], counts["tuned"]) == (13, 13)
    assert counts["left alone"]["left in full precision by its maker"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda low: (low / "chat_template.jinja").write_text("{{ messages[0].content }}"), "its chat template is not full precision's;"),
        (lambda low: (low / "chat_template.jinja").unlink(), "(it has none)"),
        (lambda low: edit(low / "config.json", rms_norm_eps=0.5), "config.json differs from full precision's in rms_norm_eps"),
        (lambda low: edit(low / "generation_config.json", eos_token_id=[1, 7]), "answers end with tokens [1, 7], and [1]"),
        (lambda low: (low / "README.md").write_text("---\nbase_model: some/other-7b\n---\n"), "its card names some/other-7b as"),
        (
            lambda low: (low / "README.md").write_text("---\nbase_model:\n- some/other-7b\n---\n"),
            "its card names some/other-7b as",
        ),
        (
            lambda low: retensor(low, lambda t: t | {"model.embed_tokens.weight": t["model.embed_tokens.weight"].flip(0)}),
            "its embeddings are not full precision's",
        ),
        (lambda low: edit(low / "tokenizer.json", normalizer={"type": "Lowercase"}), "its tokenizer.json is not full precision's"),
    ],
)
def test_what_may_be_another_model_is_a_warning(tiny_llama, gptq, change, said):
    change(gptq)
    (warning,) = given.look(tiny_llama, tiny_llama, str(gptq)).warnings
    assert said in warning


def test_the_base_model_on_the_card_is_compared_by_its_last_part(tiny_llama, gptq):
    (gptq / "README.md").write_text(f"---\nlicense: mit\nbase_model: someone/{Path(tiny_llama).name.upper()}\n---\n")
    assert given.look(tiny_llama, tiny_llama, str(gptq)).warnings == ()


def test_another_family_is_refused(gptq, tmp_path):
    assert "of type 'llama', and the full-precision model 'qwen3'" in refusal(make_tiny("qwen3", tmp_path / "other"), gptq)


def test_other_shapes_are_refused(tiny_llama, low):
    edit(low / "config.json", intermediate_size=512)
    assert "model.layers.0.mlp.gate_proj.weight is [512, 128], and [256, 128] in the full-precision model" in refusal(tiny_llama, low)


def test_files_of_another_shape_than_the_configuration_are_refused(tiny_llama, low):
    retensor(low, lambda t: t | {"model.embed_tokens.weight": t["model.embed_tokens.weight"][:500]})
    assert "model.embed_tokens.weight is [500, 128]; by config.json it is [512, 128]" in refusal(tiny_llama, low)


def test_another_vocabulary_is_refused(tiny_llama, low):
    held = json.loads((low / "tokenizer.json").read_text())
    vocabulary = held["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (low / "tokenizer.json").write_text(json.dumps(held))
    assert "the vocabulary differs in 2 tokens" in refusal(tiny_llama, low)


def test_full_precision_is_no_low_bit_checkpoint(tiny_llama):
    assert "is in full precision" in refusal(tiny_llama, Path(tiny_llama))


def test_a_low_bit_checkpoint_is_no_full_precision(home):
    with pytest.raises(InputError, match=r"model: .* is quantized already; give its full-precision parent"):
        given.look(str(home / "gptq"), "x", str(home / "awq"))


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "modelopt", "mxfp4", "auto-round", "quanto", "hqq", "exl3", "x" * 5000])
def test_other_formats_are_refused_by_name(tiny_llama, gptq, method):
    edit(gptq / "config.json", quantization_config={"quant_method": method})
    line = refusal(tiny_llama, gptq)
    assert repr(method[:80]) in line
    assert "take a compressed-tensors, AWQ or GPTQ checkpoint" in line
    assert len(line) < 500


@pytest.mark.parametrize("kind", ["float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "marlin-24", 7, ["pack-quantized"]])
def test_other_formats_of_compressed_tensors_are_refused_by_name(tiny_llama, home, tmp_path, kind):
    low = Path(shutil.copytree(home / "compressed-tensors", tmp_path / "low"))
    config = json.loads((low / "config.json").read_text())["quantization_config"]
    edit(low / "config.json", quantization_config=config | {"format": kind})
    assert f"format {str(kind)[:40]!r} is not restored" in refusal(tiny_llama, low)


@pytest.mark.parametrize("name", ["model.gguf", "folder"])
def test_what_is_called_gguf_and_is_none_is_refused(tiny_llama, tmp_path, name):
    place = tmp_path / name
    file = place if place.suffix else place / "model-Q4_0.gguf"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"GGUF")
    assert f"{file} is not a GGUF file" in refusal(tiny_llama, place)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "quantization_config is not a JSON object"),
        ("gptq", "quantization_config is not a JSON object"),
        ({"bits": 4}, "names no method"),
        ({"quant_method": 3}, "names no method"),
        (GPTQ | {"bits": "4"}, "codes of 4 bits"),
        (GPTQ | {"bits": True}, "codes of True bits"),
        (GPTQ | {"bits": 10**30}, "bits; allowed: 2, 3, 4, 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not read"),
        (GPTQ | {"checkpoint_format": {}} | {"bits": None}, "codes of None bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout 'gemv' is not read"),
        ({"quant_method": "awq", "bits": 3}, "codes of 3 bits; allowed: 4"),
        ({"quant_method": "awq", "bits": 4}, "is needed"),
        ({"quant_method": "compressed-tensors", "config_groups": 7}, "compressed-tensors cannot read"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": "x"}}}}, "compressed-tensors cannot read"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {"group_size": []}}}}, "compressed-tensors cannot read"),
        ({"config_groups": {}}, "no tensor holds scales"),
        ({"config_groups": {"a": {"targets": ["re:("], "weights": {"num_bits": 4}}}}, "compressed-tensors cannot read"),
        ({"config_groups": {"a": {"targets": ["Linear"], "output_activations": {"num_bits": 8}}}}, "rounded outputs of layers"),
    ],
)
def test_a_hostile_configuration_is_one_line(tiny_llama, gptq, config, said):
    edit(gptq / "config.json", quantization_config=config)
    assert said in refusal(tiny_llama, gptq)


LAYER = "model.layers.1.mlp.down_proj"


def changed(name: str, change):
    return lambda tensors: tensors | {f"{LAYER}.{name}": change(tensors[f"{LAYER}.{name}"].clone())}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {name: v for name, v in t.items() if name != f"{LAYER}.qzeros"}, f"no tensor {LAYER}.qzeros"),
        (lambda t: {name: v for name, v in t.items() if name != f"{LAYER}.scales"}, f"no tensor {LAYER}.scales"),
        (lambda t: {name: v for name, v in t.items() if not name.endswith("qweight")}, "no tensor holds codes"),
        (changed("scales", lambda v: v[:3]), f"{LAYER}.qzeros is I32"),
        (changed("scales", lambda v: v.int()), f"{LAYER}.scales is I32"),
        (changed("scales", lambda v: v * 0), f"a scale of {LAYER} is zero"),
        (changed("scales", lambda v: v.fill_(float("nan"))), f"a scale of {LAYER} is zero or not finite"),
        (changed("qweight", lambda v: v[:5]), LAYER),
        (changed("qweight", lambda v: v.flatten()), f"{LAYER}.qweight is I32"),
        (changed("qzeros", lambda v: v[:, :1]), "bits"),
        (changed("g_idx", lambda v: v[:-1]), f"{LAYER}.g_idx"),
        (lambda t: {name.replace("layers.1.", "layers.7."): v for name, v in t.items()}, "model.layers.7."),
        (
            lambda t: t | {f"lm_head.{end}": t[f"{LAYER}.{end}"] for end in ("qweight", "qzeros", "scales", "g_idx")},
            "lm_head",
        ),
    ],
)
def test_tensors_that_are_no_layer_of_the_model_are_one_line_that_names_it(tiny_llama, gptq, change, said):
    retensor(gptq, change)
    assert said in refusal(tiny_llama, gptq)


def test_a_head_with_codes_is_refused(tiny_llama, gptq):
    def with_head(tensors):
        held = layouts.gptq_tensors(layouts.rounded(tensors["model.embed_tokens.weight"], KINDS[1], 0), KINDS[1])
        return tensors | {f"lm_head.{end}": tensor for end, tensor in held.items()}

    retensor(gptq, with_head)
    assert "lm_head holds codes but is not a layer of the decoder" in refusal(tiny_llama, gptq)


@pytest.mark.parametrize("groups", [lambda v: v + 100, lambda v: -v, lambda v: v.fill_(0)])
def test_columns_out_of_groups_are_refused(tiny_llama, gptq, groups):
    retensor(gptq, changed("g_idx", groups))
    assert f"{LAYER}.g_idx: every one of 8 groups needs 32 columns" in refusal(tiny_llama, gptq)


def test_only_regular_files_are_read(tiny_llama, low):
    (low / "model.safetensors").unlink()
    os.mkfifo(low / "model.safetensors")
    assert "not a regular file" in refusal(tiny_llama, low)


def test_damaged_weights_are_refused(tiny_llama, low):
    file = low / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "truncated or damaged" in refusal(tiny_llama, low)


def test_a_tensor_in_two_files_is_refused(tiny_llama, low):
    save_file({"model.norm.weight": torch.ones(128)}, low / "other.safetensors")
    assert "holds model.norm.weight, which" in refusal(tiny_llama, low)


def test_a_checkpoint_in_another_16_bit_dtype_is_restored_in_full_precisions(tiny_llama, tmp_path, monkeypatch):
    parent, low = (Path(shutil.copytree(tiny_llama, tmp_path / name)) for name in ("full", "parent"))
    retensor(parent, lambda held: {name: tensor.bfloat16() for name, tensor in held.items()})
    edit(parent / "config.json", dtype="bfloat16")
    retensor(low, lambda held: {name: tensor.half() for name, tensor in held.items()})
    edit(low / "config.json", dtype="float16")
    layouts.make(str(low), layouts.Kind("gptq"), tmp_path / "gptq")

    def own(folder: str, dtype: str = "auto"):
        """As on a GPU: what the checkpoint itself is in."""
        return "cpu", load.config_of(folder).dtype if dtype == "auto" else getattr(torch, dtype)

    for module in (load, tune):
        monkeypatch.setattr(module, "placement", own)
    assert load.config_of(str(tmp_path / "gptq")).dtype == torch.float16
    tuned = tune.restore(str(parent), tmp_path / "gptq", bullets(4), Restore(steps=2, batch_size=2), tmp_path / "out", seed=0)
    assert tuned.moved > 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("gptq", "out"))
    assert {name: tensor.dtype for name, tensor in before.items()} == {name: tensor.dtype for name, tensor in after.items()}
