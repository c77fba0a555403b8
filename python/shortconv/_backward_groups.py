"""The gradients of a forward call with groups; see _operators for what all operators share.

Source: docs/specification.md of the shortconv repository.
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

from shortconv._arrays import empty_bytes
from shortconv._backward import require_sums, result
from shortconv._core import calls_of
from shortconv._group_arguments import (
    Gates,
    Group,
    check_groups,
    checked_groups,
    covers,
    gate_map_covers,
    gate_map_known_covers,
    known_covers,
    require,
    require_gates,
    require_known_gates,
)
from shortconv._groups import arrays_of_groups, call_core, empty_like_rows, pairs
from shortconv._operators import Array


class GroupedGradients(NamedTuple):
    """Gradients of the inputs of a call with groups; None for those that were not computed."""

    x: Any
    weight: Any
    bias: Any
    a: Any  # of the gates
    b: Any
    a_log: Any
    dt_bias: Any


def backward_groups(
    grad_groups: Sequence[Optional[Array]],
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    groups: Sequence[Group],
    gates: Optional[Gates] = None,
    grad_g: Optional[Array] = None,
    grad_beta: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    seq_idx: Optional[Array] = None,
    activation: Optional[str] = None,
    grad_x: Union[Array, bool] = True,
    grad_weight: Union[Array, bool] = True,
    grad_bias: Union[Array, bool] = True,
    grad_a: Union[Array, bool] = True,
    grad_b: Union[Array, bool] = True,
    grad_a_log: Union[Array, bool] = True,
    grad_dt_bias: Union[Array, bool] = True,
    accumulate: bool = False,
    workspace: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    stream: Any = None,
) -> GroupedGradients:
    """Computes the gradients of forward_groups, from those of its results.

    The results of the convolution are computed again where they were normalized. Roundings count as
    the identity.

    Args:
      grad_groups: the gradient of the output of each group, [tokens, heads, head_dim] or [batch,
        tokens, heads, head_dim] with adjacent channels; any floating dtype, but that of x for a
        group that is copied. A norm is of results rounded to the dtype of this gradient. None:
        zeros.
      x, weight, bias, query_start_loc, seq_idx, activation: as in the call of forward_groups, which
        had no states, gates of the convolution, residual or dilation.
      groups: as in that call, with an input_scale of 1. No two heads may read the same column of x.
      gates: as in that call. No two heads may read the same column of a, or of b.
      grad_g, grad_beta: [tokens, heads] or [batch, tokens, heads] f32. None: zeros.
      grad_x: shape and dtype of x; written, but for the columns that no group reads. Here and
        below, True stands for a new array, with zeros in columns that are not read, and False for a
        gradient that is not needed.
      grad_weight, grad_bias: shape of weight and bias, dtype of weight or f32; written.
      grad_a, grad_b: shape of a and b, any floating dtype; the columns of the heads are written.
      grad_a_log, grad_dt_bias: [heads]; f32, and any floating dtype; written.
      accumulate: add to grad_weight and grad_bias, which are arrays of f32 then.
      workspace: as in backward.
      backend: None, "cuda" or "reference"; the CPU has these gradients as "reference" only.
      threads, stream: as in forward.

    Returns:
      GroupedGradients: a tuple (x, weight, bias, a, b, a_log, dt_bias).

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the arguments contradict each other or the specification.
      NotImplementedError: the backend does not support the call, or two groups read the same column
        of x.
      RuntimeError: the backend or its device is not available.
    """
    calls = calls_of[type(x)]
    is_compiling = calls is not None and calls.is_compiling()
    checked = (check_groups if is_compiling else checked_groups)(groups)
    require(isinstance(grad_groups, (list, tuple)), "grad_groups", grad_groups,
            "a sequence of arrays")
    if (calls is not None and not is_compiling and accumulate is False and workspace is None
            and stream is None):
        new: Optional[GroupedGradients] = calls.new_gradients(
            grad_groups, x, weight, bias, groups, checked, gates, grad_g, grad_beta,
            query_start_loc, seq_idx, activation,
            (grad_x, grad_weight, grad_bias, grad_a, grad_b, grad_a_log, grad_dt_bias), backend,
            threads)
        if new is not None:
            return new
    grads = arrays_of_groups("grad_groups", x, checked.sizes, grad_groups, _zeros)
    require_sums(accumulate, grad_weight, grad_bias, bias)
    covers_x = grad_x is False or (covers if is_compiling else known_covers)(
        tuple(groups), x.shape[-1])
    written = {
        "grad_x": _result("grad_x", grad_x, x, covers_x),
        "grad_weight": result("grad_weight", grad_weight, weight),
        "grad_bias": result("grad_bias", grad_bias, bias)}
    of_gates = {"grad_a": grad_a, "grad_b": grad_b, "grad_a_log": grad_a_log,
                "grad_dt_bias": grad_dt_bias}
    options: Dict[str, Any] = {}
    if gates is None:
        _refuse_arrays({"grad_g": grad_g, "grad_beta": grad_beta, **of_gates})
        written.update(dict.fromkeys(of_gates))
    else:
        (require_gates if is_compiling else require_known_gates)(gates)
        written.update(_gate_results(
            gates, of_gates, gate_map_covers if is_compiling else gate_map_known_covers))
        options = _gate_options(gates, grad_g, grad_beta, written)
    for name, value in (("query_start_loc", query_start_loc), ("seq_idx", seq_idx),
                        ("accumulate", accumulate), ("workspace", workspace),
                        ("backend", backend), ("threads", threads or None), ("stream", stream)):
        if value is not None and value is not False:
            options[name] = value
    frequent = [x, weight, bias, written["grad_x"], written["grad_weight"], written["grad_bias"],
                activation]
    if calls is not None:
        calls.backward_groups(frequent, grads, checked, options)
    else:
        _call(frequent, grads, checked.entries, options, {**written, "workspace": workspace})
    return GroupedGradients(*written.values())


def _call(frequent: Sequence[Any], grads: Sequence[Any], entries: Sequence[Tuple[Any, ...]],
          options: Dict[str, Any], written: Dict[str, Any]) -> None:
    """A call of the core with arrays of other libraries than torch."""
    x = frequent[0]
    names = {"x": x, "weight": frequent[1], "bias": frequent[2], **options}
    names.update((f"grad_groups[{number}]", grad) for number, grad in enumerate(grads))
    stream = options.pop("stream", None)
    values = [*frequent, len(entries)]
    for grad, entry in zip(grads, entries):
        values += grad, *entry
    values += pairs(options)
    needed = call_core("backward_groups", x, tuple(values), stream, names, written)
    if needed:
        values += "workspace", empty_bytes(x, needed)
        call_core("backward_groups", x, tuple(values), stream, names, written)


def _zeros(like: Any, shape: Tuple[int, ...], is_f32: bool = False) -> Any:
    array = empty_like_rows(like, shape, is_f32)
    array[...] = 0
    return array


def _result(name: str, given: Any, source: Any, is_covered: bool) -> Any:
    """The array that receives a gradient, with zeros if the call does not write all of it."""
    array = result(name, given, source)
    if given is True and not is_covered:
        array[...] = 0
    return array


def _refuse_arrays(arguments: Dict[str, Any]) -> None:
    for name, value in arguments.items():
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"{name}: is given, but gates are None")


def _gate_results(gates: Gates, given: Dict[str, Any],
                  covers_all: Callable[..., bool]) -> Dict[str, Any]:
    heads = gates.a_log.shape[0]
    covered = {
        f"grad_{name}": given[f"grad_{name}"] is False or covers_all(name, of, heads, one.shape[-1])
        for name, of, one in (("a", gates.a_map, gates.a), ("b", gates.b_map, gates.b))}
    return {name: _result(name, one, getattr(gates, name[len("grad_"):]), covered.get(name, True))
            for name, one in given.items()}


def _gate_options(gates: Gates, grad_g: Any, grad_beta: Any,
                  written: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of gates as _torch and the core take them; none if no gradient is computed."""
    results = {name: written[name] for name in ("grad_a", "grad_b", "grad_a_log", "grad_dt_bias")
               if written[name] is not None}
    if not results:
        return {}
    shape = (*gates.a.shape[:-1], gates.a_log.shape[0])
    return {"a": gates.a, "b": gates.b, "a_log": gates.a_log, "dt_bias": gates.dt_bias,
            "grad_g": _zeros(gates.a, shape, True) if grad_g is None else grad_g,
            "grad_beta": _zeros(gates.a, shape, True) if grad_beta is None else grad_beta,
            **results, "gate_maps": [*gates.a_map, *gates.b_map], "decay": gates.decay,
            "beta_factor": gates.beta_factor}
