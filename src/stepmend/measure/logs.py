"""The logs that arms are read from; see ``stepmend.logs``."""

from stepmend.logs import Fields, Log, Sample, read, read_all

__all__ = ["Fields", "Log", "Sample", "read", "read_all"]
