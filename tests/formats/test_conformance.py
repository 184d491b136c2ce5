"""What every format has to do: be detected, give the weights that its runtime computes with, be restored, be written and be read again."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stepmend import formats
from stepmend.models import load, rounding
from stepmend.recipe import Restore
from stepmend.restore import scales, tune
from tests.formats import elsewhere, layouts
from tests.restore.made import bullets, quantized

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEMES = ["rtn-w4a16-g64", "rtn-w3a16-g64-asym", "rtn-w4a16", "rtn-w3a16-asym", "rtn-w8a8", "gptq-w4a16-g128-kv8"]
FLOATS = ["fp8", "fp8-dynamic", "fp8-block", "nvfp4", "mxfp4", "mxfp8a16"]
"""Formats whose codes are floats, which stay."""
COARSE = {"nvfp4": 0.2, "mxfp4": 1.0, "mxfp8a16": 1.0}
"""Learning rates that bring scales in 8 bits past half a step of theirs, which is up to 6 % in E4M3, and a quarter in powers of two."""
OTHERS = [layouts.Kind("awq"), layouts.Kind("gptq", bits=3), layouts.Kind("gptq", ordered=True), layouts.Kind("gptq", bits=8, group=0)]


@dataclass(frozen=True)
class Case:
    method: str
    bits: set[int]
    parent: str
    low: Path
    restored: Path
    done: tune.Tuned
    integer: bool


@pytest.fixture(scope="module", params=[*SCHEMES, *FLOATS, *elsewhere.GROUPS, *OTHERS], ids=lambda param: getattr(param, "name", param))
def case(request, tiny_llama, tmp_path_factory) -> Case:
    """A checkpoint of each format, and what restoring makes of it."""
    home = tmp_path_factory.mktemp("format")
    if isinstance(request.param, layouts.Kind):
        layouts.make(tiny_llama, request.param, home / "low")
    elif request.param in elsewhere.GROUPS:
        elsewhere.make(tiny_llama, request.param, home / "low")
    else:
        quantized(tiny_llama, request.param, home / "low")
    method = getattr(request.param, "method", "compressed-tensors")
    integer = request.param not in FLOATS
    rate = COARSE.get(str(request.param), 0.01)
    recipe = Restore.model_validate({"steps": 3, "batch_size": 2, "learning_rate": rate, "validation": 0, "solve_tokens": 1024})
    done = tune.restore(tiny_llama, home / "low", bullets(4), recipe, home / "out", seed=0)
    name = str(getattr(request.param, "name", request.param))
    bits = {"mixed": {3, 6, 8}, "static": {8}}.get(name) or {int(found) for found in re.findall(r"(?:w|fp)(\d)", name)}
    return Case(method, bits, tiny_llama, home / "low", home / "out", done, integer)


def test_detect(case):
    found, full = formats.detect(case.low), formats.detect(case.parent)
    assert found is not None
    assert (found.name, full) == (case.method, None)
    assert {layer.bits for layer in found.layers.values()} == case.bits
    linear = {name for name, module in load.load_model(case.parent).model.layers.named_modules() if isinstance(module, torch.nn.Linear)}
    assert found.layers.keys() == {f"model.layers.{name}" for name in linear}


def test_dequantize(case):
    found, served = formats.detect(case.low), load.load_model(str(case.low))
    assert found is not None
    for layer in found.layers:
        assert torch.equal(found.codes(layer).dequantize(), served.get_submodule(layer).weight.cpu()), layer


def test_restore(case):
    assert case.done.export_error <= case.done.export_tolerance
    assert (case.done.layers["solved"] > 0) == case.integer
    assert case.done.layers["rescaled"] == 14
    assert case.done.layers["norms"] == 5


def test_write(case):
    """Every byte is the checkpoint's own but for codes, scales and norms; and these have changed."""
    files = {file.name for file in case.low.iterdir()}
    assert files == {file.name for file in case.restored.iterdir()}
    for name in files - {"model.safetensors"}:
        assert (case.low / name).read_bytes() == (case.restored / name).read_bytes(), name
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (case.low, case.restored))
    (length,) = struct.unpack("<Q", before[:8])
    assert before[: 8 + length] == after[: 8 + length]
    changed = set()
    for name, of in json.loads(before[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + place for place in of["data_offsets"])
            changed |= {name} if before[start:end] != after[start:end] else set()
    assert all(name.endswith(("weight_packed", "proj.weight", "weight_scale", "qweight", "scales", "norm.weight")) for name in changed)
    kinds = [("weight_packed", "qweight", "proj.weight"), ("scale", "scales"), ("norm.weight",)]
    moved = [any(name.endswith(ends) for name in changed) for ends in kinds]
    assert moved == [case.integer, True, True]


def test_reload(case):
    found, served = formats.detect(case.restored), load.load_model(str(case.restored))
    assert found is not None
    student: Any = scales.attach(str(case.restored), Restore())
    for name, layer in scales.scales(student).items():
        assert torch.equal(layer.placed(layer.weight()), served.get_submodule(name).weight)
        assert torch.equal(found.codes(name).dequantize(), served.get_submodule(name).weight.cpu())
    ids_BT = torch.arange(4, 40, device=served.device)[None]
    with torch.no_grad(), rounding.exact_inputs(served, student):  # which turns a last bit into noise
        served_TV, tuned_TV = served(input_ids=ids_BT).logits[0], student(input_ids=ids_BT).logits[0]
    assert (served_TV - tuned_TV).abs().max() <= case.done.export_tolerance
    changed = formats.detect(case.low)
    assert changed is not None
    others = [not torch.equal(*(of.codes(layer).codes_MN.float() for of in (found, changed))) for layer in found.layers]
    assert any(others) == case.integer
