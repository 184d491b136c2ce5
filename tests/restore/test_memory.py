"""How much memory a tuning needs is said first, and is what it needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepmend import InputError
from stepmend.keys import Restore
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.restore import memory, tune
from stepmend.restore.losses import Loss
from tests.restore.made import bullets, quantized

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs


def test_memory_is_said_before_it_starts(tiny_llama, low_bit, tmp_path, monkeypatch):
    said, read = [], Loss.read
    monkeypatch.setattr(Loss, "read", lambda loss, teacher: said.append("read") or read(loss, teacher))
    tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=1, tune="scales"), tmp_path / "restored", seed=0, say=said.append)
    assert ["memory: about" in said[0], said[1:]] == [True, ["read"]]
    assert "may not fit" in memory.text({"model": 1.0, "teacher": 0.0, "logits": 9.0}, 8)
    assert "may not fit" in memory.text({"model": 9.0, "teacher": 1.0, "logits": 1.0}, 8), "a teacher must fit beside the model"
    assert "may not fit" not in memory.text({"model": 9.0, "teacher": 0.0, "logits": 1.0}, 8)


@pytest.mark.parametrize(("what", "objective"), [("scales+norms", "distill"), ("lora", "dpo")])
def test_where_memory_is_short_layers_are_computed_twice_to_the_same_checkpoint(
    tiny_llama, low_bit, tmp_path, monkeypatch, what, objective
):
    recipe, said = Restore.model_validate({"tune": what, "objective": objective, "steps": 6}), []
    for name, free in (("plenty", 1 << 40), ("short", 1 << 10)):
        monkeypatch.setattr(memory, "room", lambda free=free: free)
        tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / name, seed=0, say=said.append)
    assert ["with gradient checkpointing" in line for line in said] == [False, True]
    plenty, short = (sorted(f for f in (tmp_path / name).rglob("*.safetensors")) for name in ("plenty", "short"))
    assert [f.read_bytes() for f in plenty] == [f.read_bytes() for f in short]


def test_a_batch_that_does_not_fit_is_said_before_any_step(tiny_llama, low_bit, tmp_path, monkeypatch):
    def full(loss, batch):
        assert {*batch} == {5, 7}, "the longest"
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Loss, "__call__", full)
    unlike = [b.model_copy(update={"prefix": b.prefix * (1 + 3 * (i in (5, 7)))}) for i, b in enumerate(bullets())]
    with pytest.raises(InputError, match=r"lower restore\.batch_size"):
        tune.restore(tiny_llama, low_bit, unlike, Restore(steps=1, batch_size=2), tmp_path / "restored", seed=0)


PEAK = """
import json, os, re, sys, torch
from pathlib import Path
from stepmend.models.load import load_model, load_tokenizer
from stepmend.keys import Restore
from stepmend.restore import adapter, memory, scales
from stepmend.restore.losses import Loss
from tests.restore.made import bullets

for parent, folder, what, twice in json.loads(sys.argv[1]):
    if not os.fork():
        break
    assert os.wait()[1] == 0
else:
    sys.exit()
recipe = Restore.model_validate({"tune": what, "batch_size": 128})
model = (adapter if what == "lora" else scales).attach(folder, recipe)
tuned = [p for p in model.parameters() if p.requires_grad]
loss = Loss(recipe, model, load_tokenizer(folder), bullets(128))
if twice:
    loss.checkpoint_gradients()
parts = memory.estimate(model, tuned, loss, 128)
loss.read(load_model(parent))
kept = sum(t.numel() * t.element_size() for t in (*loss.targets_NH, *loss.questions_NH, *loss.head.parameters()))
assert kept == parts["teacher"], (kept, parts)
gpu = torch.cuda.is_available()
kb = lambda name: int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = torch.cuda.memory_allocated() if gpu else 1024 * kb("VmRSS")
torch.cuda.reset_peak_memory_stats() if gpu else Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
for _ in range(2):
    loss(range(128)).backward()
needed = sum(parts.values()) - parts["model"] - parts["teacher"]  # those are held before
print(((torch.cuda.max_memory_allocated() if gpu else 1024 * kb("VmHWM")) - before) / needed)
"""


CASES = [
    ("rtn-w3a16", "scales+norms", False), ("rtn-w3a16-g64", "scales", False), ("rtn-w3a16", "lora", False),
    ("rtn-w3a16-g64", "scales+norms", True),
]  # fmt: skip


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> dict[tuple[str, str, bool], float]:
    """The peak of each case over what was said, each in a process forked from one that has imported the libraries and nothing else."""
    parent, home = str(CHECKPOINTS / "qwen2"), tmp_path_factory.mktemp("peaks")
    for scheme in {scheme for scheme, _, _ in CASES}:
        quantized(parent, scheme, home / scheme)
    cases = [(parent, str(home / scheme), what, twice) for scheme, what, twice in CASES]
    command = [sys.executable, "-c", PEAK, json.dumps(cases)]
    # Small tensors come and go, and glibc keeps their memory; those of a layer of real size are mapped one by one, as here.
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env={**os.environ, **returned}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(CASES, map(float, done.stdout.split()), strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read the way Linux gives it")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_memory_said_is_the_memory_needed(peaks, case):
    assert 0.75 < peaks[case] < 1.25
