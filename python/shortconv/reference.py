"""The operators in double precision, one element after the other: what the others are measured by.

Takes the arguments of shortconv.forward, decode, verify and commit, on arrays of the CPU, f64 among
their types. The specification in executable form (src/reference); slow.
"""

from typing import Any

from shortconv import _operators

Array = Any


def forward(x: Array, weight: Array, bias: Array = None, **arguments: Any) -> Array:
    """shortconv.forward on the reference backend."""
    return _operators.forward(x, weight, bias, backend="reference", **arguments)


def decode(x: Array, weight: Array, bias: Array = None, **arguments: Any) -> Array:
    """shortconv.decode on the reference backend."""
    return _operators.decode(x, weight, bias, backend="reference", **arguments)


def verify(x: Array, weight: Array, bias: Array = None, **arguments: Any) -> Array:
    """shortconv.verify on the reference backend."""
    return _operators.verify(x, weight, bias, backend="reference", **arguments)


def commit(windows: Array, state: Array, accepted: Array, **arguments: Any) -> Array:
    """shortconv.commit on the reference backend."""
    return _operators.commit(windows, state, accepted, backend="reference", **arguments)
