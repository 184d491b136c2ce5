"""Train a built-in reasoner from scratch on ``story`` train problems: ``python -m stepmend.models.train_reasoner qwen2``.

Seeded; resumable from its last checkpoint (the same command again); on one CPU core or on a GPU. What made it learn:

- numbers are one token a digit, and no value is above 200;
- first bare arithmetic lines with problems of one or two steps, then problems of all levels with 15 % arithmetic;
- the loss is on the solution, with a trace (2 %) on the question;
- Muon (orthogonalized momentum, https://kellerjordan.github.io/posts/muon) for the matrices, AdamW for the rest;
- a constant rate, then a linear decay to zero: a longer run shares its start with a shorter one.

Tensor names carry their shape: B rows, T tokens, V vocabulary, K matrices of one shape, M and N their rows and columns.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from stepmend.benchmarks import story
from stepmend.models import reasoner
from stepmend.rundir import replace

SHIFT = 2_500
"""Optimizer steps after which the curriculum passes from arithmetic to whole problems."""

BUCKET = 16
"""Widths of batches are multiples of this: a few shapes that recur cost the allocator and the CPU's kernel cache less than hundreds."""


@dataclass(frozen=True)
class Row:
    """One training text: token ids, and the weight of each token as a target."""

    ids: list[int]
    weights: list[float]


