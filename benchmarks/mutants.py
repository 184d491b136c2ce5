"""Small mistakes put into ``locate`` and the statistics on purpose, one at a time: which ones do their tests not see?

``python benchmarks/mutants.py`` draws mutants by seed, runs the tests of the files that import the module with the mistake, the one of its
name first, until one fails, and writes docs/results/mutants.md. It goes on where it was stopped; what was found is in runs/mutants.jsonl.
``--again`` tries those that were alive once more, after tests were added. Tests of time, simulations, and tests elsewhere do not take part:
what is alive is an upper bound. Survivors that no test can kill stand in benchmarks/survivors.toml by their keys, with the reason.

A mutant runs in a process forked from one that has imported the libraries already. The commands that some tests start run in processes of
their own, on the unchanged package: a mutant is killed by what a test calls itself.
"""

import argparse
import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PAGE, REASONS = ROOT / "docs/results/mutants.md", Path(__file__).with_name("survivors.toml")
PARTS = {
    "locate": ("src/stepmend/locate/*.py", ("tests/locate/test_*.py",), 100),
    "statistics": (
        "src/stepmend/measure/statistics.py",
        tuple(f"tests/measure/test_{n}.py" for n in ("statistics", "intervals", "recovery")),
        50,
    ),
}
"""By part: the files that are mutated, their tests, and how many mutants are drawn."""
LONG = ("linear", "covers", "covered", "holds_its_level", "useless", "as_often_as", "probability_says")
"""In the names of tests of time and simulations: they take long, and would kill few mutants that the others leave."""
HEAVY = ("llmcompressor", "math_verify", "pandas", "peft", "scipy.stats", "sympy", "torch", "transformers")
SWAPPED: dict[type[ast.AST], Any] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
}  # fmt: skip
TAKEN = ("annotation", "returns", "decorator_list")
"""Parts of the syntax that nothing computes with."""


