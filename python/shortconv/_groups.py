"""A convolution whose channels are divided into groups, with norms and gates: the operations
between the projection of a layer and its delta rule or scan, in one call. See _operators for what
all operators share.

Source: docs/specification.md of the shortconv repository.
"""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from shortconv import _core
from shortconv._arrays import empty, kinds, passable
from shortconv._core import calls_of
from shortconv._operators import Array


class HeadMap(NamedTuple):
    """Columns of a row that belong to heads.

    Element d of head h is in column
    offset + h // block_heads * block_stride + h % block_heads * head_stride + d.
    """

    offset: int = 0
    head_stride: int = 0  # 0: the heads are adjacent
    block_heads: int = 0  # 0: all heads are in one block
    block_stride: int = 0  # with block_heads


class Group(NamedTuple):
    """Adjacent channels of a convolution that get an output of their own, or copied columns of x.

    heads, head_dim: shape of the output.
    input: the columns of x, in the order of the heads.
    copy: the columns are copied and not convolved.
    l2_norm: divide each head of each token by sqrt(sum of squares + eps), then multiply by scale.
      The norm is of the result after its rounding to the dtype of the output.
    input_scale: the inputs, in states too, are x * input_scale, rounded to the dtype of x.
    """

    heads: int
    head_dim: int
    input: HeadMap = HeadMap()
    copy: bool = False
    l2_norm: bool = False
    eps: float = 1e-6
    scale: float = 1.0
    input_scale: float = 1.0


class Gates(NamedTuple):
    """Gates of a delta rule, f32 for each token and head.

    g = -exp(a_log) * softplus(a + dt_bias), and beta = beta_factor * sigmoid(b).

    a, b: [tokens, columns] or [batch, tokens, columns], any floating dtype.
    a_log: [heads] f32. dt_bias: [heads], any floating dtype.
    a_map, b_map: the columns of the heads.
    decay: "log" for g, "exp" for exp(g).
    beta_factor: 1 or 2.
    round_beta: round sigmoid(b) to the dtype of b first.
    """

    a: Any
    b: Any
    a_log: Any
    dt_bias: Any
    a_map: HeadMap = HeadMap()
    b_map: HeadMap = HeadMap()
    decay: str = "log"
    beta_factor: float = 1.0
    round_beta: bool = False


class Grouped(NamedTuple):
    """Results of a call with groups."""

    groups: Tuple[Any, ...]  # of each group [tokens, heads, head_dim] or [batch, tokens, ...]
    g: Any  # None without gates
    beta: Any


def forward_groups(
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    groups: Sequence[Group],
    outs: Optional[Sequence[Optional[Array]]] = None,
    gates: Optional[Gates] = None,
    g: Optional[Array] = None,
    beta: Optional[Array] = None,
    state: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    base_column: int = 0,
    shift_full_state: bool = False,
    null_slot: Optional[int] = None,
    cache_seqlens: Optional[Array] = None,
    snapshots: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    has_initial_state: Optional[Array] = None,
    initial_state: bool = False,
    seq_idx: Optional[Array] = None,
    input_gate: Optional[Array] = None,
    output_gate: Optional[Array] = None,
    residual: bool = False,
    dilation: int = 1,
    activation: Optional[str] = None,
    padded_rows: Optional[str] = None,
    violations: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    programmatic_launch: bool = True,
    stream: Any = None,
) -> Grouped:
    """Convolves a ragged or dense batch, and writes each group of channels to its own output.

    The same bits as forward on the columns of the groups, followed by l2_norm and delta_gates.

    Args:
      x: [tokens, columns] with query_start_loc (one sequence without), or [batch, tokens, columns];
        f32, f16 or bf16. The groups name the columns that are read.
      weight: [channels, width]: the channels of the groups that are not copied, in their order.
      bias, state, input_gate, output_gate: as in forward, with these channels.
      groups: 1 to 8.
      outs: an output for each group, [tokens, heads, head_dim] or [batch, tokens, heads, head_dim]
        with adjacent channels, written: any floating dtype, but the same for all groups that are
        not copied; the dtype of x for those that are. They may be columns of one array. None:
        new arrays like x.
      gates: also compute the gates of a delta rule.
      g, beta: [tokens, heads] or [batch, tokens, heads] f32, written. None: new arrays.
      padded_rows: as in forward, for all outputs; "copy" copies x and leaves 0 in g and beta.

    The other arguments and the errors are those of forward. Torch tensors have no gradients here:
    those that require one are refused.

    Returns:
      Grouped: a tuple (groups, g, beta).
    """
    rare = _core.named(
        write_slots=write_slots, read_offsets=read_offsets, shift_full_state=shift_full_state,
        cache_seqlens=cache_seqlens, snapshots=snapshots, seq_idx=seq_idx, input_gate=input_gate,
        output_gate=output_gate, residual=residual, violations=violations, backend=backend,
        stream=stream)
    rare += ["base_column", base_column, "dilation", dilation, "threads", threads,
             "programmatic_launch", programmatic_launch]
    return _run(_core.FORWARD, x, weight, bias, state, read_slots, query_start_loc,
                has_initial_state, initial_state, activation, null_slot, padded_rows, groups, outs,
                gates, g, beta, rare)


