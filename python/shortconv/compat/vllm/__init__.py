"""vLLM's causal_conv1d_fn and causal_conv1d_update, and what is around them in its layers.

install() replaces them in an imported vLLM. With the environment variable SHORTCONV_VLLM=1 vLLM
calls it in each of its processes, through its plugins. Parts of it may be chosen by name:

  conv      causal_conv1d_fn and causal_conv1d_update; all other parts need it
  front     Qwen3-Next and Qwen3.5: the convolution of prompts, the split into q, k and v, the norms
            and the gates in one launch
  gates     LFM2: the convolution and the products before and after it in one launch
  metadata  the lists that only vLLM's kernel reads are not computed on the host

Intended differences: rows of padding are zeros (the original leaves them uninitialized); every
negative index is padding, not only null_block_id; an accepted number of 0 reads from column 0;
states at block boundaries are exact at any position of the boundary in a chunk; metadata is not
needed. Cache lines may be omitted: sequence s then has line s, and no line is padding.
"""

import logging
from typing import Any, Sequence, Tuple

from shortconv.compat._common import Tensor
from shortconv.compat._hooks import (
    Undo,
    Wanted,
    change_package,
    checked_functions,
    require_parts,
    run_plugin,
    version,
)
from shortconv.compat.vllm.functions import (
    NULL_BLOCK_ID,
    PAD_SLOT_ID,
    causal_conv1d_fn,
    causal_conv1d_update,
    conv_and_post_conv_prep,
)
from shortconv.compat.vllm.layers import CHANGES

__all__ = ["NULL_BLOCK_ID", "PAD_SLOT_ID", "PARTS", "causal_conv1d_fn", "causal_conv1d_update",
           "compute_causal_conv1d_metadata", "conv_and_post_conv_prep", "install", "plugin"]

PARTS = ("conv", "front", "gates", "metadata")

_OPS = ("vllm.model_executor.layers.mamba.ops.causal_conv1d",)
_METADATA = ("vllm.v1.attention.backends.utils",)
_logger = logging.getLogger(__name__)


def compute_causal_conv1d_metadata(query_start_loc_p_cpu: Tensor, *,
                                   device: Any) -> Tuple[None, None, None]:
    """Computes nothing: only vLLM's own causal_conv1d_fn reads these lists.

    Returns:
      None for nums_dict, batch_ptr and token_chunk_offset_ptr, as for a batch without prompts.
    """
    return None, None, None


def install(parts: Sequence[str] = PARTS) -> Undo:
    """Replaces vLLM's functions by these in all modules loaded so far.

    Layers that are imported later are changed when they are; those with unknown parameters are left
    as they are, with a warning.

    Args:
      parts: names of PARTS, "conv" among them.

    Returns:
      A function that restores the originals.

    Raises:
      ValueError: parts has an unknown name, or lacks "conv".
      ImportError: vLLM is not installed, has the functions in other modules, or has functions or
        loaded layers with unknown parameters. Nothing has been replaced then.
    """
    require_parts(parts, PARTS)
    wanted = [Wanted(_OPS, causal_conv1d_fn, 5), Wanted(_OPS, causal_conv1d_update, 5)]
    if "metadata" in parts:
        wanted.append(Wanted(_METADATA, compute_causal_conv1d_metadata, 1))
    changes = [change for part, change in CHANGES.items() if part in parts]
    undo = change_package("vllm", checked_functions("vllm", wanted), changes)
    _logger.info("%s: shortconv replaces %s", version("vllm"), ", ".join(parts))
    return undo


def plugin() -> None:
    """Entry point vllm.general_plugins: calls install() for the parts in SHORTCONV_VLLM.

    1 stands for all parts; 0 or nothing for none; otherwise names of parts, with commas. Never
    raises: what install() refuses is a warning, and vLLM runs its own kernels.
    """
    run_plugin("SHORTCONV_VLLM", "vLLM", PARTS, install)
