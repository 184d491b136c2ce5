"""What mkdocs runs while it builds: the command line's reference is made from the command line itself."""

import html
import re
import subprocess
import sys
from typing import Any

from mkdocs.structure.files import File, Files

BOLD = re.compile(r'<span style="font-weight: bold">(.*?)</span>', re.DOTALL)


def on_files(files: Files, /, *, config: Any) -> Files:
    """Add ``reference/cli.md``, which typer writes from the verbs' own help."""
    command = [sys.executable, "-m", "typer", "stepmend.cli", "utils", "docs", "--name", "stepmend", "--title", "Command line"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    files.append(File.generated(config, "reference/cli.md", content=BOLD.sub(r"`\1`", html.unescape(made))))
    return files
