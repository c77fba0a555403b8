"""causal_conv1d_fn, causal_conv1d_update and conv_and_post_conv_prep with vLLM's arguments.

Source: https://github.com/vllm-project/vllm, vllm/model_executor/layers/mamba/ops/causal_conv1d.py.
"""

import functools
from typing import Any, Optional, Tuple, Union

from shortconv import torch as conv
from shortconv._core import (
    CHANNELS_FIRST,
    DECODE,
    FORWARD,
    LONGER_INDICES,
    STATE_CHANNELS_FIRST,
    VERIFY,
)
from shortconv._group_arguments import Gates, Group, HeadMap
from shortconv._names import argument_names
from shortconv.compat._common import (
    Tensor,
    convolve_groups,
    rolling_states,
    silu_or_none,
    width_of,
)
from shortconv.torch import torch

Prepared = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # q, k, v, g, beta

PAD_SLOT_ID = -1
NULL_BLOCK_ID = 0
_PACKED = STATE_CHANNELS_FIRST | LONGER_INDICES  # x: [batch, channels] or [tokens, channels]
_DENSE = _PACKED | CHANNELS_FIRST  # x: [batch, channels, tokens]


def slots_of(table: Optional[Tensor], block: Optional[Tensor]) -> Optional[Tensor]:
    """Slots from a table [sequences] or [sequences, blocks]; block: [sequences], columns of it."""
    if table is None or table.dim() != 2:
        return table
    if block is None:
        return table[:, 0]
    block = block[: table.shape[0]]  # both may be longer than the batch
    return table.gather(1, block.long().unsqueeze(1)).squeeze(1)


@argument_names(
    {"state": "conv_states", "read_slots": "cache_indices", "write_slots": "cache_indices",
     "block_slots": "cache_indices", "block_size": "block_size_to_align",
     "null_slot": "null_block_id"},
    reversed_from={"x": 2, "out": 2, "state": 3})
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    activation: Union[bool, str, None] = "silu",
    pad_slot_id: int = PAD_SLOT_ID,
    null_block_id: Optional[int] = NULL_BLOCK_ID,
    block_idx_first_scheduled_token: Optional[Tensor] = None,
    block_idx_last_scheduled_token: Optional[Tensor] = None,
    initial_state_idx: Optional[Tensor] = None,
    num_computed_tokens: Optional[Tensor] = None,
    block_size_to_align: int = 0,
    metadata: Any = None,
    validate_data: bool = False,
) -> Tensor:
    """Convolves a packed batch and writes final states to conv_states.

    Args:
      x: [channels, tokens], f32, f16 or bf16, any strides.
      weight: [channels, width]; bias: [channels], dtype of weight.
      conv_states: [cache lines, channels, columns >= width - 1], written; the first width - 1
        columns are used.
      query_start_loc: [sequences + 1] int.
      cache_indices: [sequences] or [sequences, blocks] int; cache lines of the sequences.
        null_block_id and negative ones are padding. None: the sequence number, without padding.
      has_initial_state: [sequences] bool; None: all sequences start from zeros.
      activation: None, "silu", "swish", or a bool for SiLU.
      initial_state_idx, block_idx_last_scheduled_token: [sequences] int; columns of cache_indices
        with the cache lines to read and to write. None: column 0.
      num_computed_tokens, block_size_to_align: [sequences] int, and an int. With
        block_idx_last_scheduled_token, the state after each full block that this call completes is
        also written to the block's cache line.
      pad_slot_id, block_idx_first_scheduled_token, metadata, validate_data: accepted, without
        effect.

    Arguments with one number for each sequence may be longer than query_start_loc says, as in
    padded batches; the first ones are used.

    Returns:
      [channels, tokens], memory layout of x.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    op = FORWARD | CHANNELS_FIRST | STATE_CHANNELS_FIRST | LONGER_INDICES
    null_slot = None if cache_indices is None else null_block_id
    read_slots, activation = slots_of(cache_indices, initial_state_idx), silu_or_none(activation)
    if block_idx_last_scheduled_token is None:
        return conv.run(
            op, x, torch.empty_like(x), weight, bias, conv_states, read_slots, query_start_loc,
            has_initial_state, False, activation, null_slot)
    write_slots, snapshots = slots_of(cache_indices, block_idx_last_scheduled_token), None
    if num_computed_tokens is not None and block_size_to_align > 0:
        if cache_indices is None or cache_indices.dim() != 2:
            raise ValueError("cache_indices: has no blocks; expected [sequences, blocks] with "
                             "block_idx_last_scheduled_token and block_size_to_align")
        tokens, sequences = x.shape[1], len(query_start_loc) - 1
        snapshots = torch.empty(tokens // block_size_to_align + sequences, 3,
                                dtype=torch.int64, device=x.device)
        conv.block_snapshots(
            query_start_loc, num_computed_tokens[:sequences], cache_indices[:sequences],
            tokens=tokens, block_size=block_size_to_align, snapshots=snapshots)
    return conv.run(
        op, x, torch.empty_like(x), weight, bias, conv_states, read_slots, query_start_loc,
        has_initial_state, False, activation, null_slot, write_slots=write_slots,
        snapshots=snapshots)


_NAMES_OF_PREPARED = {"state": "conv_states", "read_slots": "cache_indices", "a_log": "A_log",
                      "null_slot": "null_block_id"}


@argument_names(_NAMES_OF_PREPARED, reversed_from={"x": 2, "state": 3})
def conv_and_post_conv_prep(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    conv_states: Tensor,
    query_start_loc: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    num_k_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    apply_l2norm: bool = True,
    output_g_exp: bool = False,
    *,
    cache_indices: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    activation: Union[bool, str, None] = "silu",
    null_block_id: Optional[int] = NULL_BLOCK_ID,
) -> Prepared:
    """causal_conv1d_fn, and fused_post_conv_prep of its result, in one launch where there is one.

    Args:
      x to query_start_loc, cache_indices to null_block_id: as in causal_conv1d_fn; x is [channels,
        tokens] of q, k and v.
      a, b: [tokens, value heads].
      A_log: [value heads] f32. dt_bias: [value heads].
      num_k_heads to output_g_exp: as in fused_post_conv_prep.

    Returns:
      q, k, v, contiguous, [tokens, heads, head channels]; g (or its exponential) and beta, [tokens,
      value heads] f32. Rows of padding are zeros.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    results: Prepared = prepare_rows(
        x.T, weight, bias, conv_states, query_start_loc, a, b, A_log, dt_bias, num_k_heads,
        head_k_dim, head_v_dim, apply_l2norm, output_g_exp, cache_indices, has_initial_state,
        activation, null_block_id)
    return results


