"""The functions of SGLang's causal_conv1d_triton module.

Source: https://github.com/sgl-project/sglang, causal_conv1d_triton.py of
python/sglang/srt/layers/attention/mamba.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

from shortconv import torch as conv
from shortconv._core import (
    CHANNELS_FIRST,
    DECODE,
    FORWARD,
    LONGER_INDICES,
    STATE_CHANNELS_FIRST,
    VERIFY,
)
from shortconv._group_arguments import Group, HeadMap
from shortconv._names import argument_names
from shortconv.compat._common import (
    Tensor,
    convolve_groups,
    has_fast_groups,
    rolling_states,
    silu_or_none,
    width_of,
)
from shortconv.torch import torch

PAD_SLOT_ID = -1
_TOKENS_FIRST = STATE_CHANNELS_FIRST | LONGER_INDICES
_CHANNELS_FIRST = _TOKENS_FIRST | CHANNELS_FIRST


def refuse_unknown(arguments: Dict[str, Any]) -> None:
    """Refuses keywords that no known version of SGLang passes, and that could change the result.

    SGLang ignores them. `block_table` lists blocks of tokens for its grid, `seq_lens_cpu` lengths.

    Raises:
      TypeError: there is another keyword.
    """
    for name in arguments.keys() - {"block_table", "seq_lens_cpu"}:
        raise TypeError(f"{name}: is not a known argument of SGLang's causal_conv1d_fn; expected "
                        "block_table and seq_lens_cpu at most, in addition to the documented ones")


@argument_names(
    {"state": "conv_states", "read_slots": "cache_indices", "null_slot": "pad_slot_id"},
    reversed_from={"x": 2, "out": 2, "state": 3})
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
    block_table: Optional[Tensor] = None,
    **kwargs: Any,
) -> Tensor:
    """Convolves a packed batch and writes final states to conv_states.

    Args:
      x: [channels, tokens], f32, f16 or bf16, any strides.
      weight: [channels, width]; bias: [channels], dtype of weight.
      conv_states: [slots, channels, columns >= width - 1], written; the first width - 1 columns are
        used.
      query_start_loc: [sequences + 1] int.
      cache_indices: [sequences] int; slots of the sequences. None: the sequence number.
      has_initial_state: [sequences] bool; None: all sequences start from zeros.
      activation: None, "silu", "swish", or a bool for SiLU.
      pad_slot_id: an index that means padding, as every negative one does.
      seq_lens_cpu, validate_data, block_table: accepted, without effect.

    Arguments with one number for each sequence may be longer than query_start_loc says, as in
    padded batches; the first ones are used.

    Returns:
      [channels, tokens], memory layout of x.

    Raises:
      ValueError: a bad argument; the message names it.
      TypeError: there is an unknown argument.
      NotImplementedError: another activation is given.
    """
    if kwargs:
        refuse_unknown(kwargs)
    return conv.run(
        FORWARD | _CHANNELS_FIRST, x, torch.empty_like(x), weight, bias, conv_states, cache_indices,
        query_start_loc, has_initial_state, False,
        silu_or_none(activation), pad_slot_id)


@argument_names(
    {"state": "conv_state", "read_slots": "conv_state_indices", "read_offsets": "num_accept_tokens",
     "intermediate_states": "intermediate_conv_window",
     "intermediate_slots": "intermediate_state_indices", "parents": "retrieve_next_token",
     "first_child": "retrieve_next_token", "next_sibling": "retrieve_next_sibling",
     "null_slot": "pad_slot_id"},
    reversed_from={"x": 3, "out": 3, "state": 3, "intermediate_states": 4})
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
    """Convolves the next tokens or draft tokens of each sequence; updates conv_state in place.

    Args:
      x: [batch, channels] or [batch, channels, tokens], f32, f16 or bf16, any strides.
      conv_state: [slots, channels, columns >= width - 1], written (not with trees); the first
        width - 1 columns are used, and tokens - 1 more with num_accept_tokens.
      weight: [channels, width]; bias: [channels], dtype of weight.
      activation: None, "silu", "swish", or a bool for SiLU.
      conv_state_indices: [batch] int; slots of the sequences. None: the sequence number.
      num_accept_tokens, num_accepted_tokens (two names of one argument): [batch] int; the state
        rolls: the history begins at column accepted - 1, and all tokens are stored after its newest
        width - 2 inputs.
      intermediate_conv_window: [rows, steps >= tokens, channels, width - 1], written: the state
        after each token; steps may overlap.
      intermediate_state_indices: [batch] int; rows of intermediate_conv_window. None:
        conv_state_indices.
      retrieve_next_token, retrieve_next_sibling: [batch, tokens] int; drafts are trees. First child
        and next sibling of each token, -1 for none.
      retrieve_parent_token: [batch, tokens] int, written: the parents, 0 for the root.
      pad_slot_id: an index that means padding, as every negative one does.
      cache_seqlens, metadata, validate_data: accepted, without effect, as in SGLang.

    Arguments with one number for each sequence may be longer than the batch, as in padded batches;
    the first ones are used.

    Returns:
      Shape and memory layout of x.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    activation = silu_or_none(activation)
    accepted = num_accept_tokens if num_accept_tokens is not None else num_accepted_tokens
    drafted = intermediate_conv_window is not None or retrieve_next_token is not None
    if accepted is None and not drafted:
        layout = _TOKENS_FIRST if x.dim() == 2 else _CHANNELS_FIRST
        return conv.run(
            DECODE | layout, x, torch.empty_like(x), weight, bias, conv_state, conv_state_indices,
            None, None, False, activation, pad_slot_id)
    rows = x.unsqueeze(2) if x.dim() == 2 else x
    offsets, parents, states, update = None, None, None, False
    slots = conv_state_indices
    if accepted is not None:
        if drafted:
            raise ValueError("num_accept_tokens: cannot be combined with intermediate_conv_window "
                             "or retrieve_next_token")
        offsets, states = accepted - 1, rolling_states(conv_state, width_of(weight), rows.shape[2])
    else:
        if retrieve_next_token is None:
            update = True
        else:
            parents = _parents(rows.shape[0], retrieve_next_token, retrieve_next_sibling,
                               retrieve_parent_token)
        if intermediate_conv_window is not None:
            if intermediate_conv_window.dim() != 4:
                raise ValueError(
                    "intermediate_conv_window: is of shape "
                    f"{tuple(intermediate_conv_window.shape)}; expected [rows, steps, channels, "
                    "width - 1]")
            states = intermediate_conv_window.transpose(2, 3)
            if intermediate_state_indices is not None:
                slots = intermediate_state_indices
    if slots is None and states is not None:
        slots = torch.arange(rows.shape[0], device=x.device)
    out = conv.run(
        VERIFY | _CHANNELS_FIRST, rows, torch.empty_like(rows), weight, bias, conv_state,
        conv_state_indices, None, None, False, activation, pad_slot_id,
        read_offsets=offsets, parents=parents, intermediate_states=states,
        intermediate_slots=None if states is None else slots, update_state=update)
    return out.squeeze(2) if x.dim() == 2 else out


