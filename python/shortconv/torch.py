"""The operators on torch tensors, also for torch.compile. The only file that imports torch.

The functions, their arguments, results and errors are those of shortconv. Eager calls go straight
to the core. Under torch.compile they become torch operators (shortconv::run, shortconv::commit and
so on), which declare what they write (out, state, intermediate_states, violations). Therefore
fullgraph=True and CUDA graphs work.

There are no gradients yet. If inputs require gradients, the backward pass of the output raises
NotImplementedError. Compiled calls take no stream: they run on torch's current stream.

Source: https://docs.pytorch.org/docs/stable/library.html for Library.define and Library.impl.
"""

import functools
import inspect
import json
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from shortconv import _core, _names, _operators

_is_compiling = torch.compiler.is_compiling

_library = torch.library.Library("shortconv", "DEF")


def _schema() -> str:
    """Schema of shortconv::run: the arguments of _core.forward except the stream."""
    aliases = iter("abcdefgh")  # one for each written tensor
    accepted = {name for operator in (_operators.forward, _operators.decode, _operators.verify)
                for name in inspect.signature(operator).parameters}
    tensors = {
        argument["name"]: f"Tensor({next(aliases)}!)" if argument["written"] else "Tensor"
        for argument in json.loads(_core.arguments()) if argument["name"] in accepted}
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


_library.define(_schema())
_library.define(
    "commit(Tensor intermediate_states, Tensor(a!) state, Tensor accepted, *, int width,"
    " int? rows_per_token=None, Tensor? slots=None, Tensor? second_slots=None,"
    " Tensor? query_start_loc=None, int base_column=0, int? null_slot=None, str? backend=None,"
    " int threads=0) -> ()")
_library.define(
    "block_snapshots(Tensor query_start_loc, Tensor num_computed_tokens, Tensor block_slots, *,"
    " int tokens, int block_size, Tensor(a!) snapshots, str? backend=None) -> ()")
_library.define(
    "tree_parents(Tensor first_child, Tensor next_sibling, Tensor(a!) parents, *,"
    " Tensor? query_start_loc=None, str? backend=None) -> ()")


def _run(*arguments: Any, programmatic_launch: bool = True, **rare: Any) -> None:
    _core.forward(*_padded(arguments), "programmatic_launch", programmatic_launch,
                  *_core.named(**rare))


def _padded(arguments: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """The 13 positional arguments of _core.forward, with None for those that are missing."""
    return arguments + (None,) * (13 - len(arguments))


def _without_result(eager: Callable[..., Tensor]) -> Callable[..., None]:
    def call(*arguments: Any, **options: Any) -> None:
        eager(*arguments, **options)

    return call


def _nothing(*arguments: Any, **options: Any) -> None:
    """Meta kernel: the operators return nothing."""


_library.impl("run", _run, "CompositeExplicitAutograd")
_library.impl("run", _nothing, "Meta")
for _eager in (_operators.commit, _operators.block_snapshots, _operators.tree_parents):
    _library.impl(_eager.__name__, _without_result(_eager), "CompositeExplicitAutograd")
    _library.impl(_eager.__name__, _nothing, "Meta")


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Optional[Tensor]) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(
            "shortconv: has no backward pass yet; call it under torch.no_grad(), or use another "
            "implementation for training")


def refuse_gradient(out: Tensor, *inputs: Optional[Tensor]) -> Tensor:
    """Makes out depend on inputs, so that its backward pass raises instead of ignoring them."""
    if any(one is not None and one.requires_grad for one in inputs):
        return _WithoutGradient.apply(out, *inputs)
    return out


def _without_stream(stream: Any = None, **arguments: Any) -> Dict[str, Any]:
    if stream is not None:
        raise ValueError("stream: is given, but compiled code runs on torch's current stream")
    return arguments


def _for_torch(op: int, eager: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compiled(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *,
                 out: Optional[Tensor] = None, **options: Any) -> Tensor:
        out = torch.empty_like(x) if out is None else out
        torch.ops.shortconv.run(op, x, out, weight, bias, **_without_stream(**options))
        return out

    @functools.wraps(eager)
    def call(*arguments: Any, **options: Any) -> Tensor:
        if _is_compiling():
            return compiled(*arguments, **options)
        out = eager(*arguments, **options)
        if not torch.is_grad_enabled():
            return out
        named = (options.get(name) for name in ("x", "weight", "bias"))
        return refuse_gradient(out, *arguments, *named)

    return call


forward = _for_torch(_core.FORWARD, _operators.forward)
decode = _for_torch(_core.DECODE, _operators.decode)
verify = _for_torch(_core.VERIFY, _operators.verify)


def run(*arguments: Any, **rare: Any) -> Tensor:
    """One call with the arguments of _core.forward: op and layouts first, rare ones by name.

    For shortconv.compat: without keywords, defaults and views a call takes half the time. At least
    the first six arguments are passed. Messages are in the words of the caller.

    Returns:
      out.
    """
    if _is_compiling():
        torch.ops.shortconv.run(*arguments, **rare)
        return arguments[2]
    try:
        if rare:
            _core.forward(*_padded(arguments), *_core.named(**rare))
        else:
            _core.forward(*arguments)
    except Exception as error:
        raise _names.for_caller(error) from None
    if torch.is_grad_enabled():
        _, x, out, weight, bias, state = arguments[:6]
        return refuse_gradient(out, x, weight, bias, state)
    return arguments[2]


def _in_place(eager: Callable[..., Tensor], written: str) -> Callable[..., Tensor]:
    """The function `eager`, also for torch.compile; it returns its argument `written`."""
    position = list(inspect.signature(eager).parameters).index(written)
    operator = getattr(torch.ops.shortconv, eager.__name__)

    @functools.wraps(eager)
    def call(*arguments: Any, **options: Any) -> Tensor:
        if not _is_compiling():
            try:
                return eager(*arguments, **options)
            except Exception as error:
                raise _names.for_caller(error) from None
        operator(*arguments, **_without_stream(**options))
        return options[written] if written in options else arguments[position]

    return call


commit = _in_place(_operators.commit, "state")
block_snapshots = _in_place(_operators.block_snapshots, "snapshots")
tree_parents = _in_place(_operators.tree_parents, "parents")
