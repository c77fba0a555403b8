"""The functions of SGLang's causal_conv1d module, which chooses between two kernels.

Source: https://github.com/sgl-project/sglang, causal_conv1d.py of
python/sglang/srt/layers/attention/mamba.
"""

from typing import Any, Optional

from shortconv import torch as conv
from shortconv._core import (
    CHANNELS_FIRST,
    DECODE,
    FORWARD,
    LONGER_INDICES,
    SHIFT_FULL_STATE,
    STATE_CHANNELS_FIRST,
)
from shortconv._names import argument_names
from shortconv.compat._common import Tensor, silu_or_none
from shortconv.compat.sglang import triton
from shortconv.compat.sglang.triton import PAD_SLOT_ID
from shortconv.torch import torch

_TOKENS_FIRST = STATE_CHANNELS_FIRST | LONGER_INDICES


@argument_names(
    {"state": "conv_states", "read_slots": "cache_indices", "null_slot": "pad_slot_id"},
    reversed_from={"x": 2, "out": 2, "state": 3})
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    query_start_loc: Optional[Tensor] = None,
    cache_indices: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    conv_states: Optional[Tensor] = None,
    activation: Optional[str] = "silu",
    pad_slot_id: Optional[int] = PAD_SLOT_ID,
    **kwargs: Any,
) -> Tensor:
    """Convolves a packed or dense batch and writes final states to conv_states.

    Args:
      x: [channels, tokens] with query_start_loc, or [batch, channels, tokens].
      kwargs: seq_lens_cpu and block_table are accepted, without effect; others are refused.

    The other arguments, the result and the errors are those of causal_conv1d_fn in `triton`.
    """
    if kwargs:
        triton.refuse_unknown(kwargs)
    if query_start_loc is not None:
        return triton.causal_conv1d_fn(
            x, weight, bias, conv_states, query_start_loc, None, cache_indices, has_initial_state,
            activation, pad_slot_id)
    return conv.run(
        FORWARD | CHANNELS_FIRST | _TOKENS_FIRST, x, torch.empty_like(x), weight, bias,
        conv_states, cache_indices, None, has_initial_state, False, silu_or_none(activation),
        pad_slot_id)


@argument_names(
    {"state": "conv_state", "read_slots": "conv_state_indices", "null_slot": "pad_slot_id",
     "out": "x"},
    reversed_from={"x": 3, "out": 3, "state": 3})
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: Optional[str] = None,
    cache_seqlens: Optional[Tensor] = None,
    conv_state_indices: Optional[Tensor] = None,
    pad_slot_id: Optional[int] = PAD_SLOT_ID,
) -> Tensor:
    """Convolves the next tokens of each sequence and updates conv_state in place.

    Args:
      x: [batch, channels] or [batch, channels, tokens], f32, f16 or bf16, overwritten with the
        result. Rows of padding are unchanged.
      conv_state: [slots, channels, columns >= width - 1], written. The history is in the last
        width - 1 columns, and all columns shift.
      cache_seqlens: [batch] int; number of inputs of each sequence before this call. conv_state is
        then a circular buffer.

    The other arguments and the errors are those of causal_conv1d_update in `triton`.

    Returns:
      x.
    """
    op = DECODE | _TOKENS_FIRST | (0 if x.dim() == 2 else CHANNELS_FIRST)
    rare = {}
    if cache_seqlens is None:
        op |= SHIFT_FULL_STATE
    else:
        rare["cache_seqlens"] = cache_seqlens
    return conv.run(
        op, x, x, weight, bias, conv_state, conv_state_indices, None, None, False,
        silu_or_none(activation), pad_slot_id, "untouched", **rare)
