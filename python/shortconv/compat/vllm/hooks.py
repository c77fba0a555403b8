"""What install() needs to know about an installed vLLM: whether its functions have the parameters
of ours, and when its layers are imported.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any, Callable, Dict, Optional

from shortconv.compat._common import Function


def version() -> str:
    """The version of the vLLM that is loaded, for messages."""
    return f"vllm {getattr(sys.modules.get('vllm'), '__version__', 'of an unknown version')}"


def require_parameters(name: str, theirs: Function, ours: Function, positional: int) -> None:
    """Compares the signatures of a function of vLLM and of the one that replaces it.

    Args:
      positional: the number of parameters that callers pass by position.

    Raises:
      ImportError: `theirs` has a parameter that `ours` lacks, or others in the first places.
    """
    try:
        found = list(inspect.signature(theirs).parameters)
    except (TypeError, ValueError):
        raise ImportError(f"{name} of {version()}: is {theirs!r}; expected a function with a "
                          "signature") from None
    known = list(inspect.signature(ours).parameters)
    unknown = [one for one in found if one not in known]
    if unknown:
        raise ImportError(f"{name} of {version()}: has the parameters {', '.join(unknown)}, which "
                          f"shortconv does not know; expected only {', '.join(known)}")
    if found[:positional] != known[:positional]:
        raise ImportError(f"{name} of {version()}: begins with ({', '.join(found[:positional])}); "
                          f"expected ({', '.join(known[:positional])}), which callers pass by "
                          "position")


class ImportHook(importlib.abc.MetaPathFinder):
    """Calls a function with a module right after it has been imported.

    Layers are not imported by install(): they load kernels and initialize CUDA, which the process
    that starts the workers must not do.

    Args:
      actions: {module name: function of the module}.
    """

    def __init__(self, actions: Dict[str, Callable[[ModuleType], None]]) -> None:
        self._actions = actions

    def find_spec(self, name: str, path: Any = None,
                  target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if name not in self._actions:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._actions[name])
                return spec  # type: ignore[no-any-return]
        return None


class _Loader(importlib.abc.Loader):
    """Loads with another loader and calls a function with the module."""

    def __init__(self, loader: Any, action: Callable[[ModuleType], None]) -> None:
        self._loader, self._action = loader, action

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        module: Optional[ModuleType] = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._action(module)
