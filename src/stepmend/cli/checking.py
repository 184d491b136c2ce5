"""The verb that says what would be done to a model, and what would not, before any work."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepmend.cli.common import app, console, say, silence

if TYPE_CHECKING:
    from stepmend.models import timing

TOKENS, BATCH, TEXTS = 400, 8, 900
"""Tokens of a solution, texts of a step and texts read once that the memory is estimated for: the default recipe on ordinary solutions."""
GIB = 1 << 30


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A full-precision checkpoint: a folder, a hub name, builtin:qwen2 or builtin:llama.")],
    scheme: Annotated[list[str] | None, typer.Option(help="A scheme to check the model for; may be given again.")] = None,
    quantized: Annotated[list[str] | None, typer.Option(help="A low-bit checkpoint of the model to check; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Say what would be quantized and tuned, what left alone and why, and estimate memory and time.

    No weights are read, but for scales and a few rows of a low-bit checkpoint; exit code 2 where a run would be refused.

    Examples: [bold]stepmend check Qwen/Qwen2.5-0.5B-Instruct --scheme gptq-w4a16-g128[/];
    [bold]stepmend check Qwen/Qwen2.5-0.5B-Instruct --quantized Qwen/Qwen2.5-0.5B-Instruct-AWQ[/]
    """
    from stepmend.quantize import schemes as table
    from stepmend.recipe import Recipe

    parsed = [table.parse(name) for name in scheme or (() if quantized else Recipe().schemes)]
    silence()
    import torch

    from stepmend.models import check as checking
    from stepmend.models import load, timing
    from stepmend.quantize import given
    from stepmend.quantize import run as quantizer

    folder = load.locate(model)
    looked = [given.look(folder, model, path) for path in quantized or ()]
    layers, *_ = [quantizer.preflight(folder, one) for one in parsed] + [list(one.layers) for one in looked]
    load.load_tokenizer(folder)
    config = load.config_of(folder)
    made = load.skeleton(config)
    device, dtype = load.placement(folder)
    dtype = torch.float32 if dtype == "auto" else dtype
    parts = checking.memory(made, layers, TEXTS, BATCH, TOKENS, dtype.itemsize)
    counts = checking.summary(layers)
    scaled = {one: quantizer.scaled(made, one) for one in parsed if one.method in table.SCALED}
    work = _work(config, device, model.startswith(load.BUILTIN))
    start = time.perf_counter()
    speed = timing.probe(made, work.slots, device, dtype)
    spent = time.perf_counter() - start
    size = timing.size_of(made, layers)
    seconds = timing.stages(size, speed, work, device, {one.method for one in parsed})
    facts = {
        "family": config.model_type,
        "parameters": sum(p.numel() for p in made.parameters()),
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "schemes": [one.name for one in parsed],
        "given": {one.name: one.facts() for one in looked},
        **counts,
        "scaled": {one.name: len({name for _, names in pairs for name in names}) for one, pairs in scaled.items()},
        "memory": parts,
        "seconds": {stage: value for stage, value in seconds.items() if parsed or stage != "quantize"},
        "assumed": vars(work),
    }
    if as_json:
        print(json.dumps(facts | {"layers": [vars(layer) for layer in layers]}, indent=2))
        return
    _show(facts, spent)


def _work(config: Any, device: str, builtin: bool) -> "timing.Work":
    """What the default recipe does with a model."""
    from stepmend.engines import budget
    from stepmend.models import timing

    if builtin:  # story problems, three levels, solutions of three or four lines
        return timing.Work(slots=150, problems=900, prompt=64, solution=64, continuations=4)
    return timing.Work(slots=budget.slots_for(config, 1024, device))


def _times(seconds: dict[str, float]) -> str:
    """The stages with what each is for."""
    each = {"quantize": "all schemes", "solve": "an arm", "locate": "an arm", "restore": "a scheme"}
    return ", ".join(f"{stage} {duration(value)} ({each[stage]})" for stage, value in seconds.items())


def duration(seconds: float) -> str:
    """A duration in two significant digits: seconds, minutes or hours."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"


def _free() -> int:
    from stepmend.restore import memory

    return memory.room()


def _show(facts: dict[str, Any], spent: float) -> None:
    """Print the figures on one screen; the probe took ``spent`` seconds."""
    screen, assumed = console(), facts["assumed"]
    say(screen, f"{facts['family']}, {facts['parameters'] / 1e6:,.1f} M parameters; {facts['device']}, {facts['dtype']}")
    say(screen, f"quantized: {facts['quantized']} modules, {100 * facts['share quantized']:.1f} % of the numbers in matrices")
    say(screen, f"codes and scales tuned: {facts['tuned']} modules, {100 * facts['share tuned']:.1f} %")
    say(screen, "left alone: " + "; ".join(f"{count} ({why})" for why, count in facts["left alone"].items()))
    for name, count in facts["scaled"].items():
        say(screen, f"{name}: the inputs of {count} linear layers are scaled before rounding, in what computes them")
    detail = ", ".join(f"{name} {size / GIB:.2f}" for name, size in facts["memory"].items())
    say(screen, f"memory of tuning: about {sum(facts['memory'].values()) / GIB:.2f} GiB ({detail}); {_free() / GIB:.1f} GiB free")
    text = f"{assumed['problems']} test problems, {assumed['slots']} at once, solutions of {assumed['solution']} tokens"
    say(screen, f"time, an estimate from a probe of {spent:.1f} s on this machine as it is now ({text}): {_times(facts['seconds'])}")
    if facts["schemes"]:
        say(screen, f"schemes: {', '.join(facts['schemes'])}: can be made")
    for name, one in facts["given"].items():
        counts, told = one["layers"], one["given"]
        say(screen, f"{name}: {told['format']}, {told['holds']}; codes and scales of {counts['tuned']} can be restored")
        for warning in told["warnings"]:
            say(screen, f"{name}: warning: {warning}")
