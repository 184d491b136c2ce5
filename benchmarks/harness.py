"""lm-evaluation-harness and stepmend on the same checkpoints, problems and prompt. Writes docs/results/lm-eval.md.

python benchmarks/harness.py --lm-eval PATH/TO/lm_eval full=FOLDER quantized=FOLDER restored=FOLDER [--problems 100] [--out runs/harness]

lm-eval solves a fixed random part of GSM8K's test problems with its Hugging Face backend and the task in docs/guides/lm-eval/, and scores
them itself. stepmend solves and grades the same problems. `stepmend compare` then reads both. An arm that is done is not solved again.
STEPMEND_DATA is the folder of the data.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from material import data_of

from stepmend import Problem, Trace, grading, logs
from stepmend.engines.local import LocalEngine
from stepmend.grading.verify import Verifier
from stepmend.measure.compare import Compared, compare, named
from stepmend.models import chat, load
from stepmend.report.compared import against_first
from stepmend.report.summary import points

ROOT = Path(__file__).parents[1]
TASK = ROOT / "docs/guides/lm-eval/stepmend_gsm8k.yaml"
PAGE = ROOT / "docs/results/lm-eval.md"
DTYPE, TOKENS, BATCH = "float32", 400, 16
RIGHT = {"correct": True, "wrong": False}


def drawn(count: int) -> list[Problem]:
    """A fixed random part of the test problems."""
    test = list(data_of("gsm8k").measured(None, 0))
    random.Random("lm-eval").shuffle(test)
    return test[:count]


def by_harness(program: Path, folder: Path, work: Path, arm: str) -> Path:
    """lm-eval's log of one arm; made where it is not there."""
    found = sorted((work / arm).glob("*/samples_*.jsonl"))
    if not found:
        given = f"pretrained={folder},dtype={DTYPE}"
        command = [program, "run", "--model", "hf", "--model_args", given, "--tasks", "stepmend_gsm8k", "--include_path", TASK.parent]
        command += ["--batch_size", BATCH, "--apply_chat_template", "--output_path", work / arm, "--log_samples"]
        subprocess.run([str(part) for part in command], cwd=work, check=True)
        found = sorted((work / arm).glob("*/samples_*.jsonl"))
    return found[-1]


def by_stepmend(folder: Path, problems: list[Problem], work: Path, arm: str) -> Path:
    """A table of our own solutions of one arm, graded; made where it is not there."""
    file = work / f"{arm}.jsonl"
    if not file.exists():
        tokenizer = load.load_tokenizer(str(folder))
        engine = LocalEngine(load.load_model(str(folder), DTYPE), tokenizer, TOKENS)
        made = engine.complete([chat.render(tokenizer, "steps-1", problem.question) for problem in problems])
        solved = zip(problems, made, strict=True)
        traces = [Trace(problem=p.id, arm=arm, made_by="harness", text=m.text, tokens=m.tokens, finish=m.finish) for p, m in solved]
        with Verifier() as verifier:
            grades = grading.grade_all(traces, problems, "harness", verifier)
        rows = [
            {
                "id": place,
                "text": trace.text,
                "finish_reason": trace.finish,
                "correct": RIGHT.get(grade.outcome),
            }
            for place, (trace, grade) in enumerate(zip(traces, grades, strict=True))
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def outcomes(file: Path) -> dict[int, tuple[bool, str]]:
    """(right, text) of every problem of a log of either program, by its index."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    if "doc_id" in rows[0]:
        return {row["doc_id"]: (bool(row["exact_match"]), row["resps"][0][0]) for row in rows}
    return {row["id"]: (bool(row["correct"]), row["text"]) for row in rows}


def agreement(one: Path, other: Path) -> tuple[int, int, int]:
    """How many problems have the same verdict, the same text, and how many there are."""
    a, b = outcomes(one), outcomes(other)
    assert a.keys() == b.keys(), f"{one} and {other} hold other problems"
    return sum(a[k][0] == b[k][0] for k in a), sum(a[k][1].strip() == b[k][1].strip() for k in a), len(a)


def pairs_of(files: list[Path], arms: list[str]) -> tuple[list[Compared], list[float]]:
    """What ``stepmend compare`` says of the arms: pairs against the first one, and Holm's p."""
    fields = logs.Fields() if "samples_" in files[0].name else logs.Fields(id="id", correct="correct")
    return against_first(compare(named([logs.read(file, fields) for file in files], arms, [""] * len(files))))


def page(arms: list[str], theirs: list[Path], ours: list[Path]) -> str:
    """The page, in Markdown."""
    lines = ["| arm | n | right, lm-eval | right, stepmend | same verdict | same text |", "|---|---|---|---|---|---|"]
    for arm, one, other in zip(arms, theirs, ours, strict=True):
        verdicts, texts, n = agreement(one, other)
        right = [sum(good for good, _ in outcomes(file).values()) for file in (one, other)]
        lines.append(f"| {arm} | {n} | {right[0]} | {right[1]} | {verdicts} | {texts} |")
    lines += ["", "What `stepmend compare` says of each program's files:", ""]
    lines += ["| arms | files of | lost | gained | difference (95 %) | McNemar p | Holm p |", "|---|---|---|---|---|---|---|"]
    for program, files in (("lm-eval", theirs), ("stepmend", ours)):
        for pair, p in zip(*pairs_of(files, arms), strict=True):
            counts, change = pair.paired, pair.difference
            cells = [f"{pair.second.name} against {pair.first.name}", program, counts.only_first, counts.only_second]
            cells += [f"{points(change.value)} ({points(change.low)} to {points(change.high)})", f"{counts.p:.2g}", f"{p:.2g}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", metavar="NAME=FOLDER", help="checkpoints, full precision first")
    parser.add_argument("--lm-eval", type=Path, required=True, help="the program lm_eval, of any environment")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/harness")
    given = parser.parse_args()
    folders = {name: Path(folder).resolve() for name, _, folder in (arm.partition("=") for arm in given.arms)}
    work, problems = given.out.resolve(), drawn(given.problems)
    work.mkdir(parents=True, exist_ok=True)
    rows = ({"question": problem.question, "answer": problem.answer} for problem in problems)
    (work / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = [by_stepmend(folder, problems, work, arm) for arm, folder in folders.items()]
    theirs = [by_harness(given.lm_eval.absolute(), folder, work, arm) for arm, folder in folders.items()]
    asked = [given.lm_eval.absolute().with_name("python"), "-c", "import importlib.metadata as m; print(m.version('lm_eval'))"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    text = page(list(folders), theirs, ours)
    head = f"`python benchmarks/harness.py` wrote this page. lm-eval {version}, {DTYPE}, at most {TOKENS} tokens."
    PAGE.write_text(f"# Beside lm-evaluation-harness\n\n{head}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
