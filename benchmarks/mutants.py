"""Small mistakes put into ``locate`` and the statistics on purpose, one at a time: which ones do their tests not see?

``python benchmarks/mutants.py`` draws mutants by seed, runs those tests of each one's folder that call the function with the mistake,
until one fails, and writes docs/results/mutants.md. It goes on where it was stopped; what was found is in runs/mutants.jsonl. ``--again``
tries those that were alive once more, after tests were added. Survivors that no test can kill stand in benchmarks/survivors.toml, with the
reason.

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
import threading
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PAGE, REASONS = ROOT / "docs/results/mutants.md", Path(__file__).with_name("survivors.toml")
PARTS = {
    "locate": ("src/stepmend/locate/*.py", "tests/locate", 100),
    "statistics": ("src/stepmend/measure/statistics.py", "tests/measure", 50),
}
"""By part: the files that are mutated, the folder of their tests, and how many mutants are drawn."""
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


class Calls:
    """A plugin of pytest: by test, its seconds, and the functions of the package that it and its fixtures call, as file and first line."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.by_test: dict[str, set[tuple[str, int]]] = {}
        self.by_fixture: dict[Any, set[tuple[str, int]]] = {}
        self.failed: set[str] = set()

    @contextmanager
    def noted(self, seen: set[tuple[str, int]]) -> Iterator[None]:
        def note(frame: Any, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
                seen.add((os.path.relpath(frame.f_code.co_filename, ROOT), frame.f_code.co_firstlineno))

        before = sys.getprofile()
        sys.setprofile(note)
        threading.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(before)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        with self.noted(self.by_fixture.setdefault(fixturedef, set())):
            return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        start = time.process_time()
        with self.noted(self.by_test.setdefault(item.nodeid, set())):
            result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            self.by_test[item.nodeid].update(*(self.by_fixture.get(one, ()) for one in definitions))
        return result


class Chosen:
    """A plugin of pytest: these tests alone, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.places = {test: place for place, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.places), key=lambda item: self.places[item.nodeid])


OPTIONS = [
    "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu and not real", "--tb=line",
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


Called = dict[str, tuple[float, list[tuple[str, int]]]]


def calls(folder: str, log: Path) -> Called:
    """How long each test of a folder takes, and what it calls; from runs/, where neither the tests nor the package have changed.

    Tests that are skipped, or that fail while they are watched, as those of time do, are left out.
    """
    files = sorted([*(ROOT / folder).rglob("*.py"), *SOURCE.rglob("*.py"), *ROOT.glob("tests/*.py")])
    version = hashlib.sha256("".join(file.read_text() for file in files).encode()).hexdigest()[:16]
    kept = ROOT / f"runs/mutants-{version}.json"

    def work() -> int:
        plugin = Calls()
        pytest.main([*OPTIONS[1:], folder], [plugin])
        passed = {test: [plugin.seconds[test], sorted(seen)] for test, seen in plugin.by_test.items() if test not in plugin.failed}
        kept.write_text(json.dumps(passed))
        return 0

    if not kept.exists():
        forked(work, 3600, log)
    return json.loads(kept.read_text())


def tests_of(mutant: Mutant, called: Called) -> list[str]:
    """The tests that call the function with the mistake, the fastest first; where it is in none, those that call anything in the file."""
    tree = ast.parse((ROOT / mutant.file).read_text())
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line <= (node.end_lineno or 0)
    ]
    outer = min(functions, key=lambda node: node.lineno, default=None)
    first, last = (min([outer.lineno, *(d.lineno for d in outer.decorator_list)]), outer.end_lineno or 0) if outer else (2, 10**6)
    found = [test for test, (_, seen) in called.items() if any(file == mutant.file and first <= line <= last for file, line in seen)]
    return sorted(found, key=lambda test: called[test][0])


def ran(mutant: Mutant, called: Called, limit: float, log: Path) -> dict[str, Any]:
    """How a mutant ended: killed, alive, or stopped by the time limit, which kills it too."""
    start, tests = time.monotonic(), tests_of(mutant, called)

    def work() -> int:
        sys.meta_path.insert(0, Finder(mutant))  # pyright: ignore[reportArgumentType]
        return int(pytest.main([*OPTIONS, *dict.fromkeys(test.partition("::")[0] for test in tests)], [Chosen(tests)]))

    code = forked(work, limit, log) if tests else 0
    assert code not in (4, 5), f"pytest found no tests: {log.read_text()[-500:]}"
    outcome = "timeout" if code is None else "killed" if code else "alive"
    return {"outcome": outcome, "tests": len(tests), "seconds": round(time.monotonic() - start, 1)}


def write(sample: Sequence[Mutant], done: dict[str, dict[str, Any]], seed: int) -> None:
    """The page."""
    reasons: dict[str, str] = tomllib.loads(REASONS.read_text()) if REASONS.exists() else {}
    lines = [
        "# Mutants", "",
        f"`python benchmarks/mutants.py` wrote this page. Mutants drawn by seed {seed}: a comparison, `and` or `or`, `+` or `-` swapped, a "
        "number one more or one less, `not` or a returned value left out. Each ran against tests of its folder that call the function "
        "(without slow ones), in a process of its own. One that no test ends is alive; one that runs beyond the time limit is killed.", "",
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
            lines.append(f"| {mutant.file}:{mutant.line} | {' → '.join(cells)} | {reasons.get(mutant.name, 'open')} |")
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
        called = {part: calls(folder, log) for part, (_, folder, _) in PARTS.items()}
        by_key = sorted(sample, key=lambda mutant: mutant.key)  # whenever it is stopped, both parts have come equally far
        for mutant in by_key:
            if args.stop and time.monotonic() - start > args.stop:
                break
            if mutant.key not in done or mutant.key in again:
                row = {"key": mutant.key, "name": mutant.name, "line": mutant.line, **ran(mutant, called[mutant.part], args.limit, log)}
                done[mutant.key] = row
                with kept.open("a") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(f"{row['outcome']:8} {row['seconds']:6.1f} s  {mutant.file}:{mutant.line}  {mutant.name}", flush=True)
    write(sample, done, args.seed)


if __name__ == "__main__":
    main()
