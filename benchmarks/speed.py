"""Tokens a second of stepmend's decoder beside transformers' own generate, on the same prompts. Writes docs/results/speed.md.

python benchmarks/speed.py MODEL                      # MODEL: a checkpoint's folder; GSM8K from STEPMEND_DATA or --data
python benchmarks/speed.py MODEL --run RUN            # seconds by stage of a finished run's folder as well
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import sections
import torch

from stepmend import tables
from stepmend.engines.base import Completion
from stepmend.engines.local import LocalEngine, batches
from stepmend.facts import Seconds
from stepmend.models import chat, load
from stepmend.report import summary

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "speed.md"
HEAD = """# How fast completions are generated

`python benchmarks/speed.py MODEL` wrote this page. Greedy solutions of the first problems of GSM8K's test set, prompt `steps-1`, each way
on the same loaded model and in one process, after two solutions that do not count. Tokens a second are those of the solutions, up to each
one's end token, over the wall time of all of them. `generate` is transformers' own, with a static cache on a CPU, on batches of like
length; the decoder is what a run uses.

"""


def by_generate(engine: LocalEngine, texts: list[str], size: int) -> list[Completion]:
    """Fixed batches with the model's own ``generate``."""
    found: dict[int, Completion] = {}
    for batch in batches(texts, size):
        found |= dict(zip(batch, engine.generate_batch([texts[i] for i in batch]), strict=True))
    return [found[i] for i in range(len(texts))]


def timed(engine: LocalEngine, texts: list[str], size: int, ours: bool) -> tuple[list[Completion], float]:
    """Completions of all texts, and the seconds that they took."""
    start = time.perf_counter()
    found = replace(engine, slots=size).complete(texts) if ours else by_generate(engine, texts, size)
    return found, time.perf_counter() - start


def section(folder: str, texts: list[str], tokens: int, sizes: list[int], count: int, dtype: str) -> str:
    """One model's table, in Markdown."""
    engine = LocalEngine(load.load_model(folder, dtype), load.load_tokenizer(folder), tokens)
    if engine.batched:
        raise SystemExit(f"{folder}: this model decodes with generate alone")
    warm = replace(engine, max_new_tokens=8)
    rows, ends = [], {}
    # generate goes first, on weights in the order of rows that it usually has.
    for name, ours, size in [*(("generate", False, size) for size in sizes), ("decoder", True, count)]:
        timed(warm, texts[:2], 2, ours)
        found, seconds = timed(engine, texts, size, ours)
        ends[name] = found
        rows.append((name, size, sum(len(c.tokens) for c in found), seconds))
        print(*rows[-1], flush=True)
    best = max(made / seconds for name, _, made, seconds in rows if name == "generate")
    equal = sum(a.tokens == b.tokens for a, b in zip(ends["generate"], ends["decoder"], strict=True))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads of a CPU"
    lines = [
        f"## {Path(folder).name}", "",
        f"{len(texts)} problems, at most {tokens} new tokens, {str(engine.model.dtype).removeprefix('torch.')}, on {device}. "
        f"{equal} of {len(texts)} solutions are token for token the same both ways.", "",
        "| | at once | tokens | seconds | tokens/s | over the best generate |", "|---|---|---|---|---|---|",
        *(f"| {name} | {size} | {made} | {s:.0f} | {made / s:.1f} | {made / s / best:.2f} |" for name, size, made, s in rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def stages(run: Path) -> str:
    """A run's seconds by stage, in Markdown."""
    spent = summary.read(run).facts.get(Seconds)
    rows = [f"| {name} | {seconds:.0f} |" for name, seconds in (spent.stages if spent else {}).items()]
    return "\n".join(["## Stages of a run", "", "| stage | seconds |", "|---|---|", *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a checkpoint's folder")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEPMEND_DATA"), help="folder that holds gsm8k/test.jsonl")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64], help="of generate; its best is compared with")
    parser.add_argument("--slots", type=int, default=32, help="of the decoder")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--run", type=Path, help="a finished run's folder, for its seconds by stage")
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data or STEPMEND_DATA is needed")
    tokenizer = load.load_tokenizer(args.model)
    rows = tables.read(Path(args.data) / "gsm8k" / "test.jsonl")[: args.problems]
    texts = [chat.render(tokenizer, "steps-1", row["question"]) for row in rows]
    sections.write(PAGE, HEAD, section(args.model, texts, args.max_new_tokens, args.batch_sizes, args.slots, args.dtype))
    if args.run:
        sections.write(PAGE, HEAD, stages(args.run))
    print(PAGE)


if __name__ == "__main__":
    main()
