"""All files that users name are opened here: only regular files, and with size limits.

A FIFO or a device could be read forever, and a packed file may unpack to thousands of times its size; either gives a one-line error.
"""

import gzip
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from stepmend.records import InputError

LARGEST = 4 << 30
"""Maximum size in bytes of an unpacked file; once parsed, more would not fit into the memory of a typical machine."""
PACKED = 64 << 20
"""Bytes that any packed file may unpack to …"""
RATIO = 100
"""… and times its own size that it may unpack to beyond that: logs are packed to a tenth, and deflate packs zeros to a thousandth."""
CHUNK = 1 << 12
"""Bytes read at a time from a zip's member: zstd unpacks all of its input, whatever size is requested."""


def regular(file: Path) -> int:
    """The size of a regular file, links followed. Raises InputError if there is none, or something else of that name."""
    try:
        found = file.stat()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{file}: not a regular file{' but a folder' if stat.S_ISDIR(found.st_mode) else ''}")
    return found.st_size


def opened(file: Path, limit: int | None = LARGEST) -> BinaryIO:
    """A regular file, opened to be read. Raises InputError if it is none, cannot be opened, or is larger than ``limit`` bytes."""
    size = regular(file)
    if limit is not None and size > limit:
        raise InputError(f"{file}: larger than {limit:,} bytes")
    try:
        return file.open("rb")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def content(file: Path, limit: int = LARGEST) -> bytes:
    """The content of a file. Raises InputError as ``opened`` does."""
    with opened(file, limit) as stream:
        return stream.read(limit)


def text(file: Path, limit: int = LARGEST) -> str:
    """A file's text, without a byte order mark. Raises InputError as ``opened`` does, and if it is not UTF-8."""
    try:
        return content(file, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text") from None


def bound(packed: int) -> int:
    """Maximum unpacked size of a packed file of this size, in bytes."""
    return min(LARGEST, max(PACKED, RATIO * packed))


def too_large(file: Path, limit: int) -> InputError:
    """The error for a packed file that unpacks to more than ``limit`` bytes."""
    return InputError(f"{file}: unpacks to more than {limit:,} bytes; unpack it yourself if you trust it")


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, read up to a limit."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file, self.stream, self.limit = file, stream, bound(regular(file))
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self.stream.read(len(buffer))
        self.count += len(data)
        if self.count > self.limit:
            raise too_large(self.file, self.limit)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def lines(file: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text of a file, unpacked where its name ends in ``.gz``; to be read as from ``open``.

    Raises InputError as ``opened`` does, if it is not UTF-8 or not gzip, and if it unpacks to too much.
    """
    try:
        with opened(file) as stream:
            if file.suffix.lower() == ".gz":
                stream = io.BufferedReader(_Bounded(file, gzip.GzipFile(fileobj=stream)), 1 << 16)  # pyright: ignore
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{file}: not a valid gzip file") from None


def members(file: Path, archive: zipfile.ZipFile, names: list[str]) -> Iterator[bytes]:
    """The content of a zip's members. Raises InputError if they unpack to too much, by what they declare or in fact."""
    limit = left = bound(regular(file))
    if sum(archive.getinfo(name).file_size for name in names) > limit:
        raise too_large(file, limit)
    for name in names:
        parts = []
        with archive.open(name) as stream:
            while part := stream.read(CHUNK):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise too_large(file, limit)
        yield b"".join(parts)
