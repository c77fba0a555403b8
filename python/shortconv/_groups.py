"""A convolution whose channels are divided into groups, with norms and gates: the operations
between the projection of a layer and its delta rule or scan, in one call. See _operators for what
all operators share.

Source: docs/specification.md of the shortconv repository.
"""

import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from shortconv import _core
from shortconv._arrays import empty, kinds, passable
from shortconv._core import calls_of
from shortconv._group_arguments import (
    Gates,
    Group,
    check_groups,
    checked_groups,
    require,
    require_array,
    require_gates,
    require_known_gates,
)
from shortconv._operators import Array


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

    The other arguments and the errors are those of forward. There are no gradients: torch tensors
    that require one are refused.

    Returns:
      Grouped: a tuple (groups, g, beta).
    """
    return _run(
        [_core.FORWARD, x, weight, bias, state, read_slots, query_start_loc, has_initial_state,
         initial_state, activation, null_slot, padded_rows], groups, outs, gates, g, beta,
        (("write_slots", write_slots), ("read_offsets", read_offsets),
         ("cache_seqlens", cache_seqlens), ("snapshots", snapshots), ("seq_idx", seq_idx),
         ("input_gate", input_gate), ("output_gate", output_gate), ("violations", violations),
         ("shift_full_state", shift_full_state), ("residual", residual),
         ("base_column", _unless(0, base_column)), ("dilation", _unless(1, dilation)),
         ("backend", backend), ("threads", _unless(0, threads)), ("stream", stream)),
        programmatic_launch)


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
    return _run(
        [_core.DECODE, x, weight, bias, state, read_slots, None, has_initial_state, False,
         activation, null_slot, padded_rows], groups, outs, gates, g, beta,
        (("write_slots", write_slots), ("read_offsets", read_offsets),
         ("cache_seqlens", cache_seqlens), ("snapshots", snapshots), ("input_gate", input_gate),
         ("output_gate", output_gate), ("violations", violations),
         ("shift_full_state", shift_full_state), ("residual", residual),
         ("base_column", _unless(0, base_column)), ("dilation", _unless(1, dilation)),
         ("backend", backend), ("threads", _unless(0, threads)), ("stream", stream)),
        programmatic_launch)


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
    require_array("x", x, (3, 4))
    if out is None:
        out = empty_like_rows(x, x.shape)  # type: ignore[attr-defined]
    calls = calls_of[type(x)]
    if calls is not None:
        calls.l2_norm(x, out, eps, scale, {"backend": backend, "stream": stream})
    else:
        call_core("l2_norm", x, (x, out, eps, scale, backend), stream, {"x": x}, {"out": out})
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
    require_gates(gates)
    g, beta = _gate_outputs(gates, g, beta)
    options = _gate_options(gates, g, beta)
    calls = calls_of[type(gates.a)]
    if calls is not None:
        calls.delta_gates({**options, "backend": backend, "stream": stream})
    else:
        values = (*pairs(options), *_core.named(backend=backend))
        call_core("delta_gates", gates.a, values, stream, options, {"g": g, "beta": beta})
    return g, beta


def _unless(default: int, value: Any) -> Any:
    """The value, or None for the default, which then is not passed."""
    return None if type(value) is int and value == default else value


def empty_like_rows(like: Any, shape: Tuple[int, ...], is_f32: bool = False) -> Any:
    """An uninitialized array on the device of `like`, in f32 or in the dtype of `like`."""
    calls = calls_of[type(like)]
    if calls is not None:
        return calls.empty(like, shape, is_f32)
    return empty(like, shape, "float32" if is_f32 else None)


def _gate_outputs(gates: Gates, g: Any, beta: Any) -> Tuple[Any, Any]:
    shape = (*gates.a.shape[:-1], gates.a_log.shape[0])
    return (empty_like_rows(gates.a, shape, True) if g is None else g,
            empty_like_rows(gates.a, shape, True) if beta is None else beta)


def _gate_options(gates: Gates, g: Any, beta: Any) -> Dict[str, Any]:
    return {"a": gates.a, "b": gates.b, "a_log": gates.a_log, "dt_bias": gates.dt_bias, "g": g,
            "beta": beta, "gate_maps": [*gates.a_map, *gates.b_map], "decay": gates.decay,
            "beta_factor": gates.beta_factor, "round_beta": gates.round_beta}


def pairs(options: Dict[str, Any]) -> List[Any]:
    """Names and values, with the maps of gates as the core takes them."""
    values: List[Any] = []
    for name, value in options.items():
        if name == "gate_maps":
            values += ["a_map", *value[:4], "b_map", *value[4:]]
        else:
            values += name, value
    return values


def arrays_of_groups(name: str, x: Any, sizes: Sequence[Tuple[int, int]],
                     given: Optional[Sequence[Any]], make: Callable[..., Any]) -> List[Any]:
    """An array of the shape of its output for each group; make(x, shape) if none is given."""
    require_array("x", x, (2, 3))
    outer = tuple(x.shape[:-1])
    if given is None:
        return [make(x, outer + size) for size in sizes]
    require(isinstance(given, (list, tuple)), name, given, "a sequence of arrays")
    if len(given) != len(sizes):
        raise ValueError(f"{name}: are {len(given)}, but there are {len(sizes)} groups")
    results = []
    for number, (size, one) in enumerate(zip(sizes, given)):
        shape = outer + size
        if one is None:
            one = make(x, shape)
        elif getattr(one, "shape", None) != shape:
            require_array(f"{name}[{number}]", one)
            if tuple(one.shape) != shape:
                raise ValueError(f"{name}[{number}]: shape is {tuple(one.shape)}; expected "
                                 f"{shape}, of groups[{number}] and x")
        results.append(one)
    return results


def _run(frequent: List[Any], groups: Sequence[Group], outs: Optional[Sequence[Any]],
         gates: Optional[Gates], g: Any, beta: Any, rare: Tuple[Tuple[str, Any], ...],
         programmatic_launch: bool) -> Grouped:
    """A call of the core.

    Args:
      frequent: the arguments that it takes by position.
      rare: others by name; None and False are the defaults.
    """
    x = frequent[1]
    calls = calls_of[type(x)]
    is_compiling = calls is not None and calls.is_compiling()
    checked = (check_groups if is_compiling else checked_groups)(groups)
    options = {name: value for name, value in rare if value is not None and value is not False}
    if programmatic_launch is not True:
        options["programmatic_launch"] = programmatic_launch
    if outs is g is beta is None and not (options or is_compiling) and calls is not None:
        new: Optional[Grouped] = calls.new_groups(frequent, checked, gates)
        if new is not None:
            return new
    results = arrays_of_groups("outs", x, checked.sizes, outs, empty_like_rows)
    if gates is not None:
        (require_gates if is_compiling else require_known_gates)(gates)
        g, beta = _gate_outputs(gates, g, beta)
        options.update(_gate_options(gates, g, beta))
    elif g is not None or beta is not None:
        raise ValueError(f"{'beta' if g is None else 'g'}: is given, but gates are None")
    if calls is not None:
        calls.forward_groups(frequent, results, checked, options)
        return Grouped(tuple(results), g, beta)
    written = {f"outs[{number}]": out for number, out in enumerate(results)}
    written.update(g=g, beta=beta, violations=options.get("violations"))
    if "seq_idx" not in options:
        written["state"] = frequent[4]
    names = dict(zip(("op", "x", "weight", "bias", "state", "read_slots", "query_start_loc",
                      "has_initial_state"), frequent))
    names.update(options)
    stream = options.pop("stream", None)
    values: List[Any] = [*frequent, len(groups)]
    for out, entry in zip(results, checked.entries):
        values += out, *entry
    call_core("forward_groups", x, (*values, *pairs(options)), stream, names, written)
    return Grouped(tuple(results), g, beta)


def call_core(function: str, x: Any, values: Tuple[Any, ...], stream: Any, names: Dict[str, Any],
              written: Dict[str, Any]) -> Any:
    """Calls the core with arrays of other libraries than torch.

    Args:
      x: the array whose stream counts.
      names, written: the arrays among the values, by name.

    Returns:
      What the core returns.
    """
    _, current_stream = kinds[type(x)]
    if stream is None and current_stream is not None:
        stream = current_stream(x)
    if function == "l2_norm":
        values = (*values, stream)
    elif stream is not None:
        values = (*values, "stream", stream)
    try:
        return getattr(_core, function)(*values)
    except BufferError:
        name_of = {id(one): name for name, one in (*names.items(), *written.items())}
        is_written = {id(one) for one in written.values()}
        passed = [passable(name_of.get(id(value), function), value, id(value) in is_written)
                  if hasattr(value, "__dlpack__") else value for value in values]
        return _core_again(function, values, passed)
    except (ValueError, NotImplementedError) as error:
        raise for_caller(error) from None


def _core_again(function: str, values: Tuple[Any, ...], passed: List[Any]) -> Any:
    if all(one is other for one, other in zip(values, passed)):
        raise  # the BufferError
    try:
        return getattr(_core, function)(*passed)
    except (ValueError, NotImplementedError) as error:
        raise for_caller(error) from None


def for_caller(error: Exception) -> Exception:
    """The error of the core, with the names of outputs and of their gradients in Python."""
    text = re.sub(r"\bgroups\[(\d)\]\.out\b", r"outs[\1]", str(error))
    return type(error)(re.sub(r"\bgroups\[(\d)\]\.grad_out\b", r"grad_groups[\1]", text))
