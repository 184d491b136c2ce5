"""Located bullets beside their controls, under every kind of loss that a step can have. Writes docs/results/controls.md.

python benchmarks/controls.py                    # the runs lie in runs/controls, and a stopped one continues
python benchmarks/controls.py --only step-dpo    # this section alone; the others stay as they are
python benchmarks/controls.py --quick            # few problems, to see that it works; written beside the runs, not to docs
"""

import argparse
import subprocess
import sys
from pathlib import Path

import sections

from stepmend.arms import FULL
from stepmend.report import summary
from stepmend.report.sections import controls
from stepmend.report.summary import percent, points

ROOT = Path(__file__).parents[1]
FAMILY, SCHEME, SEEDS = "qwen2", "rtn-w3a16", 3
"""What loses most of what the built-in reasoners have, so that there is most to tell apart."""
SHARED = ("curate.problems=3600", "measure.noise_floor=false", "restore.within_noise=true")
VARIANTS: dict[str, tuple[tuple[str, ...], str]] = {
    "step-distill": (("restore.span=step",), "random-step,whole-trace,solved-problems"),
    "prefix-distill": (("restore.span=prefix",), "random-step,shuffled-step,solved-problems"),
    "step-dpo": (("restore.objective=dpo",), "random-step,shuffled-step,whole-response,sft-chosen"),
    "whole-distill": ((), "solved-problems,full-tuned"),
}
"""Keys of the recipe that differ from the default, and the controls that mean something under them. Steps as far along (shuffled-step)
are asked for where random ones are beaten."""

HEAD = """# Located bullets beside their controls

`python benchmarks/controls.py` wrote this page, section by section: `stepmend run --controls … --match both` on the same bullets. Held-out
`story` problems. "Ahead by": located minus control, 95 % paired bootstrap over problems, seeds (replicates of training) averaged within
each problem: it speaks of other problems, not of other seeds; p: paired sign flips, adjusted by Holm's method within a
section. Tokens: supervised ones, over all steps.

"""


def run(name: str, out: Path, quick: bool) -> None:
    """One run with its controls."""
    changes, controls = VARIANTS[name]
    arguments = ["run", "--model", f"builtin:{FAMILY}", "--scheme", SCHEME, "--out", str(out), *(["--quick"] if quick else [])]
    arguments += ["--controls", controls, "--seeds", str(SEEDS), "--match", "both"]
    for change in (*SHARED, *changes):
        if not (quick and change.startswith("curate")):
            arguments += ["--set", change]
    subprocess.run([sys.executable, "-m", "stepmend.cli", *arguments], check=True)


def section(name: str, out: Path) -> str:
    """What was measured under one loss, in Markdown."""
    found = summary.read(out)
    of = controls.controls(found, SCHEME)
    assert of, "the run measured no controls"
    first, bullets = of.located, summary.figures(found)["schemes"][SCHEME]["bullets"]
    full, low = (found.outcomes(arm).mean() for arm in (FULL, SCHEME))
    changes = ", ".join(f"`{change}`" for change in VARIANTS[name][0]) or "the default"
    lines = [
        f"## {name}", "",
        f"{changes}; {FAMILY}, `{SCHEME}`, {len(found.test)} problems, {bullets} bullets, {first.seeds} seeds. Full precision "
        f"{percent(full)}, quantized {percent(low)}.", "", f"**{of.sentence}**", "",
        "| arm | accuracy | located ahead by | p | tokens |", "|---|---|---|---|---|",
        f"| located | {percent(first.accuracy)} | | | {first.tokens:,.0f} |",
    ]  # fmt: skip
    for row in of.rows:
        change = {key: points(value) for key, value in vars(row.difference).items() if key != "reason"}
        ahead = f"{change['value']} ({change['low']} to {change['high']})"
        lines.append(f"| {row.name} | {percent(row.accuracy)} | {ahead} | {row.p:.2g} | {row.tokens:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few problems")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="only this section (may be given again)")
    args = parser.parse_args()
    for name in args.only or VARIANTS:
        runs = ROOT / "runs" / ("controls-quick" if args.quick else "controls")
        run(name, runs / name, args.quick)
        page = (runs if args.quick else ROOT / "docs/results") / "controls.md"
        sections.write(page, HEAD, section(name, runs / name), VARIANTS)
        print(page)


if __name__ == "__main__":
    main()
