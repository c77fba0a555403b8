#!/usr/bin/env python3
"""Whether the plug-in accepts the functions and layers of some versions of SGLang. Needs torch, but
neither SGLang's dependencies nor a GPU: the signatures are read from the source.

    scripts/sglang_signatures.py FOLDER...   each FOLDER has the folder sglang of one version, for
                                             example an unpacked wheel

Prints what was found in each; ends with 1 if a version is refused.
"""

import ast
import pathlib
import sys

from signatures import add_module, functions_of, main

MAMBA = "sglang.srt.layers.attention.mamba."
LINEAR = "sglang.srt.layers.attention.linear."
TRITON = ("sglang.kernels.ops.mamba.causal_conv1d_triton", MAMBA + "causal_conv1d_triton")
DISPATCHER = MAMBA + "causal_conv1d"
CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_fn_split_qkv")
BACKEND, DELTA_RULE = LINEAR + "gdn_backend", LINEAR + "kernels.gdn_triton"


def imports_of(path):
    """{name: modules} of the functions that a source file imports, under any condition."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            for one in node.names:
                found.setdefault(one.name, []).append(node.module)
    return found


def add_importing_module(root, name, functions):
    """A module with those of these functions that its source imports; returns their names."""
    path = source(root, name)
    members = {}
    for function, modules in imports_of(path).items() if path.exists() else ():
        if function in functions:
            defined_in = modules[-1]  # the first ones are for other devices
            module = vars(sys.modules.get(defined_in, object)).get(function)
            members[function] = module or functions_of(source(root, defined_in), (function,))[
                function]
    if members:
        add_module(name, members)
    return sorted(members)


def source(root, name):
    return root / (name.replace(".", "/") + ".py")


def is_deferred(root):
    """Whether the backend passes to causal_conv1d_fn what the part front defers."""
    from shortconv.compat.sglang.front import DEFERRED_ARGUMENTS

    calls = [node for node in ast.walk(ast.parse(source(root, BACKEND).read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "causal_conv1d_fn"]
    return bool(calls) and all(
        len(call.args) <= 3 and {one.arg for one in call.keywords if one.arg} <= DEFERRED_ARGUMENTS
        for call in calls)


def users_of(root):
    """Names of the modules that import one of the functions."""
    modules = {*TRITON, DISPATCHER}
    return sorted(
        path.stem for path in root.glob("sglang/srt/**/*.py")
        if "causal_conv1d" in path.read_text() and path.stem != "causal_conv1d"
        and any(modules & set(imports_of(path).get(name, ())) for name in CONVOLUTIONS))


def check(folder):
    """Installs the plug-in into modules with the signatures of a version.

    Raises:
      ImportError: the plug-in refuses them.
    """
    from shortconv.compat import sglang

    root = pathlib.Path(folder)
    add_module("sglang", {"__version__": root.name})
    for name in (*TRITON, DISPATCHER):
        if source(root, name).exists():
            add_module(name, functions_of(source(root, name), CONVOLUTIONS))
    front = add_importing_module(root, BACKEND, (
        "causal_conv1d_fn", "fused_gdn_gating", "fused_qkv_split_gdn_prefill"))
    if front:
        name = "GDNKernelDispatcher"
        methods = functions_of(source(root, BACKEND), ("extend",), of_class=name)
        add_module(BACKEND, {name: type(name, (), methods)})
        front.append(f"{name}.extend")
    front += add_importing_module(root, DELTA_RULE, ("chunk_gated_delta_rule",))
    conv = [f"{name.removeprefix('sglang.')}.{function}" for name in (*TRITON, DISPATCHER)
            for function in CONVOLUTIONS if hasattr(sys.modules.get(name), function)]
    sglang.install()
    if front and not is_deferred(root):
        front = ["none, as causal_conv1d_fn is called with other arguments"]
    has_plugins = source(root, "sglang.srt.plugins.__init__").exists()
    for name, found in (("conv", conv), ("used by", users_of(root)), ("front", front or ["none"]),
                        ("loads plug-ins", ["yes" if has_plugins else "no"])):
        print(f"{folder}: {name}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main(check, __doc__)
