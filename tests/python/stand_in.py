"""Modules that stand in for those of an engine."""

import sys
import types


def add_module(monkeypatch, name, members):
    """Adds a module and its packages for the time of a test, unless they exist.

    Returns:
      The module, with `members` among its attributes.
    """
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            module = types.ModuleType(path)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, path, module)
    vars(sys.modules[name]).update(members)
    return sys.modules[name]
