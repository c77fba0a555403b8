"""causal_conv1d, causal_conv1d_update and ShortConvolution.forward of flash-linear-attention.

Caches are [sequences, channels, width]: the newest `width` inputs, of which the convolution reads
the last width - 1. causal_conv1d and short_convolution have gradients; then nothing is updated in
place. install() replaces the original functions, except for calls with context parallelism, or with
gradients on a device that does not have them.

Source: https://github.com/fla-org/flash-linear-attention, fla/modules/causal_conv1d of 0.6.
"""

import functools
from typing import Any, Callable, FrozenSet, Optional, Tuple

from shortconv import _core
from shortconv import torch as conv
from shortconv._core import DECODE, FLATTENED, FORWARD, SHIFT_FULL_STATE, STATE_CHANNELS_FIRST
from shortconv._names import argument_names
from shortconv.compat._common import (
    Tensor,
    install_functions,
    last_inputs,
    needs_gradient,
    silu_or_none,
)
from shortconv.torch import torch


def _taps_of(weight: Optional[Tensor]) -> Tensor:
    if weight is None:
        raise NotImplementedError("weight: is None; expected [channels, width]")
    taps = weight.squeeze(1) if weight.dim() == 3 else weight
    if taps.dim() != 2:
        raise ValueError(f"weight: is of shape {tuple(weight.shape)}; expected [channels, width] "
                         "or [channels, 1, width]")
    return taps


def _contiguous_like(x: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    if dtype is None and x.is_contiguous():
        return torch.empty_like(x)  # faster than with the arguments below
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _plus(y: Tensor, residual: Optional[Tensor]) -> Tensor:
    if residual is None:
        return y
    # In place only where autograd does not follow: it cannot replace what refuses the gradient.
    return y + residual if y.requires_grad else y.add_(residual)


@argument_names({"state": "initial_state", "read_slots": "slot numbers",
                 "query_start_loc": "cu_seqlens"},
                reversed_from={"state": 3})
def causal_conv1d(
    x: Tensor,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    output_final_state: Optional[bool] = False,
    activation: Optional[str] = None,
    backend: Optional[str] = "triton",
    cu_seqlens: Optional[Tensor] = None,
    cu_seqlens_cpu: Optional[Tensor] = None,
    chunk_indices: Optional[Tensor] = None,
    cp_context: Any = None,
    **kwargs: Any,
) -> Tuple[Tensor, Optional[Tensor]]:
    """Convolves a dense or packed batch of sequences.

    Args:
      x: [batch, tokens, channels] or [batch, tokens, heads, head channels], f32, f16 or bf16; batch
        is 1 with cu_seqlens.
      weight: [channels, width] or [channels, 1, width]; bias: [channels], dtype of weight.
      residual: shape of x, added after the activation.
      initial_state: [sequences, channels, width]; not written.
      output_final_state: also return the final states.
      activation: None, "silu" or "swish".
      cu_seqlens: [sequences + 1] int.
      backend, cu_seqlens_cpu, chunk_indices: accepted, without effect.

    Returns:
      y, contiguous, dtype of x, and the final states [sequences, channels, width] or None. Both
      have gradients.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: weight is None, or cp_context or another activation is given.
    """
    weight, activation = _taps_of(weight), silu_or_none(activation)
    if cp_context is not None:
        raise NotImplementedError("cp_context: context parallelism is not supported yet")
    if backend not in ("triton", "mix", "cuda"):
        raise ValueError(f"backend: is {backend!r}; expected 'triton', 'mix' or 'cuda'")
    if kwargs.get("seq_idx") is not None and cu_seqlens is None:
        raise NotImplementedError("seq_idx: is not supported; pass cu_seqlens")
    op = FORWARD
    if cu_seqlens is not None:
        if x.size(0) != 1:
            raise ValueError(f"x: batch is {x.size(0)}; expected 1 with cu_seqlens")
        op = FORWARD | FLATTENED
    shape, adds_x = None, residual is x
    if x.dim() != 3:
        shape = x.shape
        x = x.reshape(shape[0], shape[1], weight.shape[0])
    added = residual is not None and not adds_x  # afterwards, to an unrounded result
    if needs_gradient(x, weight, bias, residual, initial_state):
        y = _with_gradients(x, weight, bias, initial_state, activation, cu_seqlens, adds_x,
                            torch.float32 if added else None)
        if added:
            y = (y + residual.reshape(x.shape)).to(x.dtype)
        final = None
        if output_final_state:
            final = _final_states(x, weight.shape[1], initial_state, cu_seqlens)
        return (y if shape is None else y.view(shape)), final
    out = _contiguous_like(x, torch.float32 if added else None)
    final = None
    if output_final_state:
        final, cache_seqlens = _circular_buffers(x, weight.shape[1], initial_state, cu_seqlens)
        y = conv.run(
            op | STATE_CHANNELS_FIRST, x, out, weight, bias, final, None, cu_seqlens, None,
            initial_state is not None, activation, cache_seqlens=cache_seqlens, residual=adds_x)
        final = final.to(x.dtype)
    elif initial_state is None and not adds_x:
        y = conv.run(op, x, out, weight, bias, None, None, cu_seqlens, None, False, activation)
    else:
        state, write_slots = None, None
        if initial_state is not None:  # read only: negative write slots
            state = initial_state.detach()
            write_slots = torch.full((1,), -1, device=x.device).expand(
                x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1)
        # residual=True adds x: Canon layers.
        y = conv.run(
            op | STATE_CHANNELS_FIRST, x, out, weight, bias, state, None, cu_seqlens, None,
            state is not None, activation, write_slots=write_slots, base_column=1, residual=adds_x)
    if added:  # rounded once
        y = (y + residual.reshape(x.shape)).to(x.dtype)
    if shape is not None:
        y = y.view(shape)
    return y, final


def _with_gradients(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], initial_state: Optional[Tensor],
    activation: Optional[str], cu_seqlens: Optional[Tensor], residual: bool,
    out_dtype: Optional[torch.dtype],
) -> Tensor:
    """causal_conv1d of [batch, tokens, channels] without final states.

    Raises:
      ValueError: initial_state has another shape.
    """
    sequences = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    shape = (sequences, x.shape[2], weight.shape[1])
    if initial_state is not None and tuple(initial_state.shape) != shape:
        raise ValueError(f"initial_state: is of shape {tuple(initial_state.shape)}; expected "
                         f"{shape} (sequences, channels, width)")
    history = None if initial_state is None else initial_state[:, :, 1:].transpose(1, 2)
    y = conv.short_conv(
        x if cu_seqlens is None else x[0], weight, bias, activation=activation, residual=residual,
        query_start_loc=cu_seqlens, initial_state=history, out_dtype=out_dtype)
    return (y if cu_seqlens is None else y[None]).contiguous()