def decode_groups(
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    groups: Sequence[Group],
    outs: Optional[Sequence[Optional[Array]]] = None,
    gates: Optional[Gates] = None,
    g: Optional[Array] = None,
    beta: Optional[Array] = None,
    state: Array,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    base_column: int = 0,
    shift_full_state: bool = False,
    null_slot: Optional[int] = None,
    cache_seqlens: Optional[Array] = None,
    snapshots: Optional[Array] = None,
    has_initial_state: Optional[Array] = None,
    input_gate: Optional[Array] = None,
    output_gate: Optional[Array] = None,
    residual: bool = False,
    dilation: int = 1,
    activation: Optional[str] = None,
    padded_rows: Optional[str] = None,
    violations: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    programmatic_launch: bool = True,
    stream: Any = None,
) -> Grouped:
    """Convolves the next tokens of each sequence, and writes each group to its own output.

    Args:
      x: [sequences, columns], or [sequences, tokens, columns] for several tokens each.
      outs: [sequences, heads, head_dim], or [sequences, tokens, heads, head_dim].
      gates: a and b are [sequences, columns], or [sequences, tokens, columns].
      g, beta: [sequences, heads], or [sequences, tokens, heads].

    The other arguments are those of decode and of forward_groups, as are the result and the errors.
    """
    rare = _core.named(
        write_slots=write_slots, read_offsets=read_offsets, shift_full_state=shift_full_state,
        cache_seqlens=cache_seqlens, snapshots=snapshots, input_gate=input_gate,
        output_gate=output_gate, residual=residual, violations=violations, backend=backend,
        stream=stream)
    rare += ["base_column", base_column, "dilation", dilation, "threads", threads,
             "programmatic_launch", programmatic_launch]
    return _run(_core.DECODE, x, weight, bias, state, read_slots, None, has_initial_state, False,
                activation, null_slot, padded_rows, groups, outs, gates, g, beta, rare)


def l2_norm(
    x: Array,
    *,
    out: Optional[Array] = None,
    eps: float = 1e-6,
    scale: float = 1.0,
    backend: Optional[str] = None,
    stream: Any = None,
) -> Any:
    """Divides each head of each token by sqrt(sum of squares + eps), then multiplies by scale.

    All operations are f32 with one rounding each; the sum is a balanced tree over the channels, so
    that its bits do not depend on the hardware.

    Args:
      x: [tokens, heads, head_dim] or [batch, tokens, heads, head_dim], f32, f16 or bf16.
      out: shape and dtype of x, written; may be x itself. None: an array like x.
      eps: positive.
      backend, stream: as in forward, as are the errors.

    Returns:
      out.
    """
    _require_array("x", x)
    calls, stream = _calls(x, stream)
    if out is None:
        out = empty(x, x.shape)  # type: ignore[attr-defined]
    _call(calls, "l2_norm", (x, out, eps, scale, backend, stream), [out])
    return out


def delta_gates(
    gates: Gates,
    *,
    g: Optional[Array] = None,
    beta: Optional[Array] = None,
    backend: Optional[str] = None,
    stream: Any = None,
) -> Tuple[Any, Any]:
    """Computes the gates of a delta rule; see Gates.

    Args:
      g, beta: [tokens, heads] or [batch, tokens, heads] f32, written. None: new arrays.
      backend, stream: as in forward, as are the errors.

    Returns:
      (g, beta)
    """
    _require(isinstance(gates, Gates), "gates", gates, "Gates")
    _require_array("a", gates.a)
    calls, stream = _calls(gates.a, stream)
    g, beta = _gate_outputs(gates, g, beta)
    values = [*_gate_arguments(gates, g, beta), *_core.named(backend=backend, stream=stream)]
    _call(calls, "delta_gates", tuple(values), [g, beta])
    return g, beta


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise TypeError(f"{name}: is {type(value).__module__}.{type(value).__qualname__}; expected "
                        f"{expected}")


