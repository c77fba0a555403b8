"""The convolution with gradients for torch: a functional pair of operators, and short_conv.

shortconv::short_conv returns (out, final state) and shortconv::short_conv_backward the gradients.
Neither writes an argument, so that torch can differentiate the first with the second. Only inputs
are kept for the backward pass: the caller may change the result in place.

A plain call does not pass torch's dispatcher: it is an autograd.Function around the same two
functions. torch.func differentiates another one around them.

Source: https://docs.pytorch.org/docs/stable/library.html for register_autograd, and
https://docs.pytorch.org/docs/stable/notes/extending.func.html for setup_context.
"""

from typing import Any, List, Optional, Sequence, Tuple, Union

from shortconv import _core, _names, _sharding
from shortconv import _torch as calls
from shortconv._torch import torch
from shortconv._workspaces import run_backward

Tensor = torch.Tensor
_INPUTS = 6  # of the arguments, those with gradients come first: x to output_gate
_TENSORS = 8  # and then the index tensors

_library = torch.library.Library("shortconv", "FRAGMENT")
_ARGUMENTS = ("Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? input_gate,"
              " Tensor? output_gate, Tensor? query_start_loc, Tensor? seq_idx, bool residual,"
              " int dilation, str? activation, str? backend, int threads")
# Without defaults: older versions of torch do not pass those on to the backward pass.
_library.define(f"short_conv({_ARGUMENTS}, ScalarType? out_dtype, bool return_final_state)"
                " -> (Tensor, Tensor)")
_library.define("short_conv_backward(Tensor? grad_out, Tensor? grad_final_state, bool[] needed,"
                f" {_ARGUMENTS}) -> ({', '.join(['Tensor'] * _INPUTS)})")


