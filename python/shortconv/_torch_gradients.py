"""The gradients of a call with groups as training asks for them: of plain torch tensors, in new
tensors. Other calls take the general way, _torch_groups.backward_groups.
"""

from typing import Any, List, Optional, Sequence, Tuple

from shortconv import _core, _torch, _torch_groups
from shortconv._backward_groups import GroupedGradients
from shortconv._group_arguments import (
    CheckedGroups,
    Gates,
    gate_map_covers,
    gradient_pairs,
    known_covers,
    require_array,
    require_gates,
)
from shortconv._torch import Tensor, torch
from shortconv._workspaces import Workspace

_BOOLS = frozenset([bool])
_OF_GATES = 3  # gradients before those of gates
_NAMES = tuple(f"grad_{name}" for name in GroupedGradients._fields)
_MOST_KNOWN = 100  # for each list of groups


class _KnownCall:
    """What follows from groups, from what gates have besides arrays, and from shapes."""

    __slots__ = ("shapes", "makers", "pairs", "workspace")

    def __init__(self, groups: Sequence[Any], sizes: List[Tuple[int, int]], x: Tensor,
                 bias: Optional[Tensor], gates: Optional[Gates], wanted: Tuple[bool, ...]) -> None:
        require_array("x", x, (2, 3))
        self.shapes = [x.shape[:-1] + size for size in sizes]  # of the gradients of outputs
        covered = [not wanted[0] or known_covers(tuple(groups), x.shape[-1]), True, True]
        wanted = (*wanted[:2], wanted[2] and bias is not None, *wanted[_OF_GATES:])
        self.pairs: Optional[Tuple[Any, ...]] = None  # of gates; None: the call has none
        if gates is None:
            wanted = wanted[:_OF_GATES]
        else:
            require_gates(gates)
            heads = gates.a_log.shape[0]
            covered += [
                not is_wanted or gate_map_covers(name, of, heads, rows.shape[-1])
                for name, of, rows, is_wanted in zip("ab", (gates.a_map, gates.b_map), gates[:2],
                                                     wanted[_OF_GATES:])]
            covered += True, True
            if any(wanted[_OF_GATES:]):
                self.pairs = gradient_pairs(gates)
        self.makers = [(torch.empty_like if is_covered else torch.zeros_like) if is_wanted else None
                       for is_covered, is_wanted in zip(covered, wanted)]
        self.workspace = Workspace()


def _known_call(
        groups: Sequence[Any], checked: CheckedGroups, x: Tensor, weight: Tensor,
        bias: Optional[Tensor], gates: Optional[Gates], query_start_loc: Optional[Tensor],
        wanted: Tuple[bool, ...]) -> _KnownCall:
    key: Tuple[Any, ...] = (x.shape, weight.shape, bias is None, wanted, x.is_cuda,
                            None if query_start_loc is None else query_start_loc.shape)
    if gates is not None:
        a, b, a_log, dt_bias = gates[:4]
        key += (a.shape, b.shape, a_log.shape, dt_bias.shape, gates[4:])
    known: Optional[_KnownCall] = checked.known_calls.get(key)
    if known is None:
        known = _KnownCall(groups, checked.sizes, x, bias, gates, wanted)
        if len(checked.known_calls) >= _MOST_KNOWN:
            checked.known_calls.clear()
        checked.known_calls[key] = known
    return known


def new_gradients(
        grads: Sequence[Optional[Tensor]], x: Tensor, weight: Tensor, bias: Optional[Tensor],
        groups: Sequence[Any], checked: CheckedGroups, gates: Optional[Gates],
        grad_g: Optional[Tensor], grad_beta: Optional[Tensor], query_start_loc: Optional[Tensor],
        seq_idx: Optional[Tensor], activation: Optional[str], wanted: Tuple[Any, ...],
        backend: Optional[str], threads: int) -> Optional[GroupedGradients]:
    """backward_groups with new gradients, and nothing that torch has to see.

    As new_groups, it looks for bad arguments where shapes are new, and else after an error.

    Args:
      wanted: grad_x, grad_weight and so on.

    Returns:
      None: this is another call, or has bad arguments. Nothing has been done then.
    """
    inputs = [x, weight, bias, query_start_loc, seq_idx, *grads]
    if gates is not None:
        if type(gates) is not Gates:
            return None
        inputs += gates[:4]
        inputs += grad_g, grad_beta
    elif grad_g is not None or grad_beta is not None:
        return None
    if (
        not _BOOLS.issuperset(map(type, wanted)) or not _torch._PLAIN.issuperset(map(type, inputs))
        or _torch._dispatch_modes() or _torch._is_tracing()
        or _torch.forward_ad._current_level >= 0
        or (_torch._is_grad_enabled() and _torch._any_requires_grad(*inputs))
    ):
        return None
    try:
        if any([one.is_neg() for one in inputs if one is not None]):
            return None
        known = _known_call(groups, checked, x, weight, bias, gates, query_start_loc, wanted)
        if [one.shape for one in grads] != known.shapes:  # type: ignore[union-attr]
            return None
        arrays = (x, weight, bias) if gates is None else (x, weight, bias, *gates[:4])
        found = [None if make is None else make(one) for make, one in zip(known.makers, arrays)]
        arguments = [x, weight, bias, *found[:_OF_GATES], activation, len(grads)]
        for grad, entry in zip(grads, checked.entries):
            arguments += grad, *entry
        if known.pairs is not None:
            if grad_g is None or grad_beta is None:
                return None
            arguments += ("a", arrays[3], "b", arrays[4], "a_log", arrays[5], "dt_bias", arrays[6],
                          "grad_g", grad_g, "grad_beta", grad_beta, *known.pairs)
            for name, one in zip(_NAMES[_OF_GATES:], found[_OF_GATES:]):
                if one is not None:
                    arguments += name, one
        for name, value in (("query_start_loc", query_start_loc), ("seq_idx", seq_idx),
                            ("backend", backend), ("threads", threads or None)):
            if value is not None and value is not False:
                arguments += name, value
    except Exception:
        return None  # the general way says what is wrong
    try:
        known.workspace.run(_core.backward_groups, arguments, x)
    except Exception as error:
        _torch_groups._raise_final(error, inputs)
        return None
    return GroupedGradients(*found) if gates is not None else GroupedGradients(*found, *[None] * 4)
