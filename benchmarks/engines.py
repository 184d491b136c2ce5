"""The same GSM8K problems solved by a checkpoint in this process and by an engine beside it: where texts part, and how near a tie that is.

python benchmarks/engines.py serve MODEL PYTHON   transformers serve, of the environment of PYTHON, on a free port of this machine
python benchmarks/engines.py vllm MODEL           vLLM, where it is installed beside stepmend

STEPMEND_DATA names the folder with ``gsm8k/test.jsonl``. Solutions are greedy, of at most 128 tokens, by the model's own chat template.
Of the first token that differs, the gap is the difference of both tokens' logits in one float32 pass over the common prefix. Of ``serve``,
the server is killed when half the problems are solved, and started again; the page says what was asked twice.
Writes docs/results/engines.md.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepmend import InputError
from stepmend.benchmarks import sources
from stepmend.engines.base import Completion, Engine
from stepmend.engines.local import LocalEngine
from stepmend.engines.make import make
from stepmend.engines.named import Spec
from stepmend.models import chat, load

COUNT = int(os.environ.get("STEPMEND_PROBLEMS", "12"))
TOKENS = 128
TIE = 0.1
"""Logits nearer than this are a tie: engines add in other orders."""
PAGE = Path(__file__).parents[1] / "docs" / "results" / "engines.md"
Made = dict[int, Completion]


def gap(engine: LocalEngine, prompt: str, ours: Completion, theirs: Completion) -> tuple[int, float] | None:
    """The place of the first token that differs, and our logit there less the other's; None where all are equal."""
    import torch

    place = next((i for i, (a, b) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)) if a != b), None)
    if place is None:
        return None
    row = [*chat.encode(engine.tokenizer, prompt), *ours.tokens[:place]]
    with torch.inference_mode():
        logits_V = engine.model(torch.tensor([row], device=engine.model.device)).logits[0, -1].float()
    return place, float(logits_V[ours.tokens[place]] - logits_V[theirs.tokens[place]])


def ask(engine: Engine, texts: list[str], made: Made, stop: int | None = None, kill: Any = None) -> int:
    """Add to ``made`` what is missing; after ``stop`` of them ``kill`` is called. The number of completions that came."""
    before = len(made)
    for i, completion in engine.generate(texts, done=set(made)):
        made[i] = completion
        if stop is not None and len(made) - before == stop:
            kill()
    return len(made) - before


class Server:
    """``transformers serve`` of one model, on a free port of this machine."""

    def __init__(self, python: str, model: str) -> None:
        self.python, self.model = python, model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["serve", self.model, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"]
        begin = [self.python, "-c", "from transformers.cli.transformers import main; main()"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen([*begin, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            time.sleep(1)
        raise SystemExit("transformers serve did not start")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def served(texts: list[str], spec: Spec, python: str) -> tuple[Made, str, str]:
    """What the server writes, killed in the middle; the engine's name, and what the kill did."""
    made: Made = {}
    server = Server(python, spec.checkpoint)
    try:
        engine = make(spec.model_copy(update={"kind": "openai", "server": ("full", spec.checkpoint, server.url)}))
        first, said = 0, ""
        try:
            first = ask(engine, texts, made, len(texts) // 2, server.kill)
        except InputError as error:
            first, said = len(made), str(error)
        server.start()
        second = ask(engine, texts, made)
    finally:
        server.kill()
    version = subprocess.run(
        [python, "-c", "import transformers; print(transformers.__version__)"], capture_output=True, text=True, check=True
    )
    note = (
        f"The server was killed after {len(texts) // 2} solutions. The command said: “{said}”. After a new start it was asked for {second} "
    )
    return made, f"transformers serve {version.stdout.strip()}", note + f"more; the {first} that were kept were not asked for again."


def page(name: str, spec: Spec, texts: list[str], ours: list[Completion], theirs: Made, engine: LocalEngine, note: str) -> str:
    """One engine's section, as Markdown."""
    gaps = [gap(engine, text, mine, theirs[i]) for i, (text, mine) in enumerate(zip(texts, ours, strict=True))]
    equal = sum(mine.text == theirs[i].text for i, mine in enumerate(ours))
    far = sum(abs(one[1]) >= TIE for one in gaps if one)
    command, device = f"{sys.argv[1]} {Path(spec.checkpoint).name}{' PYTHON' * (sys.argv[1] == 'serve')}", engine.model.device.type.upper()
    lines = [
        f"## {name}",
        "",
        f"`python benchmarks/engines.py {command}`: the first {len(texts)} GSM8K test problems, {Path(spec.checkpoint).name}, greedy, at "
        f"most {TOKENS} tokens, {spec.dtype} on a {device}. Nothing was tuned on them.",
        "",
        f"- the texts of {equal} of {len(texts)} are equal to those of transformers in this process",
        f"- {sum(one is None for one in gaps)} of {len(texts)} are equal token by token; {far} others part at a gap of {TIE} or more",
        "",
        "| problem | first token that differs | logit gap there |",
        "|---:|---:|---:|",
        *(f"| {i + 1} | {one[0] if one else '–'} | {f'{one[1]:.4f}' if one else '–'} |" for i, one in enumerate(gaps)),
        "",
        *([note, ""] if note else []),
    ]
    return "\n".join(lines)


def write(section: str) -> None:
    """Put a section on the page, in the place of an earlier one of the same engine."""
    head = "# Engines\n\nSolutions by other engines than transformers in this process, problem by problem, greedy.\n\n"
    before = PAGE.read_text().split("\n## ")[1:] if PAGE.exists() else []
    kept = [f"## {part.strip()}\n\n" for part in before if part.split()[0] != section.removeprefix("## ").split()[0]]
    PAGE.write_text(head + "".join(kept) + section)


def main() -> None:
    """Solve, compare, write the page."""
    kind, model, *rest = sys.argv[1:]
    tokenizer, prompt = load.load_tokenizer(model), chat.prompt_for(model, builtin=False)
    problems = sources.Data("gsm8k", str(Path(os.environ["STEPMEND_DATA"]) / "gsm8k")).problems("test", COUNT, 0)
    texts = [chat.render(tokenizer, prompt, problem.question) for problem in problems]
    spec = Spec(kind="transformers", checkpoint=model, tokenizer=model, max_new_tokens=TOKENS, dtype="float32", slots=COUNT)
    engine = make(spec)
    assert isinstance(engine, LocalEngine)
    ours = engine.complete(texts)
    note = ""
    if kind == "serve":
        theirs, name, note = served(texts, spec, rest[0])
    else:
        from importlib.metadata import version

        theirs = dict(make(spec.model_copy(update={"kind": "vllm"})).generate(texts))
        name = f"vLLM {version('vllm')}"
    write(page(name, spec, texts, ours, theirs, engine, note))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