def _state_shape(x: Tensor, weight: Tensor, query_start_loc: Optional[Tensor],
                 dilation: int) -> Tuple[int, int, int]:
    if x.dim() not in (2, 3):
        raise ValueError(f"x: is of shape {tuple(x.shape)}; expected [tokens, channels] or [batch, "
                         "tokens, channels]")
    if query_start_loc is not None and query_start_loc.dim() != 1:
        raise ValueError(f"query_start_loc: is of shape {tuple(query_start_loc.shape)}; expected "
                         "[sequences + 1]")
    sequences = x.shape[0] if x.dim() == 3 else 1
    if query_start_loc is not None:
        sequences = query_start_loc.shape[0] - 1
    return sequences, (weight.shape[1] - 1) * dilation, x.shape[-1]


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    initial_state: Optional[Tensor],
    input_gate: Optional[Tensor],
    output_gate: Optional[Tensor],
    query_start_loc: Optional[Tensor],
    seq_idx: Optional[Tensor],
    residual: bool,
    dilation: int,
    activation: Optional[str],
    backend: Optional[str],
    threads: int,
    out_dtype: Optional[torch.dtype],
    return_final_state: bool,
) -> Tuple[Tensor, Tensor]:
    """shortconv::short_conv on plain tensors.

    Returns:
      out, and the final states or an empty tensor.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight: is of shape {tuple(weight.shape)}; expected [channels, width]")
    if dilation < 1:
        raise ValueError(f"dilation: is {dilation}; expected 1 or more")
    if return_final_state and seq_idx is not None:
        raise ValueError("return_final_state: cannot be combined with seq_idx, which has no final "
                         "states")
    shape = (0, 0, 0)
    if return_final_state or initial_state is not None:
        shape = _state_shape(x, weight, query_start_loc, dilation)
    if initial_state is not None and tuple(initial_state.shape) != shape:
        raise ValueError(f"initial_state: is of shape {tuple(initial_state.shape)}; expected "
                         f"{shape} (sequences, (width - 1) * dilation, channels)")
    state, write_slots = initial_state, None
    if return_final_state:  # updated in place: of the caller's, a copy
        state = (x.new_zeros(shape) if initial_state is None
                 else initial_state.clone(memory_format=torch.contiguous_format))
    elif initial_state is not None and seq_idx is None:  # read only: negative write slots
        write_slots = torch.full((1,), -1, device=x.device).expand(shape[0])
    out = torch.empty_like(x, dtype=out_dtype)
    _core.forward(
        _core.FORWARD, x, out, weight, bias, state, None, query_start_loc, None,
        initial_state is not None, activation, None, None,
        *_core.named(write_slots=write_slots, seq_idx=seq_idx, input_gate=input_gate,
                     output_gate=output_gate, residual=residual, backend=backend),
        "dilation", dilation, "threads", threads)
    return out, state if return_final_state else x.new_empty(0)


def _by_tokens(rows: Any) -> Any:
    """The rows with adjacent channels on a GPU, where other layouts have no fast kernel: copies take
    a fraction of its time and change no bit."""
    if rows is None or rows.stride(-1) == 1 or not rows.is_cuda:
        return rows
    return rows.contiguous()


def _has_adjacent_tokens(rows: Tensor) -> bool:
    return rows.stride(-1) != 1 and rows.stride(-2) == 1


def _in_fast_layout(grad_out: Tensor, x: Tensor, weight: Tensor, input_gate: Optional[Tensor],
                    output_gate: Optional[Tensor], residual: bool, dilation: int) -> List[Any]:
    """grad_out, x and the gates with adjacent channels, or as they are if a GPU has a fast kernel
    for these rows with adjacent tokens."""
    if (_has_adjacent_tokens(x) and _has_adjacent_tokens(grad_out) and weight.shape[1] <= 4
            and x.dtype == grad_out.dtype and input_gate is None and output_gate is None
            and not residual and dilation == 1):
        return [grad_out, x, None, None]
    return [_by_tokens(one) for one in (grad_out, x, input_gate, output_gate)]


def _differentiate(
    grad_out: Optional[Tensor],
    grad_final_state: Optional[Tensor],
    needed: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    initial_state: Optional[Tensor],
    input_gate: Optional[Tensor],
    output_gate: Optional[Tensor],
    query_start_loc: Optional[Tensor],
    seq_idx: Optional[Tensor],
    residual: bool,
    dilation: int,
    activation: Optional[str],
    backend: Optional[str],
    threads: int,
) -> List[Optional[Tensor]]:
    """The gradients on plain tensors.

    Args:
      needed: which of the inputs x to output_gate, in their order, need a gradient.

    Returns:
      The gradient of each of them, or None.
    """
    if grad_out is None:
        grad_out = x.new_zeros(()).expand(x.shape)
    grad_out, x, input_gate, output_gate = _in_fast_layout(
        grad_out, x, weight, input_gate, output_gate, residual, dilation)
    inputs = (x, weight, bias, initial_state, input_gate, output_gate)
    grads = [torch.empty_like(one) if wanted else None for one, wanted in zip(inputs, needed)]
    run_backward(
        grad_out, x, weight, bias, grads[0], grads[1], grads[2], activation,
        *_core.named(
            initial_state=initial_state, query_start_loc=query_start_loc, seq_idx=seq_idx,
            input_gate=input_gate, output_gate=output_gate, residual=residual,
            grad_final_state=grad_final_state, grad_initial_state=grads[3],
            grad_input_gate=grads[4], grad_output_gate=grads[5], backend=backend),
        "dilation", dilation, "threads", threads)
    return grads


def _differentiate_all(*values: Any) -> Tuple[Tensor, ...]:
    """shortconv::short_conv_backward on plain tensors, with empty tensors instead of None."""
    return tuple(values[3].new_empty(0) if one is None else one for one in _differentiate(*values))


# ---- Without memory ----


def _fake_convolve(x: Tensor, weight: Tensor, *arguments: Any) -> Tuple[Tensor, Tensor]:
    _check_devices(x, weight, *arguments)
    initial_state, query_start_loc, dilation = arguments[1], arguments[4], arguments[7]
    out_dtype, return_final_state = arguments[-2:]
    final = x.new_empty(0)
    if return_final_state:
        dtype = x.dtype if initial_state is None else initial_state.dtype
        final = x.new_empty(_state_shape(x, weight, query_start_loc, dilation), dtype=dtype)
    return torch.empty_like(x, dtype=out_dtype), final


def _fake_differentiate(grad_out: Optional[Tensor], grad_final_state: Optional[Tensor],
                        needed: Sequence[bool], *arguments: Any) -> Tuple[Tensor, ...]:
    x, weight, bias, initial_state, input_gate, output_gate = arguments[:_INPUTS]
    residual, dilation = arguments[_TENSORS:_TENSORS + 2]
    if grad_out is None:
        grad_out = x.new_empty(()).expand(x.shape)
    _, x, input_gate, output_gate = _in_fast_layout(
        grad_out, x, weight, input_gate, output_gate, residual, dilation)
    inputs = (x, weight, bias, initial_state, input_gate, output_gate)
    return tuple(torch.empty_like(one) if wanted else x.new_empty(0)
                 for one, wanted in zip(inputs, needed))


def _check_devices(x: Tensor, *others: Any) -> None:
    for one in others:
        if isinstance(one, Tensor) and one.device != x.device:
            raise ValueError(f"x: is on {x.device}, but another tensor is on {one.device}")


# ---- Gradients ----

_NO_SECOND = "shortconv: the gradients have no gradients (double backward)"


def _save(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:-2]


def _backward(ctx: Any, grad_out: Optional[Tensor],
              grad_final_state: Optional[Tensor]) -> Tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:_INPUTS])
    saved = ctx.saved_tensors
    values = (grad_out, grad_final_state, needed, *saved, *ctx.options)
    grads: Sequence[Optional[Tensor]] = [None] * _INPUTS
    if grad_out is not None or grad_final_state is not None:
        if _is_plain((grad_out, grad_final_state, *saved)):
            grads = _differentiate(*values)
        elif calls._is_compiling() or calls._dispatch_modes() or calls._is_tracing():
            grads = _operators.short_conv_backward(*values)
        else:
            grads = _Gradients.apply(*values)
        grads = [one if wanted else None for one, wanted in zip(grads, needed)]
    return (*grads, *[None] * (_TENSORS - _INPUTS + len(ctx.options) + 2))


def refuse_second(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError(_NO_SECOND)


def convolve(*arguments: Any) -> Tensor:
    """shortconv::short_conv without gradients, without the final states."""
    plain = _is_plain(arguments[:_TENSORS])
    result: Tensor = (_convolve if plain else _operators.short_conv)(*arguments, None, False)[0]
    return result


def differentiate(grad_out: Optional[Tensor], grad_final_state: Optional[Tensor],
                  needed: Sequence[bool], *arguments: Any) -> List[Optional[Tensor]]:
    """shortconv::short_conv_backward, with None for gradients that are not needed."""
    needed = list(needed)
    plain = _is_plain((grad_out, grad_final_state, *arguments[:_TENSORS]))
    grads = (_differentiate if plain else _operators.short_conv_backward)(
        grad_out, grad_final_state, needed, *arguments)
    return [one if wanted else None for one, wanted in zip(grads, needed)]


class _Gradients(torch.autograd.Function):
    """The gradients where torch would differentiate them: with create_graph, or in torch.func."""

    generate_vmap_rule = True  # one call for each element of the batch

    @staticmethod
    def forward(*values: Any) -> Tuple[Tensor, ...]:
        plain = _is_plain(values)
        return (_differentiate_all if plain else _operators.short_conv_backward)(*values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(refuse_second)


class _PlainShortConv(torch.autograd.Function):
    """short_conv without the dispatcher. It has no setup_context, because torch then binds all
    arguments by name, which takes tens of microseconds."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        out, final = _convolve(*arguments)
        _save(ctx, arguments, (out, final))
        return (out, final) if arguments[-1] else out

    @staticmethod
    def backward(ctx: Any, grad_out: Optional[Tensor],
                 grad_final_state: Optional[Tensor] = None) -> Tuple[Any, ...]:
        return _backward(ctx, grad_out, grad_final_state)


