"""SGLang's causal_conv1d_fn and causal_conv1d_update, and what is around them in its layers.

SGLang has two modules with functions of these names, with different orders of arguments. The
functions of causal_conv1d_triton are in this package. The functions of causal_conv1d, which chooses
between causal_conv1d_triton and a CUDA kernel, are in `dispatcher`.

install() replaces both in an imported SGLang. With the environment variable SHORTCONV_SGLANG=1
SGLang calls it in each of its processes, through its plug-ins. Parts of it may be chosen by name:

  conv      causal_conv1d_fn and causal_conv1d_update; the other part needs it
  front     Qwen3-Next and Qwen3.5: the convolution of prompts, the split into q, k and v, the norms
            and the gates in one launch

Intended differences: causal_conv1d_fn never overwrites x; rows of padding are zeros (the original
leaves them uninitialized); every negative index is padding; seq_lens_cpu is not needed; with a
draft tree conv_state is unchanged, since a tree has no last token.

Source: https://github.com/sgl-project/sglang, causal_conv1d_triton.py of
python/sglang/srt/layers/attention/mamba (from 0.5.16 python/sglang/kernels/ops/mamba), and
causal_conv1d.py of python/sglang/srt/layers/attention/mamba.
"""

import logging
from typing import Sequence

from shortconv.compat._hooks import (
    Undo,
    Wanted,
    change_package,
    checked_functions,
    require_parts,
    run_plugin,
    version,
)
from shortconv.compat.sglang import dispatcher
from shortconv.compat.sglang.layers import CHANGES
from shortconv.compat.sglang.triton import (
    PAD_SLOT_ID,
    causal_conv1d_fn,
    causal_conv1d_fn_split_qkv,
    causal_conv1d_update,
)
from shortconv.torch import torch

__all__ = ["PAD_SLOT_ID", "PARTS", "causal_conv1d_fn", "causal_conv1d_fn_split_qkv",
           "causal_conv1d_update", "dispatcher", "install", "plugin"]

PARTS = ("conv", "front")

_MAMBA = "sglang.srt.layers.attention.mamba."
_TRITON = ("sglang.kernels.ops.mamba.causal_conv1d_triton", _MAMBA + "causal_conv1d_triton")
_DISPATCHER = (_MAMBA + "causal_conv1d",)
_WANTED = (
    Wanted(_TRITON, causal_conv1d_fn, 3),
    Wanted(_TRITON, causal_conv1d_update, 5),
    Wanted(_TRITON, causal_conv1d_fn_split_qkv, 3, is_optional=True),
    Wanted(_DISPATCHER, dispatcher.causal_conv1d_fn, 3),
    Wanted(_DISPATCHER, dispatcher.causal_conv1d_update, 5),
)
_logger = logging.getLogger(__name__)


def install(parts: Sequence[str] = PARTS) -> Undo:
    """Replaces SGLang's functions by these in all modules loaded so far.

    The backend of the gated delta net is changed when it is imported, if it has not been; with
    unknown parameters it is left as it is, with a warning.

    Args:
      parts: names of PARTS, "conv" among them.

    Returns:
      A function that restores the originals.

    Raises:
      ValueError: parts has an unknown name, or lacks "conv".
      ImportError: SGLang is not installed, has the functions in other modules, has functions or a
        loaded backend with unknown parameters, or runs on a device without a backend here. Nothing
        has been replaced then.
    """
    require_parts(parts, PARTS)
    _require_device()
    changes = [change for part in PARTS if part in parts for change in CHANGES.get(part, ())]
    undo = change_package("sglang", checked_functions("sglang", _WANTED), changes)
    _logger.info("%s: shortconv replaces %s", version("sglang"), ", ".join(parts))
    return undo


def _require_device() -> None:
    """Refuses devices for which SGLang has its own kernels and this library none.

    Raises:
      ImportError: torch was built for such a device.
    """
    device = torch.accelerator.current_accelerator()
    name = "cpu" if device is None else device.type
    if torch.version.hip is not None:
        name = "rocm"  # whose tensors are called cuda
    if name not in ("cpu", "cuda"):
        raise ImportError(f"{version('sglang')}: runs on {name}; expected cuda or cpu, for which "
                          "shortconv has kernels")


def plugin() -> None:
    """Entry point sglang.srt.plugins: calls install() for the parts in SHORTCONV_SGLANG.

    1 stands for all parts; 0 or nothing for none; otherwise names of parts, with commas. Never
    raises: what install() refuses is a warning, and SGLang runs its own kernels.
    """
    run_plugin("SHORTCONV_SGLANG", "SGLang", PARTS, install)
