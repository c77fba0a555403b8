"""Calls with torch tensors: straight to the core, or through torch's dispatcher as operators.

A plain call has dense tensors in memory, and nothing observes it: it goes to the core. All other
calls go through torch's dispatcher, as shortconv::run, shortconv::commit and so on: under
torch.compile, in traces and modes, with subclasses, lazily negated tensors and gradients. The
operators declare what they write; the dispatcher refuses what has no kernel.

These operators have no gradients, because they write in place (_training.py has those that do):
where inputs require them, the backward pass raises. States that a call writes do not depend on its
inputs, as far as torch knows.

Source: https://docs.pytorch.org/docs/stable/library.html for Library.define and Library.impl.
"""

import contextlib
import inspect
import itertools
import json
import sys
from typing import Any, Callable, ContextManager, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from shortconv import _core, _names, _operators
from shortconv._arrays import kinds
from shortconv._workspaces import run_backward

# Looked up once: these are in every call.
_is_compiling = torch.compiler.is_dynamo_compiling  # others, export included, trace with modes
_has_torch_function = torch._C._has_torch_function_variadic  # of a tensor, or a mode
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_tracing = torch._C._is_tracing
_is_grad_enabled = torch._C.is_grad_enabled
_is_inference = torch.is_inference_mode_enabled
_increment_version = torch._C._increment_version
_empty_like = torch.empty_like
_any_requires_grad = torch._C._any_requires_grad  # ignores what is not a tensor
_core_forward = _core.forward
_CHECK_NEGATION, _INITIAL_STATE = _core.CHECK_NEGATION, _core.INITIAL_STATE
_SILU, _UNTOUCHED = _core.SILU, _core.UNTOUCHED

_PLAIN = frozenset([Tensor, torch.nn.Parameter, type(None)])
_ORDINARY_TYPES = _PLAIN | {bool, int, str}  # of arguments that are passed by name

_library = torch.library.Library("shortconv", "DEF")

# ---- Schemas ----

_ARGUMENTS = json.loads(_core.arguments("forward"))
_BACKWARD_ARGUMENTS = json.loads(_core.arguments("backward"))


def _schema() -> str:
    """Schema of shortconv::run: the arguments of _core.forward except the stream."""
    aliases = iter("abcdefgh")  # one for each written tensor
    accepted = {name for operator in (_operators.forward, _operators.decode, _operators.verify)
                for name in inspect.signature(operator).parameters}
    tensors = {
        argument["name"]: f"Tensor({next(aliases)}!)" if argument["written"] else "Tensor"
        for argument in _ARGUMENTS if argument["name"] in accepted}
    common = ["int op"] + [f"{tensors.pop(name)} {name}" for name in ("x", "out", "weight")]
    common += [f"{tensors.pop(name)}? {name}=None" for name in (
        "bias", "state", "read_slots", "query_start_loc", "has_initial_state")]
    common += ["bool initial_state=False", "str? activation=None", "int? null_slot=None",
               "str? padded_rows=None"]
    rare = [f"{tensor}? {name}=None" for name, tensor in tensors.items()]
    rare += ["int base_column=0", "bool shift_full_state=False", "bool update_state=False",
             "bool residual=False", "int dilation=1", "str? backend=None", "int threads=0",
             "bool programmatic_launch=True"]
    return f"run({', '.join(common)}, *, {', '.join(rare)}) -> ()"


def _backward_schema() -> str:
    """Schema of shortconv::backward: the arguments of _core.backward except the stream."""
    aliases = iter("abcdefgh")
    tensors = {
        argument["name"]: f"Tensor({next(aliases)}!)?" if argument["written"] else "Tensor?"
        for argument in _BACKWARD_ARGUMENTS}
    common = [f"{tensors.pop(name).rstrip('?')} {name}" for name in ("grad_out", "x", "weight")]
    common += [f"{tensors.pop(name)} {name}=None" for name in (
        "bias", "grad_x", "grad_weight", "grad_bias")]
    rare = [f"{tensor} {name}=None" for name, tensor in tensors.items()]
    rare += ["bool residual=False", "bool accumulate=False", "int dilation=1", "str? backend=None",
             "int threads=0", f"Tensor({next(aliases)}!)? workspace=None"]
    return f"backward({', '.join(common)}, str? activation=None, *, {', '.join(rare)}) -> ()"


