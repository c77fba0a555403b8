"""The functions of SGLang's causal_conv1d, which chooses between two kernels there."""

from typing import Any, Optional

from shortconv import torch as conv
from shortconv._core import CHANNELS_FIRST, DECODE, FORWARD, ROLLING, STATE_CHANNELS_FIRST
from shortconv.compat._common import Tensor, silu_or_none
from shortconv.compat.sglang import triton
from shortconv.compat.sglang.triton import PAD_SLOT_ID
from shortconv.torch import torch


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
    """causal_conv1d_fn; without query_start_loc x is [batch, channels, tokens]."""
    if query_start_loc is not None:
        return triton.causal_conv1d_fn(
            x, weight, bias, conv_states, query_start_loc, None, cache_indices, has_initial_state,
            activation, pad_slot_id)
    return conv.run(
        FORWARD | CHANNELS_FIRST | STATE_CHANNELS_FIRST, x, torch.empty_like(x), weight, bias,
        conv_states, cache_indices, None, has_initial_state, False, silu_or_none(activation),
        pad_slot_id)


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
    """Overwrites x with the result and returns it; rows of padding stay as they are.

    The history is the last width - 1 columns of conv_state, all of which move along, or, with
    cache_seqlens [batch] int, those before this position of a ring.
    """
    op = DECODE | STATE_CHANNELS_FIRST | (0 if x.dim() == 2 else CHANNELS_FIRST)
    if cache_seqlens is None:
        op |= ROLLING
    return conv.run(
        op, x, x, weight, bias, conv_state, conv_state_indices, None, None, False,
        silu_or_none(activation), pad_slot_id, "untouched", cache_seqlens)
