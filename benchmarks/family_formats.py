"""Every format with a dense model and with one that has experts: checked, quantized, restored, written, loaded again, or refused.

python benchmarks/family_formats.py        # writes the section on formats of docs/results/families.md

The models are those of ``families.py``, untrained and 128 wide: what is asked is whether each step works, not what it brings. ``check`` is
the command line's; what it does not refuse is quantized and restored for two steps, and the export is compared with what was tuned.
"""

import json
import tempfile
from pathlib import Path

import families
import family_models

FAMILIES = ("llama", "mixtral")
"""A dense model, and one with experts."""
FORMATS = (
    *("w4a16", "rtn-w3a16-g128", "w8a8", "w4a8", "w4afp8", "fp8", "fp8-dynamic", "fp8-block", "nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16"),
    *("mxfp8", "mxfp8a16", "fp8-dynamic-kv8"),
)
"""One scheme for each format."""
KEPT = families.WORK / "formats.json"
"""What was found, by family and scheme."""
WIDE = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 128) | {"head_dim": 32}
"""Widths that groups of 128 divide."""


def bullets(count: int) -> list:
    """Bullets of one wrong number each."""
    from stepmend.records import Bullet

    made = []
    for i, (question, solution) in enumerate(families.counts(count)):
        first, rest = solution.split("\n")
        step, wrong = f"{first}\n", f"{first} 1\n"
        made.append(
            Bullet(
                problem=f"p{i}", arm="q", made_by="benchmark", prefix="", prompt=f"<|user|>{question}<|assistant|>", chosen=step,
                rejected=wrong, continuation=rest, rejected_rest=rest, solution=solution, place=(0, len(step)), step=0,
                error_class="computational",
            )
        )  # fmt: skip
    return made


def walk(model: Path, scheme: str, work: Path) -> str:
    """One scheme through all steps: what was restored, or the line that refuses it before work."""
    from stepmend.keys import Restore
    from stepmend.models import load
    from stepmend.quantize import given, run, schemes
    from stepmend.restore import tune

    if said := families.verb("check", str(model), "--scheme", scheme):
        return f"refused: {said}"
    end = load.load_tokenizer(str(model)).eos_token
    texts = [f"<|user|>{question}<|assistant|>{solution}{end}" for question, solution in families.counts(16)]
    run.quantize(str(model), schemes.parse(scheme), texts, work / "low")
    held = given.look(str(model), str(model), str(work / "low")).holds()
    recipe = Restore.model_validate({"steps": 2, "batch_size": 2, "validation": 0})
    done = tune.restore(str(model), work / "low", bullets(4), recipe, work / "out", seed=0)
    load.load_model(str(work / "out"))
    counts = [f"codes of {done.layers['solved']} layers"] if done.layers["solved"] else []
    counts += [f"scales of {done.layers['rescaled']} layers"] if done.layers["rescaled"] else []
    return f"restored ({', '.join([*counts, str(done.layers['norms']) + ' norms'])}; {held})"


def section() -> str:
    """The section of the page, in Markdown; empty where nothing was walked."""
    if not KEPT.exists():
        return ""
    found = json.loads(KEPT.read_text())
    lines = [
        "\n## Formats\n",
        "`python benchmarks/family_formats.py` wrote this section. Untrained models, 128 wide: `check`, quantized, two steps of tuning "
        "codes, scales and norms, export, reload. Scales count as tuned where they moved before they are rounded to what the file holds.\n",
        f"| scheme | {' | '.join(FAMILIES)} |",
        f"|---|{'---|' * len(FAMILIES)}",
        *(f"| {scheme} | {' | '.join(found[family][scheme].replace('|', '/') for family in FAMILIES)} |" for scheme in FORMATS),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Walk every family and scheme, keep what was found, and put the section into the page."""
    import torch

    from stepmend.models import reasoner

    family_models.SMALL |= WIDE
    tokenizer, found = reasoner.make_tokenizer(), dict[str, dict[str, str]]()
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            model, found[family] = Path(folder, "model"), {}
            family_models.build(family, len(tokenizer)).to(torch.bfloat16).save_pretrained(model)
            tokenizer.save_pretrained(model)
            for scheme in FORMATS:
                try:
                    found[family][scheme] = walk(model, scheme, Path(folder, scheme))
                except Exception as error:  # whatever a format makes a library raise is what is looked for
                    found[family][scheme] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
                print(f"{family}, {scheme}: {found[family][scheme]}", flush=True)
    families.WORK.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
    families.PAGE.write_text(families.PAGE.read_text().split("\n## Formats\n")[0] + section())


if __name__ == "__main__":
    main()