_library.define(_schema())
_library.define(_backward_schema())
_library.define(
    "commit(Tensor intermediate_states, Tensor(a!) state, Tensor accepted, int width, *,"
    " int? rows_per_token=None, Tensor? slots=None, Tensor? second_slots=None,"
    " Tensor? query_start_loc=None, int base_column=0, int? null_slot=None, str? backend=None,"
    " int threads=0) -> ()")
_library.define(
    "block_snapshots(Tensor query_start_loc, Tensor num_computed_tokens, Tensor block_slots,"
    " SymInt tokens, int block_size, Tensor(a!) snapshots, str? backend=None) -> ()")
_library.define(
    "tree_parents(Tensor first_child, Tensor next_sibling, Tensor? query_start_loc,"
    " Tensor(a!) parents, str? backend=None) -> ()")
# written depends on inputs, for autograd alone.
_library.define("depend(Tensor(a!) written, Tensor[] inputs) -> ()")
_library.define("no_backward(Tensor gradient) -> Tensor")

# ---- Kernels ----

_WRITTEN = {
    "run": {argument["name"] for argument in _ARGUMENTS if argument["written"]},
    "backward": {argument["name"] for argument in _BACKWARD_ARGUMENTS if argument["written"]},
    "commit": {"state"}, "block_snapshots": {"snapshots"}, "tree_parents": {"parents"},
    "depend": {"written"}}


