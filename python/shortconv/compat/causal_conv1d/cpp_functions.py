"""The low-level functions, called with positional arguments by mamba's fused paths.

Source: https://github.com/Dao-AILab/causal-conv1d, causal_conv1d/cpp_functions.py of 1.7.
"""

from typing import Any, Optional

from shortconv.compat._common import Tensor
from shortconv.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)


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
) -> Any:
    """Not supported yet; raises NotImplementedError."""
    raise NotImplementedError("shortconv: has no backward pass yet")


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