@argument_names(_NAMES_OF_PREPARED, reversed_from={"x": 2, "state": 3})
def prepare_rows(
    rows: Tensor, weight: Tensor, bias: Optional[Tensor], conv_states: Tensor,
    query_start_loc: Tensor, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, num_k_heads: int,
    head_k_dim: int, head_v_dim: int, apply_l2norm: bool, output_g_exp: bool,
    cache_indices: Optional[Tensor], has_initial_state: Optional[Tensor],
    activation: Union[bool, str, None], null_block_id: Optional[int],
) -> Prepared:
    """conv_and_post_conv_prep of rows [tokens, channels]."""
    parts = convolve_groups(
        rows, weight, bias, conv_states, cache_indices, query_start_loc, has_initial_state,
        silu_or_none(activation), None if cache_indices is None else null_block_id,
        _delta_net_groups(num_k_heads, head_k_dim, A_log.shape[0], head_v_dim, apply_l2norm),
        Gates(a, b, A_log, dt_bias, decay="exp" if output_g_exp else "log"))
    q, k, v = parts.groups
    return q, k, v, parts.g, parts.beta


@functools.lru_cache(maxsize=64)
def _delta_net_groups(k_heads: int, k_dim: int, v_heads: int, v_dim: int,
                      norm: bool) -> Tuple[Group, Group, Group]:
    """The groups q, k and v of rows with q, k and v one after the other."""
    keys = k_heads * k_dim
    q, k = (Group(k_heads, k_dim, HeadMap(first), l2_norm=norm) for first in (0, keys))
    return q, k, Group(v_heads, v_dim, HeadMap(2 * keys))


