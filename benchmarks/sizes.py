"""What a tuning costs at the sizes of published models: seconds a step, and memory beside what was said. Writes docs/results/sizes.md.

python benchmarks/sizes.py                          # on a GPU of 140 GiB; a smaller one says which arms do not fit
python benchmarks/sizes.py --shape Qwen2.5-0.5B     # this section alone; the others stay as they are

Weights are random and so are the texts: time and memory ask for shapes alone. Each arm is a process of its own; beside it TRL's DPO
with a PEFT adapter, as in benchmarks/restore.py. Needs trl: pip install trl.
"""

import argparse
import itertools
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import arms
import numpy as np
import sections
import torch

from stepmend import Bullet
from stepmend.benchmarks import story
from stepmend.keys import Restore
from stepmend.models import chat, load, reasoner
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.restore import tune

PAGE = Path(__file__).parents[1] / "docs" / "results" / "sizes.md"
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""What the released configurations say."""
DEFAULT = ("Qwen2.5-1.5B", "Qwen2.5-7B")
SCHEME = "rtn-w4a16-g128"
WARM = 3
"""Steps that are not timed."""


def make(shape: dict[str, Any], folder: Path) -> None:
    """A random bfloat16 checkpoint of a published shape, with the built-in reasoners' tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    reasoner.make_tokenizer().save_pretrained(folder)


def bullets(tokenizer: Any, count: int, tokens: int) -> list[Bullet]:
    """Texts of about so many tokens, each with a step in its middle that has two versions."""
    sentences = itertools.chain.from_iterable(p.question.split(". ") for p in story.problems("train", "hard", seed=0))

    def text(length: int) -> str:
        taken = ""
        while len(tokenizer(taken)["input_ids"]) < length:
            taken += next(sentences) + ".\n"
        return taken

    made = []
    for i in range(count):
        question, prefix, chosen, rejected, rest = (text(tokens * share // 10) for share in (2, 3, 1, 1, 4))
        prompt = chat.render(tokenizer, "plain-1", question) + prefix
        made.append(
            Bullet(
                problem=f"p{i}", arm="low", made_by="sizes", prompt=prompt, prefix=prefix, chosen=chosen, rejected=rejected,
                continuation=rest, rejected_rest=rest, solution=prefix + chosen + rest, place=(len(prefix), len(prefix + chosen)),
                step=1, error_class=None,
            )
        )  # fmt: skip
    return made


def timed(trl: bool, parent: str, folder: Path, examples: list[Bullet], recipe: Restore, out: Path) -> dict[str, Any]:
    """Seconds a step and in all, peak GiB of the steps, and what was said of it; for a process that does nothing else."""
    moments: list[float] = []
    peaks: list[float] = []
    said: list[str] = []
    gpu = torch.cuda.is_available()

    def tick(done: int) -> None:
        if gpu:
            torch.cuda.synchronize()
            if not moments:
                torch.cuda.reset_peak_memory_stats()
        moments.append(time.perf_counter())
        peaks.append(torch.cuda.max_memory_allocated() / (1 << 30) if gpu else 0.0)

    begin = time.perf_counter()
    try:
        if trl:
            arms.paper(parent, folder, examples, recipe, 0, 1e-5, out, tick)
        else:
            tune.restore(parent, folder, examples, recipe, out, seed=0, tick=tick, say=said.append)
    except torch.OutOfMemoryError:
        return {"said": _said(said)}
    return {
        "step": float(np.median(np.diff(moments)[WARM:])),
        "seconds": time.perf_counter() - begin,
        "peak": peaks[-1],
        "said": _said(said),
    }


def _said(lines: list[str]) -> float | None:
    found = re.search(r"about ([\d.]+) GiB", " ".join(lines))
    return float(found[1]) if found else None


def section(shape: str, steps: int, tokens: int, size: int, scratch: Path) -> str:
    """One shape under every arm, in Markdown."""
    parent, low = scratch / "parent", scratch / "low"
    arms.in_child(make, SHAPES[shape], parent)
    begin = time.perf_counter()
    arms.in_child(quantizer.quantize, str(parent), schemes.parse(SCHEME), [], low)
    quantized = time.perf_counter() - begin
    examples = bullets(load.load_tokenizer(str(parent)), 4 * size, tokens)
    recipe = Restore(steps=steps, batch_size=size)
    recipes = {
        "stepmend's default": recipe,
        "TRL, dpo on an adapter": recipe,
        "stepmend, dpo on an adapter": Restore(tune="lora", lora_rank=arms.LORA_RANK, objective="dpo", steps=steps, batch_size=size),
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, of in recipes.items():
        rows[name] = arms.in_child(timed, name.startswith("TRL"), str(parent), low, examples, of, scratch / f"out-{len(rows)}")
        print(shape, name, rows[name], flush=True)
    lines = [
        f"## {shape}", "",
        f"`{SCHEME}`, made in {quantized:.0f} s; {size} bullets of about {tokens} tokens a step, {steps} steps, on one {_device()}.", "",
        "| arm | seconds a step | over TRL's | seconds in all | peak GiB of steps | said |", "|---|---|---|---|---|---|",
        *[_row(name, row, rows["TRL, dpo on an adapter"].get("step")) for name, row in rows.items()],
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(name: str, row: dict[str, Any], trl: float | None) -> str:
    said = "" if row["said"] is None else f"{row['said']:.1f}"
    if "step" not in row:
        return f"| {name} | out of memory | | | | {said} |"
    ratio = f"{row['step'] / trl:.2f}" if trl else ""
    return f"| {name} | {row['step']:.3f} | {ratio} | {row['seconds']:.0f} | {row['peak']:.1f} | {said} |"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


HEAD = """# What a tuning costs at the sizes of published models

`python benchmarks/sizes.py` wrote this page. Shapes are those of released configurations, weights and texts are random: time and memory ask
for shapes alone. Seconds a step: the median; in all: with loading, reading the teacher, export and its check. Said: what a run says of its
memory before it starts. TRL: DPO with a PEFT adapter of rank 16 on the same bullets, as in benchmarks/restore.py.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append", help=f"only this shape (default {', '.join(DEFAULT)})")
    parser.add_argument("--steps", type=int, default=20, help="steps an arm (default 20)")
    parser.add_argument("--tokens", type=int, default=384, help="tokens a bullet (default 384)")
    parser.add_argument("--batch-size", type=int, default=8, help="bullets a step (default 8)")
    args = parser.parse_args()
    for shape in args.shape or DEFAULT:
        with tempfile.TemporaryDirectory() as scratch:
            sections.write(PAGE, HEAD, section(shape, args.steps, args.tokens, args.batch_size, Path(scratch)))
    print(PAGE)


if __name__ == "__main__":
    main()
