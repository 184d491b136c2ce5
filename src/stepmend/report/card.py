"""A restored checkpoint for others: its files, with a model card that says what it is, what was measured, and how to make it again."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stepmend.arms import FULL, parse
from stepmend.benchmarks import sources
from stepmend.files import copy_tree, make_folder
from stepmend.inputs import text as text_of
from stepmend.measure import statistics
from stepmend.records import InputError
from stepmend.report import layers, summary
from stepmend.report.export import eval_records
from stepmend.report.sections.effects import effects
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
HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
"""A name on the hub, with its owner's."""
SERVED = "In vLLM: `vllm serve FOLDER --enable-lora --lora-modules restored=FOLDER/adapter`, and then `restored` as the model's name."


@dataclass(frozen=True)
class Parent:
    """What a card says of the full-precision model: its name on the hub, and its licence as its own card has it; None where not known."""

    name: str | None = None
    licence: dict[str, str] | None = None


def parent_of(found: Found) -> Parent:
    """What is known of a run's full-precision model without asking the hub: by the recipe, and by the card in its folder."""
    model = found.recipe.model
    if (folder := Path(model)).is_dir():
        return Parent(None, licence_of(front_matter(folder / "README.md")))
    return Parent(model if HUB.fullmatch(model) else None)


def front_matter(file: Path) -> dict[str, Any]:
    """The metadata at the beginning of a model card; empty where it has none, or is not there."""
    try:
        part = re.match(r"---\s*\n(.*?)\n---", text_of(file), re.DOTALL)
        found = yaml.safe_load(part[1]) if part else None
    except (yaml.YAMLError, OSError, ValueError):  # InputError is a ValueError
        return {}
    return found if isinstance(found, dict) else {}


def licence_of(card: dict[str, Any]) -> dict[str, str] | None:
    """The licence in a card's metadata, with its name and link where it is one of its own; None where it names none."""
    found = {key: str(card[key]) for key in ("license", "license_name", "license_link") if isinstance(card.get(key), str)}
    return found if "license" in found else None


def export(found: Found, folder: Path, scheme: str, out: Path, *, guard: bool, parent: Parent | None = None) -> None:
    """Copy a run's restored checkpoint to ``out``, whole or not at all, with its model card and what was measured.

    The card is ``README.md``; ``.eval_results/`` holds the accuracy as the hub reads it, where the benchmark is a data set there, and
    ``every_eval_ever/`` that of each arm in the format of that project. None of them holds a problem's text.

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
    measured = effects(found, scheme)
    if guard and measured and measured.missing:
        raise InputError(f"export: refused by --guard, not measured: {'; '.join(measured.missing)}; 'stepmend restore {folder}' does")
    if guard and measured and measured.worse:
        raise InputError(f"export: refused by --guard, restoring made something worse beyond noise: {'; '.join(measured.worse)}")
    if guard and measured and measured.accuracy.verdict != "not worse":
        shown = statistics.verdict_text(measured.accuracy.verdict, measured.margin)
        raise InputError(
            f"export: refused by --guard, accuracy against the quantized model: {summary.span(vars(measured.accuracy))} points on "
            f"{measured.accuracy.n} problems, {shown}; more test problems, or a larger measure.margin, may show it"
        )

    def fill(part: Path) -> None:
        copy_tree(checkpoint, part)
        files = {"README.md": text(found, scheme, arm, parent), **_measured(found, folder, scheme, arm)}
        for name, content in files.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text(content, encoding="utf-8")

    make_folder(out, fill)


def _measured(found: Found, folder: Path, scheme: str, arm: str) -> dict[str, str]:
    """The files that say what was measured, by name."""
    files = {f"every_eval_ever/{name}": content for name, content in eval_records(found, folder, (FULL, scheme, arm)).items()}
    if entries := _entries(found, arm):
        files[f".eval_results/{found.recipe.benchmark}.yaml"] = yaml.safe_dump(entries, sort_keys=False)
    return files


def _entries(found: Found, arm: str) -> list[dict[str, Any]]:
    """The accuracy on a benchmark that is a data set on the hub, in the form of https://huggingface.co/docs/hub/eval-results."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    source = sources.SOURCES.get(found.recipe.benchmark)
    if source is None:
        return []
    name, configuration, _ = source.hub["test"]
    value = round(100 * float(found.outcomes(arm).mean()), 2)
    notes = f"stepmend, {_how(found)}, {len(found.test)} problems of the test split; in percent"
    return eval_result_entries_to_yaml([EvalResultEntry(name, configuration or "default", value, notes=notes)])


def _how(found: Found) -> str:
    measure = found.recipe.measure
    if not measure.temperature:
        return "greedy"
    return f"avg@{measure.samples}, temperature {measure.temperature:g}, top-p {measure.top_p:g}"


