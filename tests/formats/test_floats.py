"""Float codes and scales in 8 bits: what the bits say, by definitions of the tests' own; what is refused; what is loaded."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepmend import InputError, formats
from stepmend.keys import Restore
from stepmend.models import load
from stepmend.quantize import given
from stepmend.restore import scales, tune
from tests.restore.made import bullets, quantized

pytestmark = pytest.mark.filterwarnings("ignore")

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def home(tiny_llama, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("floats")
    for name in ("nvfp4", "mxfp4a16"):
        quantized(tiny_llama, name, home / name)
    return home


def e2m1(nibble: int) -> float:
    """A sign, two bits of exponent with bias 1, one of mantissa (OCP Microscaling Formats, 5.3.3)."""
    exponent, mantissa = nibble >> 1 & 3, nibble & 1
    value = 2.0 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
    return -value if nibble >> 3 else value


def e4m3(byte: int) -> float:
    """A sign, four bits of exponent with bias 7, three of mantissa (OCP 8-bit Floating Point)."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    value = 2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2.0**-6 * mantissa / 8
    return -value if byte >> 7 else value


@pytest.mark.parametrize(("name", "size"), [("nvfp4", 16), ("mxfp4a16", 32)])
def test_a_layer_is_what_its_bits_say(home, name, size):
    held, found = load_file(home / name / "model.safetensors"), formats.detect(home / name)
    of = {end: held[f"{LAYER}.{end}"] for end in ("weight_packed", "weight_scale")}
    codes = [[e2m1(nibble) for byte in row for nibble in (byte & 15, byte >> 4)] for row in of["weight_packed"].tolist()]
    bytes_MG = of["weight_scale"].view(torch.uint8).tolist()
    if name == "nvfp4":
        divisor = float(held[f"{LAYER}.weight_global_scale"])
        scale_MG = torch.tensor([[e4m3(byte) for byte in row] for row in bytes_MG], dtype=torch.float64) / divisor
    else:
        scale_MG = torch.tensor([[2.0 ** (byte - 127) for byte in row] for row in bytes_MG], dtype=torch.float64)
    wanted = torch.tensor(codes, dtype=torch.float64) * scale_MG.repeat_interleave(size, 1)
    assert torch.allclose(found.codes(LAYER).dequantize().double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "dtype"), [*itertools.product(["nvfp4", "mxfp4a16"], [torch.bfloat16, torch.float16, torch.float32])])
def test_the_loaded_model_is_in_the_dtype_that_was_asked_for(home, name, dtype):
    model, found = load.pretrained(str(home / name), dtype=dtype), formats.detect(home / name)
    with torch.no_grad():
        assert model(input_ids=torch.arange(4, 20)[None]).logits.isfinite().all()
    assert {tensor.dtype for tensor in model.parameters() if tensor.ndim == 2 and tensor.shape[1] > 16} == {dtype}
    assert torch.equal(model.get_submodule(LAYER).weight, found.codes(LAYER).dequantize().to(dtype))


def test_scales_are_rounded_as_compressed_tensors_rounds_them():
    from compressed_tensors.quantization.quant_args import round_to_quantized_type_dtype

    exact = torch.cat([torch.linspace(0.002, 500, 4001), 2.0 ** torch.linspace(-8, 9, 400)])
    assert torch.equal(scales.as_stored(exact, torch.float8_e4m3fn).float(), round_to_quantized_type_dtype(exact, torch.float8_e4m3fn))
    powers = scales.as_stored(exact, torch.float8_e8m0fnu).float()
    assert torch.equal(powers.log2(), powers.log2().round())
    assert bool(((powers / exact).clamp(0.66, 1.34) == powers / exact).all())


def test_a_small_scale_stays_a_number_and_zero_stays_zero():
    exact = torch.tensor([0.0, 1e-6, 1e9])
    assert scales.as_stored(exact, torch.float8_e4m3fn).float().tolist() == [0.0, 2.0**-9, 448.0]


def change(folder: Path, **tensors) -> None:
    held = load_file(folder / "model.safetensors")
    held = {name: t for name, t in (held | {f"{LAYER}.{end}": t for end, t in tensors.items()}).items() if t is not None}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weight_global_scale": None}, "weight_global_scale is missing []; F32 [1] is needed"),
        ({"weight_global_scale": torch.zeros(1)}, "weight_global_scale is zero or not finite"),
        ({"weight_global_scale": torch.tensor([float("nan")])}, "weight_global_scale is zero or not finite"),
        ({"weight_global_scale": torch.ones(1).half()}, "weight_global_scale is F16 [1]; F32 [1] is needed"),
        ({"weight_scale": None}, "weight_scale is missing []; by its scheme 128 x 256 codes have [128, 16] scales"),
        ({"weight_scale": torch.ones(128, 8).to(torch.float8_e4m3fn)}, "weight_scale is F8_E4M3 [128, 8]"),
        ({"weight_scale": torch.full((128, 16), -1.0).to(torch.float8_e4m3fn)}, f"a scale of {LAYER} is zero or not finite"),
        ({"weight_scale": torch.full((128, 16), float("nan")).to(torch.float8_e4m3fn)}, f"a scale of {LAYER} is zero or not finite"),
        ({"weight_packed": torch.zeros(128, 128, dtype=torch.int32)}, "weight_packed is I32"),
    ],
)
def test_damaged_tensors_are_one_line_that_names_the_layer(tiny_llama, home, tmp_path, tensors, said):
    low = Path(shutil.copytree(home / "nvfp4", tmp_path / "low"))
    change(low, **tensors)
    with pytest.raises(InputError) as caught:
        given.look(tiny_llama, tiny_llama, str(low))
    assert said in str(caught.value)
    assert LAYER in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"symmetric": False}, "float codes of 4 bits with zero points are not restored"),
        ({"num_bits": 6}, "compressed-tensors cannot read quantization_config (Only num_bits"),
        ({"strategy": "channel", "group_size": None}, "128 x 256 codes have [128, 1] scales"),
    ],
)
def test_a_scheme_of_other_floats_is_refused(tiny_llama, home, tmp_path, weights, said):
    low = Path(shutil.copytree(home / "nvfp4", tmp_path / "low"))
    config = json.loads((low / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= weights
    (low / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantized:") as caught:
        given.look(tiny_llama, tiny_llama, str(low))
    assert said in str(caught.value)


def test_float_codes_stay_and_that_is_said(tiny_llama, home, tmp_path):
    said: list[str] = []
    recipe = Restore.model_validate({"steps": 1, "batch_size": 2, "validation": 0})
    done = tune.restore(tiny_llama, home / "nvfp4", bullets(2), recipe, tmp_path / "out", seed=0, say=said.append)
    assert done.moved == 0
    assert any("codes of 14 quantized layers stay as they are" in line for line in said)
    with pytest.raises(InputError, match=r"restore.tune = codes: .* has no such parameters"):
        alone = Restore.model_validate({"tune": "codes", "validation": 0})
        tune.restore(tiny_llama, home / "nvfp4", bullets(2), alone, tmp_path / "other", seed=0)


def test_each_kind_says_what_it_holds(home, tiny_llama):
    holds = [given.look(tiny_llama, tiny_llama, str(home / name)).holds() for name in ("nvfp4", "mxfp4a16")]
    assert holds == ["14 layers float4, a scale in E4M3 16 columns", "14 layers float4, a scale in E8M0 32 columns"]
