"""Quantized checkpoints, calibrated on the model's own traces: in a run, or by ``stepmend quantize``."""

import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from stepmend.arms import FULL
from stepmend.benchmarks import sources
from stepmend.context import Context
from stepmend.curate import leakage
from stepmend.engines.local import LocalEngine, complete_all
from stepmend.facts import Quantized
from stepmend.models import chat, load
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.records import InputError, digest


def quantize(context: Context, scheme: schemes.Scheme, texts: Callable[[], list[str]]) -> None:
    """Make the checkpoint of a scheme unless the run has it already; ``texts`` gives its calibration texts."""
    arm, out = scheme.name, context.folder(scheme.name)
    libraries = [version(name) for name in ("llmcompressor", "compressed-tensors")]
    recipe = context.recipe
    of = context.digest(FULL), scheme.name, context.prompt, recipe.quantize.model_dump(), recipe.seed, libraries
    by = context.written_by(FULL) if scheme.calibrated else ()
    made_by = digest("quantize", *of, *context.drawing[:1], *by)  # one solution of each calibration problem, however many others have
    kept = context.finished(Quantized, arm, made_by)
    if kept and context.holds(arm, kept.checkpoint):
        return
    calibration = texts() if scheme.calibrated else []
    with context.stages.stage(f"{arm}: quantize", 1, "model") as tick:
        start = time.perf_counter()
        layers = quantizer.quantize(context.parent, scheme, calibration, out)
        tick(1)
    seconds, checkpoint = time.perf_counter() - start, load.checkpoint_digest(out)
    context.dir.keep(Quantized(arm=arm, made_by=made_by, seconds=seconds, checkpoint=checkpoint, layers=layers))
    context.made(arm, checkpoint)


def alone(model: str, scheme: schemes.Scheme, out: Path, samples: int, data: sources.Data) -> None:
    """``stepmend quantize``: calibrate on the model's own traces of calibration problems, and write ``out``.

    Problems that equal or overlap a run's test problems are left out, if the test problems are available.
    """
    parent = load.locate(model)
    quantizer.preflight(parent, scheme)
    tokenizer = load.load_tokenizer(parent)
    builtin = model.startswith(load.BUILTIN)
    texts = []
    if scheme.calibrated:
        found = data.problems("calibration", samples, 0)
        with suppress(InputError):  # a folder may hold training problems alone
            found, _ = leakage.kept(found, leakage.Index(data.measured(None, 0)))
        form = chat.form_of(tokenizer, parent, builtin=builtin)
        prompts = [form.render(tokenizer, problem.question) for problem in found]
        tokens = chat.tokens_for(form, load.config_of(parent), builtin=builtin)
        completions = complete_all(LocalEngine(load.load_model(parent), tokenizer, tokens), prompts, 32)
        texts = [p + c.text + tokenizer.eos_token for p, c in zip(prompts, completions, strict=True)]
    quantizer.quantize(parent, scheme, texts, out)
