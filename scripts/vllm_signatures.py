#!/usr/bin/env python3
"""Whether the plug-in accepts the functions and layers of some versions of vLLM. Needs torch, but
neither vLLM's dependencies nor a GPU: the signatures are read from the source.

    scripts/vllm_signatures.py FOLDER...     each FOLDER has the folder vllm of one version, for
                                             example an unpacked wheel

Prints what was found in each; ends with 1 if a version is refused.
"""

import ast
import pathlib
import subprocess
import sys
import types

FUNCTIONS = {
    "vllm.model_executor.layers.mamba.ops.causal_conv1d":
        ("causal_conv1d_fn", "causal_conv1d_update"),
    "vllm.v1.attention.backends.utils": ("compute_causal_conv1d_metadata",),
}


def functions_of(path, names):
    """{name: function} of a source file: signatures and bodies, without annotations, decorators and
    the values of defaults. They cannot be called."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
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
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            sys.modules[path] = types.ModuleType(path)
            sys.modules[path].__path__ = []
    vars(sys.modules[name]).update(members)
    return sys.modules[name]


def check(folder):
    """Installs the plug-in into modules with the signatures of a version.

    Raises:
      ImportError: the plug-in refuses them.
    """
    from shortconv.compat import vllm
    from shortconv.compat.vllm import layers

    root = pathlib.Path(folder)
    for name, names in FUNCTIONS.items():
        path = root / (name.replace(".", "/") + ".py")
        add_module(name, functions_of(path, names))
    convolutions = vars(sys.modules[next(iter(FUNCTIONS))])
    prep = next(iter(root.glob("vllm/**/fused_gdn_prefill_post_conv.py")), None)
    add_module("vllm", {"__version__": root.name})
    found = []
    for part, change in layers.CHANGES.items():
        for name in change.modules:
            path = root / (name.replace(".", "/") + ".py")
            if not path.exists():
                continue
            if part == "front":
                if prep is None or "fused_post_conv_prep" not in path.read_text():
                    continue
                add_module(name, {"causal_conv1d_fn": convolutions["causal_conv1d_fn"],
                                  **functions_of(prep, ("fused_post_conv_prep",))})
            else:
                methods = functions_of(path, ("forward_cuda",))
                add_module(name, {"ShortConv": type("ShortConv", (), methods)})
            found.append(f"{part} ({name.rpartition('.')[2]})")
    vllm.install()
    print(f"{folder}: conv, metadata, {', '.join(found) or 'no layers'}", flush=True)


def main(arguments):
    if arguments[:1] == ["--one"]:
        try:
            check(arguments[1])
        except (ImportError, OSError) as error:
            sys.exit(f"{arguments[1]}: {error}")
        return
    if not arguments:
        sys.exit(__doc__)
    # A process for each, because the modules have the same names.
    codes = [subprocess.run([sys.executable, __file__, "--one", one]).returncode
             for one in arguments]
    sys.exit(any(codes))


if __name__ == "__main__":
    main(sys.argv[1:])
