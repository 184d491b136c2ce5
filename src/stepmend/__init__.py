"""stepmend finds the step at which a low-bit language model starts to reason wrongly, and restores the model there.

The names below are loaded when they are first used, so that ``import stepmend`` is quick; their types are in ``__init__.pyi``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

HOMES = {
    "api": ("check", "compare", "grade", "run"),
    "logs": ("Fields",),
    "progress": ("Update",),
    "recipe": ("Recipe",),
    "records": ("Bullet", "Fault", "Grade", "InputError", "Problem", "Trace", "Vote"),
    "results": ("Check", "Comparison", "Grades", "Located", "RunResult"),
}
"""The public names, by the module that defines them."""
CALLED = ("blame", "locate")
"""Packages that can be called."""
PUBLIC = {name: home for home, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in CALLED:
        return import_module(f"stepmend.{name}")
    if name not in PUBLIC:
        raise AttributeError(f"module 'stepmend' has no attribute {name!r}")
    return getattr(import_module(f"stepmend.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC, *CALLED})
