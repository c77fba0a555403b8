"""SGLang's causal_conv1d_fn and causal_conv1d_update.

SGLang has two modules with these names, whose arguments come in different orders. The functions of
causal_conv1d_triton are those of this package; those of causal_conv1d, which chooses between it and
a CUDA kernel, are in `dispatcher`. install() replaces both in an imported SGLang.

Different on purpose: x is never overwritten by causal_conv1d_fn; rows of padding are zeros where
the original leaves what was in memory; any negative slot is padding; seq_lens_cpu is not needed; a
tree of drafts leaves the state alone, since it has no last token.

Source: https://github.com/sgl-project/sglang, causal_conv1d_triton.py and causal_conv1d.py of
python/sglang/srt/layers/attention/mamba.
"""

from typing import Callable

from shortconv.compat._common import install_functions
from shortconv.compat.sglang import dispatcher
from shortconv.compat.sglang.triton import (
    PAD_SLOT_ID,
    causal_conv1d_fn,
    causal_conv1d_fn_split_qkv,
    causal_conv1d_update,
)

__all__ = ["PAD_SLOT_ID", "causal_conv1d_fn", "causal_conv1d_fn_split_qkv", "causal_conv1d_update",
           "dispatcher", "install"]


def install() -> Callable[[], None]:
    """Puts these functions in the place of SGLang's, in all modules loaded by then.

    Returns:
      A function that undoes it.

    Raises:
      ImportError: SGLang is not installed, or keeps them elsewhere.
    """
    functions = {
        "causal_conv1d_fn": causal_conv1d_fn, "causal_conv1d_update": causal_conv1d_update,
        "causal_conv1d_fn_split_qkv": causal_conv1d_fn_split_qkv}
    chooser = {"causal_conv1d_fn": dispatcher.causal_conv1d_fn,
               "causal_conv1d_update": dispatcher.causal_conv1d_update}
    return install_functions({
        "sglang.kernels.ops.mamba.causal_conv1d_triton": functions,
        "sglang.srt.layers.attention.mamba.causal_conv1d_triton": functions,
        "sglang.srt.layers.attention.mamba.causal_conv1d": chooser,
    })