class _ShortConv(torch.autograd.Function):
    """short_conv under the transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tuple[Tensor, Tensor]:
        return (_convolve if _is_plain(arguments) else _operators.short_conv)(*arguments)

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


_operators = torch.ops.shortconv
for _key in ("CPU", "CUDA"):
    _library.impl("short_conv", _convolve, _key)
    _library.impl("short_conv_backward", _differentiate_all, _key)
torch.library.register_fake("shortconv::short_conv", _fake_convolve, lib=_library)
torch.library.register_fake("shortconv::short_conv_backward", _fake_differentiate, lib=_library)
torch.library.register_autograd(
    "shortconv::short_conv", _backward, setup_context=_save, lib=_library)
torch.library.register_autograd("shortconv::short_conv_backward", refuse_second, lib=_library)
_sharding.register_if_imported()

# ---- Calls ----


def _is_seen(tensors: Sequence[Any]) -> bool:
    """Whether torch has to see a call with these tensors: the conditions of _torch._call."""
    if (calls._is_compiling() or calls._dispatch_modes() or calls._is_tracing()
            or torch._C._are_functorch_transforms_active()):
        return True
    for one in tensors:
        if isinstance(one, Tensor) and (
                type(one) not in calls._PLAIN or one.is_neg() or not (one.is_cpu or one.is_cuda)
                or one.layout != torch.strided):
            return True
    return False


def _needs_gradient(tensors: Sequence[Any]) -> bool:
    if calls._is_grad_enabled():
        for one in tensors:
            if isinstance(one, Tensor) and one.requires_grad:
                return True
    return False


def _is_plain(tensors: Sequence[Any]) -> bool:
    return not _needs_gradient(tensors) and not _is_seen(tensors)


@_names.argument_names({"state": "initial_state", "read_slots": "slot numbers"})
def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    *,
    activation: Optional[str] = None,
    residual: bool = False,
    input_gate: Optional[Tensor] = None,
    output_gate: Optional[Tensor] = None,
    query_start_loc: Optional[Tensor] = None,
    seq_idx: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    return_final_state: bool = False,
    dilation: int = 1,
    out_dtype: Optional[torch.dtype] = None,
    backend: Optional[str] = None,
    threads: int = 0,
) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    """Convolves a ragged or dense batch, with gradients; nothing is updated in place.

    Gradients of x, weight, bias, initial_state and the gates are computed where they are needed.
    There is no double backward.

    Args:
      x: [batch, tokens, channels], or packed [tokens, channels] with query_start_loc (one sequence
        without); f32, f16 or bf16.
      weight: [channels, width], width 2 to 64; its type is independent of that of x.
      bias: [channels], dtype of weight.
      activation: None or "silu".
      residual: add the token's own input to the result of the activation. Cannot be combined with a
        gate.
      input_gate: shape and dtype of x; the inputs, in states too, are x * input_gate.
      output_gate: shape and dtype of x; multiplied with the result of the activation.
      query_start_loc: [sequences + 1] i32 or i64; sequence s has rows query_start_loc[s] to
        query_start_loc[s + 1]. Other rows of the result are 0.
      seq_idx: [tokens] or [batch, tokens] i32 or i64, as x: several sequences in a row of the
        batch. A new number starts a sequence, negative numbers are padding, whose results are 0.
      initial_state: [sequences, (width - 1) * dilation, channels], any floating dtype: the inputs
        before each sequence, newest last. None: zeros. With seq_idx those before each row of the
        batch.
      return_final_state: also return the final states. Cannot be combined with seq_idx.
      dilation: tokens from one tap to the next.
      out_dtype: dtype of the result; None: that of x.
      backend: None, "cpu", "cuda" or "reference".
      threads: CPU: number of threads; 0: OpenMP's.

    Returns:
      out, shape of x; with return_final_state (out, final states [sequences, (width - 1) *
      dilation, channels], dtype of initial_state or of x).

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the arguments contradict each other or the specification.
      NotImplementedError: the backend has no kernel for the call, or for the gradients when they
        are computed.
    """
    arguments = (x, weight, bias, initial_state, input_gate, output_gate, query_start_loc, seq_idx,
                 residual, dilation, activation, backend, threads, out_dtype, return_final_state)
    if calls._is_compiling():
        result = torch.ops.shortconv.short_conv(*arguments)
    else:
        result = _call(arguments)
    return result if return_final_state or isinstance(result, Tensor) else result[0]


def _call(arguments: Tuple[Any, ...]) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    for name, one in zip(("x", "weight"), arguments):
        if not isinstance(one, Tensor):
            raise TypeError(f"{name}: is {type(one).__module__}.{type(one).__qualname__}; expected "
                            "a torch tensor")
    if calls.forward_ad._current_level >= 0 and any(
            calls._has_forward_gradient(one) for one in arguments if isinstance(one, Tensor)):
        raise NotImplementedError("shortconv: has no forward-mode gradients")
    try:
        if torch._C._are_functorch_transforms_active():
            return _ShortConv.apply(*arguments)
        tensors = arguments[:_TENSORS]
        if _is_seen(tensors):
            _sharding.register_if_imported()
            return _operators.short_conv(*arguments)
        return (_PlainShortConv.apply if _needs_gradient(tensors) else _convolve)(*arguments)
    except Exception as error:
        raise _names.for_caller(error) from None
