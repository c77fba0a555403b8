"""The operators for torch, inside torch.compile too; the only file that imports torch.

The functions are those of shortconv, on tensors. Eager calls go straight to the core. While torch
compiles, they become the torch operators shortconv::run and shortconv::commit, which declare what
they write (out, state, windows, violations), so that fullgraph=True and CUDA graphs work.

There are no gradients yet: an output of inputs that require them raises when one is asked for.

Source: https://docs.pytorch.org/docs/stable/library.html for Library.define and Library.impl.
"""

import functools
import inspect
from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor

from shortconv import _core, _operators

_is_compiling = torch.compiler.is_compiling

_library = torch.library.Library("shortconv", "DEF")
# The arguments of _core.forward in their order, but for the stream.
_library.define(
    "run(int op, Tensor x, Tensor(a!) out, Tensor weight, Tensor? bias=None,"
    " Tensor(b!)? state=None, Tensor? read_slots=None, Tensor? query_start_loc=None,"
    " Tensor? has_initial_state=None, bool initial_state=False, str? activation=None,"
    " int? null_slot=None, str? padded_rows=None, Tensor? ring_positions=None,"
    " Tensor? write_slots=None, int state_base=0, bool residual=False, bool keeps_older=False,"
    " Tensor? read_offsets=None, Tensor? snapshots=None, Tensor? parents=None,"
    " Tensor(c!)? windows=None, Tensor? window_slots=None, bool advance_state=False,"
    " Tensor? seq_idx=None, Tensor? input_gate=None, Tensor? output_gate=None, int dilation=1,"
    " str? backend=None,"
    " Tensor(d!)? violations=None, int threads=0, bool programmatic_launch=True) -> ()")
_library.define(
    "commit(Tensor windows, Tensor(a!) state, Tensor accepted, *, int width, int? token_rows=None,"
    " Tensor? slots=None, Tensor? second_slots=None, Tensor? query_start_loc=None,"
    " int state_base=0, int? null_slot=None, str? backend=None, int threads=0) -> ()")
_library.define(
    "block_snapshots(Tensor query_start_loc, Tensor computed_tokens, Tensor block_slots, *,"
    " int tokens, int block_tokens, Tensor(a!) snapshots, str? backend=None) -> ()")
_library.define(
    "tree_parents(Tensor first_child, Tensor next_sibling, Tensor(a!) parents, *,"
    " Tensor? query_start_loc=None, str? backend=None) -> ()")


def _run(*arguments: Any) -> None:
    _core.forward(*arguments)


def _without_result(eager: Callable[..., Tensor]) -> Callable[..., None]:
    def call(*arguments: Any, **options: Any) -> None:
        eager(*arguments, **options)

    return call


def _nothing(*arguments: Any, **options: Any) -> None:
    """What the operators give back, as far as shapes go."""


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
    """out as a function of inputs: a gradient that is asked for raises instead of missing them."""
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


def run(*arguments: Any) -> Tensor:
    """A call by position, op and layouts first, as _core.forward takes it; returns out.

    For shortconv.compat: without keywords, defaults and views it takes half the time.
    """
    if _is_compiling():
        torch.ops.shortconv.run(*arguments)
        return arguments[2]
    _core.forward(*arguments)
    if torch.is_grad_enabled():
        _, x, out, weight, bias = arguments[:5]
        return refuse_gradient(out, x, weight, bias)
    return arguments[2]


def _in_place(eager: Callable[..., Tensor], written: str) -> Callable[..., Tensor]:
    """A function that returns its argument `written`."""
    position = list(inspect.signature(eager).parameters).index(written)
    operator = getattr(torch.ops.shortconv, eager.__name__)

    @functools.wraps(eager)
    def call(*arguments: Any, **options: Any) -> Tensor:
        if not _is_compiling():
            return eager(*arguments, **options)
        operator(*arguments, **_without_stream(**options))
        return options[written] if written in options else arguments[position]

    return call


commit = _in_place(_operators.commit, "state")
block_snapshots = _in_place(_operators.block_snapshots, "snapshots")
tree_parents = _in_place(_operators.tree_parents, "parents")
