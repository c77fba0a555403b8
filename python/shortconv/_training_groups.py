"""The front of a layer with gradients for torch: convolution, split, norms and gates.

The forward pass is one call of forward_groups. The backward pass is one call of backward_groups
where a backend supports it (_is_one_call). Elsewhere it is a composition of the backward pass of
short_conv and torch's operators, and computes the convolution again where norms need its results.
Only inputs are kept.
"""

import contextlib
from typing import Any, List, NamedTuple, Optional, Sequence, Set, Tuple

from shortconv import _backward_groups, _groups
from shortconv import _torch as calls
from shortconv._group_arguments import (
    Gates,
    Group,
    HeadMap,
    gate_map_known_covers,
    known_covers,
)
from shortconv._groups import Grouped
from shortconv._torch import torch
from shortconv._training import convolve, differentiate, refuse_second

Tensor = torch.Tensor


class _Options(NamedTuple):
    """Arguments of a call that are no tensors with gradients."""

    groups: Tuple[Group, ...]
    gates: Optional[Gates]  # without its arrays
    query_start_loc: Optional[Tensor]
    seq_idx: Optional[Tensor]
    activation: Optional[str]
    return_final_state: bool
    backend: Optional[str]
    threads: int


def short_conv_groups(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    *,
    groups: Sequence[Group],
    gates: Optional[Gates] = None,
    query_start_loc: Optional[Tensor] = None,
    seq_idx: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    return_final_state: bool = False,
    activation: Optional[str] = None,
    backend: Optional[str] = None,
    threads: int = 0,
) -> Tuple[Grouped, Optional[Tensor]]:
    """forward_groups with gradients; nothing is updated in place.

    Gradients of x, weight, bias, initial_state and of the arrays of gates are computed where they
    are needed, with the same bits in each run. Rows without a sequence have gradients of 0. There is
    no double backward. Roundings count as the identity.

    Args:
      x to gates: as in forward_groups. No two groups may read the same column of x.
      query_start_loc to return_final_state: as in short_conv; the channels of states are those of
        the groups that are not copied, in their order.
      activation, threads: as in short_conv.
      backend: as in short_conv; "reference" computes the gradients with backward_groups too.

    Returns:
      (Grouped(groups, g, beta), final states or None)

    Raises:
      TypeError, ValueError, NotImplementedError: as forward_groups and short_conv.
    """
    arrays = (None,) * 4 if gates is None else gates[:4]
    if gates is not None:
        gates = Gates(None, None, None, None, *gates[4:])
    options = _Options(tuple(groups), gates, query_start_loc, seq_idx, activation,
                       return_final_state, backend, threads)
    tensors = [x, weight, bias, initial_state, *arrays]
    if calls._is_compiling():
        # Most layers pass one tensor as a and as b. torch 2.11 traces an autograd.Function that
        # takes a tensor twice, but keeps only one of its two gradients.
        for i, one in enumerate(tensors):
            if one is not None and any(one is other for other in tensors[:i]):
                tensors[i] = one.view_as(one)
    results = list(_Front.apply(options, *tensors))
    final = results.pop() if return_final_state else None
    g, beta = (None, None) if gates is None else (results.pop(-2), results.pop())
    return Grouped(tuple(results), g, beta), final


