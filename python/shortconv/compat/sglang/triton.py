"""The functions of SGLang's causal_conv1d_triton."""

from typing import Any, List, Optional, Tuple, Union

from shortconv import torch as conv
from shortconv._core import CHANNELS_FIRST, DECODE, FORWARD, STATE_CHANNELS_FIRST, VERIFY
from shortconv.compat._common import (
    Tensor,
    rolling_windows,
    silu_or_none,
)
from shortconv.torch import torch

PAD_SLOT_ID = -1


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    conv_states: Optional[Tensor],
    query_start_loc: Tensor,
    seq_lens_cpu: Optional[List[int]] = None,
    cache_indices: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    activation: Union[bool, str, None] = "silu",
    pad_slot_id: Optional[int] = PAD_SLOT_ID,
    validate_data: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Convolves a packed batch and writes final states to the slots.

    Args:
      x: [channels, tokens], any strides.
      weight: [channels, width]; bias: [channels].
      conv_states: [slots, channels, columns >= width - 1], of which the first width - 1 count.
      query_start_loc: [sequences + 1] int.
      cache_indices: [sequences] int; None: slot = sequence number.
      has_initial_state: [sequences] bool; None: none has.
      activation: None, "silu", "swish", or a bool for SiLU.
      pad_slot_id: a slot that means padding, as every negative one does.
      seq_lens_cpu, validate_data, kwargs: accepted; nothing here needs them.

    Returns:
      [channels, tokens], laid out as x.
    """
    return conv.run(
        FORWARD | CHANNELS_FIRST | STATE_CHANNELS_FIRST, x, torch.empty_like(x), weight, bias,
        conv_states, cache_indices, query_start_loc, has_initial_state, False,
        silu_or_none(activation), pad_slot_id)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: Union[bool, str, None] = None,
    cache_seqlens: Optional[Tensor] = None,
    conv_state_indices: Optional[Tensor] = None,
    num_accept_tokens: Optional[Tensor] = None,
    intermediate_conv_window: Optional[Tensor] = None,
    intermediate_state_indices: Optional[Tensor] = None,
    retrieve_next_token: Optional[Tensor] = None,
    retrieve_next_sibling: Optional[Tensor] = None,
    retrieve_parent_token: Optional[Tensor] = None,
    pad_slot_id: Optional[int] = PAD_SLOT_ID,
    metadata: Any = None,
    validate_data: bool = False,
    num_accepted_tokens: Optional[Tensor] = None,
) -> Tensor:
    """Convolves the next tokens, or draft tokens, of each sequence; states move along in place.

    Args:
      x: [batch, channels] or [batch, channels, tokens], any strides.
      conv_state: [slots, channels, columns >= width - 1], of which the first width - 1 count; with
        num_accept_tokens there are tokens - 1 more.
      conv_state_indices: [batch] int; None: slot = row.
      num_accept_tokens, or num_accepted_tokens: [batch] int; states roll: the history begins at
        column accepted - 1, and all tokens are kept behind the newest width - 2 of it.
      intermediate_conv_window: [rows, steps >= tokens, channels, width - 1], written: the state
        after each token; steps may overlap.
      intermediate_state_indices: [batch] int; the row of each sequence. None: its slot.
      retrieve_next_token, retrieve_next_sibling: [batch, tokens] int: drafts are trees.
      retrieve_parent_token: [batch, tokens] int, written with the parents, 0 for the root.
      cache_seqlens, metadata, validate_data: accepted and without effect, as there.

    Returns:
      Shape and layout of x.
    """
    activation = silu_or_none(activation)
    accepted = num_accept_tokens if num_accept_tokens is not None else num_accepted_tokens
    drafted = intermediate_conv_window is not None or retrieve_next_token is not None
    if accepted is None and not drafted:
        layout = STATE_CHANNELS_FIRST if x.dim() == 2 else CHANNELS_FIRST | STATE_CHANNELS_FIRST
        return conv.run(
            DECODE | layout, x, torch.empty_like(x), weight, bias, conv_state, conv_state_indices,
            None, None, False, activation, pad_slot_id)
    rows = x.unsqueeze(2) if x.dim() == 2 else x
    offsets, parents, windows, advance = None, None, None, False
    slots = conv_state_indices
    if accepted is not None:
        if drafted:
            raise ValueError("num_accept_tokens: goes neither with intermediate_conv_window nor "
                             "with trees")
        offsets, windows = accepted - 1, rolling_windows(conv_state, weight.shape[1], rows.shape[2])
    else:
        if retrieve_next_token is None:
            advance = True
        else:
            parents = _parents(retrieve_next_token, retrieve_next_sibling, retrieve_parent_token)
        if intermediate_conv_window is not None:
            windows = intermediate_conv_window.transpose(2, 3)
            if intermediate_state_indices is not None:
                slots = intermediate_state_indices
    if slots is None and windows is not None:
        slots = torch.arange(rows.shape[0], device=x.device)
    out = conv.run(
        VERIFY | CHANNELS_FIRST | STATE_CHANNELS_FIRST, rows, torch.empty_like(rows), weight, bias,
        conv_state, conv_state_indices, None, None, False, activation, pad_slot_id, None, None,
        None, 0, False, False, offsets, None, parents, windows, None if windows is None else slots,
        advance)
    return out.squeeze(2) if x.dim() == 2 else out


def _parents(first_child: Tensor, next_sibling: Optional[Tensor],
             result: Optional[Tensor]) -> Tensor:
    if next_sibling is None:
        next_sibling = torch.full_like(first_child, -1)
    parents = conv.tree_parents(first_child, next_sibling, torch.empty_like(first_child))
    if result is not None:
        result.copy_(parents.clamp(min=0))
    return parents


def causal_conv1d_fn_split_qkv(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    conv_states: Optional[Tensor],
    query_start_loc: Tensor,
    seq_lens_cpu: Optional[List[int]],
    q_dim: int,
    k_dim: int,
    v_dim: int,
    *,
    num_q_heads: int,
    num_k_heads: int,
    num_v_heads: int,
    head_q_dim: int,
    head_k_dim: int,
    head_v_dim: int,
    cache_indices: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    activation: Union[bool, str, None] = "silu",
    pad_slot_id: Optional[int] = PAD_SLOT_ID,
    **kwargs: Any,
) -> Tuple[Tensor, Tensor, Tensor]:
    """causal_conv1d_fn over channels [q | k | v], whose parts are returned each on its own.

    Returns:
      q, k, v, contiguous, [1, tokens, heads, head channels].
    """
    out = causal_conv1d_fn(
        x, weight, bias, conv_states, query_start_loc, seq_lens_cpu, cache_indices,
        has_initial_state, activation, pad_slot_id).transpose(0, 1)
    heads = ((num_q_heads, head_q_dim), (num_k_heads, head_k_dim), (num_v_heads, head_v_dim))
    parts = out.split([q_dim, k_dim, v_dim], dim=1)
    q, k, v = (part.reshape(1, -1, *shape).contiguous() for part, shape in zip(parts, heads))
    return q, k, v
