"""Counts calls of functions, by name."""

import functools

calls = {}


def counted(function):
    """The function, whose calls are counted in `calls`."""
    @functools.wraps(function)
    def call(*arguments, **named):
        calls[function.__name__] = calls.get(function.__name__, 0) + 1
        return function(*arguments, **named)

    return call
