"""Callable packages: calling one calls the function of the same name in ``stepmend.api``."""

from types import ModuleType
from typing import Any


class Called(ModuleType):
    """A module that can be called (Python's data model, "Customizing module attribute access").

    Importing any module of a package binds the package to its name in ``stepmend``; a function of that name there would be lost.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """``stepmend.api``'s function of this name, with the same arguments."""
        from stepmend import api

        return getattr(api, self.__name__.rpartition(".")[2])(*arguments, **options)