class _Operator:
    """A torch operator, the function of the core that it calls, and the names of its arguments."""

    def __init__(self, name: str, core: Callable[..., Any]) -> None:
        self.core = core
        self.overload = getattr(torch.ops.shortconv, name).default
        arguments = self.overload._schema.arguments
        self.names = [argument.name for argument in arguments]
        self.positional = sum(not argument.kwarg_only for argument in arguments)
        self.written = _WRITTEN[name]
        self.results = {"out"} if name == "run" else self.written

    def tensors(self, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> Dict[str, Tensor]:
        named = itertools.chain(zip(self.names, arguments), options.items())
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def split(self, values: Tuple[Any, ...]) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """Arguments of the core, as arguments of the operator."""
        pairs = values[self.positional:]
        return values[:self.positional], dict(zip(pairs[::2], pairs[1::2]))

    def written_of(self, values: Tuple[Any, ...]) -> List[Tensor]:
        """The written tensors among the arguments of the core."""
        tensors = self.tensors(*self.split(values))
        return [one for name, one in tensors.items() if name in self.written]


def _kernel(operator: _Operator) -> Callable[..., None]:
    """The operator on plain tensors. The dispatcher leaves out arguments that are the defaults."""

    def call(*arguments: Any, programmatic_launch: bool = True, **options: Any) -> None:
        missing = [None] * (operator.positional - len(arguments))
        pairs: List[Any] = _core.named(**options)
        if not programmatic_launch:
            pairs += "programmatic_launch", False
        operator.core(*arguments, *missing, *pairs)
        tensors = operator.tensors(arguments, options)
        _increment_version([tensors[name] for name in operator.written if name in tensors])

    return call


def _fake(operator: _Operator) -> Callable[..., None]:
    """The operator on tensors without memory: nothing is written, and the devices are checked."""

    def call(*arguments: Any, **options: Any) -> None:
        require_one_device(operator.tensors(arguments, options))

    return call


def require_one_device(tensors: Dict[str, Tensor]) -> None:
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if tensor.device != tensors[first].device:
            raise ValueError(
                f"{name}: is on {tensor.device}, but {first} is on {tensors[first].device}")


def require_dense(tensors: Dict[str, Tensor]) -> None:
    for name, one in tensors.items():
        if one.layout != torch.strided or one.is_nested or one.is_quantized:
            kind = ("nested" if one.is_nested else "quantized" if one.is_quantized
                    else str(one.layout))
            raise TypeError(f"{name}: is a {kind} tensor; expected a dense (strided) one")


_NO_BACKWARD = ("has no backward pass here, because the call works in place; use "
                "shortconv.torch.short_conv for training, or call it under torch.no_grad()")


class _Depend(torch.autograd.Function):
    """`written` depends on the inputs, which must not be ignored, but there is no derivative."""

    @staticmethod
    def forward(ctx: Any, written: Tensor, *inputs: Tensor) -> Tensor:
        ctx.mark_dirty(written)
        ctx.inputs = [(one.shape, one.dtype) for one in (written, *inputs)]
        return written

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        # An operator, because compiled code runs the backward pass already when it is traced.
        nothing = torch.ops.shortconv.no_backward(gradients[0])
        return tuple(nothing.to(dtype).expand(shape) for shape, dtype in ctx.inputs)


def _has_forward_gradient(tensor: Tensor) -> bool:
    return (forward_ad._current_level >= 0
            and forward_ad.unpack_dual(tensor).tangent is not None)


def _depend(operator: _Operator, tensors: Dict[str, Tensor]) -> None:
    """Makes the result, and written tensors with a gradient, depend on all inputs with one.

    Raises:
      NotImplementedError: a gradient cannot be refused later.
    """
    if any(_has_forward_gradient(one) for one in tensors.values()):
        raise NotImplementedError("shortconv: has no forward-mode gradients")
    inputs = {name: one for name, one in tensors.items() if one.requires_grad}
    if not inputs or not torch.is_grad_enabled():
        return
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(f"shortconv: {_NO_BACKWARD}")
    written = [name for name in tensors if name in operator.written]
    for name in written:
        if name in inputs and inputs[name].is_leaf:
            raise NotImplementedError(f"{name}: is a leaf that requires a gradient, but the call "
                                      f"writes it, and shortconv {_NO_BACKWARD}")
    for name in written:
        if name in inputs or name in operator.results:
            one = tensors[name]
            _Depend.apply(one, *[other for other in inputs.values() if other is not one])


def _autograd(operator: _Operator) -> Callable[..., None]:
    def call(keys: Any, *arguments: Any, **options: Any) -> None:
        tensors = operator.tensors(arguments, options)
        for name, value in zip(operator.names, arguments):
            if name == "inputs":
                tensors.update({f"inputs[{i}]": one for i, one in enumerate(value)})
        _depend(operator, tensors)
        with torch._C._AutoDispatchBelowAutograd():
            operator.overload.redispatch(
                keys & torch._C._after_autograd_keyset, *arguments, **options)

    return call


def _refuse_backward(gradient: Tensor) -> Tensor:
    raise NotImplementedError(f"shortconv: {_NO_BACKWARD}")


_OPERATORS = {name: _Operator(name, core) for name, core in (
    ("run", _core.forward), ("backward", run_backward), ("commit", _core.commit),
    ("block_snapshots", _core.block_snapshots), ("tree_parents", _core.tree_parents),
    ("depend", None))}
_RUN = _OPERATORS["run"]
for _name in ("run", "backward", "commit", "block_snapshots", "tree_parents"):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _kernel(_OPERATORS[_name]), _key)
    torch.library.register_fake(f"shortconv::{_name}", _fake(_OPERATORS[_name]), lib=_library)
# The operators for index tensors have no gradients.
for _name in ("run", "backward", "commit", "depend"):
    _library.impl(_name, _autograd(_OPERATORS[_name]), "Autograd", with_keyset=True)
_library.impl("depend", lambda written, inputs: None, "CompositeExplicitAutograd")
_library.impl("no_backward", _refuse_backward, "CompositeExplicitAutograd")
torch.library.register_fake("shortconv::depend", lambda written, inputs: None, lib=_library)
torch.library.register_fake(
    "shortconv::no_backward", lambda gradient: gradient.new_empty(()), lib=_library)

# ---- Calls ----


def _is_special(value: Any) -> bool:
    """Whether torch has to see calls with this value: a subclass, or lazily negated."""
    return isinstance(value, Tensor) and (type(value) not in _PLAIN or value.is_neg())


