"""What is tuned in full precision: a LoRA adapter (2106.09685), merged into the weights. There is no low-bit grid that would erase it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stepmend.models import chat
from stepmend.models.load import load_tokenizer
from stepmend.recipe import Restore
from stepmend.records import digest
from stepmend.restore import adapter, objectives, training
from stepmend.restore.training import Batches
from stepmend.rundir import make_folder, write_text

ROWS = 8
"""Texts that one optimizer step is made of."""
BESIDE_WEIGHTS = frozenset({".json", ".jinja", ".model", ".txt"})
"""Files of a checkpoint that are copied as they are: configuration, tokenizer, chat template."""


def train(
    parent: str,
    rows: Sequence[objectives.Row],
    out: Path,
    note: dict[str, Any],
    *,
    steps: int,
    rank: int,
    rate: float,
    seed: int,
    tick: Callable[[int], None] = lambda done: None,
) -> None:
    """Train an adapter of ``rank`` on texts, merge it and write ``out``, whole or not at all; continues from ``<out>.state``.

    ``rate`` is the peak learning rate. ``note``, what decides the result, is kept in ``out`` with the loss of every step. Raises
    InputError where the loss is no number.
    """
    pad = load_tokenizer(parent).pad_token_id
    torch.manual_seed(seed)
    model = adapter.attach(parent, Restore(tune="lora", lora_rank=rank))
    parameters = [p for p in model.parameters() if p.requires_grad]
    batches = Batches(len(rows), ROWS, seed)

    def backward(step: int) -> float:
        loss = objectives.sft(model, [rows[i] for i in batches[step]], pad)
        loss.backward()
        return loss.item()

    state_file, made_by = out.with_name(out.name + ".state"), digest(note, [row.ids for row in rows])
    groups = [training.Group(parameters, rate)]
    trained = training.train(groups, backward, steps=steps, state_file=state_file, made_by=made_by, tick=tick)
    _export(model, Path(parent), out, {**note, "losses": trained.losses})
    state_file.unlink(missing_ok=True)


def _export(model: Any, parent: Path, out: Path, note: dict[str, Any]) -> None:
    """Merge in float32, round once to the dtype that the parent is stored in, and write ``out`` with the parent's other files."""
    dtype = _stored(parent)
    whole = model.cpu().float().merge_and_unload().to(dtype)

    def fill(part: Path) -> None:
        whole.save_pretrained(part)
        for file in sorted(parent.iterdir()):
            if file.suffix in BESIDE_WEIGHTS and not file.name.endswith(".index.json"):
                shutil.copy(file, part / file.name)
        write_text(part / chat.ALIGNED, json.dumps(note, indent=2) + "\n")

    make_folder(out, fill)


def _stored(folder: Path) -> torch.dtype:
    """The dtype in which a checkpoint's first tensor is stored."""
    from safetensors import safe_open

    with safe_open(min(folder.glob("*.safetensors")), "pt") as opened:
        return opened.get_tensor(next(iter(opened.keys()))).dtype
