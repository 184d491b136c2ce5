"""The entry point of the command line. Errors that the user can correct are printed as one line on standard error, with exit code 2."""

import errno
import io
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from stepmend import __version__
from stepmend.cli import running  # first, as the help lists verbs in the order they are defined in

# isort: split
from stepmend.cli import benching, blaming, checking, gridding, measuring, watching
from stepmend.cli.common import app
from stepmend.models.load import out_of_memory
from stepmend.progress import visible
from stepmend.records import InputError, one_line

EXTRA = "needs {module}, which is not installed; install it with: pip install 'stepmend[run]'"
HEAVY = frozenset(
    "accelerate compressed_tensors datasets huggingface_hub llmcompressor openai peft safetensors tokenizers torch transformers".split()  # noqa: SIM905
)
"""Import names of the libraries that the extra ``run`` installs."""
USAGE_ERRORS: Any = typer.BadParameter.__base__
"""What a wrong option or argument raises; typer has no public name for it."""
SMALLER = {
    "run": "lower measure.batch_size (models solving) or restore.batch_size (tuning), as in --set restore.batch_size=2, into another --out",
    "restore": "run the recipe again with a lower restore.batch_size or measure.batch_size, into another --out",
    "blame": "use a machine with more memory: both models are held at once",
    "quantize": "lower --samples, or use a machine with more memory",
    "align": "lower --problems or --samples, or use a machine with more memory",
    "bench": "lower --slots, or --max-new-tokens",
    "grade": "grade the file in parts",
}
"""By verb: what to lower where memory runs out."""
INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended: 128 and the signal's number."""
PATH_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)

__all__ = ["app", "benching", "blaming", "checking", "gridding", "main", "measuring", "running", "watching"]


def main() -> None:
    """The entry point: runs a command, and turns errors that the user can correct into one line and exit code 2."""
    warnings.simplefilter("default" if os.environ.get("STEPMEND_DEBUG") else "ignore")
    warnings.showwarning = lambda message, *rest: print(f"stepmend: {one_line(visible(one_line(str(message))))}", file=sys.stderr)
    warnings.filterwarnings("always", module="stepmend")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever a terminal's encoding, and whatever data holds
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except InputError as error:
        _stop(str(error))
    except USAGE_ERRORS as error:
        _stop(f"{error.format_message()} (see 'stepmend --help' and 'stepmend COMMAND --help')")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in HEAVY:
            raise
        _stop(EXTRA.format(module=error.name))
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            where = error.filename or "a file"
            _stop(f"{where}: {error.strerror}; nothing is half-written: free some disk space and run the same command again")
        if error.errno not in PATH_ERRORS:
            raise
        _stop(f"{error.filename}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _stop(f"out of memory; {SMALLER.get(sys.argv[1], 'use a smaller part of the input, or a machine with more memory')}")
    except (typer.Abort, KeyboardInterrupt):
        print("\nstepmend: stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _stop(message: str) -> None:
    print("stepmend: " + one_line(visible(one_line(message))), file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Find the step at which a quantized model starts to reason wrongly, and restore the model there.

    [bold]stepmend run[/]: quantize → measure → locate → curate → restore → report.
    """
