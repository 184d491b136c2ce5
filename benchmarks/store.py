"""What a run's folder costs: peak memory and seconds to open, resume and report runs of many long solutions, made up for it.

``python benchmarks/store.py`` writes docs/results/store.md; ``--problems 100000`` (may be given again) measures other sizes, and
``--tokens`` other lengths. Each size needs about 0.3 MB of disk a problem at 32,768 tokens, in ``--work``, which is removed afterwards.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepmend import Grade, Problem, Recipe, Trace
from stepmend.keeping import Grades
from stepmend.report import summary
from stepmend.rundir import RunDir

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/results/store.md"
LARGE, SMALL = "full", "rtn-w4a16-g128"
FEW = 100
"""Problems of the small arm, whose records lie behind the large one's in the same files."""


def problem(number: int) -> Problem:
    return Problem(id=f"p{number:06}", benchmark="jsonl", split="test", level="all", question=f"{number} + 1?", answer=str(number + 1))


def fill(folder: Path, count: int, tokens: int) -> None:
    """A run of ``count`` solutions of full precision and ``FEW`` of a quantized model."""
    text = "Step 1: 1 + 1 = 2, so that it is. " * (tokens // 10)
    trace = Trace(
        problem="PROBLEM", arm="ARM", made_by="t-ARM", text=text, tokens=tuple(i * 37 % 150_000 for i in range(tokens)), finish="stop"
    )
    grade = Grade(problem="PROBLEM", arm="ARM", made_by="g-ARM", outcome="correct", extracted="2", form="boxed")
    with RunDir(folder, Recipe.make({"schemes": [SMALL]})) as run:
        run.keep_problems([problem(i) for i in range(count)])
        for arm in (LARGE, SMALL):
            run.announce(f"{arm}: traces, test", f"t-{arm}")
            run.announce(f"{arm}: grades, test", f"g-{arm}")
    for name, record in (("traces", trace), ("grades", grade)):
        line = record.model_dump_json() + "\n"
        with (folder / f"{name}.jsonl").open("w") as stream:
            for arm, size in ((LARGE, count), (SMALL, min(FEW, count))):
                stream.writelines(line.replace("PROBLEM", f"p{i:06}", 1).replace("ARM", arm, 2) for i in range(size))


def resume(folder: Path, arm: str) -> int:
    """What a resumed stage does: find what is there, check it, and go through it once."""
    with RunDir(folder, Recipe.make({"schemes": [SMALL]})) as run:
        traces = run.of(Trace, f"t-{arm}")
        graded = Grades(run, None, [f"g-{arm}"], [])  # pyright: ignore[reportArgumentType]  # nothing is left to grade
        return sum(len(traces[name].tokens) for name in traces) + len(graded.done)


def report(folder: Path) -> int:
    """What a report reads, and one figure of every solution."""
    found = summary.read(folder)
    return sum(len(found.traces[LARGE][one.id].tokens) for one in found.test)


WORK: dict[str, Callable[[Path], int]] = {
    "nothing (Python and its libraries)": lambda folder: 0,
    f"resume a stage of {FEW} problems": lambda folder: resume(folder, SMALL),
    "resume the stage of all problems": lambda folder: resume(folder, LARGE),
    "read it for a report, every solution twice": report,
}


def measured(name: str, folder: Path, out: Any) -> None:
    start = time.perf_counter()
    WORK[name](folder)
    out.put((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def rows(count: int, tokens: int, work: Path) -> list[str]:
    """A table row for each piece of work, each in a separate process."""
    folder = Path(tempfile.mkdtemp(dir=work)) / "run"
    fill(folder, count, tokens)
    size, lines = sum(file.stat().st_size for file in folder.iterdir()) / 2**30, []
    for name in WORK:
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=measured, args=(name, folder, out := context.Queue()))
        child.start()
        seconds, peak = out.get()
        child.join()
        print(json.dumps({"problems": count, "work": name, "seconds": seconds, "peak": peak}), flush=True)
        lines.append(f"| {count:,} | {size:.2f} | {name} | {seconds:.1f} | {peak:,.0f} |")
    shutil.rmtree(folder.parent)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, action="append", help="how many solutions (may be given again; default 1,000 and 10,000)")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of each solution")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where the runs are made")
    args = parser.parse_args()
    found = [row for count in args.problems or (1_000, 10_000) for row in rows(count, args.tokens, args.work)]
    PAGE.write_text(
        f"""# The store

`python benchmarks/store.py` wrote this page. Made-up runs: full precision's solutions, of {args.tokens:,} tokens each, and {FEW} of a
quantized model after them in the same files. Each piece of work runs in a separate process; its peak memory holds Python and the
libraries. A record is found by an index of the file, checked once when its stage is resumed, and parsed again when it is read; 32 MB of
lines stay parsed.

| problems | GiB on disk | work | seconds | peak MiB |
|---|---|---|---|---|
"""
        + "\n".join(found)
        + "\n"
    )


if __name__ == "__main__":
    main()
