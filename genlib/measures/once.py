"""What is computed when it is first asked for, and once."""

import functools
from collections.abc import Callable

__all__ = ["once", "quantity"]


def once(method: Callable) -> Callable:
    """Compute at the first call with these arguments; a refusal is kept too, for what led to it may have cost much."""

    @functools.wraps(method)
    def kept(self, *args):
        key = (method.__name__, *args)
        if key not in self._found:
            try:
                self._found[key] = method(self, *args)
            except ValueError as error:
                self._found[key] = error
        if isinstance(self._found[key], ValueError):
            raise self._found[key]
        return self._found[key]

    return kept


def quantity(method: Callable) -> property:
    """A quantity that is computed once."""
    return property(once(method))