class _Front(torch.autograd.Function):
    """forward(ctx, options, x, weight, bias, initial_state, a, b, a_log, dt_bias)"""

    @staticmethod
    def forward(ctx: Any, options: _Options, x: Tensor, weight: Tensor, bias: Optional[Tensor],
                initial_state: Optional[Tensor], *arrays: Optional[Tensor]) -> Tuple[Tensor, ...]:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, initial_state, *arrays)
        gates = None if options.gates is None else Gates(*arrays, *options.gates[4:])
        state = initial_state
        if state is not None:
            state = state.clone(memory_format=torch.contiguous_format)
        elif options.return_final_state:
            sequences = x.shape[0] if x.dim() == 3 else 1
            if options.query_start_loc is not None:
                sequences = options.query_start_loc.shape[0] - 1
            state = x.new_zeros(sequences, weight.shape[1] - 1, weight.shape[0])
        # Eager torch disables gradients in forward(); a compiler traces forward() with them enabled.
        with torch.no_grad() if calls._is_grad_enabled() else contextlib.nullcontext():
            results, g, beta = _groups.forward_groups(
                x, weight, bias, groups=options.groups, gates=gates, state=state,
                query_start_loc=options.query_start_loc, seq_idx=options.seq_idx,
                initial_state=initial_state is not None, activation=options.activation,
                backend=options.backend, threads=options.threads)
        outputs = [*results]
        if gates is not None:
            outputs += g, beta
        if options.return_final_state:
            outputs.append(state)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        if not calls._is_grad_enabled():
            return _backward(ctx, *grads)
        found: Tuple[Optional[Tensor], ...] = _WithoutSecond.apply(
            lambda: _backward(ctx, *grads), *ctx.saved_tensors, *grads)
        return found


