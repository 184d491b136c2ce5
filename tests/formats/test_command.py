"""Float formats through the command line, in this process: a preset is checked, made of a built-in reasoner, and the result looked at."""

import sys

import pytest

from stepmend.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def stepmend(monkeypatch, capsys):
    """A call of the command line: exit code, and what it wrote."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["stepmend", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_a_preset_is_made_and_looked_at(stepmend, tmp_path):
    out = str(tmp_path / "low")
    assert stepmend("quantize", "builtin:qwen2", "MXFP4A16", out)[0] == 0
    code, said = stepmend("check", "builtin:qwen2", "--quantized", out)
    assert (code, "a scale in E8M0 32 columns" in said) == (0, True)


def test_what_does_not_fit_is_refused_before_work(stepmend, tmp_path):
    code, said = stepmend(
        "run", "--model", "builtin:qwen2", "--scheme", "nvfp4", "--set", "restore.tune=codes", "--out", str(tmp_path / "run")
    )
    assert code == 2
    assert "codes of nvfp4 are floats and cannot be changed" in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_the_names_are_listed(stepmend):
    code, said = stepmend("schemes")
    assert code == 0
    assert all(name in said for name in ("fp8-dynamic", "nvfp4a16", "gptq-nvfp4", "autoround-mxfp4", "w4afp8"))