def _parents(batch: int, first_child: Tensor, next_sibling: Optional[Tensor],
             result: Optional[Tensor]) -> Tensor:
    first_child = first_child[:batch]
    if next_sibling is None:
        next_sibling = torch.full_like(first_child, -1)
    parents = conv.tree_parents(first_child, next_sibling[:batch], torch.empty_like(first_child))
    if result is not None:
        result[:batch].copy_(parents.clamp(min=0))
    return parents


@argument_names(
    {"state": "conv_states", "read_slots": "cache_indices", "null_slot": "pad_slot_id"},
    reversed_from={"x": 2, "state": 3})
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
    """causal_conv1d_fn over channels [q | k | v], with the result split into these parts.

    Args:
      q_dim, k_dim, v_dim: channels of the parts.
      num_q_heads, ..., head_v_dim: heads of a part and channels of a head.

    The other arguments and the errors are those of causal_conv1d_fn.

    Returns:
      q, k, v, contiguous, [1, tokens, heads, head channels].
    """
    if has_fast_groups(x.T, weight, conv_states):
        if kwargs:
            refuse_unknown(kwargs)
        heads, sizes = (num_q_heads, num_k_heads, num_v_heads), (head_q_dim, head_k_dim, head_v_dim)
        groups = [Group(count, size, HeadMap(first)) for count, size, first in
                  zip(heads, sizes, (0, q_dim, q_dim + k_dim))]
        parts = convolve_groups(x.T, weight, bias, conv_states, cache_indices, query_start_loc,
                                has_initial_state, silu_or_none(activation), pad_slot_id, groups)
        return tuple(part[None] for part in parts.groups)
    out = causal_conv1d_fn(
        x, weight, bias, conv_states, query_start_loc, seq_lens_cpu, cache_indices,
        has_initial_state, activation, pad_slot_id, **kwargs).transpose(0, 1)
    heads = ((num_q_heads, head_q_dim), (num_k_heads, head_k_dim), (num_v_heads, head_v_dim))
    parts = out.split([q_dim, k_dim, v_dim], dim=1)
    q, k, v = (part.reshape(1, -1, *shape).contiguous() for part, shape in zip(parts, heads))
    return q, k, v
