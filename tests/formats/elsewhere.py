"""compressed-tensors checkpoints as other people make them with llm-compressor: layers in different schemes, calibrated activations."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from stepmend.models import load
from tests.texts import calibration_texts

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}
STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False, "dynamic": False}
GROUPS: dict[str, dict[str, Any]] = {
    "mixed": {
        "few": {"targets": [r"re:.*[qk]_proj$"], "weights": {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32}},
        "values": {"targets": [r"re:.*v_proj$"], "weights": {"num_bits": 6, "type": "int", "strategy": "group", "group_size": 64}},
        "rest": {"targets": [r"re:.*(o|gate|up|down)_proj$"], "weights": INT8},
    },
    "static": {"all": {"targets": ["Linear"], "weights": INT8, "input_activations": STATIC}},
}
"""Name -> what llm-compressor is asked for."""


def make(parent: str, name: str, out: Path) -> None:
    """Quantize ``parent`` with llm-compressor alone, in its file's dtype."""
    from datasets import Dataset
    from llmcompressor import oneshot  # pyright: ignore[reportPrivateImportUsage]
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(parent)
    model: Any = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.bfloat16)
    rows = [{"input_ids": (ids := tokenizer(text)["input_ids"]), "attention_mask": [1] * len(ids)} for text in texts(parent)]
    data = {"dataset": Dataset.from_list(rows), "num_calibration_samples": len(rows), "max_seq_length": 64}
    modifier = QuantizationModifier(config_groups=GROUPS[name], ignore=["lm_head"])  # pyright: ignore
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:  # it logs into the working directory
        os.chdir(scratch)
        try:
            oneshot(model=model, tokenizer=tokenizer, recipe=[modifier], **(data if name == "static" else {"pipeline": "datafree"}))
            model.save_pretrained(out, save_compressed=True)
        finally:
            os.chdir(here)
    tokenizer.save_pretrained(out)


def texts(parent: str) -> list[str]:
    return calibration_texts(load.load_tokenizer(parent), 4)
