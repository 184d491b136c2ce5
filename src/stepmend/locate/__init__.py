"""Where a trace first goes wrong: steps, and the locators that vote on the first faulty one.

The package can be called: ``stepmend.locate(solutions)`` is ``stepmend.api.locate``.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that can be called (Python's data model, "Customizing module attribute access").

    Importing any module of this package binds the package to the name ``stepmend.locate``; a function of that name would be lost.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """``stepmend.api.locate`` with the same arguments."""
        from stepmend import api

        return api.locate(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
