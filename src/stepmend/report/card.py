"""A restored checkpoint for others: its files, with a model card that says what it is, what was measured, and how to make it again."""

import json
from pathlib import Path

from stepmend.arms import FULL, parse
from stepmend.files import copy_tree, make_folder
from stepmend.measure import statistics
from stepmend.records import InputError
from stepmend.report import effects, layers, summary
from stepmend.report.summary import Found, final, percent

ADAPTED = """```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

folder = "."  # this one
dense = CompressedTensorsConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=dense)
model = PeftModel.from_pretrained(model, folder + "/adapter")
```

""".splitlines()
"""How an adapter is loaded."""
SERVED = "In vLLM: `vllm serve FOLDER --enable-lora --lora-modules restored=FOLDER/adapter`, and then `restored` as the model's name."


def export(found: Found, folder: Path, scheme: str, out: Path, *, guard: bool) -> None:
    """Copy a run's restored checkpoint to ``out``, whole or not at all, and write its model card.

    Raises InputError where nothing was restored, ``out`` exists, or ``guard`` is set and the restored model is shown to be worse
    anywhere, is not shown to be within the margin of the quantized model's accuracy, or was not measured.
    """
    arm = final(found, scheme)
    if arm is None:
        raise InputError(f"export: {scheme} was not restored in {folder} ({summary.recovery(found, scheme).reason or 'not measured yet'})")
    checkpoint = folder / parse(arm).folder
    if not checkpoint.is_dir():
        raise InputError(f"export: {checkpoint} is not there any more; 'stepmend restore {folder}' makes it again")
    if out.exists():
        raise InputError(f"export: {out} exists already; choose another folder")
    measured = effects.effects(found, scheme)
    if guard and measured and measured["missing"]:
        raise InputError(f"export: refused by --guard, not measured: {'; '.join(measured['missing'])}; 'stepmend restore {folder}' does")
    if guard and measured and measured["worse"]:
        raise InputError(f"export: refused by --guard, restoring made something worse beyond noise: {'; '.join(measured['worse'])}")
    if guard and measured and measured["accuracy"]["verdict"] != "not worse":
        shown = statistics.verdict_text(measured["accuracy"]["verdict"], measured["margin"])
        raise InputError(
            f"export: refused by --guard, accuracy against the quantized model: {summary.span(measured['accuracy'])} points on "
            f"{measured['accuracy']['n']} problems, {shown}; more test problems, or a larger measure.margin, may show it"
        )

    def fill(part: Path) -> None:
        copy_tree(checkpoint, part)
        (part / "README.md").write_text(text(found, scheme, arm), encoding="utf-8")

    make_folder(out, fill)


def text(found: Found, scheme: str, arm: str) -> str:
    """The model card, Markdown with the front matter that the hub reads."""
    given = summary.given(found, scheme)
    note, measured, restore = summary.tuning(found, scheme), effects.effects(found, scheme), found.recipe.restore
    tags = ["stepmend", given.get("format", "compressed-tensors"), scheme]
    library = "gguf" if given.get("format") == "gguf" else "transformers"
    head = {"base_model": found.recipe.model, "library_name": library, "tags": tags}
    made = f"The checkpoint `{scheme}` ({given['format']})," if given else f"Quantized as `{scheme}`, then"
    worse = measured["worse"] if measured else []
    counted = layers.layers(found, scheme)
    card = {**summary.card(found), **note.model_dump(include={"checkpoint", "export_error", "export_tolerance"})}
    lines = [
        "---",
        *[f"{key}: {json.dumps(value)}" for key, value in head.items()],
        "---",
        "",
        f"# {found.recipe.model}, {scheme}, restored",
        "",
        f"{made} restored by stepmend on {note.bullets or '?'} bullets at first faulty steps",
        f"({restore.tune}, {restore.objective}). {_what(restore.tune)}",
        "",
        *([f"Layers: {counted['text']}", ""] if counted else []),
        *(ADAPTED if restore.tune == "lora" else []),
        *([SERVED, ""] if restore.tune == "lora" and "vLLM" in summary.loads_in(found, scheme) else []),
        f"| arm | accuracy, {len(found.test)} held-out problems of {found.recipe.benchmark} |",
        "|---|---|",
        *[f"| {a} | {percent(found.outcomes(a).mean())} |" for a in (FULL, scheme, arm)],
        "",
        f"Loss recovered, (restored − quantized) / (full − quantized): {summary.recovery_text(summary.recovery(found, scheme))}.",
        f"Accuracy kept, over full precision's: {percent(summary.accuracy_kept(found, scheme))} quantized, "
        f"{percent(summary.accuracy_kept(found, arm))} restored.",
        f"The restored model, {summary.beside_full(found, arm)}.",
        *(
            [
                f"Turned right: {measured['gained']}; turned wrong: {measured['lost']}.",
                f"Against the quantized model: {effects.verdict_text(measured)}.",
            ]
            if measured
            else []
        ),
        "",
        *(["## Worse than before, beyond noise", "", *[f"- {line}" for line in worse], ""] if worse else []),
        "## Run card",
        "",
        "```json",
        json.dumps({**card, "layers": counted, "recipe": found.recipe.model_dump(mode="json")}, indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _what(tune: str) -> str:
    if tune == "lora":
        return "The adapter lies in `adapter/`, in PEFT's format; without it this is the quantized model."
    same = "same size, same kernels" if "codes" in tune else "same codes, same size, same kernels"
    return f"Only {summary.kinds_text(tune)} differ from the quantized checkpoint: {same}."
