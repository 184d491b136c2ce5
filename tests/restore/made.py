"""Bullets, and a quantized checkpoint to tune on them."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from stepmend import Bullet
from stepmend.models import load
from stepmend.quantize import run, schemes
from tests.texts import calibration_texts


def bullets(count: int = 8) -> list[Bullet]:
    """Bullets of one sum, behind a correct first line: the rejected step is off by one."""
    made = []
    for i in range(count):
        a, b = 10 + 3 * i, 20 + i
        first, right, wrong = f"Step 1: {a} + 1 = {a + 1}\n", f"Step 2: {a} + {b} = {a + b}\n", f"Step 2: {a} + {b} = {a + b + 1}\n"
        made.append(
            Bullet(
                problem=f"p{i}", arm="q", made_by="t", prefix=first,
                prompt=f"<|user|>Tom has {a} eggs. Tom buys {b} eggs.<|assistant|>{first}",
                chosen=right, rejected=wrong, continuation=f"\\boxed{{{a + b}}}", rejected_rest=f"\\boxed{{{a + b + 1}}}",
                solution=f"{first}{right}\\boxed{{{a + b}}}", place=(len(first), len(first + right)), step=1, error_class="computational",
            )
        )  # fmt: skip
    return made


def each(names: list[str]) -> list[tuple[str, str]]:
    """Every scheme on one family, and two on the others, whose layers have biases or whose attention norms: a product shows no more."""
    return [("llama3.2", name) for name in names] + [
        (family, name) for family in ("qwen2.5", "qwen3") for name in ("gptq-w3a16-g128-asym", "smoothquant-w8a8")
    ]


@cache
def _once(parent: str, scheme: str) -> TemporaryDirectory[str]:
    """A checkpoint, made once a process; its folder goes when the process ends."""
    home = TemporaryDirectory()
    texts = calibration_texts(load.load_tokenizer(parent), 8)
    run.quantize(parent, schemes.parse(scheme), texts, Path(home.name) / "low")
    return home


def quantized(parent: str, scheme: str, out) -> None:
    """A copy of a parent's checkpoint at a scheme. The parent must stay as it is."""
    shutil.copytree(Path(_once(parent, scheme).name) / "low", out)
