"""The operators for torch, inside torch.compile too; the only file that imports torch.

The functions are those of shortconv, on tensors. Eager calls go straight to the core. While torch
compiles, they become the torch operators shortconv::run and shortconv::commit, which declare what
they write (out, state, windows, violations), so that fullgraph=True and CUDA graphs work.

There are no gradients yet: an output of inputs that require them raises when one is asked for.

Source: https://docs.pytorch.org/docs/stable/library.html for Library.define and Library.impl.
"""

import functools
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from shortconv import _core, _operators

_library = torch.library.Library("shortconv", "DEF")
_library.define(
    "run(int op, Tensor x, Tensor(a!) out, Tensor weight, Tensor? bias, Tensor(b!)? state,"
    " Tensor? read_slots, Tensor? write_slots, Tensor? read_offsets, int state_base,"
    " int? null_slot, Tensor? query_start_loc, Tensor? has_initial_state, bool initial_state, Tensor? parents,"
    " Tensor(c!)? windows, bool advance_state, str? activation, str? padded_rows, str? backend,"
    " Tensor(d!)? violations, int threads, bool programmatic_launch) -> ()")
_library.define(
    "commit(Tensor windows, Tensor(a!) state, Tensor accepted, Tensor? slots, Tensor? second_slots,"
    " Tensor? query_start_loc, int width, int token_rows, int state_base, int? null_slot,"
    " str? backend, int threads) -> ()")


def _run(*arguments: Any) -> None:
    _core.forward(*arguments, None)


def _commit(*arguments: Any) -> None:
    _core.commit(*arguments, None)


def _nothing(*arguments: Any) -> None:
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


def _traced(
    op: int,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    *,
    out: Optional[Tensor] = None,
    state: Optional[Tensor] = None,
    read_slots: Optional[Tensor] = None,
    write_slots: Optional[Tensor] = None,
    read_offsets: Optional[Tensor] = None,
    state_base: int = 0,
    null_slot: Optional[int] = None,
    query_start_loc: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    initial_state: bool = False,
    parents: Optional[Tensor] = None,
    windows: Optional[Tensor] = None,
    advance_state: bool = False,
    activation: Optional[str] = None,
    padded_rows: Optional[str] = None,
    backend: Optional[str] = None,
    violations: Optional[Tensor] = None,
    threads: int = 0,
    programmatic_launch: bool = False,
    stream: Any = None,
) -> Tensor:
    """A call as torch.compile sees it."""
    if stream is not None:
        raise ValueError("stream: is given, but compiled code runs on torch's current stream")
    out = torch.empty_like(x) if out is None else out
    torch.ops.shortconv.run(
        op, x, out, weight, bias, state, read_slots, write_slots, read_offsets, state_base,
        null_slot, query_start_loc, has_initial_state, initial_state, parents, windows,
        advance_state, activation, padded_rows, backend, violations, threads, programmatic_launch)
    return out


def _for_torch(eager: Callable[..., Tensor], op: int) -> Callable[..., Tensor]:
    @functools.wraps(eager)
    def call(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, **arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return _traced(op, x, weight, bias, **arguments)
        return refuse_gradient(eager(x, weight, bias, **arguments), x, weight, bias)

    return call


forward = _for_torch(_operators.forward, _operators.FORWARD)
decode = _for_torch(_operators.decode, _operators.DECODE)
verify = _for_torch(_operators.verify, _operators.VERIFY)


@functools.wraps(_operators.commit)
def commit(
    windows: Tensor,
    state: Tensor,
    accepted: Tensor,
    *,
    width: int,
    token_rows: Optional[int] = None,
    slots: Optional[Tensor] = None,
    second_slots: Optional[Tensor] = None,
    query_start_loc: Optional[Tensor] = None,
    state_base: int = 0,
    null_slot: Optional[int] = None,
    **options: Any,
) -> Tensor:
    if not torch.compiler.is_compiling():
        return _operators.commit(
            windows, state, accepted, width=width, token_rows=token_rows, slots=slots,
            second_slots=second_slots, query_start_loc=query_start_loc, state_base=state_base,
            null_slot=null_slot, **options)
    torch.ops.shortconv.commit(
        windows, state, accepted, slots, second_slots, query_start_loc, width,
        width - 1 if token_rows is None else token_rows, state_base, null_slot,
        options.get("backend"), options.get("threads", 0))
    return state
