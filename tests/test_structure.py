"""Data flows one way: no import cycle among the package's modules, and none reaches into another's private names."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stepmend

PACKAGE = Path(stepmend.__file__).parent


def trees(package: Path) -> dict[str, ast.Module]:
    """Every module of a package, by its name."""
    files = {file.relative_to(package.parent).with_suffix(""): file for file in package.rglob("*.py")}
    return {".".join(path.parts).removesuffix(".__init__"): ast.parse(file.read_text()) for path, file in files.items()}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a module imports anywhere in it, for type checkers alone too: the module, and the name taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            yield from ((node.module or "", name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of the package that each one imports."""
    found = trees(package)
    pairs = {module: {(source, f"{source}.{name}") for source, name in imported(tree)} for module, tree in found.items()}
    return {module: {name if name in found else source for source, name in of} & found.keys() - {module} for module, of in pairs.items()}


def cycle(package: Path) -> list[str]:
    """Modules that import each other in a circle; empty where none do."""
    try:
        TopologicalSorter(imports(package)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.Module) -> set[str]:
    """The private names that a module defines: functions, classes, variables, attributes."""
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    stored |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    stored |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return {name for name in stored if private(name)}


def reaches(package: Path) -> list[str]:
    """Private names of one module of the package that another one uses."""
    found = trees(package)
    ours = set[str]().union(*map(defined, found.values()))
    lines = []
    for module, tree in found.items():
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} & ours - defined(tree)
        used |= {name for source, name in imported(tree) if private(name) and source in found}
        lines += [f"{module} uses {name}" for name in sorted(used)]
    return lines


def test_no_modules_import_each_other():
    assert len(imports(PACKAGE)) > 80
    assert "stepmend.context" in imports(PACKAGE)["stepmend.pipeline"]
    assert cycle(PACKAGE) == []


def test_no_module_reaches_into_another():
    assert reaches(PACKAGE) == []


@pytest.mark.parametrize(
    "second",
    [
        "from made import first\n",
        "from made.first import one\n",
        "import made.first\n",
        "def late():\n    from made import first\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.first import one\n",
    ],
)
def test_a_cycle_is_found_wherever_the_import_stands(tmp_path, second):
    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("from made import second\n\none = 1\n")
    (package / "second.py").write_text("from json import loads\n")
    assert cycle(package) == []
    (package / "second.py").write_text(second)
    assert set(cycle(package)) == {"made.first", "made.second"}


@pytest.mark.parametrize(
    "second",
    ["from made.first import _hidden\n", "from made import first\n\nfirst.One()._kept\n", "from made import first\n\nfirst._hidden\n"],
)
def test_a_private_name_of_another_module_is_found(tmp_path, second):
    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("_hidden = 1\n\n\nclass One:\n    def __init__(self):\n        self._kept = 1\n")
    (package / "second.py").write_text("import os\n\nos._exit\n")
    assert reaches(package) == []
    (package / "second.py").write_text(second)
    assert len(reaches(package)) == 1