class _WithoutSecond(torch.autograd.Function):
    """The gradients with create_graph: they depend on the inputs and on the gradients of the
    outputs, but there is no derivative."""

    @staticmethod
    def forward(ctx: Any, compute: Any, *tensors: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        found: Tuple[Optional[Tensor], ...] = compute()
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Any:
        refuse_second(ctx, *grads)


def _backward(ctx: Any, *given: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
    options, needed = ctx.options, ctx.needs_input_grad[1:]
    x, weight, bias, initial_state, *arrays = inputs = ctx.saved_tensors
    grads = list(given)
    grad_final = grads.pop() if options.return_final_state else None
    grad_gates = [grads.pop(-2), grads.pop()] if options.gates is not None else []
    is_refused = False
    if _is_one_call(options, inputs, grads, grad_final):
        try:
            return (None, *_call_backward_groups(options, inputs, needed, grads, grad_gates))
        except NotImplementedError:
            is_refused = True
    if needed[0]:
        known_covers(options.groups, x.shape[-1])  # no column twice
    if is_refused:
        _refuse(options, inputs, grads)
    return (None, *_compose(options, inputs, needed, grads, grad_gates, grad_final))


# ---- One call ----

_refused: Set[Any] = set()  # calls that the backend refused
_MOST_REFUSED = 1000


def _memory(one: Optional[Tensor], is_batch: bool) -> Optional[Tuple[Any, ...]]:
    """What a refusal depends on of the memory of rows: their dtype, whether channels are adjacent
    and rows a stride apart, and the bits of the address and of strides that are not 0 mod 16."""
    if one is None:
        return None
    *outer, channel_stride = one.stride()
    bits = one.data_ptr()
    for stride in outer:
        bits |= stride * one.element_size()
    is_packed = not is_batch or one.shape[0] == 1 or outer[0] == one.shape[1] * outer[1]
    return one.dtype, channel_stride, is_packed, bits & 15


def _kind(options: _Options, inputs: Sequence[Optional[Tensor]],
          grads: Sequence[Optional[Tensor]]) -> Tuple[Any, ...]:
    """What the refusal of a call depends on, besides numbers of rows."""
    x, is_batch = inputs[0], inputs[0].dim() == 3
    return (options.groups, options.gates, options.query_start_loc is None,
            options.seq_idx is None, options.activation, options.backend, x.device, is_batch,
            *[_memory(one, is_batch) for one in (x, *grads)],
            *[one if one is None else (one.dtype, one.shape[-1]) for one in inputs])


def _refuse(options: _Options, inputs: Sequence[Optional[Tensor]],
            grads: Sequence[Optional[Tensor]]) -> None:
    if len(_refused) >= _MOST_REFUSED:
        _refused.clear()
    _refused.add(_kind(options, inputs, grads))


def _is_supported(options: _Options, inputs: Sequence[Optional[Tensor]],
                  grads: Sequence[Optional[Tensor]]) -> bool:
    """Whether CUDA supports the call for certain. Compiled code cannot go on after a refusal, so
    there this decides: docs/training.md has the limits."""
    x, weight, *_ = inputs
    size = x.element_size()

    def is_aligned(*numbers: int) -> bool:
        return all(number * size % 8 == 0 for number in numbers)

    if weight.dtype not in (x.dtype, torch.float32) or not 2 <= weight.shape[-1] <= 4:
        return False
    for one in (x, *grads):
        if one is not None and not (one.dtype == x.dtype and one.is_contiguous()
                                    and is_aligned(one.shape[-1], one.storage_offset())):
            return False
    for group in options.groups:
        offset, head_stride, _, block_stride = group.input
        if not is_aligned(offset, head_stride, block_stride, group.head_dim):
            return False
        channels = group.head_dim * size // 2  # 8 to 128 of 16 bits, 4 to 64 of 32
        if group.l2_norm and (channels not in (8, 16, 32, 64, 128)):
            return False
    return True


def _is_one_call(options: _Options, inputs: Sequence[Optional[Tensor]],
                 grads: Sequence[Optional[Tensor]], grad_final: Optional[Tensor]) -> bool:
    """Whether to compute all gradients with one call of backward_groups.

    backward_groups supports neither states nor input_scale, and does needless work if no convolved
    group has a gradient. Only the CUDA and the reference backend implement it. A call that a
    backend refused is not repeated for tensors with the same layout and alignment.

    Args:
      inputs: x, weight, bias, initial_state, a, b, a_log, dt_bias.
      grads: of the outputs of the groups.
    """
    _, _, _, initial_state, *_ = inputs
    if initial_state is not None or grad_final is not None:
        return False
    has_convolved = False
    for one, grad in zip(options.groups, grads):
        if one.input_scale != 1:
            return False
        has_convolved = has_convolved or (grad is not None and not one.copy)
    if not has_convolved:
        return False
    if options.backend != "reference":
        for tensor in (*inputs, *grads):
            if tensor is not None and not (tensor.is_cuda and tensor.dtype != torch.float64):
                return False
        if calls._is_compiling():
            return _is_supported(options, inputs, grads)
    return not _refused or _kind(options, inputs, grads) not in _refused


def _call_backward_groups(
        options: _Options, inputs: Sequence[Optional[Tensor]], needed: Sequence[bool],
        grads: Sequence[Optional[Tensor]], grad_gates: Sequence[Optional[Tensor]],
) -> List[Optional[Tensor]]:
    """The gradients of the inputs by one call.

    Raises:
      NotImplementedError: the backend does not support it.
    """
    x, weight, bias, _, *arrays = inputs
    gates = grad_g = grad_beta = None
    if any([one is not None for one in grad_gates]):
        gates = Gates(*arrays, *options.gates[4:])
        grad_g, grad_beta = map(_dense, grad_gates)
    found = _backward_groups.backward_groups(
        [_dense(one) for one in grads], x if x.stride(-1) == 1 else x.contiguous(), weight, bias,
        groups=options.groups, gates=gates, grad_g=grad_g, grad_beta=grad_beta,
        query_start_loc=options.query_start_loc, seq_idx=options.seq_idx,
        activation=options.activation, grad_x=needed[0], grad_weight=needed[1],
        grad_bias=needed[2], grad_a=needed[4], grad_b=needed[5], grad_a_log=needed[6],
        grad_dt_bias=needed[7], backend=options.backend, threads=options.threads)
    return [*found[:3], None, *found[3:]]


def _dense(grad: Optional[Tensor]) -> Optional[Tensor]:
    """The gradient, copied if its channels are not adjacent or its rows are expanded, as those of
    sums are."""
    if grad is None or ((strides := grad.stride())[-1] == 1 and 0 not in strides):
        return grad
    return grad.clone(memory_format=torch.contiguous_format)


# ---- Composition ----


def _compose(options: _Options, inputs: Sequence[Optional[Tensor]], needed: Sequence[bool],
             grads: Sequence[Optional[Tensor]], grad_gates: Sequence[Optional[Tensor]],
             grad_final: Optional[Tensor]) -> List[Optional[Tensor]]:
    """The gradients of the inputs by the backward pass of short_conv and torch's operators."""
    x, weight, bias, initial_state, *arrays = inputs
    convolved = [one for one in options.groups if not one.copy]
    columns = [_columns(one.input, one.heads, one.head_dim, x.device) for one in options.groups]
    rows = torch.cat([x.index_select(-1, columns[i]) for i, one in enumerate(options.groups)
                      if not one.copy], -1)
    found: List[Optional[Tensor]] = [None] * 4
    grad_parts = [grad for one, grad in zip(options.groups, grads) if not one.copy]
    if grad_final is not None or any(one is not None for one in grad_parts):
        found = _differentiate(options, convolved, (rows, weight, bias, initial_state),
                               needed[:4], grad_parts, grad_final)
    padding = _padding(options, x)
    grad_x = None
    if needed[0]:
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        sizes = [one.heads * one.head_dim for one in convolved]
        parts = iter([None] * len(sizes) if found[0] is None else found[0].split(sizes, -1))
        for i, one in enumerate(options.groups):
            part = _without(padding, grads[i]) if one.copy else next(parts)
            if part is not None:
                part = part.reshape(*x.shape[:-1], one.heads * one.head_dim)
                grad_x.index_copy_(-1, columns[i], part.to(x.dtype))
    of_gates: List[Optional[Tensor]] = [None] * 4
    if any(one is not None for one in grad_gates):
        of_gates = _differentiate_gates(options.gates, arrays, needed[4:], grad_gates, padding)
    return [grad_x, *found[1:], *of_gates]


def _padding(options: _Options, x: Tensor) -> Optional[Tensor]:
    """[tokens] or [batch, tokens] bool: the rows without a sequence; None: there are none."""
    if options.seq_idx is not None:
        return options.seq_idx < 0
    bounds = options.query_start_loc
    if bounds is None:
        return None
    rows = torch.arange(x.shape[0], device=x.device)
    return (rows < bounds[0]) | (rows >= bounds[-1])


def _without(padding: Optional[Tensor], rows: Optional[Tensor]) -> Optional[Tensor]:
    """Rows with 0 instead of padding, whose results do not depend on the inputs."""
    if padding is None or rows is None:
        return rows
    return rows.masked_fill(padding.reshape(*padding.shape, *[1] * (rows.dim() - padding.dim())), 0)


def _columns(of: HeadMap, heads: int, head_dim: int, device: Any) -> Tensor:
    head = torch.arange(heads, device=device)
    block_heads = of.block_heads or max(heads, 1)
    first = (of.offset + head // block_heads * of.block_stride
             + head % block_heads * (of.head_stride or head_dim))
    return (first[:, None] + torch.arange(head_dim, device=device)).flatten()


def _wide(one: Tensor) -> Tensor:
    return one if one.dtype == torch.float64 else one.float()


def _differentiate(options: _Options, groups: List[Group], inputs: Sequence[Optional[Tensor]],
                   needed: Sequence[bool], grads: List[Optional[Tensor]],
                   grad_final: Optional[Tensor]) -> List[Optional[Tensor]]:
    """The gradients of the rows [..., channels], weight, bias and initial state."""
    rows, weight, bias, initial_state = inputs
    scales = None
    if any(one.input_scale != 1 for one in groups):
        scales = rows.new_tensor([one.input_scale for one in groups
                                  for _ in range(one.heads * one.head_dim)], dtype=torch.float32)
        rows = (rows * scales).to(rows.dtype)
    arguments = (rows, weight, bias, initial_state, None, None, options.query_start_loc,
                 options.seq_idx, False, 1, options.activation, options.backend, options.threads)
    sizes = [one.heads * one.head_dim for one in groups]
    results: List[Optional[Tensor]] = [None] * len(groups)
    if any(one.l2_norm and grad is not None for one, grad in zip(groups, grads)):
        results = convolve(*arguments).split(sizes, -1)
    parts = []
    for one, size, result, grad in zip(groups, sizes, results, grads):
        if grad is None:
            parts.append(rows.new_zeros(()).expand(*rows.shape[:-1], size))
        elif one.l2_norm:
            result = result.unflatten(-1, (one.heads, one.head_dim))
            parts.append(_differentiate_norm(result, grad, one).flatten(-2))
        else:
            parts.append(grad.flatten(-2))
    has_parts = any(one is not None for one in grads)
    found = differentiate(torch.cat(parts, -1) if has_parts else None, grad_final,
                          [*needed, False, False], *arguments)[:4]
    if scales is not None and found[0] is not None:
        found[0] = (found[0] * scales).to(rows.dtype)
    return found


def _differentiate_norm(result: Tensor, grad: Tensor, group: Group) -> Tensor:
    """The gradient of the results [..., heads, head_dim] that are normalized afterwards."""
    wide, wide_grad = _wide(result), _wide(grad)
    inverse = torch.rsqrt(wide.square().sum(-1, keepdim=True) + group.eps)
    along = (wide_grad * wide).sum(-1, keepdim=True) * inverse.square()
    return ((wide_grad - wide * along) * (inverse * group.scale)).to(result.dtype)


def _differentiate_gates(gates: Gates, arrays: Sequence[Tensor], needed: Sequence[bool],
                         grads: Sequence[Optional[Tensor]],
                         padding: Optional[Tensor]) -> List[Optional[Tensor]]:
    """The gradients of a, b, a_log and dt_bias."""
    heads = arrays[2].shape[0]
    for name, one, of, is_needed in zip("ab", arrays, (gates.a_map, gates.b_map), needed):
        if is_needed:
            gate_map_known_covers(name, of, heads, one.shape[-1])  # no column twice
    grad_g, grad_beta = (_without(padding, one) for one in grads)
    found: List[Optional[Tensor]] = [None] * 4
    if grad_g is not None:
        found = _differentiate_decay(gates, arrays, needed, grad_g, padding)
    if grad_beta is not None and needed[1]:
        b, columns = arrays[1], _columns(gates.b_map, heads, 1, arrays[1].device)
        beta = _without(padding, b.index_select(-1, columns)).float().sigmoid()
        found[1] = _scattered(grad_beta * gates.beta_factor * beta * (1 - beta), columns, b)
    return found


def _differentiate_decay(gates: Gates, arrays: Sequence[Tensor], needed: Sequence[bool],
                         grad: Tensor, padding: Optional[Tensor]) -> List[Optional[Tensor]]:
    """The gradients of a, None, a_log and dt_bias by that of g = -exp(a_log) * softplus(a +
    dt_bias), or of exp(g)."""
    a, _, a_log, dt_bias = arrays
    columns = _columns(gates.a_map, a_log.shape[0], 1, a.device)
    sums = _without(padding, a.index_select(-1, columns)).float() + dt_bias.float()
    scale = -a_log.float().exp()
    # Finite, because the gradient of exp(g), which is 0 there, is multiplied with it.
    g = (scale * torch.nn.functional.softplus(sums)).clamp(min=torch.finfo(torch.float32).min)
    if gates.decay == "exp":
        grad = grad * g.exp()
    grad_sums = grad * scale * sums.sigmoid()
    found: List[Optional[Tensor]] = [None] * 4
    if needed[0]:
        found[0] = _scattered(grad_sums, columns, a)
    if needed[2]:
        found[2] = (grad * g).flatten(0, -2).sum(0).to(a_log.dtype)
    if needed[3]:
        found[3] = grad_sums.flatten(0, -2).sum(0).to(dt_bias.dtype)
    return found


def _scattered(grad: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    """The gradient of an array of which only these columns are read."""
    whole = torch.zeros_like(like, memory_format=torch.contiguous_format)
    return whole.index_copy_(-1, columns, grad.to(like.dtype))
