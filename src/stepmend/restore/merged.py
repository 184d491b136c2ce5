"""Tuning in full precision: a LoRA adapter (2106.09685), merged into the weights. There is no low-bit grid that would erase it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stepmend.keys import Restore
from stepmend.models import chat, load, names
from stepmend.models.load import DUPLICATES, load_tokenizer
from stepmend.records import digest
from stepmend.restore import adapter, objectives, training
from stepmend.restore.training import Batches
from stepmend.rundir import make_folder, write_text

ROWS = 8
"""Texts per optimizer step."""
BESIDE_WEIGHTS = frozenset({".json", ".jinja", ".model", ".txt"})
"""Files of a checkpoint that are copied as they are: configuration, index, tokenizer, chat template."""


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

    ``rate`` is the peak learning rate. ``note`` describes the inputs, and is stored in ``out`` with the loss of every step. Raises
    InputError if the loss is not finite.
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
    """Write ``out``: the parent's files, in which each adapted weight has its change added in float32 and is rounded once to its dtype.

    All other tensors are the parent's own, to the last bit, whatever dtype they were computed in here.
    """
    from safetensors.torch import load_file, save_file

    changes = names.by_file_names(model.get_base_model(), _changes(model), load.tensor_names(parent))

    def fill(part: Path) -> None:
        written = set[str]()
        for file in sorted(parent.iterdir()):
            if file.suffix in BESIDE_WEIGHTS:
                shutil.copy(file, part / file.name)
            elif file.suffix == ".safetensors" and not any(file.match(twice) for twice in DUPLICATES):
                tensors = load_file(file)
                for name in changes.keys() & tensors.keys():
                    tensors[name] = (tensors[name].float() + changes[name]).to(tensors[name].dtype)
                    written.add(name)
                save_file(tensors, part / file.name, metadata={"format": "pt"})
        assert written == changes.keys(), f"{len(written)} of {len(changes)} adapted weights found in {parent}"
        write_text(part / chat.ALIGNED, json.dumps(note, indent=2) + "\n")

    make_folder(out, fill)


def _changes(model: Any) -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight, by the name of the model's parameter; float32."""
    found = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            found[f"{name}.weight"] = module.float().get_delta_weight("default").detach().cpu().contiguous()
    return found