def arithmetic_line(rng: random.Random) -> str:
    """One bare equation whose values all stay within the benchmark's bounds."""
    op = rng.choice("++--**/")
    if op == "+":
        left = rng.randint(2, story.MAX_VALUE - 2)
        right = rng.randint(2, story.MAX_VALUE - left)
    elif op == "-":
        left = rng.randint(3, story.MAX_VALUE)
        right = rng.randint(1, left - 1)
    else:
        right = rng.randint(2, 9)
        left = rng.randint(2, story.MAX_VALUE // right)
    result = story.apply(op, left, right) if op != "/" else left
    if op == "/":
        left *= right
    elif op == "*" and rng.random() < 0.5:
        left, right = right, left
    return f"{left} {op} {right} = {result}"


def make_rows(tokenizer: Any, rng: random.Random, step: int) -> Iterator[Row]:
    """Endless training rows of the mixture that belongs to this optimizer step."""
    early = step < SHIFT
    while True:
        if rng.random() < (0.7 if early else 0.15):
            ids = tokenizer("\n".join(arithmetic_line(rng) for _ in range(12)))["input_ids"]
            yield Row(ids, [1.0] * len(ids))
            continue
        low, high = (1, 2) if early else story.LEVELS[rng.choice(("easy", "medium", "medium", "hard", "hard"))]
        question, program = story.write(rng, rng.randint(low, high))
        if program.split() != "train":
            continue
        prompt = tokenizer(f"<|user|>{question}<|assistant|>")["input_ids"]
        solution = tokenizer(program.solution() + "<|end|>")["input_ids"]
        yield Row(prompt + solution, [0.02] * len(prompt) + [1.0] * len(solution))


def make_batches(tokenizer: Any, seed: int, chunk: int, *, tokens: int, per_chunk: int) -> list[list[Row]]:
    """The ``per_chunk`` batches of one chunk of training: rows of similar length together, at most ``tokens`` padded tokens a batch."""
    rng = random.Random(f"reasoner {seed} {chunk}")
    source = make_rows(tokenizer, rng, chunk * per_chunk)
    rows: list[Row] = []
    while sum(len(row.ids) for row in rows) < tokens * per_chunk:
        rows.extend(next(source) for _ in range(16))
    rows.sort(key=lambda row: len(row.ids))
    batches: list[list[Row]] = [[]]
    for row in rows:
        if (len(batches[-1]) + 1) * _width(row) > tokens:
            batches.append([])
        batches[-1].append(row)
    rng.shuffle(batches)
    return batches[:per_chunk]


def _width(row: Row) -> int:
    return -(-len(row.ids) // BUCKET) * BUCKET


def loss_of(model: torch.nn.Module, batch: list[Row]) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token; rows are padded on the right, so no attention mask is needed."""
    width = max(_width(row) for row in batch)
    device = next(model.parameters()).device
    ids_BT = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in batch], device=device)
    weights_BT = torch.tensor([row.weights + [0.0] * (width - len(row.ids)) for row in batch], device=device)[:, 1:]
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    losses_BT = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none").view_as(weights_BT)
    return (losses_BT * weights_BT).sum() / weights_BT.sum()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix, by five Newton–Schulz steps (Jordan et al., 2024).

    torch's own Muon works in bf16, which most CPUs emulate slowly; this one works in the matrices' dtype, or in bf16 if that is
    fast, and takes all matrices of one shape at once.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for param in group["params"]:
                shapes.setdefault(param.shape, []).append(param)
            for shape, params in shapes.items():
                updates = []
                for param in params:
                    assert param.grad is not None
                    buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    buffer.lerp_(param.grad, 1 - group["momentum"])
                    updates.append(param.grad.lerp(buffer, group["momentum"]))
                update_KMN = _orthogonal(torch.stack(updates).to(self.dtype))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for param, update_MN in zip(params, update_KMN, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update_MN.to(param.dtype), alpha=-scale)


def _orthogonal(x_KMN: torch.Tensor) -> torch.Tensor:
    tall = x_KMN.shape[1] > x_KMN.shape[2]
    x_KMN = x_KMN.mT if tall else x_KMN
    x_KMN = x_KMN / (x_KMN.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram_KMM = x_KMN @ x_KMN.mT
        x_KMN = 3.4445 * x_KMN + (-4.7750 * gram_KMM + 2.0315 * gram_KMM @ gram_KMM) @ x_KMN
    return x_KMN.mT if tall else x_KMN


def rate_at(step: int, steps: int) -> float:
    """The share of the peak learning rate: a short warm-up, constant, and a linear decay over the last 40 %."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def fast_bf16(device: str) -> bool:
    """Whether bf16 matrix products are faster than fp32 here: native on GPUs and some CPUs, emulated and slow on the others."""
    if device != "cpu":
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        times = []
        for _ in range(30):  # the best of many: other work on the machine only ever adds
            start = time.perf_counter()
            _ = a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.7 * seconds[torch.float32]


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, level: str, count: int, split: str = "calibration") -> float:
    """Share of problems solved greedily; ``calibration`` problems while training, so that ``test`` decides nothing."""
    import itertools

    right = 0
    problems = list(itertools.islice(story.problems(split, level, seed=1), count))
    problems.sort(key=lambda p: len(p.question))
    for start in range(0, count, 128):
        part = problems[start : start + 128]
        inputs = tokenizer([f"<|user|>{p.question}<|assistant|>" for p in part], return_tensors="pt", padding=True).to(model.device)
        out = model.generate(**inputs, max_new_tokens=180, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.endswith(f"\\boxed{{{p.answer}}}") for text, p in zip(texts, part, strict=True))
    return right / count


def train(family: str, out: Path, *, steps: int, tokens: int, seed: int, device: str, checkpoint_every: int, checks: int = 128) -> None:
    """Train one reasoner into ``out``; continues from ``out/state.pt`` where that lies.

    ``checks`` is the number of calibration problems a level that are solved now and then, to show how far it is.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    tokenizer = reasoner.make_tokenizer()
    model = AutoModelForCausalLM.from_config(
        reasoner.make_config(family, len(tokenizer)), dtype=torch.float32, attn_implementation="eager"
    ).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon, adam = Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    bf16 = fast_bf16(device)
    muon.dtype = torch.bfloat16 if bf16 else torch.float32
    print(f"{family}: {sum(p.numel() for p in model.parameters()):,} parameters, {'bf16' if bf16 else 'fp32'} products", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    state_file, parts = out / "state.pt", {"model": model, "muon": muon, "adam": adam}
    step, spent = _load_state(state_file, parts, device)
    if step:
        print(f"{family}: continues at step {step}", flush=True)

    per_chunk, batches, start, mean, seen = 50, [], time.perf_counter(), 0.0, 0
    while step < steps:
        if step % per_chunk == 0 or not batches:
            batches = make_batches(tokenizer, seed, step // per_chunk, tokens=tokens, per_chunk=per_chunk)
        batch = batches[step % per_chunk % len(batches)]
        for optimizer, peak in ((muon, 0.02), (adam, 3e-3)):
            optimizer.param_groups[0]["lr"] = peak * rate_at(step, steps)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=bf16):
            loss = loss_of(model, batch)
        loss.backward()
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        seen += sum(len(row.ids) for row in batch)
        mean += loss.item()
        if step % 100 == 0:
            passed = time.perf_counter() - start
            left = passed / 100 * (steps - step)
            print(f"{family} step {step}/{steps} loss {mean / 100:.4f} {seen / passed:,.0f} tokens/s, {left / 60:.0f} min left", flush=True)
            spent, start, mean, seen = spent + passed, time.perf_counter(), 0.0, 0
        if step % checkpoint_every == 0 or step == steps:
            _save_state(state_file, parts, step, spent)
        if step % (2 * checkpoint_every) == 0 or step == steps:
            model.eval()
            scores = {level: accuracy(model, tokenizer, level, checks) for level in story.LEVELS}
            print(f"{family} step {step}: {spent / 60:.0f} min, solved {scores}", flush=True)
            model.train()
            start, mean, seen = time.perf_counter(), 0.0, 0
    save(model, tokenizer, out / "checkpoint")


def _load_state(file: Path, parts: dict[str, Any], device: str) -> tuple[int, float]:
    """Bring back what ``_save_state`` wrote, if there is anything; (steps done, seconds spent)."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["seconds"]


def _save_state(file: Path, parts: dict[str, Any], step: int, seconds: float) -> None:
    """Keep model and optimizers; the file is there whole or as it was."""
    states = {name: part.state_dict() for name, part in parts.items()}
    replace(file, lambda part: torch.save({**states, "step": step, "seconds": seconds}, part))


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """The shipped form: bf16 weights, tokenizer, chat template, generation settings."""
    model.generation_config.update(do_sample=False, eos_token_id=1, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("family", choices=reasoner.FAMILIES)
    parser.add_argument("--out", type=Path, default=None, help="where state and checkpoint lie (default: runs/reasoner-FAMILY)")
    parser.add_argument("--steps", type=int, default=6_800, help="optimizer steps")
    parser.add_argument("--tokens", type=int, default=2_000, help="padded tokens of a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--checkpoint-every", type=int, default=1_000, help="steps between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(
        args.family,
        args.out or Path("runs") / f"reasoner-{args.family}",
        steps=args.steps,
        tokens=args.tokens,
        seed=args.seed,
        device=args.device,
        checkpoint_every=args.checkpoint_every,
    )


if __name__ == "__main__":
    main()
