"""SGLang's causal_conv1d_fn and causal_conv1d_update.

SGLang has two modules with functions of these names, with different orders of arguments. The
functions of causal_conv1d_triton are in this package. The functions of causal_conv1d, which chooses
between causal_conv1d_triton and a CUDA kernel, are in `dispatcher`. install() replaces both in an
imported SGLang.

Intended differences: causal_conv1d_fn never overwrites x; rows of padding are zeros (the original
leaves them uninitialized); every negative index is padding; seq_lens_cpu is not needed; with a
draft tree conv_state is unchanged, since a tree has no last token.

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
    """Replaces SGLang's functions by these in all modules loaded so far.

    Returns:
      A function that restores the originals.

    Raises:
      ImportError: SGLang is not installed, or has the functions in other modules.
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
