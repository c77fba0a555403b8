"""States of packed sequences.

Source: https://github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_varlen.py of 1.7.
"""

from shortconv.compat._common import Tensor, last_inputs
from shortconv.torch import torch


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last inputs of each sequence, with zeros before its first input.

    Args:
      x: [tokens, channels].
      cu_seqlens: [sequences + 1] int, ascending.
      state_len: number of inputs.

    Returns:
      [sequences, channels, state_len], dtype of x, channels innermost.
    """
    return last_inputs(x, cu_seqlens, state_len).transpose(1, 2)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """causal_conv1d_varlen_states as a loop over the sequences."""
    bounds = cu_seqlens.tolist()
    states = x.new_zeros(len(bounds) - 1, state_len, x.shape[1])
    for state, begin, end in zip(states, bounds[:-1], bounds[1:]):
        kept = min(state_len, end - begin)
        if kept > 0:
            state[state_len - kept :] = x[end - kept : end]
    return torch.transpose(states, 1, 2)
