"""Grade solutions, and compare two arms that were measured elsewhere; no model is needed.

Run it from anywhere: ``python examples/grade_and_compare.py``. ``data/full.csv`` and ``data/w3.csv`` are made up.
"""

from pathlib import Path

import stepmend

DATA = Path(__file__).parent / "data"


def main() -> None:
    grades = stepmend.grade(DATA / "solutions.jsonl", "solution", "answer")
    print(f"{100 * grades.accuracy:.0f} % of {len(grades.records)} solutions are correct")
    for one in grades.records:
        print(f"  {one.outcome:9} {one.extracted or '–':12} right: {one.gold}{f' ({one.reason})' if one.reason else ''}")
    found = stepmend.compare(DATA / "full.csv", DATA / "w3.csv")
    print(*found.notices(), sep="\n")


if __name__ == "__main__":  # grading starts processes, which read this file again
    main()
