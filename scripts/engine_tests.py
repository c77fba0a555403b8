#!/usr/bin/env python3
"""Runs the own tests of another project, unmodified, on the functions of shortconv.compat.

    engine_tests.py ENGINE FILE [ARGUMENT...]

ENGINE is causal_conv1d, fla, vllm or sglang. FILE is the project's test file:
tests/test_causal_conv1d.py of causal-conv1d, tests/modules/test_conv.py of fla,
tests/kernels/mamba/test_causal_conv1d.py of vLLM, test/registered/layers/mamba/test_causal_conv1d.py
of SGLang. The other arguments are pytest's. Only fla has to be installed: what the other files
import is replaced. einops has to be installed. The tests use a GPU if there is one; on the CPU those
of vLLM (0.27 and later) and SGLang run as well.
"""

import importlib
import os
import sys
import types

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def stand_in(name, **members):
    """A module of this name, and its packages."""
    path = ""
    for part in name.split("."):
        path = f"{path}.{part}" if path else part
        if path not in sys.modules:
            sys.modules[path] = types.ModuleType(path)
            sys.modules[path].__path__ = []
    vars(sys.modules[name]).update(members)


def empty_cache():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def causal_conv1d():
    importlib.import_module("shortconv.compat.causal_conv1d").install(replace=True)


def fla():
    importlib.import_module("fla.modules.convolution")
    importlib.import_module("shortconv.compat.fla").install()


def vllm():
    ours = importlib.import_module("shortconv.compat.vllm")
    stand_in("vllm.model_executor.layers.mamba.ops.causal_conv1d",
             causal_conv1d_fn=ours.causal_conv1d_fn, causal_conv1d_update=ours.causal_conv1d_update)
    # Some cases are skipped on CPU and XPU, for kernels that the project lacks there.
    platform = types.SimpleNamespace(
        device_type=DEVICE, is_cuda_alike=lambda: True, is_xpu=lambda: False, is_cpu=lambda: False,
        seed_everything=torch.manual_seed)
    stand_in("vllm.platforms", current_platform=platform)
    stand_in("vllm.utils.torch_utils", set_random_seed=torch.manual_seed)
    stand_in("vllm.v1.attention.backends.utils",
             NULL_BLOCK_ID=ours.NULL_BLOCK_ID, PAD_SLOT_ID=ours.PAD_SLOT_ID)
    torch.accelerator.empty_cache = empty_cache


def sglang():
    ours = importlib.import_module("shortconv.compat.sglang")
    for package in ("sglang.srt.layers.attention.mamba", "sglang.kernels.ops.mamba"):
        stand_in(f"{package}.causal_conv1d_triton", PAD_SLOT_ID=ours.PAD_SLOT_ID,
                 causal_conv1d_fn=ours.causal_conv1d_fn,
                 causal_conv1d_update=ours.causal_conv1d_update)
    stand_in("sglang.srt.utils", get_device=lambda: DEVICE)
    stand_in("sglang.test.test_utils", empty_gpu_cache=empty_cache)
    stand_in("sglang.test.ci.ci_register",
             register_cuda_ci=lambda **_: None, register_amd_ci=lambda **_: None)


def main(engine, file, *arguments):
    {"causal_conv1d": causal_conv1d, "fla": fla, "vllm": vllm, "sglang": sglang}[engine]()
    folder, name = os.path.split(os.path.realpath(file))
    return pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", "--rootdir", folder,
                        *arguments, os.path.join(folder, name)])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
