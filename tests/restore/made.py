"""Bullets, and a quantized checkpoint to tune on them."""

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


def quantized(parent: str, scheme: str, out) -> None:
    texts = calibration_texts(load.load_tokenizer(parent), 8)
    run.quantize(parent, schemes.parse(scheme), texts, out)
