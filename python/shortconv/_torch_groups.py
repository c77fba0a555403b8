"""Calls with groups, norms and gates of torch tensors: straight to the core, or through torch's
dispatcher as operators; see _torch. The operators take the groups as lists of numbers.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

from shortconv import _core, _torch
from shortconv._arrays import empty_bytes
from shortconv._group_arguments import (
    CheckedGroups,
    Gates,
    gate_pairs,
    require_array,
    require_gates,
)
from shortconv._groups import Grouped, for_caller, pairs
from shortconv._torch import Tensor, torch

_torch._library.define(
    "forward_groups(int op, Tensor x, Tensor weight, Tensor? bias, Tensor(a!)? state,"
    " Tensor? read_slots, Tensor? query_start_loc, Tensor? has_initial_state, bool initial_state,"
    " str? activation, int? null_slot, str? padded_rows, int[] maps, float[] numbers,"
    " Tensor(b!)? out0,"
    " Tensor(c!)? out1=None, Tensor(d!)? out2=None, Tensor(e!)? out3=None, Tensor(f!)? out4=None,"
    " Tensor(g!)? out5=None, Tensor(h!)? out6=None, Tensor(i!)? out7=None, *,"
    " Tensor? a=None, Tensor? b=None, Tensor? a_log=None, Tensor? dt_bias=None,"
    " Tensor(j!)? g=None, Tensor(k!)? beta=None, int[]? gate_maps=None, str? decay=None,"
    " float? beta_factor=None, bool? round_beta=None, Tensor? write_slots=None,"
    " Tensor? read_offsets=None, Tensor? cache_seqlens=None, Tensor? snapshots=None,"
    " Tensor? seq_idx=None, Tensor? input_gate=None, Tensor? output_gate=None,"
    " Tensor(l!)? violations=None, bool shift_full_state=False, bool residual=False,"
    " int base_column=0, int dilation=1, str? backend=None, int threads=0,"
    " bool programmatic_launch=True) -> ()")
_torch._library.define(
    "l2_norm(Tensor x, Tensor(a!) out, float eps, float scale, str? backend=None) -> ()")
_torch._library.define(
    "delta_gates(*, Tensor a, Tensor b, Tensor a_log, Tensor dt_bias, Tensor(a!) g,"
    " Tensor(b!) beta, int[] gate_maps, str decay, float beta_factor, bool round_beta,"
    " str? backend=None) -> ()")
_torch._library.define(
    "backward_groups(Tensor x, Tensor weight, Tensor? bias, Tensor(a!)? grad_x,"
    " Tensor(b!)? grad_weight, Tensor(c!)? grad_bias, str? activation, int[] maps, float[] numbers,"
    " Tensor[] grad_groups, *, Tensor? a=None, Tensor? b=None, Tensor? a_log=None,"
    " Tensor? dt_bias=None, Tensor? grad_g=None, Tensor? grad_beta=None, Tensor(d!)? grad_a=None,"
    " Tensor(e!)? grad_b=None, Tensor(f!)? grad_a_log=None, Tensor(g!)? grad_dt_bias=None,"
    " int[]? gate_maps=None, str? decay=None, float? beta_factor=None,"
    " Tensor? query_start_loc=None, Tensor? seq_idx=None, bool accumulate=False,"
    " Tensor(h!)? workspace=None, str? backend=None, int threads=0) -> ()")
_FREQUENT = 12  # arguments before those of groups
_STATE, _LAST_TENSOR = 4, 7  # among them
_MAP, _NUMBERS = 4, 5  # entries of a group in maps and numbers


def _given(options: Dict[str, Any]) -> Dict[str, Any]:
    """Without those that are None: the arguments of an operator that are not given."""
    return {name: value for name, value in options.items() if value is not None}


def _group_values(maps: List[int], numbers: List[float], tensors: List[Tensor]) -> List[Any]:
    """The groups as the core takes them."""
    values: List[Any] = [len(tensors)]
    for i, one in enumerate(tensors):
        copy, norm, eps, scale, input_scale = numbers[_NUMBERS * i:_NUMBERS * (i + 1)]
        values += [one, *maps[_MAP * i:_MAP * (i + 1)], bool(copy), bool(norm), eps, scale,
                   input_scale]
    return values


def _groups_kernel(*arguments: Any, **options: Any) -> None:
    frequent, (maps, numbers, *outs) = arguments[:_FREQUENT], arguments[_FREQUENT:]
    outs = [one for one in outs if one is not None]
    _core.forward_groups(*frequent, *_group_values(maps, numbers, outs), *pairs(_given(options)))
    _torch._increment_version([one for one in _written("forward_groups", arguments, options)
                               if isinstance(one, Tensor)])


def _l2_norm_kernel(x: Tensor, out: Tensor, eps: float, scale: float,
                    backend: Optional[str] = None) -> None:
    _core.l2_norm(x, out, eps, scale, backend)
    if isinstance(out, Tensor):
        _torch._increment_version([out])


def _delta_gates_kernel(**options: Any) -> None:
    _core.delta_gates(*pairs(_given(options)))
    _torch._increment_version([options[name] for name in ("g", "beta")
                               if isinstance(options[name], Tensor)])


def _backward_groups_kernel(*arguments: Any, **options: Any) -> None:
    *frequent, maps, numbers, grads = arguments
    values = [*frequent, *_group_values(maps, numbers, grads), *pairs(_given(options))]
    needed = _core.backward_groups(*values)
    if needed:
        _core.backward_groups(*values, "workspace", empty_bytes(frequent[0], needed))
    _torch._increment_version([one for one in _written("backward_groups", arguments, options)
                               if isinstance(one, Tensor)])


_GROUP_KERNELS = {"forward_groups": _groups_kernel, "l2_norm": _l2_norm_kernel,
                  "delta_gates": _delta_gates_kernel, "backward_groups": _backward_groups_kernel}


_SCHEMAS = {name: getattr(torch.ops.shortconv, name).default._schema.arguments
            for name in _GROUP_KERNELS}
_NAMES = {name: [one.name for one in schema] for name, schema in _SCHEMAS.items()}
_WRITTEN = {name: [one.name for one in schema
                   if one.alias_info is not None and one.alias_info.is_write]
            for name, schema in _SCHEMAS.items()}


def _named(name: str, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of an operator by name."""
    return {**dict(zip(_NAMES[name], arguments)), **options}


