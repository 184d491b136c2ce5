"""Grading against labels, and beside plain Math-Verify. Writes docs/results/grading.md.

python benchmarks/grading.py [--data FOLDER] [--math-verify TESTS]

FOLDER is the real data: GSM8K, MATH-500, OpenAI's solutions, SmoothQuant traces. TESTS is the folder ``tests`` of a clone of
https://github.com/huggingface/Math-Verify, whose cases are run and not copied.
"""

import argparse
import importlib
import inspect
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepmend import grading, tables
from stepmend.grading import files, symbolic, verify

ROOT = Path(__file__).parents[1]
PATIENT = 60.0
"""Seconds for a pair, so that a busy machine changes no figure."""
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
        counted = files.counts(files.grade_file(data / file, answer, "answer", kind=kind, limit=PATIENT))
        lines.append(f"| {name} | {counted['correct']} of {counted['n']} | at least {least} |")
    return lines


def against_labels(data: Path) -> tuple[list[str], list[str]]:
    """Agreement with the labels of others: table rows, and every disagreement."""
    rows, disagreements = tables.read(data / SOLUTIONS), []
    agreed = 0
    for model in MODELS:
        graded = files.grade_file(data / SOLUTIONS, f"{model}.solution", "ground_truth", kind="number", limit=PATIENT)
        for row, grade in zip(rows, graded, strict=True):
            same = (grade["outcome"] == "correct") == row[model]["is_correct"]
            agreed += same
            if not same:
                disagreements.append(explain(f"OpenAI, {model}, record {grade['record']}", grade, row[model]["is_correct"]))
    total = len(rows) * len(MODELS)
    lines = [f"| OpenAI's example solutions, `is_correct` | {agreed} of {total} ({100 * agreed / total:.2f} %) | at least 99.8 % |"]
    rows, graded = tables.read(data / TRACES), files.grade_file(data / TRACES, "generated_text", "gold", limit=PATIENT)
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


def e_notation() -> list[str]:
    """60 numbers in e-notation, drawn once (seed 0), against the same and against another one in LaTeX."""
    draw = random.Random(0)
    pairs, others = [], []
    for _ in range(60):
        digits, exponent = draw.randint(1, 9999), draw.choice([*range(-40, -4), *range(5, 41)])
        mantissa = f"{digits / 10 ** (len(str(digits)) - 1):.{len(str(digits)) - 1}f}"
        sign = draw.choice(["\\times", "\\cdot"])
        pairs.append((f"{mantissa}{sign} 10^{{{exponent}}}", f"{mantissa}e{exponent}"))
        others.append((f"{mantissa}{sign} 10^{{{exponent + draw.choice([-1, 1])}}}", f"{mantissa}e{exponent}"))
    with verify.Verifier(limit=PATIENT) as verifier:
        same, different = verifier.decide(pairs).count("equal"), verifier.decide(others).count("different")
    return [
        f"| e-notation against LaTeX, the same number | {same} of {len(pairs)} equal | {len(pairs)} |",
        f"| e-notation against LaTeX, ten times or a tenth of it | {different} of {len(others)} different | {len(others)} |",
    ]


def pairs_of_golds(data: Path) -> tuple[list[str], list[str]]:
    """All pairs of different texts among the gold answers of one subject: which are called equal, and on whose word."""
    by_subject: dict[str, dict[str, None]] = {}
    for row in tables.read(data / "math/math500_test.jsonl"):
        by_subject.setdefault(row["subject"], {})[row["answer"]] = None
    pairs = [pair for golds in by_subject.values() for pair in itertools.combinations(golds, 2)]
    with verify.Verifier(limit=PATIENT) as verifier:
        verdicts = verifier.decide(pairs)
    equal = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict == "equal"]
    false = [pair for pair in equal if not (math_verify_says(*pair) and numbers_say(*pair))]
    undecided = sum(verdict not in ("equal", "different") for verdict in verdicts)
    row = (
        f"| MATH-500 golds, all pairs of one subject | {len(false)} falsely equal of {len(pairs):,}; {len(equal)} equal, "
        f"{undecided} undecided | 0 falsely equal |"
    )
    lines = [f"- `{a}` and `{b}`: equal{', and false' if (a, b) in false else ''}." for a, b in equal]
    return [row], lines


def math_verify_says(first: str, second: str) -> bool:
    from math_verify import parse
    from math_verify import verify as plain

    return plain(parse(f"\\boxed{{{first}}}"), parse(f"\\boxed{{{second}}}"))


def numbers_say(first: str, second: str) -> bool:
    """Whether both answers have the same values."""
    return symbolic.by_number(first, second) is True


def math_verify_cases(folder: Path) -> Iterator[tuple[str, str, str, bool]]:
    """(name, gold, prediction, expected) of the parametrized tests that ask for nothing but a verdict."""
    # They import each other by their folder's name.
    sys.path.insert(0, str(folder.resolve().parent))
    for file in sorted(folder.glob("test_*.py")):
        module = importlib.import_module(f"{folder.name}.{file.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            for mark in getattr(function, "pytestmark", []):
                names = mark.args[0] if mark.name == "parametrize" else ""
                if (names if isinstance(names, str) else ",".join(names)).replace(" ", "") != "gold,pred,expected":
                    continue
                for number, case in enumerate(mark.args[1]):
                    gold, said, expected = getattr(case, "values", case)
                    yield f"{file.stem}::{name}[{number}]", gold, said, bool(expected)


def of_math_verify(folder: Path | None) -> tuple[list[str], list[str]]:
    """Our verdicts on Math-Verify's own test cases, beside its own with its defaults."""
    if folder is None:
        return [], ["Not run: `--math-verify` names no folder."]
    from math_verify import parse
    from math_verify import verify as plain

    cases = list(math_verify_cases(folder))
    found = [grading.answer_of(said) for _, _, said, _ in cases]
    golds = [grading.gold_of(gold).strip("$") for _, gold, _, _ in cases]
    with verify.Verifier(limit=PATIENT) as verifier:
        judged = grading.judge(found, golds, "math", verifier)
    wrong = [
        f"- {name}: expected {'equal' if expected else 'different'}, here {outcome}{f' ({reason})' if reason else ''}."
        for (name, _, _, expected), (outcome, reason) in zip(cases, judged, strict=True)
        if (outcome == "correct") != expected
    ]
    theirs = sum(bool(plain(parse(gold), parse(said))) == expected for _, gold, said, expected in cases)
    agreed = len(cases) - len(wrong)
    return [f"| Math-Verify's own test cases | {agreed} of {len(cases)} (Math-Verify with its defaults: {theirs}) | |"], wrong


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
    parser.add_argument("--math-verify", type=Path, help="the folder tests of a clone of Math-Verify")
    arguments = parser.parse_args()
    data = arguments.data
    labels, disagreements = against_labels(data)
    golds, equal = pairs_of_golds(data)
    cases, missed = of_math_verify(arguments.math_verify)
    page = "\n".join(
        [
            "# Grading", "", "`python benchmarks/grading.py` wrote this page.", "",
            "| what | agreement | target |", "|---|---|---|", *against_gold(data), *labels, *e_notation(), *golds, *cases, "",
            "## Disagreements with labels, one by one", "", *(disagreements or ["None."]), "",
            "## Gold answers of one subject that are called equal", "", *(equal or ["None."]), "",
            "## Math-Verify's cases that are decided otherwise here", "", *(missed or ["None."]), "",
            "## Speed", "", *beside_math_verify(data), "",
        ]
    )  # fmt: skip
    file = ROOT / "docs" / "results" / "grading.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