# Of tensors whose data are somewhere else.
_WRAPPER_KEYS = [getattr(torch._C.DispatchKey, key) for key in (
    "Functionalize", "FuncTorchBatched", "FuncTorchGradWrapper", "Python", "ZeroTensor",
    "Conjugate", "Negative")]


def _is_ordinary(value: Any) -> bool:
    """False for tensors that look plain, but have no memory of their own or another layout."""
    if not isinstance(value, Tensor):
        return True
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        return False
    keys = torch._C._dispatch_keys(value)
    return not (value.is_meta or any(map(keys.has, _WRAPPER_KEYS)))


def _on(stream: Any, tensor: Tensor) -> ContextManager[Any]:
    """Makes a stream's handle, or an object with __cuda_stream__, torch's current stream."""
    if stream is None or not tensor.is_cuda:
        return contextlib.nullcontext()
    handle = stream if isinstance(stream, int) else stream.__cuda_stream__()[1]
    return torch.cuda.stream(torch.cuda.ExternalStream(handle, device=tensor.device))


def _dispatch(operator: _Operator, values: Tuple[Any, ...]) -> None:
    """Calls the operator through torch's dispatcher."""
    arguments, options = operator.split(values)
    stream = options.pop("stream", None)
    if _is_compiling():
        if stream is not None:
            raise ValueError("stream: is given, but compiled code runs on torch's current stream")
        operator.overload(*arguments, **options)
        return
    tensors = operator.tensors(arguments, options)
    require_dense(tensors)
    # The dispatcher does this, but not beside optional tensors that are written.
    resolved = {id(one): one.resolve_neg() for one in tensors.values()
                if type(one) in _PLAIN and one.is_neg()}
    arguments = tuple(resolved.get(id(one), one) for one in arguments)
    options = {name: resolved.get(id(one), one) for name, one in options.items()}
    try:
        with _on(stream, next(iter(tensors.values()))):
            operator.overload(*arguments, **options)
    except Exception as error:
        raise _names.for_caller(error) from None
    for name, one in tensors.items():
        if id(one) in resolved and name in operator.written:
            one.copy_(resolved[id(one)])


def _call(operator: _Operator, values: Tuple[Any, ...]) -> None:
    """Calls the core or the dispatcher with the arguments of the core."""
    if (
        _is_compiling() or _dispatch_modes() or _is_tracing() or forward_ad._current_level >= 0
        or _has_torch_function(*values) or any(map(_is_special, values))
    ):
        _dispatch(operator, values)
        return
    if _is_grad_enabled() and _any_requires_grad(*values):
        _depend(operator, operator.tensors(*operator.split(values)))
    try:
        operator.core(*values)
    except Exception as error:
        _call_again(operator, error, values)
    else:
        _increment_version(operator.written_of(values))


def _call_again(operator: _Operator, error: Exception, values: Tuple[Any, ...]) -> None:
    """After an error of the core: again if a tensor may be negated or has no memory.

    Raises:
      Exception: the error, in the words of the function that the caller called.
    """
    if isinstance(error, _core.MayBeNegated):
        _call(operator, values)  # asks each tensor
        return
    if all(map(_is_ordinary, values)):
        raise _names.for_caller(error) from None
    _dispatch(operator, values)


