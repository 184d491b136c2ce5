"""AWQ and GPTQ files hold what their layouts say: read by an independent naive unpacker, loaded, and written back."""

import pytest
import torch
from safetensors.torch import load_file

from stepmend import formats
from stepmend.models import load
from tests.formats import layouts

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=layouts.KINDS, ids=lambda kind: kind.name)
def made(request, tiny_llama, tmp_path_factory):
    """A kind, its checkpoint, and what its layers hold."""
    out = tmp_path_factory.mktemp("layout") / request.param.name
    return request.param, out, layouts.make(tiny_llama, request.param, out)


def test_the_naive_packer_and_unpacker_agree(made):
    kind, out, numbers = made
    (weights,) = out.glob("*.safetensors")
    held = load_file(weights)
    for layer, wanted in numbers.items():
        found = layouts.unpacked({name.rpartition(".")[2]: t for name, t in held.items() if name.startswith(f"{layer}.")}, kind)
        assert torch.equal(found.codes, wanted.codes)
        assert torch.equal(found.zeros, wanted.zeros)
        assert found.group_of == wanted.group_of


def test_codes_scales_and_zero_points_are_those_of_the_layout(made):
    kind, out, numbers = made
    found = formats.detect(out)
    assert found is not None
    assert found.name == kind.method
    assert found.layers.keys() == numbers.keys()
    half = 2 ** (kind.bits - 1)
    for layer, wanted in numbers.items():
        held, of = found.codes(layer), found.layers[layer]
        assert (of.rows, of.columns, of.bits, of.groups) == (*wanted.codes.shape, kind.bits, wanted.scales.shape[1])
        assert torch.equal(held.codes_MN.long() + half, wanted.codes)
        zeros_MG = torch.zeros_like(wanted.zeros) if held.zeros_MG is None else held.zeros_MG.long()
        assert torch.equal(zeros_MG + half, wanted.zeros)
        assert (held.zeros_MG is None) == bool((wanted.zeros == half).all())
        assert torch.equal(held.scale_MG.float(), wanted.scales)
        assert held.scale_MG.dtype == kind.dtype
        assert (held.order_N is not None) == kind.ordered
        assert torch.equal(held.dequantize(), wanted.weight())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loaded_model_has_these_weights_and_all_others_as_they_are(made, dtype):
    _, out, numbers = made
    model = load.pretrained(str(out), dtype=dtype)
    (weights,) = out.glob("*.safetensors")
    held = load_file(weights)
    for name, tensor in model.named_parameters():
        layer = name.removesuffix(".weight")
        wanted = numbers[layer].weight() if layer in numbers else held[name]
        assert torch.equal(tensor, wanted.to(dtype)), name
    assert type(model.get_submodule(next(iter(numbers)))) is torch.nn.Linear


def test_codes_and_scales_written_back_are_the_files_own_bytes(made):
    _, out, numbers = made
    found = formats.detect(out)
    assert found is not None
    for layer in numbers:
        held = found.codes(layer)
        for name, tensor in (found.packed(layer, held.codes_MN) | found.scaled(layer, held.scale_MG)).items():
            assert torch.equal(tensor, found.tensors.read(name)), name


def test_zeros_beside_layers_without_a_bias_are_left_out(tiny_llama, tmp_path):
    from safetensors.torch import save_file

    layers = layouts.make(tiny_llama, layouts.Kind("gptq"), tmp_path / "low")
    (weights,) = (tmp_path / "low").glob("*.safetensors")
    tensors = load_file(weights)
    biases = {f"{layer}.bias": torch.zeros(len(of.codes), dtype=torch.float16) for layer, of in layers.items()}
    save_file(tensors | biases, weights, metadata={"format": "pt"})
    assert not [name for name, _ in load.pretrained(str(tmp_path / "low"), dtype=torch.float32).named_parameters() if name.endswith("bias")]
    first = next(iter(biases))
    save_file(tensors | biases | {first: torch.ones_like(biases[first])}, weights, metadata={"format": "pt"})
    with pytest.raises(load.InputError, match=f"holds an unexpected tensor, {first}"):
        load.pretrained(str(tmp_path / "low"), dtype=torch.float32)


def test_an_older_gptq_checkpoint_has_its_configuration_beside(tiny_llama, tmp_path):
    import json

    layers = layouts.make(tiny_llama, layouts.Kind("gptq"), tmp_path / "low")
    config = json.loads((tmp_path / "low" / "config.json").read_text())
    beside = config.pop("quantization_config")
    del beside["quant_method"]
    (tmp_path / "low" / "config.json").write_text(json.dumps(config))
    (tmp_path / "low" / "quantize_config.json").write_text(json.dumps(beside))
    model = load.load_model(str(tmp_path / "low"))
    name = next(iter(layers))
    assert torch.equal(model.get_submodule(name).weight, layers[name].weight().to(model.device))


@pytest.mark.parametrize(("second", "zero"), [(False, 0), (True, 15)])
def test_a_zero_point_of_all_ones_is_0_in_the_first_layout_of_gptq_and_15_in_the_second(tiny_llama, tmp_path, second, zero):
    from safetensors.torch import save_file

    layouts.make(tiny_llama, layouts.Kind("gptq", second=second), tmp_path / "low")
    (weights,) = (tmp_path / "low").glob("*.safetensors")
    tensors, name = load_file(weights), "model.layers.0.mlp.up_proj"
    save_file(tensors | {f"{name}.qzeros": torch.full_like(tensors[f"{name}.qzeros"], -1)}, weights, metadata={"format": "pt"})
    found = formats.detect(tmp_path / "low")
    assert found is not None
    held = found.codes(name)
    assert held.zeros_MG is not None
    assert set((held.zeros_MG.long() + 8).flatten().tolist()) == {zero}
