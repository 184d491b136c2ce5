"""Real right/wrong files of DeepSeek-R1-Distill-Qwen-1.5B on MATH-500, bf16 against each quantized arm. Writes docs/results/r1_distill.md.

python benchmarks/r1_distill.py [--data FOLDER]
"""

import argparse
import os
from pathlib import Path

from stepmend import logs, tables
from stepmend.measure import behaviour, statistics
from stepmend.measure.compare import compare, named
from stepmend.report.compared import against_first
from stepmend.report.summary import percent, points

ROOT = Path(__file__).parents[1]
FOLDER = "solutions/r1-distill-1.5b-quantized"
MODEL = "DeepSeek-R1-Distill-Qwen-1.5B"
ARMS = {
    "bf16": "", "AWQ w4": "-awq-w4g128-tp1", "AWQ w3": "-awq-w3g128-tp1", "GPTQ w4": "-gptq-w4g128-tp1", "GPTQ w3": "-gptq-w3g128-tp1",
    "KV4": "-kvquant_star-kv4-tp1",
}  # fmt: skip


def paired_table(data: Path) -> list[str]:
    files = [data / FOLDER / "per_problem" / f"{MODEL}{arm}_MATH-500.csv" for arm in ARMS.values()]
    fields = logs.Fields(id="idx", correct="is_correct")
    pairs, adjusted = against_first(compare(named([logs.read(file, fields) for file in files], list(ARMS), [""] * len(files))))
    lines = ["| arm | right | lost | gained | against bf16 (95 %) | McNemar p | Holm p | detectable |", "|---|---|---|---|---|---|---|---|"]
    for pair, p in zip(pairs, adjusted, strict=True):
        counts, change = pair.paired, pair.difference
        lines.append(
            f"| {pair.second.name} | {counts.both_right + counts.only_second} of {counts.n} | {counts.only_first} | {counts.only_second} "
            f"| {points(change.value)} ({points(change.low)} to {points(change.high)}) | {counts.p:.2g} | {p:.2g} "
            f"| {percent(statistics.smallest_detectable(counts))} |"
        )
    return [*lines, "", *[f"- {pair.sentence(p)}" for pair, p in zip(pairs, adjusted, strict=True)]]


def loops(data: Path) -> list[str]:
    rows = tables.read(data / FOLDER / "gptq_w3_wrong_w4_right_math500.csv")
    found = {arm: [behaviour.loops(row[f"full_text_{arm}"]) for row in rows] for arm in ("3bit", "4bit")}
    ratio = behaviour.length_ratio(*({str(i): row[f"full_text_{arm}"] for i, row in enumerate(rows)} for arm in ("3bit", "4bit")))
    return [
        f"Of the {len(rows)} problems that GPTQ 3-bit loses and 4-bit solves, the 3-bit solution loops in {sum(found['3bit'])}, the 4-bit",
        f"one in {sum(found['4bit'])} (half of the 4-grams of the last 256 words repeat); the 3-bit texts are {ratio:.2f} times as long.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("STEPMEND_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default, help="the folder of real data (default: STEPMEND_DATA)")
    data = parser.parse_args().data
    page = "\n".join(
        [
            f"# {MODEL} on MATH-500, bf16 against each quantized arm", "",
            "`python benchmarks/r1_distill.py` wrote this page, from right/wrong files that others published.", "",
            *paired_table(data), "", "## Loops", "", *loops(data), "",
        ]
    )  # fmt: skip
    file = ROOT / "docs" / "results" / "r1_distill.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
