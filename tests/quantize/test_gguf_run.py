"""A GGUF file through a whole run: measured, restored, exported, and loaded by llama.cpp where that is there."""

import numpy as np
import pytest

from benchmarks import llama_cpp
from stepmend.models import load
from tests.command import stepmend
from tests.formats import ggufs

SETTINGS = {
    "measure.problems": 24, "measure.batch_size": 12, "curate.problems": 108, "curate.round": 54, "curate.bullets": 6, "restore.steps": 10,
    "restore.batch_size": 4, "restore.within_noise": "true", "restore.validation": 0, "restore.solve_tokens": 2048,
    "restore.learning_rate": 0.003,
}  # fmt: skip
KINDS = {"Q4_0": ("qwen2", "Q4_0"), "Q8_0": ("llama", "Q8_0"), "Q4_K": ("llama", {"ffn": "Q4_K", "blk": "Q4_0"})}
"""Type of blocks -> the reasoner, and the types of its layers. A scale of Q8_0 is far too fine to lose anything: its run ends before."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind == "Q4_0" else pytest.mark.slow) for kind in KINDS])
def test_a_gguf_file_goes_through_a_run(kind, tmp_path):
    family, kinds = KINDS[kind]
    file, out = tmp_path / f"reasoner-{kind}.gguf", tmp_path / "run"
    ggufs.make(load.locate(f"builtin:{family}"), kinds, file)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    done = stepmend("run", "--model", f"builtin:{family}", "--quantized", str(file), "--out", str(out), *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"reasoner-{kind}: gguf, " in done.stderr
    restored = out / f"reasoner-{kind}-restored" / file.name
    if not restored.exists():  # nothing was lost, or no state was better: what a run then says
        assert "nothing to restore" in done.stderr
        return
    assert restored.stat().st_size == file.stat().st_size
    before, after = (np.frombuffer(one.read_bytes(), np.uint8) for one in (file, restored))
    assert 0 < (before != after).mean() < 0.9
    exported = stepmend("restore", str(out), "--export", str(tmp_path / "exported"))
    assert exported.returncode == 0, exported.stderr[-2000:]
    assert (tmp_path / "exported" / file.name).read_bytes() == restored.read_bytes()
    assert "llama.cpp" in exported.stderr
    if llama_cpp.library_file():
        with llama_cpp.Model(tmp_path / "exported" / file.name, 256) as model:
            assert model.logits([5, 6, 7]).shape == (3, 384)


def test_a_damaged_gguf_file_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 64)
    done = stepmend("run", "--model", "builtin:qwen2", "--quantized", str(tmp_path / "bad.gguf"), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "bad.gguf: its header names" in done.stderr
    assert not (tmp_path / "run").exists()
