"""The low-level functions, called with positional arguments by mamba's fused paths.

Source: https://github.com/Dao-AILab/causal-conv1d, causal_conv1d/cpp_functions.py of 1.7.
"""

from typing import Optional, Tuple

from shortconv import torch as conv
from shortconv.compat._common import Tensor, width_of
from shortconv.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)
from shortconv.torch import torch


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    seq_idx: Optional[Tensor],
    initial_states: Optional[Tensor],
    final_states_out: Optional[Tensor],
    silu_activation: bool,
) -> Tensor:
    """causal_conv1d_fn, which writes final states if final_states_out is given."""
    activation = "silu" if silu_activation else None
    if final_states_out is None:
        return causal_conv1d_fn(x, weight, bias, seq_idx, initial_states, activation=activation)
    out, _ = causal_conv1d_fn(x, weight, bias, seq_idx, initial_states, True, final_states_out,
                              activation)
    return out


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    dout: Tensor,
    seq_idx: Optional[Tensor],
    initial_states: Optional[Tensor],
    dfinal_states: Optional[Tensor],
    dx: Optional[Tensor],
    return_dinitial_states: bool,
    silu_activation: bool,
) -> Tuple[Tensor, Tensor, Optional[Tensor], Optional[Tensor]]:
    """The gradients of causal_conv1d_fwd_function.

    Args:
      dout: [batch, channels, tokens], any strides; the gradient of the result.
      dfinal_states: [batch, channels, width - 1], the gradient of the final states, or None.
      dx: shape and dtype of x, any strides, written; None: a new tensor.
      return_dinitial_states: whether the gradient of the initial states is computed.

    Returns:
      (dx, dweight, dbias or None, dinitial_states or None), with the types of their inputs.
    """
    with torch.no_grad():
        if return_dinitial_states and initial_states is None:
            initial_states = x.new_zeros(x.shape[0], x.shape[1], width_of(weight) - 1)
        by_tokens = [None if one is None else one.transpose(1, 2)
                     for one in (dout, x, initial_states, dfinal_states, dx)]
        rows_of_dout, rows, initial, dfinal, rows_of_dx = by_tokens
        grads = conv.backward(
            rows_of_dout, rows, weight, bias, seq_idx=seq_idx, initial_state=initial,
            activation="silu" if silu_activation else None, grad_final_state=dfinal,
            grad_x=True if rows_of_dx is None else rows_of_dx,
            grad_initial_state=return_dinitial_states)
    dinitial_states = grads.initial_state.transpose(1, 2) if return_dinitial_states else None
    dx = grads.x.transpose(1, 2) if dx is None else dx
    return dx, grads.weight, grads.bias, dinitial_states


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    silu_activation: bool,
    cache_seqlens: Optional[Tensor],
    conv_state_indices: Optional[Tensor],
) -> Tensor:
    """causal_conv1d_update with positional arguments."""
    return causal_conv1d_update(x, conv_state, weight, bias, "silu" if silu_activation else None,
                                cache_seqlens, conv_state_indices)
