"""How well the shipped reasoners solve held-out problems: 500 a level, greedy. Writes docs/results/reasoners.md.

python benchmarks/reasoners.py            # the shipped checkpoints
python benchmarks/reasoners.py FOLDER …   # other checkpoints; printed, not written
"""

import argparse
import itertools
import sys
from pathlib import Path

from stepmend import grading
from stepmend.benchmarks import story
from stepmend.engines.local import LocalEngine, complete_all
from stepmend.grading import verify
from stepmend.measure import statistics
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS, FAMILIES
from stepmend.report.summary import percent

PAGE = Path(__file__).parents[1] / "docs" / "results" / "reasoners.md"
TARGETS = {"easy": 0.97, "medium": 0.90, "hard": 0.70}


def outcomes(folder: Path, split: str, level: str, count: int, seed: int) -> statistics.Outcomes:
    """Right or not, problem by problem."""
    import numpy as np

    tokenizer = load.load_tokenizer(str(folder))
    engine = LocalEngine(load.load_model(str(folder)), tokenizer, 180)
    problems = list(itertools.islice(story.problems(split, level, seed=seed), count))
    prompts = [chat.render(tokenizer, "plain-1", problem.question) for problem in problems]
    found = [grading.extract(completion.text) for completion in complete_all(engine, prompts, 150)]
    with verify.Verifier() as verifier:
        judged = grading.judge(found, [p.answer for p in problems], "number", verifier)
    return np.array([outcome == "correct" for outcome, _ in judged])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="checkpoints; without any: the shipped ones")
    parser.add_argument("--count", type=int, default=500, help="problems a level")
    parser.add_argument("--split", default="test", help="test, or train to look without touching what is reported")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    args = parser.parse_args()
    lines = ["| reasoner | level | n | right | 95 % (Wilson) | at least |", "|---|---|---|---|---|---|"]
    for folder in args.folders or [CHECKPOINTS / family for family in FAMILIES]:
        for level, target in TARGETS.items():
            found = outcomes(folder, args.split, level, args.count, args.seed)
            share = statistics.accuracy(found)
            interval = f"{percent(share.low)} to {percent(share.high)}"
            lines.append(f"| {folder.name} | {level} | {len(found)} | {percent(share.value)} | {interval} | {percent(target)} |")
            print(lines[-1], file=sys.stderr)
    text = "\n".join(lines) + "\n"
    if not args.folders:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(
            f"# The built-in reasoners\n\n`python benchmarks/reasoners.py` wrote this page: `story` {args.split}, greedy.\n\n{text}"
        )
    print(text)


if __name__ == "__main__":
    main()
