"""causal_conv1d_fn and causal_conv1d_update, and both in plain torch code.

Source: https://github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py of 1.7.
"""

from typing import Any, Optional, Tuple, Union

from shortconv import torch as conv
from shortconv._core import CHANNELS_FIRST, DECODE, FORWARD, SHIFT_FULL_STATE, STATE_CHANNELS_FIRST
from shortconv._names import argument_names
from shortconv.compat._common import Tensor, needs_gradient, silu_or_none, width_of
from shortconv.torch import torch


@argument_names({"state": "initial_states", "initial_state": "initial_states",
                 "read_slots": "slot numbers"},
                reversed_from={"x": 3, "state": 3})
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    seq_idx: Optional[Tensor] = None,
    initial_states: Optional[Tensor] = None,
    return_final_states: bool = False,
    final_states_out: Optional[Tensor] = None,
    activation: Optional[str] = None,
) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    """Convolves a dense batch of sequences.

    Args:
      x: [batch, channels, tokens], f32, f16 or bf16, any strides.
      weight: [channels, width]; bias: [channels], dtype of weight.
      seq_idx: [batch, tokens] int; a row holds several sequences. A new number starts a sequence,
        and negative numbers are padding, whose outputs are 0.
      initial_states: [batch, channels, width - 1], of the first sequence of each row.
      return_final_states: also return the final states. Cannot be combined with seq_idx.
      final_states_out: [batch, channels, width - 1], written; may be initial_states, unless these
        are needed for gradients.
      activation: None, "silu" or "swish".

    Returns:
      out, memory layout of x; with return_final_states (out, final states [batch, channels,
      width - 1]). Both have gradients.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    activation = silu_or_none(activation)
    if seq_idx is not None and return_final_states:
        raise ValueError("return_final_states: cannot be combined with seq_idx")
    if needs_gradient(x, weight, bias, initial_states):
        return _with_gradients(x, weight, bias, seq_idx, initial_states, return_final_states,
                               final_states_out, activation)
    if seq_idx is not None:
        return conv.run(
            FORWARD | CHANNELS_FIRST | STATE_CHANNELS_FIRST, x, torch.empty_like(x), weight, bias,
            initial_states, None, None, None, initial_states is not None, activation,
            seq_idx=seq_idx)
    state = None
    if return_final_states or initial_states is not None:
        state = _states(x, width_of(weight), initial_states,
                        final_states_out if return_final_states else None)
    out = conv.run(
        FORWARD | CHANNELS_FIRST | STATE_CHANNELS_FIRST, x, torch.empty_like(x), weight, bias,
        state, None, None, None, initial_states is not None, activation)
    return (out, state) if return_final_states else out


def _with_gradients(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], seq_idx: Optional[Tensor],
    initial_states: Optional[Tensor], return_final_states: bool,
    final_states_out: Optional[Tensor], activation: Optional[str],
) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    _check_states(x, width_of(weight), initial_states,
                  final_states_out if return_final_states else None)
    initial = None if initial_states is None else initial_states.transpose(1, 2)
    result = conv.short_conv(
        x.transpose(1, 2), weight, bias, seq_idx=seq_idx, initial_state=initial,
        return_final_state=return_final_states, activation=activation)
    if not return_final_states:
        return result.transpose(1, 2)
    out, final = (one.transpose(1, 2) for one in result)
    final = final.to(x.dtype) if final_states_out is None else final_states_out.copy_(final)
    return out, final


def _check_states(x: Tensor, width: int, initial: Optional[Tensor],
                  final: Optional[Tensor]) -> None:
    if x.dim() != 3:
        raise ValueError(f"x: is of shape {tuple(x.shape)}; expected [batch, channels, tokens]")
    shape = (*x.shape[:2], width - 1)
    for name, given in (("initial_states", initial), ("final_states_out", final)):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name}: is of shape {tuple(given.shape)}; expected {shape} (batch, "
                             "channels, width - 1)")


def _states(x: Tensor, width: int, initial: Optional[Tensor], final: Optional[Tensor]) -> Tensor:
    """The tensor that receives the final states, with the initial states in it."""
    _check_states(x, width, initial, final)
    batch, channels, tokens = x.shape
    if final is None:
        final = x.new_empty(batch, width - 1, channels).transpose(1, 2)
    if initial is None:
        if tokens == 0:
            final.zero_()
    elif final is not initial:
        final.copy_(initial.detach())
    return final


@argument_names({"state": "conv_state", "read_slots": "conv_state_indices"},
                reversed_from={"x": 3, "state": 3})
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: Optional[str] = None,
    cache_seqlens: Optional[Tensor] = None,
    conv_state_indices: Optional[Tensor] = None,
) -> Tensor:
    """Convolves the next tokens of each sequence and updates conv_state in place.

    Args:
      x: [batch, channels] or [batch, channels, tokens], f32, f16 or bf16, any strides.
      conv_state: [batch, channels, columns >= width - 1], or [slots, ...] with conv_state_indices,
        any strides: the newest inputs, newest last. All columns shift.
      weight: [channels, width]; bias: [channels], dtype of weight.
      activation: None, "silu" or "swish".
      cache_seqlens: [batch] int; number of inputs of each sequence before this call. conv_state is
        then a circular buffer.
      conv_state_indices: [batch] int; slots of the sequences. Negative ones are padding, whose
        outputs are 0.

    Returns:
      out, shape and memory layout of x.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    activation = silu_or_none(activation)
    op = DECODE | STATE_CHANNELS_FIRST | (0 if x.dim() == 2 else CHANNELS_FIRST)
    if cache_seqlens is None:
        return conv.run(
            op | SHIFT_FULL_STATE, x, torch.empty_like(x), weight, bias, conv_state,
            conv_state_indices, None, None, False, activation)
    return conv.run(
        op, x, torch.empty_like(x), weight, bias, conv_state, conv_state_indices, None, None, False,
        activation, cache_seqlens=cache_seqlens)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    initial_states: Optional[Tensor] = None,
    return_final_states: bool = False,
    final_states_out: Optional[Tensor] = None,
    activation: Optional[str] = None,
    seq_idx: Optional[Tensor] = None,
) -> Any:
    """causal_conv1d_fn in torch operators: a sum of shifted inputs, in the dtype of weight."""
    activation = silu_or_none(activation)
    keep = weight.shape[1] - 1
    history = initial_states
    if history is None:
        history = x.new_zeros(x.shape[0], x.shape[1], keep)
    values = torch.cat([history.to(x.dtype), x], dim=2)
    wide = values.to(weight.dtype)  # once: the gradients of the taps add up before they are rounded
    tokens = x.shape[2]

    def inputs_of(tap: int) -> Tensor:
        inputs = wide[:, :, tap : tap + tokens]
        if seq_idx is None:
            return inputs
        extended = torch.cat([seq_idx[:, :1].expand(-1, keep), seq_idx], dim=1)
        return torch.where((extended[:, tap : tap + tokens] == seq_idx)[:, None], inputs, 0)

    out = sum(inputs_of(tap) * weight[:, tap, None] for tap in range(keep + 1))
    if bias is not None:
        out = out + bias[:, None]
    out = (torch.nn.functional.silu(out) if activation else out).to(x.dtype)
    if seq_idx is not None:
        out = torch.where((seq_idx < 0)[:, None], 0, out)
    if not return_final_states:
        return out
    final = values[:, :, tokens:]
    if final_states_out is not None:
        final = final_states_out.copy_(final)
    return out, final


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: Optional[str] = None,
    cache_seqlens: Optional[Tensor] = None,
) -> Tensor:
    """causal_conv1d_update without conv_state_indices, in torch operators."""
    new = x.unsqueeze(2) if x.dim() == 2 else x
    tokens, columns, keep = new.shape[2], conv_state.shape[2], weight.shape[1] - 1
    if cache_seqlens is None:
        history = conv_state[:, :, columns - keep :].clone()
        conv_state.copy_(torch.cat([conv_state, new], dim=2)[:, :, -columns:])
    else:
        def columns_at(first: int, count: int) -> Tensor:
            steps = torch.arange(first, first + count, device=x.device)
            at = (cache_seqlens.long()[:, None] + steps) % columns
            return at[:, None].expand(-1, x.shape[1], -1)

        history = conv_state.gather(2, columns_at(-keep, keep))
        for token in range(tokens):  # in order: a later token may have the same column
            conv_state.scatter_(2, columns_at(token, 1), new[:, :, token : token + 1])
    out = causal_conv1d_ref(new, weight, bias, history, activation=activation)
    return out.squeeze(2) if x.dim() == 2 else out
