"""Signatures of the functions of an engine, read from its source: neither its dependencies nor a
GPU are needed. Used by vllm_signatures.py and sglang_signatures.py.
"""

import ast
import subprocess
import sys
import types


def functions_of(path, names, of_class=None):
    """{name: function} of a source file, or of a class in it: signatures and bodies, without
    annotations, decorators and the values of defaults. They cannot be called."""
    found = {}
    tree = ast.parse(path.read_text())
    if of_class is not None:
        tree = next((node for node in ast.walk(tree)
                     if isinstance(node, ast.ClassDef) and node.name == of_class), ast.Pass())
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name not in names or node.name in found:
            continue
        node.decorator_list = []
        node.args.defaults = [ast.Constant(None) for _ in node.args.defaults]
        node.args.kw_defaults = [one and ast.Constant(None) for one in node.args.kw_defaults]
        for part in ast.walk(node):
            for field in ("returns", "annotation"):
                if getattr(part, field, None) is not None:
                    setattr(part, field, ast.Constant(None))
        module = ast.fix_missing_locations(ast.Module([node], []))
        namespace = {}
        exec(compile(module, str(path), "exec"), namespace)
        found[node.name] = namespace[node.name]
    return found


def add_module(name, members):
    """Puts a module and its packages into sys.modules."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            sys.modules[path] = types.ModuleType(path)
            sys.modules[path].__path__ = []
    vars(sys.modules[name]).update(members)
    return sys.modules[name]


def main(check, usage):
    """Calls check(folder), which raises ImportError for a version that is refused, for each
    argument of the command line; ends with 1 if one is refused.

    Each version runs in a separate process, because the modules of all versions have the same
    names.
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["--one"]:
        try:
            check(arguments[1])
        except (ImportError, OSError) as error:
            sys.exit(f"{arguments[1]}: {error}")
        return
    if not arguments:
        sys.exit(usage)
    codes = [subprocess.run([sys.executable, sys.argv[0], "--one", one]).returncode
             for one in arguments]
    sys.exit(any(codes))
