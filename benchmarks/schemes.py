"""Both built-in reasoners under every method and width: loss, recovery, oracle agreement, time. Writes docs/results/schemes.md.

python benchmarks/schemes.py            # everything; the runs lie in runs/schemes, and a stopped one continues
python benchmarks/schemes.py --quick    # few problems, to see that it works; written beside the runs, not to docs
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import sections

from stepmend.arms import FULL, Arm
from stepmend.facts import Quantized
from stepmend.measure import statistics
from stepmend.quantize import schemes
from stepmend.report import summary

ROOT = Path(__file__).parents[1]
FAMILIES = ("qwen2", "llama")
SCHEMES = (
    "rtn-w4a16-g128", "gptq-w4a16-g128", "awq-w4a16-g128", "gptq-w4a16-g128-kv8", "rtn-w3a16-g128", "gptq-w3a16-g128", "awq-w3a16-g128",
    "rtn-w3a16-g64", "rtn-w3a16", "gptq-w3a16", "rtn-w8a8", "smoothquant-w8a8", "smoothquant-w8a8-kv8",
)  # fmt: skip

SHORTER = ("--set", "curate.problems=2700", "--set", "measure.noise_floor=false")
"""What keeps so many schemes of two reasoners within an hour or two."""

HEAD = """# Every scheme on both built-in reasoners

`python benchmarks/schemes.py` wrote this page. {n} held-out `story` problems, greedy; differences are paired, with Tango's
score interval (95 %); p is the exact McNemar test against full precision, in brackets with Holm's adjustment over the schemes of a
reasoner. A scheme that loses nothing beyond noise on the curate problems is not restored. "Oracle" is the
share of all regressions whose voted step is exactly the first faulty one. Bullets come from 2,700 curate problems. Seconds are of one
machine, with other work on it, and only good for comparison.

"""


def run(family: str, out: Path, quick: bool) -> None:
    """One run of all schemes on one family."""
    arguments = ["run", "--model", f"builtin:{family}", "--out", str(out), *(["--quick"] if quick else []), *SHORTER]
    for scheme in SCHEMES:
        schemes.parse(scheme)
        arguments += ["--scheme", scheme]
    subprocess.run([sys.executable, "-m", "stepmend.cli", *arguments], check=True)


def rows(found: summary.Found) -> list[str]:
    """One Markdown row a scheme."""
    figures: dict[str, Any] = summary.figures(found)["schemes"]
    full, lines = found.outcomes(FULL), []
    for scheme in found.recipe.schemes:
        arm, of = found.outcomes(scheme), figures[scheme]
        change, restored = statistics.difference(arm, full), str(Arm(scheme).restored())
        loss = f"{summary.points(change.value)} ({summary.points(change.low)} to {summary.points(change.high)})"
        back = found.outcomes(restored).mean() if restored in found.arms else None
        agreement, seconds = of["oracle_agreement"], of["restore_seconds"]
        quantizing = getattr(found.facts.get(Quantized, scheme), "seconds", None) or 0.0
        cells = [
            scheme, summary.percent(arm.mean()), loss,
            summary.p_text(of["mcnemar_p"], of["holm"], several=True), summary.percent(back),
            summary.recovery_text(summary.recovery(found, scheme)), str(of["bullets"]),
            summary.percent(agreement), f"{quantizing:.0f}", "–" if seconds is None else f"{seconds:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few problems")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this reasoner (may be given again)")
    args = parser.parse_args()
    page = ROOT / ("runs/schemes-quick" if args.quick else "docs/results") / "schemes.md"
    for family in args.family or FAMILIES:
        out = ROOT / "runs" / ("schemes-quick" if args.quick else "schemes") / family
        run(family, out, args.quick)
        found = summary.read(out)
        full = statistics.accuracy(found.outcomes(FULL))
        accuracy = f"{summary.percent(full.value)} ({summary.percent(full.low)} to {summary.percent(full.high)})"
        lines = [
            f"## {family}\n", f"Full precision: {accuracy}.\n",
            "| scheme | accuracy | against full | p (Holm) | restored | recovery | bullets | oracle | quantize s | restore s |",
            "|---|---|---|---|---|---|---|---|---|---|", *rows(found),
        ]  # fmt: skip
        sections.write(page, HEAD.format(n=len(found.test)), "\n".join(lines) + "\n")
    print(page)


if __name__ == "__main__":
    main()