def run(
    op: int, x: Tensor, out: Optional[Tensor], weight: Tensor, bias: Optional[Tensor] = None,
    state: Optional[Tensor] = None, read_slots: Optional[Tensor] = None,
    query_start_loc: Optional[Tensor] = None, has_initial_state: Optional[Tensor] = None,
    initial_state: Optional[bool] = False, activation: Optional[str] = None,
    null_slot: Optional[int] = None, padded_rows: Optional[str] = None, *pairs: Any, **rare: Any,
) -> Tensor:
    """One call with the arguments of _core.forward: op and layouts first, rare ones by name.

    For shortconv.compat: without keywords, defaults and views a call takes half the time.

    Args:
      out: None: like x.
      pairs: names and values of rare arguments, as _core.named returns them.

    Returns:
      out.
    """
    fresh = out is None
    if out is None:
        out = _empty_like(x)
    if rare:
        pairs = (*pairs, *_core.named(**rare))
    # _call, faster: this is in every call. The core finds tensors that may be negated lazily, but
    # for those of torch._neg_view; asking each takes 0.1 us.
    if (
        _is_compiling() or _dispatch_modes() or _is_tracing() or forward_ad._current_level >= 0
        or type(x) is not Tensor or type(out) is not Tensor or type(weight) not in _PLAIN
        or type(bias) not in _PLAIN or type(state) not in _PLAIN or x.is_neg()
        or (pairs and not _ORDINARY_TYPES.issuperset(map(type, pairs)))
        or ((records := _is_grad_enabled()) and (
            _any_requires_grad(x, out, weight, bias, state)
            or (pairs and _any_requires_grad(*pairs))))
    ):
        _call(_RUN, (op, x, out, weight, bias, state, read_slots, query_start_loc,
                     has_initial_state, initial_state, activation, null_slot, padded_rows, *pairs))
        return out
    # Frequent values are added to the op, which saves 0.2 us.
    op_and_values = op | _CHECK_NEGATION
    is_frequent = (
        not pairs and (activation is None or activation == "silu")
        and (initial_state is False or initial_state is True)
        and (padded_rows is None or padded_rows == "untouched"))
    if is_frequent:
        if activation is not None:
            op_and_values |= _SILU
        if initial_state:
            op_and_values |= _INITIAL_STATE
        if padded_rows is not None:
            op_and_values |= _UNTOUCHED
    try:
        if not is_frequent:
            _core_forward(op_and_values, x, out, weight, bias, state, read_slots, query_start_loc,
                          has_initial_state, initial_state, activation, null_slot, padded_rows,
                          *pairs)
        elif null_slot is None:
            _core_forward(op_and_values, x, out, weight, bias, state, read_slots, query_start_loc,
                          has_initial_state)
        else:
            _core_forward(op_and_values, x, out, weight, bias, state, read_slots, query_start_loc,
                          has_initial_state, None, None, null_slot)
    except Exception as error:
        _call_again(_RUN, error, (
            op, x, out, weight, bias, state, read_slots, query_start_loc, has_initial_state,
            initial_state, activation, null_slot, padded_rows, *pairs))
        return out
    if not records and _is_inference():  # autograd has saved nothing that could change
        return out
    if state is not None:
        _increment_version((state,) if fresh else (out, state))
    elif not fresh:
        _increment_version((out,))
    if pairs and not _RUN.written.isdisjoint(pairs[::2]):
        _increment_version(_written_by(pairs))
    return out


def _written_by(pairs: Tuple[Any, ...]) -> List[Tensor]:
    return [value for name, value in zip(pairs[::2], pairs[1::2])
            if name in _RUN.written and isinstance(value, Tensor)]


def backward(*values: Any) -> None:
    _call(_OPERATORS["backward"], values)


def commit(*values: Any) -> None:
    _call(_OPERATORS["commit"], values)


def block_snapshots(*values: Any) -> None:
    _call(_OPERATORS["block_snapshots"], values)


def tree_parents(*values: Any) -> None:
    _call(_OPERATORS["tree_parents"], values)


def refuse_gradient(out: Tensor, *inputs: Optional[Tensor]) -> Tensor:
    """Makes out depend on inputs, so that its backward pass raises instead of ignoring them.

    Returns:
      out.
    """
    needed = [one for one in inputs if one is not None and one.requires_grad]
    if needed and torch.is_grad_enabled():
        torch.ops.shortconv.depend(out, needed)
    return out


# Looked up by compiled code, which cannot import this module, nor write to dictionaries in a
# backward pass.
for _type in (Tensor, torch.nn.Parameter):
    _core.calls_of[_type] = sys.modules[__name__]
    kinds[_type]  # noqa: B018

# These are calls with torch tensors, too; the files take the names above.
from shortconv._torch_gradients import new_gradients  # noqa: E402, F401
from shortconv._torch_groups import (  # noqa: E402, F401
    backward_groups,
    delta_gates,
    empty,
    forward_groups,
    is_compiling,
    l2_norm,
    new_groups,
)
