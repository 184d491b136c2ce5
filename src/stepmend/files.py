"""Atomic files and folders, append-only files, and no writing through symbolic links."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from stepmend import inputs
from stepmend.records import InputError, Record


def appending(file: Path) -> BufferedWriter:
    """A file opened for appending, created if missing. Raises InputError for a link, and for anything that is not a regular file."""
    if file.exists() and not file.is_symlink():
        inputs.regular(file)  # a FIFO would be waited for
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"out: {file} is a symbolic link; stepmend does not write through links") from None
    return os.fdopen(descriptor, "ab")


def append_lines(stream: BufferedWriter, records: Iterable[Record]) -> None:
    """Append records to a file, a line each, and flush them to disk: all of them, or none if the disk is full."""
    start = os.fstat(stream.fileno()).st_size
    try:
        stream.write("".join(record.model_dump_json() + "\n" for record in records).encode())
        stream.flush()
        os.fsync(stream.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(stream.fileno(), start)
        raise


def write_text(file: Path, text: str) -> None:
    """Write a file atomically."""
    replace(file, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))


def copy_tree(folder: Path, out: Path, ignore: Callable[[str, list[str]], Iterable[str]] | None = None) -> None:
    """Copy what is in a folder into another one. Files and folders are writable there, whatever they were: only content is copied."""
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=ignore, copy_function=shutil.copyfile)
    for path in (out, *out.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o700)


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder atomically: ``fill`` writes into a temporary folder next to it, which is then renamed."""
    part = folder.with_name(folder.name + ".part")
    _remove(part)
    part.mkdir(parents=True)
    try:
        fill(part)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        # safetensors has its own error type; what the system said is in its text.
        if not isinstance(error, OSError) and (said := re.search(r"\(os error (\d+)\)", str(error))):
            raise OSError(int(said[1]), os.strerror(int(said[1])), str(folder)) from error
        raise
    _readable(part)
    _remove(folder)
    part.rename(folder)


def _remove(path: Path) -> None:
    """Remove a folder, a file, or a link but not what it points to, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _readable(folder: Path) -> None:
    """Give files the usual permissions of new files: safetensors makes its files readable only by their owner, and a server may run as
    another user."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file atomically: ``write`` writes a temporary file next to it, which is then renamed.

    The temporary file is always newly created, so nothing is written through a link.
    """
    part = file.with_name(file.name + ".part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        write(part)
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
