"""What is printed on terminals of any width, and into logs: every value whole, on a line that names it."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from stepmend.cli import main
from stepmend.cli.common import show_table
from stepmend.logs import read
from stepmend.measure import compare
from stepmend.report import compared

WIDTHS = [40, 80, 200]


def on_terminal(width: int, *arguments, seen=lambda said: None) -> list[str]:
    """The lines that a command prints on a terminal of this width; ``seen`` is called with all of it whenever there is more."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    command = [sys.executable, "-m", "stepmend.cli", *map(str, arguments)]
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}  # the terminal itself says
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**known, "TERM": "xterm"}) as done:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 1 << 16):
                said += part
                seen(said)
        except OSError:  # the terminal is closed
            pass
    os.close(ours)
    assert done.returncode == 0, said
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", said.decode()).splitlines()


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Two logs with long names."""
    folder = tmp_path_factory.mktemp("logs")
    files = [folder / f"a-model-with-a-long-name-{name}.jsonl" for name in ("full-precision", "gptq-w3a16-g128")]
    for file, wrong in zip(files, (3, 4), strict=True):
        file.write_text("".join(json.dumps({"id": i, "correct": i % wrong > 0}) + "\n" for i in range(120)))
    return files


def table(logs):
    arms = compare.named([read(file) for file in logs], [], ["a", "b"])
    return compared.table(compare.compare(arms))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_value_of_a_table_is_whole_and_named(logs, width):
    made = table(logs)
    console = Console(file=io.StringIO(), width=width)
    show_table(console, made)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    for column in made.columns:
        for cell in column.cells:
            assert cell in words
    if width == 40:
        assert re.search(r"^  lost: \d+$", shown, re.MULTILINE)
    if width == 200:
        assert len([line for line in shown.splitlines() if "gptq-w3a16-g128" in line]) == 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", ["compare", "schemes", "benchmarks"])
def test_no_line_is_wider_than_the_terminal_and_no_column_is_squeezed(logs, tmp_path, verb, width):
    arguments = (verb, *logs, "--out", tmp_path / "page.html") if verb == "compare" else (verb,)
    lines = on_terminal(width, *arguments)
    assert max(map(len, lines)) <= width
    wanted = {"compare": "against first (95 %)", "schemes": "smoothquant-w8a8-kv8", "benchmarks": "HuggingFaceH4/MATH-500"}[verb]
    assert wanted in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_is_readable_at_any_width(finished_run, tmp_path, width):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", finished_run, run], check=True)
    lines = on_terminal(width, "report", run)
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    for wanted in ("gptq-w4a16-g128", "rtn-w3a16", "against full (95 %)", "loss recovered (95 %)", "held-out problems"):
        assert wanted in words


def test_a_log_has_each_line_whole(logs, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stepmend.cli", "compare", *map(str, logs), "--out", str(tmp_path / "page.html")],
        capture_output=True, text=True, check=True, env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
    )  # fmt: skip
    assert re.search(r"│ a-model-with-a-long-name-gptq-w3a16-g128 +│ 120 ", done.stdout)


def allocate(kind: str):
    """What really happens where there is no memory."""
    import torch

    if kind == "torch":
        torch.empty(1 << 60)
    if kind == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of 15 GiB\n" * 60)
    bytearray(1 << 60)


@pytest.mark.parametrize("kind", ["torch", "gpu", "python"])
@pytest.mark.parametrize(
    ("verb", "setting"),
    [
        (["run", "--out", "{tmp}/out"], "measure.batch_size"),
        (["quantize", "builtin:qwen2", "rtn-w4a16", "{tmp}/out"], "--samples"),
        (["align", "builtin:qwen2", "{tmp}/out"], "--problems"),
    ],
)
def test_no_memory_left_is_one_line_that_names_what_to_lower(monkeypatch, capsys, tmp_path, kind, verb, setting):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: allocate(kind))
    monkeypatch.setattr(sys, "argv", ["stepmend", *(part.format(tmp=tmp_path) for part in verb)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert said[-1].startswith("stepmend: out of memory; ") and setting in said[-1]
    assert "Traceback" not in "".join(said)
