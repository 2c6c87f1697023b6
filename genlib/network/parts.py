"""Which parts of a network are asked for, by patterns of their names."""

import fnmatch
import re
from collections.abc import Collection

__all__ = ["Parts", "Patterns", "above", "joined", "one_by_one"]

Patterns = str | Collection[str] | None


class Parts:
    """The layers that match `include`, all if it is None, of a network as if what matches `exclude` weren't in it.

    Patterns are those of the shell. A name matches one where it does itself, or a module does that holds it.
    """

    def __init__(self, include: Patterns = None, exclude: Patterns = None):
        self._include = None if include is None else _Matching("include", include)
        self._exclude = _Matching("exclude", exclude)

    def excluded(self, name: str) -> bool:
        return name in self._exclude

    def wanted(self, name: str) -> bool:
        return not self.excluded(name) and (self._include is None or name in self._include)

    def require_met(self, names: set[str]) -> None:
        """Refuse a pattern that none of these matches: it says other than was meant."""
        for matching in filter(None, (self._include, self._exclude)):
            for pattern in matching.patterns:
                met = pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)
                if not met and not any(outer in matching for outer in above(pattern)):
                    raise ValueError(
                        f"{matching.argument} holds {pattern!r}, which is no part of the network; give names of "
                        "modules or layers, as norms.layer_names has them, or patterns of these"
                    )


class _Matching:
    def __init__(self, argument: str, patterns: Patterns):
        self.argument, self.patterns = argument, dict.fromkeys(one_by_one(argument, patterns))
        self._form = re.compile("|".join(map(fnmatch.translate, self.patterns)))  # one for all: there may be hundreds

    def __contains__(self, name: str) -> bool:
        names = (*above(name), name) if self.patterns else ()
        return any(one in self.patterns or self._form.match(one) for one in names)


def one_by_one(argument: str, patterns: Patterns) -> list[str]:
    """The patterns in a list; refused where they are none."""
    patterns = () if patterns is None else (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{argument} is {patterns!r}; give the name of a module, a pattern, or a list of these")
    return list(patterns)


def above(name: str) -> list[str]:
    """The names of the modules that hold this one."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def joined(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part
