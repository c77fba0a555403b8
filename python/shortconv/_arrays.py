"""What is asked of the library an array comes from: an array like it, and its current stream.

No library is imported here; an array's own is loaded already.
"""

import sys
from typing import Any, Callable, NamedTuple, Optional


class Kind(NamedTuple):
    """How to make outputs for arrays of one type, and how to find their stream."""

    empty_like: Callable[[Any], Any]
    # None where the core finds the stream itself: on the CPU, and for torch through DLPack's
    # exchange interface.
    current_stream: Optional[Callable[[Any], Any]]


def _cannot_allocate(array: Any) -> Any:
    name = f"{type(array).__module__}.{type(array).__qualname__}"
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"x: is {name}; expected an array that DLPack can share")
    raise TypeError(f"out: cannot make an array like {name}; pass out=")


def _cannot_write(array: Any) -> Any:
    raise TypeError("x: is a JAX array, which must not be written to, as outputs and states are; "
                    "pass torch, CuPy or numpy arrays (jax.dlpack shares memory with them)")


def _stream_needed(array: Any) -> None:
    device_type, _ = array.__dlpack_device__()
    if device_type not in (1, 3):  # the CPU's memory, pinned or not
        raise ValueError("stream: is None, but the current stream of "
                         f"{type(array).__module__} arrays is not known; pass stream=")


def _cupy_stream(array: Any) -> int:
    return sys.modules["cupy"].cuda.get_current_stream().ptr


class _Kinds(dict):
    """Kinds by type, found out at first use."""

    def __missing__(self, array_type: type) -> Kind:
        kind = _kind_of(array_type)
        self[array_type] = kind
        return kind


def _kind_of(array_type: type) -> Kind:
    for base in array_type.__mro__:
        library = base.__module__.partition(".")[0]
        if library in ("torch", "numpy"):
            return Kind(sys.modules[library].empty_like, None)
        if library == "cupy":
            return Kind(sys.modules["cupy"].empty_like, _cupy_stream)
        if library in ("jax", "jaxlib"):
            return Kind(_cannot_write, _cannot_write)
    return Kind(_cannot_allocate, _stream_needed if hasattr(array_type, "__dlpack__") else None)


kinds = _Kinds()
