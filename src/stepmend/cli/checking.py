"""The command that reports what a run would do to a model, before any work."""

import json
from typing import Annotated, Any

import typer

from stepmend.cli.common import app, console, say, silence

GIB = 1 << 30


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A full-precision checkpoint: a folder, a hub name, builtin:qwen2 or builtin:llama.")],
    scheme: Annotated[list[str] | None, typer.Option(help="A scheme to check the model for; can be repeated.")] = None,
    quantized: Annotated[list[str] | None, typer.Option(help="A low-bit checkpoint of the model to check; can be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Show what would be quantized and tuned, and what would be left alone and why; estimate memory and time.

    Loads no weights, except scales and a few rows of a low-bit checkpoint. Exit code 2 if a run would be refused.

    Examples: [bold]stepmend check Qwen/Qwen2.5-0.5B-Instruct --scheme gptq-w4a16-g128[/];
    [bold]stepmend check Qwen/Qwen2.5-0.5B-Instruct --quantized Qwen/Qwen2.5-0.5B-Instruct-AWQ[/]
    """
    silence()
    from stepmend import api

    found = api.check(model, scheme or (), quantized or ())
    if as_json:
        print(json.dumps(found.figures(), indent=2))
        return
    _show(found.figures(), found.probed)


def _times(seconds: dict[str, float]) -> str:
    """The stages with what each is for."""
    each = {"quantize": "all schemes", "solve": "per arm", "locate": "per arm", "restore": "per scheme"}
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
    say(screen, f"quantized: {facts['quantized']} modules, {100 * facts['share quantized']:.1f} % of the parameters in matrices")
    say(screen, f"codes and scales tuned: {facts['tuned']} modules, {100 * facts['share tuned']:.1f} %")
    say(screen, "left alone: " + "; ".join(f"{count} ({why})" for why, count in facts["left alone"].items()))
    for name, count in facts["scaled"].items():
        say(screen, f"{name}: the inputs of {count} linear layers are scaled before rounding, in the layers that compute them")
    detail = ", ".join(f"{name} {size / GIB:.2f}" for name, size in facts["memory"].items())
    say(screen, f"memory of tuning: about {sum(facts['memory'].values()) / GIB:.2f} GiB ({detail}); {_free() / GIB:.1f} GiB free")
    text = f"{assumed['problems']} test problems, {assumed['slots']} at once, solutions of {assumed['solution']} tokens"
    say(
        screen,
        f"time, an estimate from a probe of {spent:.1f} s on this machine under its present load ({text}): {_times(facts['seconds'])}",
    )
    if facts["schemes"]:
        say(screen, f"schemes: {', '.join(facts['schemes'])}: can be made")
    for name, one in facts["given"].items():
        counts, told = one["layers"], one["given"]
        say(screen, f"{name}: {told['format']}, {told['holds']}; codes and scales of {counts['tuned']} can be restored")
        for warning in told["warnings"]:
            say(screen, f"{name}: warning: {warning}")