@dataclass(frozen=True)
class Mutant:
    """One expression, or one statement, of a file replaced; ``number`` counts the file's mutants.

    ``key`` is made of the statement at the top of the file that it is in, so that a change elsewhere leaves it as it is.
    """

    part: str
    file: str
    number: int
    key: str
    line: int
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.file.removeprefix('src/stepmend/')}: {self.before} → {self.after}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The ways in which one piece of code can be wrong."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in SWAPPED:
                yield ast.Compare(node.left, [*node.ops[:place], SWAPPED[type(operator)](), *node.ops[place + 1 :]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPPED[type(node.op)](), node.values)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPPED:
        yield ast.AugAssign(node.target, SWAPPED[type(node.op)](), node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield from (ast.Constant(node.value + step) for step in (1, -1))
    elif isinstance(node, ast.Return) and node.value and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield ast.Return(ast.Constant(None))


def computed(node: ast.AST) -> Iterator[ast.AST]:
    """A piece of code and all pieces in it, without annotations and decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in TAKEN:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from computed(child)


def replacements(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Every mutant of a file: what is replaced, and by what."""
    return ((node, variant) for node in computed(tree) for variant in variants(node))


def mutants(part: str, file: Path) -> list[Mutant]:
    found, place = list[Mutant](), str(file.relative_to(ROOT))
    for statement in ast.parse(file.read_text()).body:
        text = ast.unparse(statement)
        for number, (node, new) in enumerate(replacements(statement)):
            key = hashlib.sha256(f"{place} {text} {number}".encode()).hexdigest()[:16]
            found.append(Mutant(part, place, len(found), key, vars(node)["lineno"], ast.unparse(node), ast.unparse(new)))
    return found


def drawn(seed: int) -> list[Mutant]:
    """The sample: so many of each part, those with the least digests of seed and key; a change of the code changes little of it."""
    found = []
    for part, (pattern, _, count) in PARTS.items():
        every = [mutant for file in ROOT.glob(pattern) for mutant in mutants(part, file)]
        found += sorted(every, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())[:count]
    return found


def mutated(mutant: Mutant) -> ast.Module:
    """The syntax of the mutant's file, with its one mistake."""
    tree = ast.parse((ROOT / mutant.file).read_text())
    old, new = next(pair for number, pair in enumerate(replacements(tree)) if number == mutant.number)

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return ast.copy_location(new, old) if node is old else self.generic_visit(node)

    return ast.fix_missing_locations(Replace().visit(tree))


class Finder:
    """Imports one module of the package with its mistake."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = str(Path(mutant.file).with_suffix("").relative_to("src")).replace("/", ".")
        self.file, self.tree = ROOT / mutant.file, mutated(mutant)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        tree = self.tree

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return compile(tree, self.path, "exec")

        return importlib.util.spec_from_file_location(name, self.file, loader=Loader(name, str(self.file)))


OPTIONS = [
    "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu and not real", "--tb=line",
    "-k", " and ".join(f"not {part}" for part in LONG),
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # of plugins that the libraries have imported
]  # fmt: skip


def forked(work: Callable[[], int], limit: float, log: Path) -> int | None:
    """The exit status of what is done in a child, with all that it starts; None where it took longer than the limit."""

    def run() -> None:
        os.setsid()
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = work()
        sys.stdout.flush()
        os._exit(code)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(limit)
    if child.is_alive():
        os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
        return None
    return child.exitcode


def tests_of(mutant: Mutant) -> list[str]:
    """The test files of a mutant's part that import its module, the one of its name first; those that make a run only if need be."""
    module, stem = str(Path(mutant.file).with_suffix("").relative_to("src")).replace("/", "."), Path(mutant.file).stem

    def imports(file: Path) -> bool:
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        return any(module in (node.module, f"{node.module}.{name.name}") for node in nodes for name in node.names)

    found = [file for pattern in PARTS[mutant.part][1] for file in sorted(ROOT.glob(pattern)) if imports(file)]
    quick = [file for file in found if "in_a_run" not in file.stem] or found
    return [str(file) for file in sorted(quick, key=lambda file: file.stem != f"test_{stem}")]


def ran(mutant: Mutant, limit: float, log: Path) -> dict[str, Any]:
    """How a mutant ended: killed, alive, or stopped by the time limit, which kills it too."""
    start, tests = time.monotonic(), tests_of(mutant)

    def work() -> int:
        sys.meta_path.insert(0, Finder(mutant))  # pyright: ignore[reportArgumentType]
        return int(pytest.main([*OPTIONS, *tests]))

    code = forked(work, limit, log) if tests else 0
    assert code not in (4, 5), f"pytest found no tests: {log.read_text()[-500:]}"
    outcome = "timeout" if code is None else "killed" if code else "alive"
    return {"outcome": outcome, "tests": len(tests), "seconds": round(time.monotonic() - start, 1)}


def write(sample: Sequence[Mutant], done: dict[str, dict[str, Any]], seed: int) -> None:
    """The page."""
    reasons: dict[str, str] = tomllib.loads(REASONS.read_text()) if REASONS.exists() else {}
    lines = [
        "# Mutants", "",
        "`python benchmarks/mutants.py` wrote this page. A mutant is one small change of the code: another comparison, `and` for `or`, `+` "
        "for `-`, a constant one more or one less, a missing `not` or return value. The mutants were sampled with seed "
        f"{seed}. Each one was tested in a separate process, with the test files of its part that import the mutated module, except time "
        "tests and simulations. A mutant is alive if no test fails; one that reaches the time limit counts as killed. Other tests may kill "
        "mutants that are alive here, so the share is an upper bound.", "",
        "| part | drawn | run | killed | by the time limit | alive | alive, 95 % |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for part in PARTS:
        chosen = [mutant for mutant in sample if mutant.part == part]
        counts = Counter(done[mutant.key]["outcome"] for mutant in chosen if mutant.key in done)
        total, alive = counts.total(), counts["alive"]
        if total:
            share = binomtest(alive, total).proportion_ci(method="wilson")
            interval = f"{100 * alive / total:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
            lines.append(f"| {part} | {len(chosen)} | {total} | {counts['killed']} | {counts['timeout']} | {alive} | {interval} |")
    lines += ["", "## Alive", "", "| where | mutation | why |", "|---|---|---|"]
    for mutant in sorted(sample, key=lambda mutant: (mutant.file, mutant.line)):
        if done.get(mutant.key, {}).get("outcome") == "alive":
            cells = (f"`{text}`".replace("|", "\\|") for text in (mutant.before, mutant.after))
            lines.append(f"| {mutant.file}:{mutant.line} | {' → '.join(cells)} | {reasons.get(mutant.key, 'open')} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a mutant counts as killed")
    parser.add_argument("--stop", type=float, help="begin no further mutant after so many seconds")
    parser.add_argument("--again", action="store_true", help="try those that are alive once more")
    parser.add_argument("--page", action="store_true", help="only write the page of what was found")
    args = parser.parse_args()
    kept, log, start = ROOT / "runs/mutants.jsonl", ROOT / "runs/mutants.log", time.monotonic()
    kept.parent.mkdir(exist_ok=True)
    sample = drawn(args.seed)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {row["key"]: row for row in rows}
    again = {mutant.key for mutant in sample if args.again and done.get(mutant.key, {}).get("outcome") == "alive"}
    if not args.page:
        os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
        os.chdir(ROOT)
        sys.path[:0] = [str(ROOT), str(SOURCE)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in HEAVY:
                importlib.import_module(name)
        by_key = sorted(sample, key=lambda mutant: mutant.key)  # whenever it is stopped, both parts have come equally far
        for mutant in by_key:
            if args.stop and time.monotonic() - start > args.stop:
                break
            if mutant.key not in done or mutant.key in again:
                row = {"key": mutant.key, "name": mutant.name, "line": mutant.line, **ran(mutant, args.limit, log)}
                done[mutant.key] = row
                with kept.open("a") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(f"{row['outcome']:8} {row['seconds']:6.1f} s  {mutant.file}:{mutant.line}  {mutant.name}", flush=True)
    write(sample, done, args.seed)


if __name__ == "__main__":
    main()
