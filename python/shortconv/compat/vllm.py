"""vLLM's causal_conv1d_fn and causal_conv1d_update.

install() replaces them in an imported vLLM; so does vLLM itself, in each of its processes, through
its plugins, where the environment variable SHORTCONV_VLLM is 1.

Different on purpose: rows of padding are zeros where the original leaves what was in memory; any
negative slot is padding, besides null_block_id; an accepted number of 0 reads from column 0; states
at block boundaries are exact wherever in a chunk they lie; metadata is not needed.

Source: https://github.com/vllm-project/vllm, vllm/model_executor/layers/mamba/ops/causal_conv1d.py.
"""

import os
from typing import Any, Callable, Optional, Union

from shortconv import torch as conv
from shortconv._core import CHANNELS_FIRST, DECODE, FORWARD, STATE_CHANNELS_FIRST, VERIFY
from shortconv.compat._common import Tensor, install_functions, rolling_windows, silu_or_none
from shortconv.torch import torch

PAD_SLOT_ID = -1
NULL_BLOCK_ID = 0


def _slots(table: Optional[Tensor], block: Optional[Tensor]) -> Optional[Tensor]:
    """The slots of a table [sequences] or [sequences, blocks], at a block of each sequence."""
    if table is None or table.dim() == 1:
        return table
    if block is None:
        return table[:, 0]
    return table.gather(1, block.long().unsqueeze(1)).squeeze(1)


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
    """Convolves a packed batch and writes final states to the slots.

    Args:
      x: [channels, tokens], any strides.
      weight: [channels, width]; bias: [channels].
      conv_states: [slots, channels, columns >= width - 1], of which the first width - 1 count.
      query_start_loc: [sequences + 1] int.
      cache_indices: [sequences] or [sequences, blocks] int; null_block_id and negative ones are
        padding.
      has_initial_state: [sequences] bool; None: none has.
      initial_state_idx, block_idx_last_scheduled_token: [sequences] int; columns of cache_indices
        with the slots that are read and written. None: column 0.
      num_computed_tokens, block_size_to_align: with block_idx_last_scheduled_token, the state after
        each full block that this call completes goes to the block's own slot too.
      pad_slot_id, block_idx_first_scheduled_token, metadata, validate_data: accepted; nothing here
        needs them.

    Returns:
      [channels, tokens], laid out as x.
    """
    op = FORWARD | CHANNELS_FIRST | STATE_CHANNELS_FIRST
    read_slots, activation = _slots(cache_indices, initial_state_idx), silu_or_none(activation)
    if block_idx_last_scheduled_token is None:  # each argument less saves time
        return conv.run(
            op, x, torch.empty_like(x), weight, bias, conv_states, read_slots, query_start_loc,
            has_initial_state, False, activation, null_block_id)
    write_slots, snapshots = _slots(cache_indices, block_idx_last_scheduled_token), None
    if num_computed_tokens is not None and block_size_to_align > 0:
        tokens, sequences = x.shape[1], len(query_start_loc) - 1
        snapshots = torch.empty(tokens // block_size_to_align + sequences, 3,
                                dtype=torch.int64, device=x.device)
        conv.block_snapshots(
            query_start_loc, num_computed_tokens, cache_indices, tokens=tokens,
            block_tokens=block_size_to_align, snapshots=snapshots)
    return conv.run(
        op, x, torch.empty_like(x), weight, bias, conv_states, read_slots, query_start_loc,
        has_initial_state, False, activation, null_block_id, None, None, write_slots, 0, False,
        False, None, snapshots)


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
) -> Tensor:
    """Convolves the next tokens of each sequence; states move along in place.

    Args:
      x: [batch, channels], [batch, channels, tokens], or [tokens, channels] with query_start_loc;
        overwritten with the result unless out is given.
      conv_state: [slots, channels, columns >= width - 1], of which the first width - 1 count; with
        num_accepted_tokens there are max_query_len - 1 more.
      conv_state_indices: [batch] or [batch, blocks] int; None: slot = row. Rows of padding keep x.
      num_accepted_tokens: [batch] int; states roll: the history begins at column accepted - 1, and
        all tokens are kept behind the newest width - 2 of it.
      initial_state_idx, block_idx_last_scheduled_token: as for causal_conv1d_fn.
      out: shape of x; rows of padding are zeros in it.

    Returns:
      out, or x.
    """
    if out is not None:
        found, expected = ((one.dtype, tuple(one.shape), one.device) for one in (out, x))
        if found != expected:
            raise ValueError(f"out: is {found}, but x is {expected} (dtype, shape, device)")
    result = x if out is None else out
    read_slots, write_slots = _slots(conv_state_indices, initial_state_idx), None
    if block_idx_last_scheduled_token is not None:
        write_slots = _slots(conv_state_indices, block_idx_last_scheduled_token)
    if num_accepted_tokens is None:
        layout = STATE_CHANNELS_FIRST if x.dim() == 2 else CHANNELS_FIRST | STATE_CHANNELS_FIRST
        conv.run(
            (DECODE if query_start_loc is None else FORWARD) | layout, x, result, weight, bias,
            conv_state, read_slots, query_start_loc, None, True, silu_or_none(activation),
            null_block_id, "untouched" if out is None else None, None, write_slots)
        return result

    # Drafts: [batch, channels, tokens], or [tokens, channels] with bounds.
    rows, layout, drafts = x, STATE_CHANNELS_FIRST, max_query_len
    if query_start_loc is None:
        rows = x.unsqueeze(2) if x.dim() == 2 else x
        layout, drafts = CHANNELS_FIRST | STATE_CHANNELS_FIRST, rows.shape[2]
    slots = write_slots if write_slots is not None else read_slots
    if slots is None:
        sequences = rows.shape[0] if query_start_loc is None else len(query_start_loc) - 1
        slots = torch.arange(sequences, device=x.device)
    to = torch.empty_like(rows) if out is None else out.view_as(rows)
    conv.run(
        VERIFY | layout, rows, to, weight, bias, conv_state, read_slots, query_start_loc, None,
        False, silu_or_none(activation), null_block_id, "copy" if out is None else None, None, None,
        0, False, False, num_accepted_tokens - 1, None, None,
        rolling_windows(conv_state, weight.shape[1], drafts), slots)
    if out is None:
        rows.copy_(to)
    return result


def install() -> Callable[[], None]:
    """Puts these functions in the place of vLLM's, in all modules loaded by then.

    Returns:
      A function that undoes it.

    Raises:
      ImportError: vLLM is not installed, or keeps them elsewhere.
    """
    return install_functions({
        "vllm.model_executor.layers.mamba.ops.causal_conv1d": {
            "causal_conv1d_fn": causal_conv1d_fn, "causal_conv1d_update": causal_conv1d_update},
    })


def plugin() -> None:
    """vLLM's entry point (vllm.general_plugins): install() if SHORTCONV_VLLM is 1, else nothing."""
    if os.environ.get("SHORTCONV_VLLM") == "1":
        install()
