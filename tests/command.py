"""The command line in processes of their own that start at once: forked from one that has imported the libraries already."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["llmcompressor", "peft", "transformers", "stepmend.cli", "stepmend.context", "tests.freeze"])
SECONDS = 600
"""After which a command is ended: a test that waits for ever says nothing."""


def stepmend(*arguments: Any, cwd: Any = None, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """What ``python -m stepmend.cli`` does with these arguments, with its exit status and all that it writes."""
    given = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "out", Path(folder) / "err"
        child = CONTEXT.Process(target=_run, args=(given, str(cwd or Path.cwd()), dict(os.environ if env is None else env), files))
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
        out, err = (file.read_text() if file.exists() else "" for file in files)
    return subprocess.CompletedProcess(["stepmend", *given], child.exitcode or 0, out, err)


def _run(arguments: list[str], cwd: str, env: dict[str, str], files: tuple[Path, Path]) -> None:
    """The child: its standard streams are files, and everything else is as in a new process."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, (name, file) in enumerate(zip(("stdout", "stderr"), files, strict=True), 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
        setattr(sys, name, io.TextIOWrapper(os.fdopen(os.dup(number), "wb"), line_buffering=True))
    sys.argv = ["stepmend", *arguments]
    from stepmend.cli import main

    main()
