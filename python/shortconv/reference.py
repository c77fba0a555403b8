"""The operators in double precision, element by element: the reference for all other backends.

Arguments, results and errors are those of shortconv.forward, decode, verify, commit and backward.
Arrays are on the CPU; f64 is supported as well. Slow.

Source: src/reference, the executable form of docs/specification.md.
"""

from typing import Any, Optional

from shortconv import _backward, _operators
from shortconv._operators import A, Array


def forward(x: A, weight: Array, bias: Optional[Array] = None, **arguments: Any) -> A:
    """shortconv.forward with backend="reference"."""
    return _operators.forward(x, weight, bias, backend="reference", **arguments)


def decode(x: A, weight: Array, bias: Optional[Array] = None, **arguments: Any) -> A:
    """shortconv.decode with backend="reference"."""
    return _operators.decode(x, weight, bias, backend="reference", **arguments)


def verify(x: A, weight: Array, bias: Optional[Array] = None, **arguments: Any) -> A:
    """shortconv.verify with backend="reference"."""
    return _operators.verify(x, weight, bias, backend="reference", **arguments)


def commit(intermediate_states: Array, state: A, accepted: Array, **arguments: Any) -> A:
    """shortconv.commit with backend="reference"."""
    return _operators.commit(intermediate_states, state, accepted, backend="reference", **arguments)


def backward(grad_out: Array, x: Array, weight: Array, bias: Optional[Array] = None,
             **arguments: Any) -> _backward.Gradients:
    """shortconv.backward with backend="reference"."""
    return _backward.backward(grad_out, x, weight, bias, backend="reference", **arguments)
