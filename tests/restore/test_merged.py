"""Tuning a full-precision checkpoint whose files hold several dtypes: each tensor keeps its own, and what is not adapted its bytes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepmend.models import load
from stepmend.restore import merged, objectives
from tests.models.test_families import make

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["tensors that are renamed", "fused projections", "experts by names of their own"])
def test_every_tensor_keeps_the_dtype_of_its_parents_file(kind, dtype, tmp_path, monkeypatch):
    parent = Path(make(kind, tmp_path / "parent"))
    tensors = load_file(parent / "model.safetensors")
    norms = [name for name, t in tensors.items() if t.ndim == 1 and "norm" in name and name.endswith("weight")]
    linear = next(name for name in sorted(tensors) if name.endswith(("dense.weight", "o_proj.weight")))
    for name in (*norms, linear):  # numbers that bfloat16 does not hold
        tensors[name] = tensors[name].float() + 1e-4 * torch.rand(tensors[name].shape, generator=torch.Generator().manual_seed(3))
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    device, _ = load.placement("")
    monkeypatch.setattr(load, "placement", lambda folder, given="auto": (device, dtype))
    rows = [objectives.Row(tuple(range(4 + i, 24 + i)), (False,) * 4 + (True,) * 16) for i in range(8)]
    merged.train(str(parent), rows, tmp_path / "out", {"version": "test"}, steps=3, rank=4, rate=0.02, seed=0)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in tensors.items()}
    changed = {name for name, t in tensors.items() if not torch.equal(t, after[name])}
    assert linear in changed
    assert not changed.intersection(norms)
    assert all(tensors[name].ndim == 2 and "embed" not in name and "lm_head" not in name for name in changed)
    step = (after[linear] - tensors[linear]).abs()
    assert 0 < step.max() < 0.5 and (after[linear] != after[linear].bfloat16().float()).any(), "the change is added in float32"
    assert load.load_model(str(tmp_path / "out")) is not None
