"""The operators for torch, inside torch.compile too; the only file that imports torch.

The functions are those of shortconv, on tensors. Eager calls go straight to the core. While torch
compiles, they become the torch operators shortconv::run and shortconv::commit, which declare what
they write (out, state, windows, violations), so that fullgraph=True and CUDA graphs work.

There are no gradients yet: an output of inputs that require them raises when one is asked for.

Source: https://docs.pytorch.org/docs/stable/library.html for Library.define and Library.impl.
"""

import functools
from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor

from shortconv import _operators

_library = torch.library.Library("shortconv", "DEF")
_library.define(
    "run(int op, Tensor x, Tensor(a!) out, Tensor weight, Tensor? bias, *, Tensor(b!)? state=None,"
    " Tensor? read_slots=None, Tensor? write_slots=None, Tensor? read_offsets=None,"
    " int state_base=0, int? null_slot=None, Tensor? ring_positions=None, Tensor? snapshots=None,"
    " Tensor? query_start_loc=None, Tensor? has_initial_state=None, bool? initial_state=None,"
    " Tensor? parents=None, Tensor(c!)? windows=None, bool? advance_state=None,"
    " str? activation=None, str? padded_rows=None, str? backend=None,"
    " Tensor(d!)? violations=None, int threads=0, bool programmatic_launch=False) -> ()")
_library.define(
    "commit(Tensor windows, Tensor(a!) state, Tensor accepted, *, int width, int? token_rows=None,"
    " Tensor? slots=None, Tensor? second_slots=None, Tensor? query_start_loc=None,"
    " int state_base=0, int? null_slot=None, str? backend=None, int threads=0) -> ()")

_EAGER = {
    "forward": _operators.forward, "decode": _operators.decode, "verify": _operators.verify}
_OPS = list(_EAGER)


def _run(op: int, x: Tensor, out: Tensor, weight: Tensor, bias: Optional[Tensor],
         **arguments: Any) -> None:
    # None means the same in all three, and not every one of them takes every argument.
    given = {name: value for name, value in arguments.items() if value is not None}
    _EAGER[_OPS[op]](x, weight, bias, out=out, **given)


def _commit(windows: Tensor, state: Tensor, accepted: Tensor, **arguments: Any) -> None:
    _operators.commit(windows, state, accepted, **arguments)


def _nothing(*arguments: Any, **options: Any) -> None:
    """What the operators give back, as far as shapes go."""


for _name, _function in (("run", _run), ("commit", _commit)):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    _library.impl(_name, _nothing, "Meta")


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
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in inputs):
        return _WithoutGradient.apply(out, *inputs)
    return out


def _without_stream(stream: Any = None, **arguments: Any) -> Dict[str, Any]:
    if stream is not None:
        raise ValueError("stream: is given, but compiled code runs on torch's current stream")
    return arguments


def _for_torch(name: str) -> Callable[..., Tensor]:
    eager, op = _EAGER[name], _OPS.index(name)

    @functools.wraps(eager)
    def call(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *,
             out: Optional[Tensor] = None, **arguments: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            out = eager(x, weight, bias, out=out, **arguments)
            return refuse_gradient(out, x, weight, bias)
        out = torch.empty_like(x) if out is None else out
        torch.ops.shortconv.run(op, x, out, weight, bias, **_without_stream(**arguments))
        return out

    return call


forward = _for_torch("forward")
decode = _for_torch("decode")
verify = _for_torch("verify")


@functools.wraps(_operators.commit)
def commit(windows: Tensor, state: Tensor, accepted: Tensor, **arguments: Any) -> Tensor:
    if not torch.compiler.is_compiling():
        return _operators.commit(windows, state, accepted, **arguments)
    torch.ops.shortconv.commit(windows, state, accepted, **_without_stream(**arguments))
    return state
