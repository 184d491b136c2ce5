"""What every format has to do: be detected, give the weights that its runtime computes with, be restored, be written and be read again."""

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from stepmend import formats
from stepmend.keys import Restore
from stepmend.models import load, rounding
from stepmend.models.gguf import beside
from stepmend.restore import scales, tune
from tests.formats import elsewhere, ggufs, layouts
from tests.restore.made import bullets, quantized

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEMES = ["rtn-w4a16-g64", "rtn-w3a16-g64-asym", "rtn-w4a16", "rtn-w3a16-asym", "rtn-w8a8", "gptq-w4a16-g128-kv8"]
FLOATS = ["fp8", "fp8-dynamic", "fp8-block", "nvfp4", "mxfp4", "mxfp8a16"]
"""Formats whose codes are floats, which stay."""
COARSE = {"nvfp4": 0.2, "mxfp4": 1.0, "mxfp8a16": 1.0}
"""Learning rates that bring scales in 8 bits past half a step of theirs, which is up to 6 % in E4M3, and a quarter in powers of two."""
OTHERS = [layouts.Kind("awq"), layouts.Kind("gptq", bits=3), layouts.Kind("gptq", ordered=True), layouts.Kind("gptq", bits=8, group=0)]


GGUF: dict[str, dict[str, str] | str] = {
    **{kind: kind for kind in ggufs.BLOCKED if not kind.endswith("_K")},
    # Blocks of K-quants have 256 columns, which here only the last layer of each feed-forward block has; llama.cpp mixes such files, too.
    **{kind: {"ffn_down": kind, "ffn": "Q8_0", "blk": "Q5_0"} for kind in ggufs.BLOCKED if kind.endswith("_K")},
}
"""GGUF: a name -> the types of a file's layers."""
GGUF_BITS = {kind: {int(kind[1])} | ({5, 8} if kind.endswith("_K") else set()) for kind in GGUF}


@dataclass(frozen=True)
class Case:
    method: str
    bits: set[int]
    parent: str
    low: Path
    restored: Path
    done: tune.Tuned
    integer: bool


@pytest.fixture(
    scope="module", params=[*SCHEMES, *FLOATS, *elsewhere.GROUPS, *OTHERS, *GGUF], ids=lambda param: getattr(param, "name", param)
)
def case(request, tiny_llama, tmp_path_factory) -> Case:
    """A checkpoint of each format, and what restoring makes of it."""
    home = tmp_path_factory.mktemp("format")
    if isinstance(request.param, layouts.Kind):
        layouts.make(tiny_llama, request.param, home / "low")
    elif request.param in elsewhere.GROUPS:
        elsewhere.make(tiny_llama, request.param, home / "low")
    elif request.param in GGUF:
        ggufs.make(tiny_llama, GGUF[request.param], home / "made.gguf", head="Q8_0")
        shutil.copytree(beside(home / "made.gguf", tiny_llama), home / "low")
    else:
        quantized(tiny_llama, request.param, home / "low")
    method = getattr(request.param, "method", "gguf" if request.param in GGUF else "compressed-tensors")
    integer = request.param not in FLOATS
    rate = COARSE.get(str(request.param), 0.01)
    recipe = Restore.model_validate({"steps": 3, "batch_size": 2, "learning_rate": rate, "validation": 0, "solve_tokens": 1024})
    done = tune.restore(tiny_llama, home / "low", bullets(4), recipe, home / "out", seed=0)
    name = str(getattr(request.param, "name", request.param))
    named = {int(found) for found in re.findall(r"(?:w|fp)(\d)", name)}
    bits = {"mixed": {3, 6, 8}, "static": {8}, **GGUF_BITS}.get(name) or named
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
    weights = "made.gguf" if case.method == "gguf" else "model.safetensors"
    files = {file.name for file in case.low.iterdir()}
    assert files == {file.name for file in case.restored.iterdir()}
    for name in files - {weights}:
        assert (case.low / name).read_bytes() == (case.restored / name).read_bytes(), name
    before, after = ((folder / weights).read_bytes() for folder in (case.low, case.restored))
    if case.method == "gguf":
        check_gguf(case, before, after)
        return
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


def check_gguf(case, before: bytes, after: bytes) -> None:
    """Of a layer's blocks the scales have changed and, but for K-quants, the codes; of the rest the norms."""
    tensors = gguf.GGUFReader(case.low / "made.gguf").tensors
    end, changed = 0, dict[str, bool]()
    for tensor in sorted(tensors, key=lambda one: one.data_offset):
        start = int(tensor.data_offset)
        assert before[end:start] == after[end:start]
        end = start + int(tensor.n_bytes)
        changed[tensor.name] = before[start:end] != after[start:end]
    assert before[end:] == after[end:]
    assert {name for name, other in changed.items() if other} == {
        tensor.name for tensor in tensors if (tensor.name.startswith("blk.") or "norm" in tensor.name)
    }
    low, restored = formats.detect(case.low), formats.detect(case.restored)
    for layer, of in low.layers.items():
        mine, other = low.codes(layer), restored.codes(layer)
        assert torch.equal(mine.codes_MN, other.codes_MN) == of.kind.endswith("_K"), layer
        assert not torch.equal(mine.scale_MG, other.scale_MG), layer
        for fixed in ("factor_MG", "offset_MG"):
            if (value := getattr(mine, fixed)) is not None:
                assert torch.equal(value, getattr(other, fixed)), layer


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
