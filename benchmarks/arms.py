"""How the arms of benchmarks/restore.py are made: stepmend's, the paper's and recalibrated checkpoints, each in a process of its own."""

import multiprocessing
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stepmend import Bullet
from stepmend.keys import Restore
from stepmend.models import load
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.restore import adapter, tune
from stepmend.rundir import make_folder

LORA_RANK = 16

Tick = Callable[[int], None]


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured(make: Callable[[Path], None], out: Path) -> tuple[float, float]:
    """Seconds and peak GiB of making ``out``, of the GPU's memory where there is one; for a process that does nothing else."""
    import torch

    begin = time.perf_counter()
    make(out)
    seconds = time.perf_counter() - begin
    if torch.cuda.is_available():
        return seconds, torch.cuda.max_memory_allocated() / (1 << 30)
    # Not getrusage: a process begun from a larger one starts with that one's peak there.
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return seconds, int(peak[1]) / (1 << 20)


def ours(parent: str, folder: Path, bullets: list[Bullet], recipe: Restore, seed: int, out: Path, tick: Tick = lambda done: None) -> None:
    tune.restore(parent, folder, bullets, recipe, out, seed=seed, tick=tick)


def paper(
    parent: str, folder: Path, bullets: list[Bullet], recipe: Restore, seed: int, rate: float, out: Path, tick: Tick = lambda done: None
) -> None:
    """The paper's recipe: TRL's DPO on the steps at the fault, a LoRA adapter over the quantized weights."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Ticks(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            tick(1)

    class Steps(DPOTrainer):
        """TRL ends every text; a step that others follow is not the end, and its model would learn to stop there."""

        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
            def opened(row: dict[str, Any], i: int) -> dict[str, Any]:
                followed = {"chosen_ids": bullets[i].continuation, "rejected_ids": bullets[i].rejected_rest}
                return {side: row[side][:-1] if text else row[side] for side, text in followed.items()}

            return super()._prepare_dataset(dataset, processing_class, args, dataset_name).map(opened, with_indices=True)

    torch.manual_seed(seed)
    model = adapter.attach(str(folder), Restore(tune="lora", lora_rank=LORA_RANK))
    rows = [{"prompt": b.prompt, "chosen": b.chosen, "rejected": b.rejected} for b in bullets]
    options = DPOConfig(
        output_dir=str(out.with_suffix(".trl")), max_steps=recipe.steps, per_device_train_batch_size=recipe.batch_size,
        learning_rate=rate, beta=0.1, seed=seed, report_to=[], use_cpu=not torch.cuda.is_available(), bf16=False, save_strategy="no",
        gradient_checkpointing=False, precompute_ref_log_probs=True, disable_tqdm=True, logging_steps=50,
    )  # fmt: skip
    tokenizer = load.load_tokenizer(parent)
    trainer = Steps(model, args=options, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Ticks()])
    trainer.train()
    make_folder(out, lambda part: (shutil.copytree(folder, part, dirs_exist_ok=True), model.save_pretrained(part / adapter.FOLDER))[1])
    shutil.rmtree(out.with_suffix(".trl"), ignore_errors=True)


def recalibrated(parent: str, folder: Path, texts: list[str], scheme: str, seed: int, out: Path, tick: Tick = lambda done: None) -> None:
    """The same bits and groups by GPTQ, in place of the checkpoint ``folder``."""
    quantizer.quantize(parent, schemes.parse(scheme), texts, out)


def step_times(parent: str, folder: Path, bullets: list[Bullet], recipe: Restore, out: Path) -> dict[str, float]:
    """Three turns of 20 steps each on one batch; the first two steps of a turn warm up."""
    batch, steps = bullets[: recipe.batch_size], {"steps": 20}
    lora = Restore(tune="lora", lora_rank=LORA_RANK, objective="dpo", batch_size=recipe.batch_size, steps=20)
    arms: dict[str, Callable[[Path, Tick], None]] = {
        "stepmend's default": partial(ours, parent, folder, batch, recipe.model_copy(update=steps), 0),
        "stepmend, dpo on scales": partial(ours, parent, folder, batch, lora.model_copy(update={"tune": "scales"}), 0),
        "stepmend, dpo on an adapter": partial(ours, parent, folder, batch, lora, 0),
        "TRL, dpo on an adapter": partial(paper, parent, folder, batch, recipe.model_copy(update=steps), 0, 1e-5),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(3):
        for name, make in arms.items():
            moments: list[float] = []
            make(out, lambda done, moments=moments: moments.append(time.perf_counter()))
            taken[name] += np.diff(moments)[2:].tolist()
            shutil.rmtree(out)
    return {name: float(np.median(each)) for name, each in taken.items()}
