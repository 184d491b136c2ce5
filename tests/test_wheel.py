"""The wheel holds all that the package needs: unpacked outside of the checkout, the command line works."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel's content, on its own."""
    made = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(made)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no package index: the build needs hatchling")
    assert done.returncode == 0, done.stderr
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made / "unpacked")
    return made / "unpacked"


def outside(unpacked: Path, folder: Path, *arguments: str) -> str:
    """What the unpacked package prints, run in a folder that is not the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_works_outside_of_the_checkout(unpacked, tmp_path):
    assert outside(unpacked, tmp_path, "-c", "import stepmend; print(stepmend.__file__)").startswith(str(unpacked))
    assert "compare" in outside(unpacked, tmp_path, "-m", "stepmend.cli", "--help")
    (tmp_path / "a.jsonl").write_text(json.dumps({"out": "so \\boxed{\\frac{1}{2}}", "gold": "0.5"}) + "\n")
    asked = ("-m", "stepmend.cli", "grade", "a.jsonl", "--answer-field", "out", "--gold-field", "gold", "--json")
    assert json.loads(outside(unpacked, tmp_path, *asked))["correct"] == 1


def test_everything_but_code_is_in_the_wheel(unpacked):
    source = ROOT / "src" / "stepmend"
    here = {file.relative_to(source) for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    there = {file.relative_to(unpacked / "stepmend") for file in (unpacked / "stepmend").rglob("*") if file.is_file()}
    assert Path("py.typed") in there and Path("__init__.pyi") in there
    assert here - there == set()