def _final_states(x: Tensor, width: int, initial_state: Optional[Tensor],
                  cu_seqlens: Optional[Tensor]) -> Tensor:
    """The newest `width` inputs of each sequence, [sequences, channels, width], in torch operators:
    the core keeps width - 1 of them, and a loss rarely depends on states."""
    before = None if initial_state is None else initial_state.transpose(1, 2).to(x.dtype)
    if cu_seqlens is None:
        if before is None:
            before = x.new_zeros(x.shape[0], width, x.shape[2])
        newest = x[:, max(x.shape[1] - width, 0) :]
        return torch.cat([before, newest], 1)[:, -width:].transpose(1, 2).contiguous()
    final = last_inputs(x[0], cu_seqlens, width)
    if before is not None:  # of sequences with fewer than `width` tokens
        columns = torch.arange(width, device=x.device) + cu_seqlens.diff()[:, None]
        before = before.gather(
            1, columns.clamp(max=width - 1).long()[..., None].expand(-1, -1, x.shape[2]))
        final = torch.where((columns < width)[..., None], before, final)
    return final.transpose(1, 2).contiguous()


def _circular_buffers(x: Tensor, width: int, initial_state: Optional[Tensor],
                      cu_seqlens: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    """States as circular buffers, which keep one input per column: all `width` that fla returns.

    cache_seqlens are chosen so that the newest input ends up in the last column.

    Returns:
      The states before the call, [sequences, channels, width], and cache_seqlens [sequences].
    """
    batch, tokens, channels = x.shape
    if cu_seqlens is None:
        seqlen = -tokens % width + width  # at least width, as after a full history
        cache_seqlens = torch.full((1,), seqlen, device=x.device).expand(batch)
    else:
        seqlen = None
        cache_seqlens = (cu_seqlens[:-1] - cu_seqlens[1:]) % width + width
    if initial_state is None:
        return x.new_zeros(cache_seqlens.shape[0], channels, width), cache_seqlens
    before = initial_state.detach().to(torch.promote_types(x.dtype, initial_state.dtype))
    if seqlen is not None:
        return before.roll(seqlen, 2).contiguous(), cache_seqlens
    columns = (torch.arange(width, device=x.device) - cache_seqlens[:, None]) % width
    return before.gather(2, columns[:, None].expand(-1, channels, -1)), cache_seqlens


@argument_names({"state": "cache", "read_slots": "slot numbers"}, reversed_from={"state": 3})
def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Optional[Tensor] = None,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    activation: Optional[str] = None,
) -> Tuple[Tensor, Tensor]:
    """Convolves one token of each sequence and shifts the cache by it, in place.

    Args:
      x: [sequences, channels], [sequences, 1, channels] or [1, sequences, channels], f32, f16 or
        bf16; with four axes the last one is split into heads.
      cache: [sequences, channels, width], written.
      residual: shape of x, added after the activation.
      weight: [channels, width] or [channels, 1, width]; bias: [channels], dtype of weight.
      activation: None, "silu" or "swish".

    Returns:
      y, contiguous, shape of x, and the cache.

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: weight is None, or another activation is given.
    """
    weight, activation = _taps_of(weight), silu_or_none(activation)
    shape = None
    if x.dim() > 3:
        shape = x.shape
        x = x.reshape(-1, weight.shape[0])
    y = conv.run(
        DECODE | STATE_CHANNELS_FIRST | FLATTENED | SHIFT_FULL_STATE, x, _contiguous_like(x),
        weight, bias, cache, None, None, None, False, activation)
    if shape is not None:
        y = y.view(shape)
    return _plus(y, residual), cache


