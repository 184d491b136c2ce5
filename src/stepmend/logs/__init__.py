"""Readers of other tools' evaluation logs. One file per tool; ``read`` detects the tool."""

from stepmend.logs.base import Fields, Log, Sample
from stepmend.logs.read import read, read_all

__all__ = ["Fields", "Log", "Sample", "read", "read_all"]