@argument_names(
    {"state": "conv_state", "read_slots": "conv_state_indices",
     "write_slots": "conv_state_indices", "intermediate_slots": "conv_state_indices",
     "intermediate_states": "conv_state", "read_offsets": "num_accepted_tokens",
     "null_slot": "null_block_id"},
    reversed_from={"x": 3, "out": 3, "state": 3})
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: Union[bool, str, None] = None,
    conv_state_indices: Optional[Tensor] = None,
    num_accepted_tokens: Optional[Tensor] = None,
    query_start_loc: Optional[Tensor] = None,
    max_query_len: int = -1,
    null_block_id: Optional[int] = NULL_BLOCK_ID,
    block_idx_last_scheduled_token: Optional[Tensor] = None,
    initial_state_idx: Optional[Tensor] = None,
    validate_data: bool = False,
    out: Optional[Tensor] = None,
    pad_slot_id: Optional[int] = None,
) -> Tensor:
    """Convolves the next tokens of each sequence and updates conv_state in place.

    Args:
      x: [batch, channels], [batch, channels, tokens], or [tokens, channels] with query_start_loc;
        f32, f16 or bf16; overwritten with the result unless out is given.
      conv_state: [cache lines, channels, columns >= width - 1], written; the first width - 1
        columns are used, and max_query_len - 1 more with num_accepted_tokens.
      weight: [channels, width]; bias: [channels], dtype of weight.
      activation: None, "silu", "swish", or a bool for SiLU.
      conv_state_indices: [batch] or [batch, blocks] int; cache lines of the sequences.
        null_block_id and negative ones are padding. None: the sequence number, without padding.
      num_accepted_tokens: [batch] int; the state rolls: the history begins at column accepted - 1,
        and all tokens are stored after its newest width - 2 inputs.
      query_start_loc: [batch + 1] int.
      max_query_len: with query_start_loc and num_accepted_tokens: tokens of the longest sequence.
      initial_state_idx, block_idx_last_scheduled_token: as for causal_conv1d_fn.
      validate_data: accepted, without effect.
      out: shape, dtype and device of x. Rows of padding are zeros in out and unchanged in x.
      pad_slot_id: the name of null_block_id in older versions; replaces it if given.

    Arguments with one number for each sequence may be longer than the batch, as in padded batches;
    the first ones are used.

    Returns:
      out, or x.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    if out is not None:
        found, expected = ((one.dtype, tuple(one.shape), one.device) for one in (out, x))
        if found != expected:
            raise ValueError(f"out: is {found}, but x is {expected} (dtype, shape, device)")
    result = x if out is None else out
    null_slot = null_block_id if pad_slot_id is None else pad_slot_id
    if conv_state_indices is None:
        null_slot = None
    read_slots, write_slots = slots_of(conv_state_indices, initial_state_idx), None
    if block_idx_last_scheduled_token is not None:
        write_slots = slots_of(conv_state_indices, block_idx_last_scheduled_token)
    if num_accepted_tokens is None:
        layout = _PACKED if x.dim() == 2 else _DENSE
        rare = {} if write_slots is None else {"write_slots": write_slots}
        return conv.run(
            (DECODE if query_start_loc is None else FORWARD) | layout, x, result, weight, bias,
            conv_state, read_slots, query_start_loc, None, True, silu_or_none(activation),
            null_slot, "untouched" if out is None else None, **rare)

    # Draft tokens: [batch, channels, tokens], or [tokens, channels] with query_start_loc.
    rows, layout, drafts = x, _PACKED, max_query_len
    if query_start_loc is None:
        rows = x.unsqueeze(2) if x.dim() == 2 else x
        layout, drafts = _DENSE, rows.shape[2]
    elif max_query_len < 1:
        raise ValueError(f"max_query_len: is {max_query_len}; expected the number of tokens of the "
                         "longest sequence, with query_start_loc and num_accepted_tokens")
    slots = write_slots if write_slots is not None else read_slots
    if slots is None:
        sequences = rows.shape[0] if query_start_loc is None else len(query_start_loc) - 1
        slots = torch.arange(sequences, device=x.device)
    to = torch.empty_like(rows) if out is None else out.view_as(rows)
    to = conv.run(
        VERIFY | layout, rows, to, weight, bias, conv_state, read_slots, query_start_loc, None,
        False, silu_or_none(activation), null_slot, "copy" if out is None else None,
        read_offsets=num_accepted_tokens - 1, intermediate_slots=slots,
        intermediate_states=rolling_states(conv_state, width_of(weight), drafts))
    if out is None:
        rows.copy_(to)
    return to.view(out.shape) if to.requires_grad and out is not None else result
