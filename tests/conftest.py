"""Shared by all tests: tiny random checkpoints of the real architectures, the built-in reasoners, and one small finished run."""

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Importing these libraries warns of their own affairs (deprecations in what they import): let it happen once, outside any test.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import llmcompressor  # noqa: F401
    import peft  # noqa: F401
    import torch

from stepmend.models import load, reasoner

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def float32():
    """Tests that compare last bits compute in float32 on a GPU too; commands, in processes of their own, do as users' do."""
    with pytest.MonkeyPatch.context() as patch:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        patch.setattr(load, "placement", lambda folder, dtype="auto": (device, torch.float32))
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """What the libraries hold is not searched for garbage again: where a model is freed, that would take longer than the test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that need real data: before tests are chosen by their marks."""
    for item in items:
        if "shared_data" in item.fixturenames:
            item.add_marker("real")


ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def tiny_config(family: str, vocabulary: int):
    """Two layers in the real configuration of a family: what its released checkpoints set, at a fraction of the widths."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    size = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if family == "qwen2.5":
        return Qwen2Config(
            **size, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, max_position_embeddings=32768
        )
    if family == "qwen3":
        rope = {"rope_type": "default", "rope_theta": 1e6}
        return Qwen3Config(**size, tie_word_embeddings=True, head_dim=64, rope_parameters=rope, max_position_embeddings=40960)
    return LlamaConfig(**size, tie_word_embeddings=True, rope_parameters=ROPE_LLAMA3, max_position_embeddings=131072)


def make_tiny(family: str, folder: Path) -> str:
    """Save a tiny random checkpoint, bf16 as the released ones are, with the reasoners' tokenizer and chat template."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = reasoner.make_tokenizer()
    model = AutoModelForCausalLM.from_config(tiny_config(family, 512), dtype=torch.float32)
    for parameter in model.parameters():  # the initial 0.02 makes logits so small that any two models agree
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tinies(tmp_path_factory) -> Callable[[str], str]:
    """A tiny random checkpoint of a real family, made when it is first asked for."""
    home = tmp_path_factory.mktemp("tiny")
    return cache(lambda family: make_tiny(family, home / family))


@pytest.fixture(scope="session", params=["qwen2.5", "qwen3", "llama3.2"])
def tiny(request, tinies) -> str:
    """A tiny random checkpoint of each real family."""
    return tinies(request.param)


@pytest.fixture(scope="session")
def tiny_llama(tinies) -> str:
    """The tiny Llama checkpoint alone, for what needs just one model."""
    return tinies("llama3.2")


WITHOUT_HEAVY = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "accelerate", "compressed_tensors", "datasets", "huggingface_hub", "llmcompressor", "openai", "peft", "safetensors",
            "tokenizers", "torch", "tqdm", "transformers",
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from stepmend.cli import main
"""
"""The beginning of a program for a Python in which the heavy libraries are not installed."""

LOSSY = "rtn-w3a16"
"""One scale a row at three bits: what loses most."""
RUN = [
    "run", "--model", "builtin:qwen2", "--scheme", "gptq-w4a16-g128", "--scheme", LOSSY, "--set", "measure.problems=24",
    "--set", "measure.batch_size=36", "--set", "curate.problems=216", "--set", "curate.round=108", "--set", "curate.bullets=12",
    "--set", "restore.steps=60", "--set", "restore.batch_size=4", "--set", "restore.within_noise=true", "--set", "restore.validation=0",
    "--set", "quantize.calibration=9",
]  # fmt: skip


def command(out: Path) -> list[str]:
    """The small run, into a folder."""
    return [sys.executable, "-m", "stepmend.cli", *RUN, "--out", str(out)]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """One small real run, made once for all test processes: its folder. Read it; do not write to it."""
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-run"
    with FileLock(out.with_suffix(".lock")):
        if not (out / "report.html").exists():
            done = subprocess.run(command(out), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(params=reasoner.FAMILIES)
def family(request) -> str:
    """Each built-in reasoner's name."""
    return request.param


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data that is not part of the project; a test that needs it skips where it is not."""
    folder = Path(os.environ.get("STEPMEND_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set STEPMEND_DATA to its folder")
    return folder
