"""What the plug-ins of vLLM and SGLang share: the choice of parts, the comparison of signatures,
and changes of modules that are imported later.
"""

import importlib
import importlib.abc
import importlib.machinery
import inspect
import logging
import os
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from shortconv.compat._common import Function, replace_everywhere

Undo = Callable[[], None]
_logger = logging.getLogger(__name__)


def version(package: str) -> str:
    """A package and its version, if it is loaded, for messages."""
    found = getattr(sys.modules.get(package), "__version__", "of an unknown version")
    return f"{package} {found}"


def require_parameters(package: str, name: str, theirs: Function, ours: Function,
                       positional: int) -> None:
    """Compares the signatures of a function of a package and of the one that replaces it.

    Args:
      positional: the number of parameters that callers pass by position.

    Raises:
      ImportError: `theirs` has a parameter that `ours` lacks, or others in the first places.
    """
    where = f"{name} of {version(package)}"
    try:
        found = list(inspect.signature(theirs).parameters)
    except (TypeError, ValueError):
        raise ImportError(
            f"{where}: is {theirs!r}; expected a function with a signature") from None
    known = list(inspect.signature(ours).parameters)
    unknown = [one for one in found if one not in known]
    if unknown:
        raise ImportError(f"{where}: has the parameters {', '.join(unknown)}, which shortconv does "
                          f"not know; expected only {', '.join(known)}")
    if found[:positional] != known[:positional]:
        raise ImportError(f"{where}: begins with ({', '.join(found[:positional])}); expected "
                          f"({', '.join(known[:positional])}), which callers pass by position")


class Wanted(NamedTuple):
    """A function to replace.

    modules: names of modules that define it, of which the first that exists counts; newer and older
      versions have different ones.
    function: ours, of the same name.
    positional: the number of parameters that callers pass by position.
    is_optional: whether some versions lack it.
    """

    modules: Tuple[str, ...]
    function: Function
    positional: int
    is_optional: bool = False


def checked_functions(package: str, wanted: Sequence[Wanted]) -> Dict[Function, Function]:
    """{function of the package: ours}. Imports their modules.

    Raises:
      ImportError: the package or a function is missing, or a function has unknown parameters.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package}: is not installed, or cannot be imported ({error})") from error
    replacements = {}
    for modules, ours, positional, is_optional in wanted:
        module = _first_module(package, modules, ours.__name__)
        theirs = getattr(module, ours.__name__, None)
        if theirs is None and is_optional:
            continue
        if theirs is None:
            raise ImportError(
                f"{version(package)}: has no {ours.__name__} in {module.__name__}")
        require_parameters(
            package, f"{module.__name__}.{ours.__name__}", theirs, ours, positional)
        replacements[theirs] = ours
    return replacements


def _first_module(package: str, names: Sequence[str], function: str) -> ModuleType:
    errors = []
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            errors.append(str(error))
    raise ImportError(f"{version(package)}: has no module {' or '.join(names)} with {function} "
                      f"({'; '.join(errors)})")


class ModuleChange(NamedTuple):
    """How a part of a plug-in changes modules.

    modules: names of the modules; newer and older versions have different ones.
    check: raises ImportError for a module that is not known.
    apply: changes a module and returns what restores it. Nothing if it has been changed before.
    """

    modules: Tuple[str, ...]
    check: Callable[[ModuleType], None]
    apply: Callable[[ModuleType], List[Undo]]


def set_attribute(owner: Any, name: str, value: Any) -> Undo:
    """Sets an attribute and returns a function that restores it."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def require_parts(parts: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for parts that are not known, and for parts without "conv"."""
    if "conv" not in parts or any(one not in known for one in parts):
        raise ValueError(f"parts: are {', '.join(parts) or 'none'}; expected conv, and any of "
                         f"{', '.join(known[1:])}, which need it")


def change_package(package: str, replacements: Dict[Function, Function],
                   changes: Sequence[ModuleChange]) -> Undo:
    """Replaces functions of a package in all loaded modules, and changes modules: those that are
    loaded now, others when they are imported. One of these that is not known is left as it is, with
    a warning.

    Returns:
      A function that restores everything.

    Raises:
      ImportError: a loaded module is not known. Nothing has been changed then.
    """
    by_name = {name: change for change in changes for name in change.modules}
    loaded = {name: sys.modules[name] for name in by_name if name in sys.modules}
    for name, module in loaded.items():
        by_name[name].check(module)
    undo = [replace_everywhere(replacements)]
    for name, module in loaded.items():
        undo += by_name[name].apply(module)
    hook = ImportHook({name: _later(package, change, undo) for name, change in by_name.items()})
    sys.meta_path.insert(0, hook)

    def restore() -> None:
        if hook in sys.meta_path:
            sys.meta_path.remove(hook)
        while undo:
            undo.pop()()
        # Modules that were imported in the meantime have ours as well.
        replace_everywhere({ours: theirs for theirs, ours in replacements.items()}, package)

    return restore


def _later(package: str, change: ModuleChange, undo: List[Undo]) -> Callable[[ModuleType], None]:
    """Changes a module that is imported after the functions were replaced."""
    def on_import(module: ModuleType) -> None:
        try:
            change.check(module)
            undo.extend(change.apply(module))
            _logger.info("%s: shortconv changes %s", version(package), module.__name__)
        except Exception as error:  # the engine goes on with its own layer
            _logger.warning("shortconv does not change a layer: %s", error)

    return on_import


def run_plugin(variable: str, engine: str, known: Sequence[str],
               install: Callable[[Sequence[str]], Any]) -> None:
    """Calls install() for the parts that an environment variable names.

    1 stands for all parts; 0 or nothing for none; otherwise names of parts, with commas. Never
    raises: what install() refuses is a warning, and the engine runs its own kernels.
    """
    try:
        value = os.environ.get(variable, "")
        if value not in ("", "0"):
            install(known if value == "1" else [part.strip() for part in value.split(",")])
    except Exception as error:
        _logger.warning("%s: shortconv is not used, %s runs its own kernels: %s", variable, engine,
                        error)


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
