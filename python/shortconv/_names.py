"""Messages of the core in the words of the function that the caller called.

The core names its own arguments and axes. A function with other names registers a table with the
decorator argument_names, which returns the function itself: a call without errors costs nothing.
"""

import re
import sys
from types import CodeType
from typing import Any, Callable, Dict, Optional, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
# What the core and this package raise; subclasses may have other constructors.
_TRANSLATED = (NotImplementedError, RuntimeError, TypeError, ValueError)


class _Names:
    """Names of one function.

    Args:
      names: {argument of the core: argument of the function}.
      reversed_from: {argument of the core: number of axes}; from this number of axes on, the
        function takes the last two in the other order than the core.
    """

    def __init__(self, names: Dict[str, str], reversed_from: Dict[str, int]) -> None:
        self._names = names
        self._reversed_from = reversed_from
        words = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        # "no state" and "final state" are English.
        self._words = re.compile(rf"(?<!\bno )(?<!\bfinal )\b({words})\b") if names else None

    def translate(self, text: str) -> str:
        text = re.sub(r"needs (\d+) from column (-?\d+) \(base_column\) on",
                      lambda match: f"needs {int(match[1]) + max(int(match[2]), 0)}", text)
        # The numbers of axes are those of the core.
        text = re.sub(r"\baxis \d+ \('([^']*)'\)", r"axis '\1'", text)
        text = re.sub(r"\baxis \d+ has stride", "an axis has stride", text)
        text = re.sub(r"^(\w+)(: expected \d+ axes )\[(.*?)\]", self._reverse_axes, text)
        if self._words is None:
            return text
        return self._words.sub(lambda word: self._names[word.group()], text)

    def _reverse_axes(self, match: "re.Match[str]") -> str:
        argument, expected, axes = match.group(1), match.group(2), match.group(3).split(", ")
        if len(axes) >= self._reversed_from.get(argument, len(axes) + 1):
            axes[-2:] = axes[:-3:-1]
        return f"{argument}{expected}[{', '.join(axes)}]"


_tables: Dict[CodeType, _Names] = {}


def argument_names(names: Dict[str, str],
                   reversed_from: Optional[Dict[str, int]] = None) -> Callable[..., Any]:
    """A decorator that registers the argument names of a function; see _Names."""
    def register(function: _Function) -> _Function:
        _tables[function.__code__] = _Names(names, reversed_from or {})
        return function

    return register


def for_caller(error: Exception) -> Exception:
    """The error in the words of the outermost function with registered names on the stack."""
    table, frame = None, sys._getframe(1)
    while frame is not None:
        table = _tables.get(frame.f_code, table)
        frame = frame.f_back
    if table is None or type(error) not in _TRANSLATED:
        return error
    return type(error)(table.translate(str(error)))
