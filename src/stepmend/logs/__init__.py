"""Other tools' logs of right and wrong, read into one form. One file per tool; ``read`` tells them apart."""

from stepmend.logs.base import Fields, Log, Sample
from stepmend.logs.read import read, read_all

__all__ = ["Fields", "Log", "Sample", "read", "read_all"]