@argument_names({"state": "cache", "initial_state": "cache", "read_slots": "slot numbers",
                 "query_start_loc": "cu_seqlens"},
                reversed_from={"state": 3})
def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: Optional[str] = "silu",
    residual: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    cache: Optional[Tensor] = None,
    output_final_state: bool = False,
    cu_seqlens: Optional[Tensor] = None,
    chunk_indices: Optional[Tensor] = None,
) -> Tuple[Tensor, Optional[Tensor]]:
    """ShortConvolution.forward as a function of its weight [channels, 1, width].

    x is multiplied by the mask [batch, tokens] in place. With one token per sequence the cache is
    updated in place.

    Args:
      x: [batch, tokens, channels], f32, f16 or bf16; batch is 1 with cu_seqlens.
      weight: [channels, 1, width] or [channels, width]; bias: [channels], dtype of weight.
      cache: [sequences, channels, width].
      chunk_indices: accepted, without effect.
      Others: as for causal_conv1d.

    Returns:
      y, shape of x, and with output_final_state the final states [sequences, channels, width].

    Raises:
      ValueError: a bad argument; the message names it.
      NotImplementedError: another activation is given.
    """
    batch, tokens = x.shape[:2]
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if mask is not None:
        if cu_seqlens is not None:
            raise ValueError("mask: cannot be combined with cu_seqlens")
        x = x.mul_(mask.unsqueeze(-1))
    if torch.is_grad_enabled() or batch * tokens != sequences:
        return causal_conv1d(x, _taps_of(weight), bias, residual, cache, output_final_state,
                             activation, cu_seqlens=cu_seqlens)
    taps = _taps_of(weight)
    if cache is None:
        cache = x.new_zeros(sequences, *taps.shape)
    if cu_seqlens is None:
        y, cache = causal_conv1d_update(x, cache, residual, taps, bias, activation)
    else:  # as many tokens as sequences, but possibly of lengths 2 and 0
        rows = x.reshape(sequences, -1)
        y = conv.run(
            FORWARD | STATE_CHANNELS_FIRST | SHIFT_FULL_STATE, rows, torch.empty_like(rows), taps,
            bias, cache, None, cu_seqlens, None, True, silu_or_none(activation)).reshape(x.shape)
        y = _plus(y, residual)
    return y, (cache if output_final_state else None)


def _without_gradients() -> FrozenSet[str]:
    """Types of devices whose backend does not have gradients."""
    missing = set()
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        rows = torch.ones(2, 2, device=device)
        try:
            _core.backward(rows, rows, rows)  # plans a call; nothing is written
        except NotImplementedError:
            missing.add(device)
    return frozenset(missing)


def _where_supported(without_gradients: FrozenSet[str], original: Callable[..., Any],
                     ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(ours)
    def call(*arguments: Any, **named: Any) -> Any:
        tensors = [one for one in (*arguments, *named.values()) if isinstance(one, Tensor)]
        training = needs_gradient(*tensors) and tensors[0].device.type in without_gradients
        if training or named.get("cp_context") is not None:
            return original(*arguments, **named)
        return ours(*arguments, **named)

    return call


def install() -> Callable[[], None]:
    """Replaces the functions of fla by these in all modules loaded so far.

    Returns:
      A function that restores the originals.

    Raises:
      ImportError: fla is not installed, or has the functions in other modules.
    """
    ours = {"causal_conv1d": causal_conv1d, "causal_conv1d_update": causal_conv1d_update}
    return install_functions(
        {"fla.modules.causal_conv1d.ops": ours, "fla.modules.conv.causal_conv1d": ours,
         "fla.modules.convolution": ours},
        functools.partial(_where_supported, _without_gradients()))