def _require_array(name: str, value: Any) -> None:
    _require(hasattr(value, "__dlpack__"), name, value, "an array with DLPack")


def _calls(x: Any, stream: Any) -> Tuple[Any, Any]:
    """Where calls with arrays like x go, and their stream."""
    calls = calls_of[type(x)]
    if calls is None:
        _, current_stream = kinds[type(x)]
        if stream is None and current_stream is not None:
            stream = current_stream(x)
    return calls, stream


def _gate_outputs(gates: Gates, g: Any, beta: Any) -> Tuple[Any, Any]:
    shape = (*gates.a.shape[:-1], gates.a_log.shape[0])
    return (empty(gates.a, shape, "float32") if g is None else g,
            empty(gates.a, shape, "float32") if beta is None else beta)


def _gate_arguments(gates: Gates, g: Any, beta: Any) -> List[Any]:
    return ["a", gates.a, "b", gates.b, "a_log", gates.a_log, "dt_bias", gates.dt_bias, "g", g,
            "beta", beta, "a_map", *gates.a_map, "b_map", *gates.b_map, "decay", gates.decay,
            "beta_factor", gates.beta_factor, "round_beta", gates.round_beta]


def _run(op: int, x: Any, weight: Any, bias: Any, state: Any, read_slots: Any, query_start_loc: Any,
         has_initial_state: Any, initial_state: bool, activation: Optional[str],
         null_slot: Optional[int], padded_rows: Optional[str], groups: Sequence[Group],
         outs: Optional[Sequence[Any]], gates: Optional[Gates], g: Any, beta: Any,
         rare: List[Any]) -> Grouped:
    _require_array("x", x)
    is_groups = isinstance(groups, (list, tuple)) and all(isinstance(one, Group) for one in groups)
    _require(is_groups, "groups", groups, "a sequence of Group")
    _require(outs is None or isinstance(outs, (list, tuple)), "outs", outs, "a sequence of arrays")
    _require(gates is None or isinstance(gates, Gates), "gates", gates, "Gates")
    given = [None] * len(groups) if outs is None else list(outs)
    if len(given) != len(groups):
        raise ValueError(f"outs: are {len(given)}, but there are {len(groups)} groups")
    rows = x.shape[:-1]
    results = tuple(empty(x, (*rows, group.heads, group.head_dim)) if out is None else out
                    for group, out in zip(groups, given))
    for group, out in zip(groups, results):
        _require_array("outs", out)
        if tuple(out.shape[-2:]) != (group.heads, group.head_dim):
            raise ValueError(f"outs: one is {tuple(out.shape)}, but its group has {group.heads} "
                             f"heads of {group.head_dim} channels")
    stream = dict(zip(rare[::2], rare[1::2])).get("stream")
    calls, current = _calls(x, stream)
    if stream is None and current is not None:
        rare += "stream", current
    values = [op, x, weight, bias, state, read_slots, query_start_loc, has_initial_state,
              initial_state, activation, null_slot, padded_rows, len(groups)]
    for group, out in zip(groups, results):
        values += [out, *group.input, group.copy, group.l2_norm, group.eps, group.scale,
                   group.input_scale]
    written = [*results, state]
    if gates is not None:
        g, beta = _gate_outputs(gates, g, beta)
        values += _gate_arguments(gates, g, beta)
        written += [g, beta]
    elif g is not None or beta is not None:
        raise ValueError(f"{'beta' if g is None else 'g'}: is given, but gates are None")
    _call(calls, "forward_groups", (*values, *rare), written)
    return Grouped(results, g, beta)


def _call(calls: Any, name: str, values: Tuple[Any, ...], written: List[Any]) -> None:
    if calls is not None:
        calls.run_in_place(name, values, written)
        return
    try:
        getattr(_core, name)(*values)
    except BufferError:
        is_written = {id(one) for one in written}
        getattr(_core, name)(*(
            passable(name, value, id(value) in is_written) if hasattr(value, "__dlpack__")
            else value for value in values))
