"""The names of benchmarks, as a recipe takes them."""

from typing import Annotated

from pydantic import AfterValidator


def _known(name: str) -> str:
    """A benchmark's name. Raises ValueError for an unknown name."""
    from stepmend.benchmarks import sources  # here: --help need not load what grades

    if name not in sources.NAMES:
        raise ValueError(f"input should be {', '.join(map(repr, sources.NAMES[:-1]))} or {sources.NAMES[-1]!r}")
    return name


Benchmark = Annotated[str, AfterValidator(_known)]
"""The name of a benchmark that there is."""
