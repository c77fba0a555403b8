"""The gradients of a forward call; see _operators for what all operators share.

Source: docs/specification.md of the shortconv repository.
"""

from typing import Any, NamedTuple, Optional, Tuple, Union

from shortconv import _core
from shortconv._arrays import call_again, empty_bytes, kinds, new_like
from shortconv._core import calls_of
from shortconv._operators import Array


class Gradients(NamedTuple):
    """Gradients of the inputs of a forward call; None for those that were not computed."""

    x: Any
    weight: Any
    bias: Any
    initial_state: Any
    input_gate: Any
    output_gate: Any


def backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    initial_state: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    seq_idx: Optional[Array] = None,
    input_gate: Optional[Array] = None,
    output_gate: Optional[Array] = None,
    residual: bool = False,
    dilation: int = 1,
    activation: Optional[str] = None,
    grad_final_state: Optional[Array] = None,
    grad_x: Union[Array, bool] = True,
    grad_weight: Union[Array, bool] = True,
    grad_bias: Union[Array, bool] = True,
    grad_initial_state: Union[Array, bool] = True,
    grad_input_gate: Union[Array, bool] = True,
    grad_output_gate: Union[Array, bool] = True,
    accumulate: bool = False,
    workspace: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    stream: Any = None,
) -> Gradients:
    """Computes the gradients of a forward call, from those of its results.

    The states of that call are functional: the initial state goes in, a final state comes out, and
    nothing is updated in place.

    Args:
      grad_out: shape of x, any floating dtype; the gradient of the result.
      x, weight, bias, query_start_loc, seq_idx, input_gate, output_gate, residual, dilation,
        activation: as in the forward call.
      initial_state: [sequences, (width - 1) * dilation, channels], any floating dtype: the inputs
        before each sequence, newest last. None: zeros. With seq_idx those before each row of the
        batch.
      grad_final_state: [sequences, (width - 1) * dilation, channels], any floating dtype; None:
        zeros. Cannot be combined with seq_idx, which has no final states.
      grad_x, grad_input_gate, grad_output_gate: shape and dtype of x; written. Here and below, True
        stands for a new array, if the input is given, and False for a gradient that is not needed.
      grad_weight, grad_bias: shape of weight and bias, dtype of weight or f32; written.
      grad_initial_state: shape of initial_state, its dtype or f32; written.
      accumulate: add to grad_weight and grad_bias, which are arrays of f32 then.
      workspace: contiguous array of uint8 on the device of x, aligned to 16 bytes, for what the
        call keeps meanwhile. None: allocated, if the call needs it.
      backend, threads, stream: as in forward.

    Returns:
      Gradients: a tuple (x, weight, bias, initial_state, input_gate, output_gate).

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the arguments contradict each other or the specification.
      NotImplementedError: the backend does not support the dtypes or sizes.
      RuntimeError: the backend or its device is not available.
    """
    calls = calls_of[type(x)]
    if calls is None:
        calls = _core
        _, current_stream = kinds[type(x)]
        if stream is None and current_stream is not None:
            stream = current_stream(x)
    require_sums(accumulate, grad_weight, grad_bias, bias)
    grad_x = result("grad_x", grad_x, x)
    grad_weight = result("grad_weight", grad_weight, weight)
    grad_bias = result("grad_bias", grad_bias, bias)
    grad_initial_state = result("grad_initial_state", grad_initial_state, initial_state)
    grad_input_gate = result("grad_input_gate", grad_input_gate, input_gate)
    grad_output_gate = result("grad_output_gate", grad_output_gate, output_gate)
    values: Tuple[Any, ...] = (
        grad_out, x, weight, bias, grad_x, grad_weight, grad_bias, activation, *_core.named(
            initial_state=initial_state, query_start_loc=query_start_loc, seq_idx=seq_idx,
            input_gate=input_gate, output_gate=output_gate, residual=residual,
            grad_final_state=grad_final_state, grad_initial_state=grad_initial_state,
            grad_input_gate=grad_input_gate, grad_output_gate=grad_output_gate,
            accumulate=accumulate, workspace=workspace, backend=backend, threads=threads,
            stream=stream))
    if dilation != 1:
        values += "dilation", dilation
    try:
        needed = calls.backward(*values)
        if needed:
            calls.backward(*values, "workspace", empty_bytes(x, needed))
    except BufferError:
        call_again(backward, locals(), "gradients")
    return Gradients(grad_x, grad_weight, grad_bias, grad_initial_state, grad_input_gate,
                     grad_output_gate)


def require_sums(accumulate: bool, grad_weight: Any, grad_bias: Any, bias: Any) -> None:
    """Refuses new arrays for gradients that are added to."""
    if accumulate is True and (grad_weight is True or (grad_bias is True and bias is not None)):
        name = "grad_weight" if grad_weight is True else "grad_bias"
        raise ValueError(f"{name}: is not given, but accumulate adds to it; pass an array of f32, "
                         "or False")


def result(name: str, given: Any, source: Any) -> Any:
    """The array that receives a gradient. What is no array is left to the core, which refuses."""
    if given is not True:
        return None if given is False else given
    # Of torch first: compilers cannot trace the question for __dlpack__.
    is_array = calls_of[type(source)] is not None or hasattr(source, "__dlpack__")
    return new_like(name, source) if is_array else None
