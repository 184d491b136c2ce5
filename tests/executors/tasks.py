"""Tasks for workers in other processes: they count, and some die, stop or hang on the way, once or each time."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stepmend.executors.base import Open
from stepmend.records import InputError, Record


class Numbers(BaseModel):
    """Numbers to hand out, ``seconds`` apart. At ``at`` something happens, where ``marker`` is not there yet."""

    model_config = ConfigDict(frozen=True)

    numbers: tuple[int, ...]
    seconds: float = 0.0
    what: Literal["", "die", "stop", "hang", "refuse", "short of memory"] = ""
    at: int = -1
    marker: str = ""


class Broken:
    """A worker that cannot start."""

    def __init__(self, threads: int) -> None:
        raise ModuleNotFoundError("No module named 'stepmend'")

    def beat(self) -> int:
        return 0


class Number(Record):
    number: int
    process: int


def count(shard: Numbers, open_engine: Open) -> Iterator[Number]:
    for number in shard.numbers:
        time.sleep(shard.seconds)
        if number == shard.at and not (shard.marker and Path(shard.marker).exists()):
            happen(shard)
        yield Number(number=number, process=0)


def happen(shard: Numbers) -> None:
    if shard.marker:
        Path(shard.marker).touch()
    if shard.what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif shard.what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif shard.what == "hang":
        time.sleep(600)
    elif shard.what == "refuse":
        raise InputError("numbers: 3 is not allowed")
    elif shard.what == "short of memory":
        raise MemoryError


def where(shard: Numbers, open_engine: Open) -> Iterator[Number]:
    time.sleep(shard.seconds)
    for number in shard.numbers:
        yield Number(number=number, process=os.getpid())
