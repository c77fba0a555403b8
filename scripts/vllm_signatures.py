#!/usr/bin/env python3
"""Whether the plug-in accepts the functions and layers of some versions of vLLM. Needs torch, but
neither vLLM's dependencies nor a GPU: the signatures are read from the source.

    scripts/vllm_signatures.py FOLDER...     each FOLDER has the folder vllm of one version, for
                                             example an unpacked wheel

Prints what was found in each; ends with 1 if a version is refused.
"""

import pathlib
import sys

from signatures import add_module, functions_of, main

FUNCTIONS = {
    "vllm.model_executor.layers.mamba.ops.causal_conv1d":
        ("causal_conv1d_fn", "causal_conv1d_update"),
    "vllm.v1.attention.backends.utils": ("compute_causal_conv1d_metadata",),
}


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


if __name__ == "__main__":
    main(check, __doc__)
