"""Grading against labels, and beside plain Math-Verify. Writes docs/results/grading.md.

python benchmarks/grading.py [--data FOLDER]     # the folder of real data: GSM8K, MATH-500, OpenAI's solutions, SmoothQuant traces
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.grading import files, verify

ROOT = Path(__file__).parents[1]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
SOLUTIONS = "solutions/gsm8k-openai/example_model_solutions.jsonl"
TRACES = "solutions/r1-distill-1.5b-quantized/smoothquant_w8a8kv8_math100.json"


def against_gold(data: Path) -> list[str]:
    """Gold answers against themselves: everything must be right."""
    lines = []
    checks: tuple[tuple[str, str, str, verify.Kind, int], ...] = (
        ("GSM8K test, `answer` against itself", "gsm8k/test.jsonl", "answer", "number", 1319),
        ("MATH-500, `solution` against `answer`", "math/math500_test.jsonl", "solution", "math", 498),
    )
    for name, file, answer, kind, least in checks:
        counted = files.counts(files.grade_file(data / file, answer, "answer", kind=kind))
        lines.append(f"| {name} | {counted['correct']} of {counted['n']} | at least {least} |")
    return lines


def against_labels(data: Path) -> tuple[list[str], list[str]]:
    """Agreement with the labels of others: table rows, and every disagreement."""
    rows, disagreements = tables.read(data / SOLUTIONS), []
    agreed = 0
    for model in MODELS:
        graded = files.grade_file(data / SOLUTIONS, f"{model}.solution", "ground_truth", kind="number")
        for row, grade in zip(rows, graded, strict=True):
            same = (grade["outcome"] == "correct") == row[model]["is_correct"]
            agreed += same
            if not same:
                disagreements.append(explain(f"OpenAI, {model}, record {grade['record']}", grade, row[model]["is_correct"]))
    total = len(rows) * len(MODELS)
    lines = [f"| OpenAI's example solutions, `is_correct` | {agreed} of {total} ({100 * agreed / total:.2f} %) | at least 99.8 % |"]
    rows, graded = tables.read(data / TRACES), files.grade_file(data / TRACES, "generated_text", "gold")
    agreed = 0
    for row, grade in zip(rows, graded, strict=True):
        label = row["metrics"]["extractive_match"] == 1
        agreed += (grade["outcome"] == "correct") == label
        if (grade["outcome"] == "correct") != label:
            disagreements.append(explain(f"SmoothQuant traces, record {grade['record']}", grade, label))
    lines.append(f"| SmoothQuant traces, `extractive_match` | {agreed} of {len(rows)} | at least 97 |")
    return lines, disagreements


def explain(where: str, grade: dict[str, Any], label: bool) -> str:
    said = f"{grade['outcome']}{', ' + grade['reason'] if grade['reason'] else ''}"
    return f"- {where}: labelled {'right' if label else 'wrong'}, here {said}; answer `{grade['extracted']}`, gold `{grade['gold']}`."


def beside_math_verify(data: Path) -> list[str]:
    """Seconds and verdicts of the fast path with its workers, and of Math-Verify alone, on the same extracted answers."""
    from math_verify import parse
    from math_verify import verify as plain

    rows = tables.read(data / SOLUTIONS)
    pairs = []
    for row in rows:
        gold = grading.gold_of(row["ground_truth"])
        for model in MODELS:
            found = grading.extract(row[model]["solution"])
            pairs.append((found.answer if found else "", gold))
    begin = time.perf_counter()
    theirs = [plain(parse(gold), parse(answer)) for answer, gold in pairs]
    slow = time.perf_counter() - begin
    lines = [f"The same {len(pairs):,} extracted answers, in one run; plain Math-Verify took {slow:.2f} s.", ""]
    lines += ["| kind | seconds | times faster | verdicts that differ |", "|---|---|---|---|"]
    kinds: tuple[verify.Kind, ...] = ("number", "math")
    for kind in kinds:
        begin = time.perf_counter()
        with verify.Verifier() as verifier:
            ours = [verdict == "equal" for verdict in verifier.decide(pairs, kind)]
        fast = time.perf_counter() - begin
        differ = sum(a != b for a, b in zip(ours, theirs, strict=True))
        lines.append(f"| `{kind}` | {fast:.2f} | {slow / fast:.1f} | {differ} |")
    return [
        *lines,
        "",
        "GSM8K's answers are numbers, so `number` is what it is graded with; under `math`, starting the workers is included.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("STEPMEND_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default, help="the folder of real data (default: STEPMEND_DATA)")
    data = parser.parse_args().data
    labels, disagreements = against_labels(data)
    page = "\n".join(
        [
            "# Grading", "", "`python benchmarks/grading.py` wrote this page.", "",
            "| what | agreement | target |", "|---|---|---|", *against_gold(data), *labels, "",
            "## Disagreements, one by one", "", *(disagreements or ["None."]), "",
            "## Speed", "", *beside_math_verify(data), "",
        ]
    )  # fmt: skip
    file = ROOT / "docs" / "results" / "grading.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