def _named_tensors(name: str, arguments: Tuple[Any, ...],
                   options: Dict[str, Any]) -> Dict[str, Tensor]:
    named = _named(name, arguments, options)
    grads = named.pop("grad_groups", ())
    named.update((f"grad_groups[{number}]", one) for number, one in enumerate(grads))
    return {key: value for key, value in named.items() if isinstance(value, Tensor)}


def _written(name: str, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> List[Any]:
    named = _named(name, arguments, options)
    return [named.get(one) for one in _WRITTEN[name]]


def _fake(name: str) -> Callable[..., None]:
    """The operator on tensors without memory: nothing is written, and the devices are checked."""
    def call(*arguments: Any, **options: Any) -> None:
        _torch.require_one_device(_named_tensors(name, arguments, options))

    return call


def _refuse_gradients(name: str, tensors: List[Tensor]) -> None:
    if _torch._is_grad_enabled() and _torch._any_requires_grad(*tensors):
        raise NotImplementedError(f"{name}: has no backward pass, and a tensor requires a gradient; "
                                  "use shortconv.torch.short_conv_groups for training, or call it "
                                  "under torch.no_grad()")


def _group_autograd(name: str) -> Callable[..., None]:
    overload = getattr(torch.ops.shortconv, name).default

    def call(keys: Any, *arguments: Any, **options: Any) -> None:
        _refuse_gradients(name, list(_named_tensors(name, arguments, options).values()))
        with torch._C._AutoDispatchBelowAutograd():
            overload.redispatch(keys & torch._C._after_autograd_keyset, *arguments, **options)

    return call


for _name, _function in _GROUP_KERNELS.items():
    for _key in ("CPU", "CUDA"):
        _torch._library.impl(_name, _function, _key)
    torch.library.register_fake(f"shortconv::{_name}", _fake(_name), lib=_torch._library)
    _torch._library.impl(_name, _group_autograd(_name), "Autograd", with_keyset=True)


def _call_groups(name: str, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> None:
    """Calls the kernel or, where torch has to see the call, the operator.

    Raises:
      NotImplementedError: a tensor requires a gradient or is negated lazily.
    """
    stream = options.pop("stream", None)
    if _torch._is_compiling():
        if stream is not None:
            raise ValueError("stream: is given, but compiled code runs on torch's current stream")
        getattr(torch.ops.shortconv, name).default(*arguments, **options)
        return
    tensors = list(_named_tensors(name, arguments, options).values())
    _refuse_gradients(name, tensors)
    is_seen = (_torch._dispatch_modes() or _torch._is_tracing()
               or _torch.forward_ad._current_level >= 0 or _torch._has_torch_function(*tensors)
               or any(type(one) not in _torch._PLAIN or one.is_neg() for one in tensors))
    try:
        with _torch._on(stream, tensors[0]):
            if is_seen:
                _dispatch(name, arguments, options)
                return
            try:
                _GROUP_KERNELS[name](*arguments, **options)
            except Exception:
                if all(map(_torch._is_ordinary, tensors)):
                    raise
                _dispatch(name, arguments, options)  # a fake or meta tensor, for example
    except (ValueError, NotImplementedError) as error:
        raise for_caller(error) from None


def _dispatch(name: str, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> None:
    tensors = _named_tensors(name, arguments, options)
    _torch.require_dense(tensors)
    for argument, one in tensors.items():
        if _torch._has_forward_gradient(one):
            raise NotImplementedError("shortconv: has no forward-mode gradients")
        if one.is_neg():
            raise NotImplementedError(f"{argument}: is negated lazily; pass its resolve_neg()")
    getattr(torch.ops.shortconv, name).default(*arguments, **options)


_ORDINARY_TYPES = _torch._ORDINARY_TYPES | {float, list}


def forward_groups(frequent: List[Any], outs: List[Tensor], groups: CheckedGroups,
                   options: Dict[str, Any]) -> None:
    """Calls the core directly if torch need not see the call, in half the time of _call_groups."""
    values = [*frequent, *outs, *options.values()]
    if (
        _torch._is_compiling() or _torch._dispatch_modes() or _torch._is_tracing()
        or _torch.forward_ad._current_level >= 0 or "stream" in options
        or not _ORDINARY_TYPES.issuperset(map(type, values))
    ):
        _call_groups("forward_groups", (*frequent, groups.maps, groups.numbers, *outs), options)
        return
    tensors = [one for one in values if isinstance(one, Tensor)]
    if _torch._is_grad_enabled():
        _refuse_gradients("forward_groups", tensors)
    if any(map(Tensor.is_neg, tensors)):
        _call_groups("forward_groups", (*frequent, groups.maps, groups.numbers, *outs), options)
        return
    arguments = [*frequent, len(outs)]
    for out, entry in zip(outs, groups.entries):
        arguments += out, *entry
    try:
        _core.forward_groups(*arguments, *pairs(options))
    except Exception as error:
        _raise_final(error, tensors)
        _call_groups("forward_groups", (*frequent, groups.maps, groups.numbers, *outs), options)
        return
    written = [frequent[_STATE], *outs, options.get("g"), options.get("beta"),
               options.get("violations")]
    _torch._increment_version([one for one in written if one is not None])


def backward_groups(frequent: List[Any], grads: List[Tensor], groups: CheckedGroups,
                    options: Dict[str, Any]) -> None:
    _call_groups("backward_groups", (*frequent, groups.maps, groups.numbers, grads), options)


def _raise_final(error: Exception, values: List[Any]) -> None:
    """Raises an error of the core, unless it is one of tensors that only torch can tell from
    others: fake or meta tensors, or such that may be negated lazily.

    Only then may the call be made again. In the checked mode it ran before it raised.
    """
    if isinstance(error, _core.MayBeNegated) or not all(map(_torch._is_ordinary, values)):
        return
    if isinstance(error, (ValueError, NotImplementedError)):
        raise for_caller(error) from None
    raise error


_FLOAT32 = torch.float32


def new_groups(frequent: List[Any], groups: CheckedGroups,
               gates: Optional[Gates]) -> Optional[Grouped]:
    """The call that layers make: new outputs, no rare arguments, and nothing that torch has to see.

    It asks as little as possible before the call, and looks for bad arguments after an error.

    Returns:
      None: this is another call. Nothing has been done then.
    """
    inputs = frequent[1:_LAST_TENSOR + 1]
    x = inputs[0]
    of_gates: Tuple[Any, ...] = ()
    if gates is not None:
        if type(gates) is not Gates:
            return None
        of_gates = gates[:4]
        inputs += of_gates
    if (
        type(x) is not Tensor or not _torch._PLAIN.issuperset(map(type, inputs))
        or _torch._dispatch_modes() or _torch._is_tracing()
        or _torch.forward_ad._current_level >= 0
        or ((records := _torch._is_grad_enabled()) and _torch._any_requires_grad(*inputs))
    ):
        return None
    try:
        if x.is_neg() or any(map(Tensor.is_neg, of_gates)):  # the core finds others
            return None
        results, arguments = _new_outputs(x, groups, gates)
        _core.forward_groups(frequent[0] | _torch._CHECK_NEGATION, *frequent[1:], *arguments)
    except Exception as error:
        require_array("x", x, (2, 3))
        if gates is not None:
            require_gates(gates)
        _raise_final(error, inputs)
        return None
    state = frequent[_STATE]
    if state is not None and (records or not _torch._is_inference()):
        _torch._increment_version((state,))  # nothing has seen the outputs
    return results


def _new_outputs(x: Tensor, groups: CheckedGroups,
                 gates: Optional[Gates]) -> Tuple[Grouped, List[Any]]:
    """New outputs, and the arguments of the core from the number of groups on."""
    outer, new_empty = x.shape[:-1], x.new_empty
    outs = [new_empty(outer + size) for size in groups.sizes]
    arguments: List[Any] = [len(outs)]
    for out, entry in zip(outs, groups.entries):
        arguments += out, *entry
    if gates is None:
        return Grouped(tuple(outs), None, None), arguments
    a, b, a_log, dt_bias = gates[:4]
    g = a.new_empty(a.shape[:-1] + a_log.shape, dtype=_FLOAT32)
    beta = _torch._empty_like(g)
    arguments += ("a", a, "b", b, "a_log", a_log, "dt_bias", dt_bias, "g", g, "beta", beta,
                  *gate_pairs(gates))
    return Grouped(tuple(outs), g, beta), arguments


def l2_norm(x: Tensor, out: Tensor, eps: float, scale: float, options: Dict[str, Any]) -> None:
    _call_groups("l2_norm", (x, out, eps, scale), options)


def delta_gates(options: Dict[str, Any]) -> None:
    _call_groups("delta_gates", (), options)


def empty(like: Tensor, shape: Tuple[int, ...], is_f32: bool) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32 if is_f32 else like.dtype)


def is_compiling() -> bool:
    return _torch._is_compiling()
