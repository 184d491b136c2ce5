"""How much memory a tuning needs is said first, and is what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from stepmend.models.reasoner import CHECKPOINTS
from stepmend.recipe import Restore
from stepmend.restore import memory, tune
from stepmend.restore.losses import Loss
from tests.restore.made import bullets, quantized

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs


def test_memory_is_said_before_it_starts(tiny_llama, low_bit, tmp_path, monkeypatch):
    said, read = [], Loss.read
    monkeypatch.setattr(Loss, "read", lambda loss, parent: said.append("read") or read(loss, parent))
    tune.restore(tiny_llama, low_bit, bullets(), Restore(steps=1), tmp_path / "restored", seed=0, say=said.append)
    assert ["memory: about" in said[0], said[1:]] == [True, ["read"]]
    assert "may not fit" in memory.text({"model": 1.0, "teacher": 0.0, "logits": 9.0}, free=8)
    assert "may not fit" in memory.text({"model": 9.0, "teacher": 1.0, "logits": 1.0}, free=8), "a teacher must fit beside the model"
    assert "may not fit" not in memory.text({"model": 9.0, "teacher": 0.0, "logits": 1.0}, free=8)


PEAK = """
import re, sys, torch
from pathlib import Path
from stepmend.models.load import load_tokenizer
from stepmend.recipe import Restore
from stepmend.restore import adapter, memory, scales
from stepmend.restore.losses import Loss
from tests.restore.made import bullets

parent, folder, what = sys.argv[1:]
recipe = Restore.model_validate({"tune": what, "batch_size": 128})
model = (adapter if what == "lora" else scales).attach(folder, recipe)
tuned = [p for p in model.parameters() if p.requires_grad]
loss = Loss(recipe, model, load_tokenizer(folder), bullets(128))
parts = memory.estimate(model, tuned, loss, 128)
loss.read(parent)
kept = sum(t.numel() * t.element_size() for t in (*loss.targets_NH, *loss.questions_NH, loss.head.weight))
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read the way Linux gives it")
@pytest.mark.parametrize(("scheme", "what"), [("rtn-w3a16", "scales+norms"), ("rtn-w3a16-g64", "scales"), ("rtn-w3a16", "lora")])
def test_the_memory_said_is_the_memory_needed(scheme, what, tmp_path):
    parent = str(CHECKPOINTS / "qwen2")
    quantized(parent, scheme, tmp_path / "low")
    command = [sys.executable, "-c", PEAK, parent, str(tmp_path / "low"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.7 < float(done.stdout.split()[-1]) < 1.4