def _head(found: Found, scheme: str, parent: Parent) -> str:
    """The metadata that the hub reads."""
    from huggingface_hub import ModelCardData

    benchmarks = [found.recipe.benchmark, found.recipe.curate.benchmark]
    names = [place[0] for name in benchmarks if (source := sources.SOURCES.get(name or "")) for place in source.hub.values()]
    relation: dict[str, Any] = {"base_model": parent.name, "base_model_relation": "quantized"} if parent.name else {}
    form = summary.given(found, scheme).get("format", "compressed-tensors")
    data = ModelCardData(
        **relation,
        **dict[str, Any](parent.licence or {}),
        datasets=list(dict.fromkeys(names)) or None,
        library_name="gguf" if form == "gguf" else "transformers",
        pipeline_tag="text-generation",
        tags=["stepmend", form, scheme],
    )
    return data.to_yaml()


def _pairs(found: Found, scheme: str, arm: str) -> Iterator[str]:
    """The paired table: how problems moved between every two arms."""
    yield "| first → second | both right | lost | gained | both wrong | change (95 %) | p |"
    yield "|---|---|---|---|---|---|---|"
    for one, other in ((FULL, scheme), (scheme, arm), (FULL, arm)):
        first, second = found.outcomes(one), found.outcomes(other)
        of, change = statistics.paired(first, second), statistics.difference(second, first)
        counts = f"{of.both_right} | {of.only_first} | {of.only_second} | {of.both_wrong}"
        yield f"| {one} → {other} | {counts} | {summary.span(vars(change))} | {of.p:.2g} |"


def text(found: Found, scheme: str, arm: str, parent: Parent | None = None) -> str:
    """The model card: Markdown with the front matter that the hub reads."""
    from huggingface_hub import ModelCard

    head = _head(found, scheme, parent or parent_of(found))
    return str(ModelCard(f"---\n{head}\n---\n\n{_body(found, scheme, arm)}"))


def _body(found: Found, scheme: str, arm: str) -> str:
    given = summary.given(found, scheme)
    note, measured, restore = summary.tuning(found, scheme), effects(found, scheme), found.recipe.restore
    made = f"The checkpoint `{scheme}` ({given['format']})," if given else f"Quantized as `{scheme}`, then"
    worse = measured.worse if measured else []
    counted = layers.layers(found, scheme)
    kept = summary.card(found)
    kept |= {"model": _name(kept["model"])} if kept.get("model") else {}
    card = {**kept, **note.model_dump(include={"checkpoint", "export_error", "export_tolerance"})}
    lines = [
        f"# {_name(found.recipe.model)}, {scheme}, restored",
        "",
        f"{made} restored by stepmend on {note.bullets or '?'} bullets at first faulty steps",
        f"({restore.tune}, {restore.objective}). {_what(restore.tune)}",
        "",
        *([f"Layers: {counted['text']}", ""] if counted else []),
        *(ADAPTED if restore.tune == "lora" else []),
        *([SERVED, ""] if restore.tune == "lora" and "vLLM" in summary.loads_in(found, scheme) else []),
        f"| arm | accuracy, {len(found.test)} held-out problems of {found.recipe.benchmark}, {_how(found)} |",
        "|---|---|",
        *[f"| {a} | {percent(found.outcomes(a).mean())} |" for a in (FULL, scheme, arm)],
        "",
        *_pairs(found, scheme, arm),
        "",
        *(["A problem is right where most of its solutions are; p is of sign flips of the shares.", ""] if found.samples > 1 else []),
        f"Loss recovered, (restored − quantized) / (full − quantized): {summary.recovery_text(summary.recovery(found, scheme))}.",
        f"Accuracy kept, over full precision's: {percent(summary.accuracy_kept(found, scheme))} quantized, "
        f"{percent(summary.accuracy_kept(found, arm))} restored.",
        f"The restored model, {summary.beside_full(found, arm)}.",
        *(
            [
                f"Turned right: {measured.accuracy.gained}; turned wrong: {measured.accuracy.lost}.",
                f"Against the quantized model: {measured.text}.",
            ]
            if measured
            else []
        ),
        "",
        *(["## Worse than before, beyond noise", "", *[f"- {line}" for line in worse], ""] if worse else []),
        "## Run card",
        "",
        "```json",
        json.dumps({**card, "layers": counted, "recipe": _shared(found)}, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _name(path: str) -> str:
    """A model's or file's name, without the folders of the machine that it was on."""
    return path if path.startswith("builtin:") or (HUB.fullmatch(path) and not Path(path).exists()) else Path(path).name or path


def _shared(found: Found) -> dict[str, Any]:
    """The recipe without what is nobody else's business: folders of the machine, and addresses of servers."""
    values = found.recipe.model_dump(mode="json")
    values |= {"model": _name(found.recipe.model), "quantized": [_name(path) for path in found.recipe.quantized]}
    for part, key in ((values, "data"), (values["curate"], "data"), (values["locate"], "reliabilities")):
        part[key] = part[key] and _name(part[key])
    locate = values["locate"]
    locate["judges"] = [spec.partition("@")[0] for spec in locate["judges"]]
    locate["completer"] = (one := locate["completer"]) and (one.partition("@")[0] if "@" in one else _name(one))
    return values


def _what(tune: str) -> str:
    if tune == "lora":
        return "The adapter is in `adapter/`, in PEFT's format; without it this is the quantized model."
    same = "same size, same kernels" if "codes" in tune else "same codes, same size, same kernels"
    return f"Only {summary.kinds_text(tune)} differ from the quantized checkpoint: {same}."
