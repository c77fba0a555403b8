"""Calls with groups, norms and gates of torch tensors: straight to the core, or through torch's
dispatcher as operators; see _torch. The operators take the groups as lists of numbers.
"""

import itertools
from typing import Any, Callable, Dict, List, Optional, Tuple

from shortconv import _core, _names, _torch
from shortconv._torch import Tensor, torch

_torch._library.define(
    "forward_groups(int op, Tensor x, Tensor weight, Tensor? bias, Tensor(a!)? state,"
    " Tensor? read_slots, Tensor? query_start_loc, Tensor? has_initial_state, bool initial_state,"
    " str? activation, int? null_slot, str? padded_rows, Tensor(b!)[] outs, int[] maps, float[] numbers, *,"
    " Tensor? a=None, Tensor? b=None, Tensor? a_log=None, Tensor? dt_bias=None,"
    " Tensor(c!)? g=None, Tensor(d!)? beta=None, int[]? gate_maps=None, str? decay=None,"
    " float? beta_factor=None, bool? round_beta=None, Tensor? write_slots=None,"
    " Tensor? read_offsets=None, Tensor? cache_seqlens=None, Tensor? snapshots=None,"
    " Tensor? seq_idx=None, Tensor? input_gate=None, Tensor? output_gate=None,"
    " Tensor(e!)? violations=None, bool shift_full_state=False, bool residual=False,"
    " int base_column=0, int dilation=1, str? backend=None, int threads=0,"
    " bool programmatic_launch=True) -> ()")
_torch._library.define(
    "l2_norm(Tensor x, Tensor(a!) out, float eps, float scale, str? backend=None) -> ()")
_torch._library.define(
    "delta_gates(*, Tensor a, Tensor b, Tensor a_log, Tensor dt_bias, Tensor(a!) g,"
    " Tensor(b!) beta, int[] gate_maps, str decay, float beta_factor, bool round_beta,"
    " str? backend=None) -> ()")
_MAP, _NUMBERS = 4, 5  # entries of a group in maps and numbers


def _group_values(call: Any) -> Tuple[Any, ...]:
    """The arguments of _core.forward_groups, from those of the operator."""
    values = [*call["frequent"], len(call["outs"])]
    for i, out in enumerate(call["outs"]):
        copy, norm, eps, scale, input_scale = call["numbers"][_NUMBERS * i:_NUMBERS * (i + 1)]
        values += [out, *call["maps"][_MAP * i:_MAP * (i + 1)], bool(copy), bool(norm), eps, scale,
                   input_scale]
    return (*values, *_pairs(call["options"]))


def _pairs(options: Dict[str, Any]) -> List[Any]:
    """Names and values, with the maps of gates as the core takes them."""
    pairs: List[Any] = []
    for name, value in options.items():
        if name == "gate_maps":
            if value is not None:
                pairs += ["a_map", *value[:_MAP], "b_map", *value[_MAP:]]
        elif value is not None and value is not False:
            pairs += name, value
        elif name == "programmatic_launch":
            pairs += name, value
    return pairs


def _groups_kernel(*arguments: Any, **options: Any) -> None:
    *frequent, outs, maps, numbers = arguments
    _core.forward_groups(*_group_values({
        "frequent": frequent, "outs": outs, "maps": maps, "numbers": numbers, "options": options}))
    state = frequent[4]
    written = [*outs, state, *(options.get(name) for name in ("g", "beta", "violations"))]
    _torch._increment_version([one for one in written if one is not None])


def _l2_norm_kernel(x: Tensor, out: Tensor, eps: float, scale: float,
                    backend: Optional[str] = None) -> None:
    _core.l2_norm(x, out, eps, scale, backend)
    _torch._increment_version([out])


def _delta_gates_kernel(**options: Any) -> None:
    _core.delta_gates(*_pairs(options))
    _torch._increment_version([options["g"], options["beta"]])


_GROUP_KERNELS = {"forward_groups": _groups_kernel, "l2_norm": _l2_norm_kernel,
                  "delta_gates": _delta_gates_kernel}


def _refuse_gradients(name: str, tensors: List[Tensor]) -> None:
    if _torch._is_grad_enabled() and any(one.requires_grad for one in tensors):
        raise NotImplementedError(f"{name}: has no backward pass, and a tensor requires a "
                                  "gradient; call it under torch.no_grad()")


def _group_autograd(name: str) -> Callable[..., None]:
    overload = getattr(torch.ops.shortconv, name).default

    def call(keys: Any, *arguments: Any, **options: Any) -> None:
        _refuse_gradients(name, _tensors(arguments, options))
        with torch._C._AutoDispatchBelowAutograd():
            overload.redispatch(keys & torch._C._after_autograd_keyset, *arguments, **options)

    return call


def _tensors(arguments: Tuple[Any, ...], options: Dict[str, Any]) -> List[Tensor]:
    values = itertools.chain(arguments, options.values())
    flat = itertools.chain.from_iterable(
        value if isinstance(value, (list, tuple)) else (value,) for value in values)
    return [one for one in flat if isinstance(one, Tensor)]


for _name, _function in _GROUP_KERNELS.items():
    for _key in ("CPU", "CUDA"):
        _torch._library.impl(_name, _function, _key)
    torch.library.register_fake(f"shortconv::{_name}", lambda *arguments, **options: None,
                                lib=_torch._library)
    _torch._library.impl(_name, _group_autograd(_name), "Autograd", with_keyset=True)


def _call_groups(name: str, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> None:
    """Calls the kernel or, where torch has to see the call, the operator.

    Raises:
      NotImplementedError: a tensor requires a gradient, or is none with memory of its own.
    """
    stream = options.pop("stream", None)
    overload = getattr(torch.ops.shortconv, name).default
    if _torch._is_compiling():
        if stream is not None:
            raise ValueError("stream: is given, but compiled code runs on torch's current stream")
        overload(*arguments, **options)
        return
    tensors = _tensors(arguments, options)
    _refuse_gradients(name, tensors)
    if any(map(_torch._has_forward_gradient, tensors)):
        raise NotImplementedError("shortconv: has no forward-mode gradients")
    if any(one.is_neg() or one.layout != torch.strided or one.is_nested or one.is_quantized
           for one in tensors):
        raise NotImplementedError(f"{name}: supports dense (strided) tensors only, not negated "
                                  "lazily; call resolve_neg() first")
    is_seen = (_torch._dispatch_modes() or _torch._is_tracing()
               or _torch._has_torch_function(*tensors)
               or not all(map(_torch._is_ordinary, tensors))
               or any(type(one) not in _torch._PLAIN for one in tensors))
    try:
        with _torch._on(stream, tensors[0]):
            (overload if is_seen else _GROUP_KERNELS[name])(*arguments, **options)
    except Exception as error:
        raise _names.for_caller(error) from None


def forward_groups(frequent: List[Any], outs: List[Tensor], maps: List[int], numbers: List[float],
                   options: Dict[str, Any]) -> None:
    _call_groups("forward_groups", (*frequent, outs, maps, numbers), options)


def l2_norm(x: Tensor, out: Tensor, eps: float, scale: float, options: Dict[str, Any]) -> None:
    _call_groups("l2_norm", (x, out, eps, scale), options)


def delta_gates(options: Dict[str, Any]) -> None:
    _call_groups("delta_gates", (), options)


def empty(like: Tensor, shape: Tuple[int, ...], is_f32: bool) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32 if is_f32 else like.dtype)
