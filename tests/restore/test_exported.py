"""An export is refused where one layer of it is not what was tuned, in float32 and in bfloat16; a right one passes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepmend import InputError
from stepmend.keys import Restore
from stepmend.models import load
from stepmend.quantize import run, schemes
from stepmend.restore import exported, scales, tune
from tests.restore.made import bullets
from tests.texts import calibration_texts

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, monkeypatch):
    """The dtype that checkpoints are computed in."""
    device, _ = load.placement("")
    monkeypatch.setattr(load, "placement", lambda folder, dtype="auto": (device, request.param))
    return request.param


def restore(parent: str, low: Path, out: Path, tune_what: str = "scales+norms") -> tune.Tuned:
    recipe = Restore.model_validate({"steps": 2, "batch_size": 2, "tune": tune_what, "validation": 0})
    return tune.restore(parent, low, bullets(2), recipe, out, seed=0)


def damage(monkeypatch, end: str, factor: float, kind=scales) -> None:
    """From here on, exporting changes the first tensor whose name ends so."""
    export = kind.export

    def damaged(model, folder, out):
        export(model, folder, out)
        file = out / ("adapter/adapter_model.safetensors" if end.startswith("lora") else "model.safetensors")
        tensors = load_file(file)
        name = sorted(name for name in tensors if name.endswith(end))[-1]
        save_file(tensors | {name: (factor * tensors[name].float()).to(tensors[name].dtype)}, file, metadata={"format": "pt"})

    monkeypatch.setattr(kind, "export", damaged)


@pytest.mark.parametrize(("end", "said"), [("weight_scale", r"the exported weight of model\.layers\.1\."), ("norm.weight", r"model\.norm")])
def test_a_layer_that_is_off_by_one_percent_is_refused_and_not_kept(tiny_llama, low_bit, tmp_path, monkeypatch, dtype, end, said):
    damage(monkeypatch, end, 1.01)
    with pytest.raises(InputError, match=said):
        restore(tiny_llama, low_bit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_another_is_refused(tiny_llama, low_bit, tmp_path, monkeypatch, dtype):
    damage(monkeypatch, "lora_A.weight", 1e3, tune.adapter)
    with pytest.raises(InputError, match="exported logits are"):
        restore(tiny_llama, low_bit, tmp_path / "out", "lora")


@pytest.mark.parametrize("scheme", ["rtn-w3a16", "gptq-w4a16-g64-asym", "rtn-w8a8", "gptq-w4a16-g128-kv8", "fp8-block", "nvfp4"])
def test_a_right_export_passes_and_its_weights_are_the_tuned_ones(tiny_llama, tmp_path, dtype, scheme):
    texts = calibration_texts(load.load_tokenizer(tiny_llama), 4)
    run.quantize(tiny_llama, schemes.parse(scheme), texts, tmp_path / "low")
    done = restore(tiny_llama, tmp_path / "low", tmp_path / "out")
    assert done.export_error <= done.export_tolerance
    student, served = scales.attach(str(tmp_path / "out"), Restore()), load.load_model(str(tmp_path / "out"))
    for name, layer in scales.scales(student).items():
        assert torch.equal(layer.weight(), served.get_submodule(name).weight)


def test_logits_may_differ_by_what_the_dtype_does_to_them(tiny_llama, low_bit, tmp_path, dtype):
    done = restore(tiny_llama, low_bit, tmp_path / "out")
    served = load.load_model(str(tmp_path / "out"))
    with torch.no_grad():
        largest = float(served(input_ids=torch.arange(4, 40)[None].to(served.device)).logits.abs().max())
    assert done.export_tolerance < (1e-3 if dtype is torch.float32 else 0.1) * largest
    assert exported.SHARES["32 bits"] <= 1e-4
