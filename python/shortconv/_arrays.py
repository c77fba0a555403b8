"""Functions of the libraries that arrays come from: empty_like and the current stream.

No library is imported here; the library of an array is loaded already.
"""

import sys
from typing import Any, Callable, Optional, Tuple

# (empty_like, current_stream) of an array type. current_stream is None where the core finds the
# stream itself: on the CPU, and for torch through DLPack's exchange interface. A plain tuple,
# because a NamedTuple takes 40 ns longer to unpack, in every call.
Kind = Tuple[Callable[[Any], Any], Optional[Callable[[Any], Any]]]


def _cannot_allocate(array: Any) -> Any:
    name = f"{type(array).__module__}.{type(array).__qualname__}"
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"x: is {name}; expected an array with DLPack")
    raise TypeError(f"out: cannot make an array like {name}; pass out=")


def _cannot_write(array: Any) -> Any:
    raise TypeError("x: is a JAX array, which is immutable, but outputs and states are written in "
                    "place; pass torch, CuPy or numpy arrays (jax.dlpack shares memory with them)")


def _stream_needed(array: Any) -> None:
    device_type, _ = array.__dlpack_device__()
    if device_type not in (1, 3):  # host memory, pageable or pinned
        raise ValueError("stream: is None, but the current stream of "
                         f"{type(array).__module__} arrays is not known; pass stream=")


def _cupy_stream(array: Any) -> int:
    return sys.modules["cupy"].cuda.get_current_stream().ptr


class _Kinds(dict):
    """Kind of each array type, determined at first use."""

    def __missing__(self, array_type: type) -> Kind:
        kind = _kind_of(array_type)
        self[array_type] = kind
        return kind


def _kind_of(array_type: type) -> Kind:
    for base in array_type.__mro__:
        library = base.__module__.partition(".")[0]
        if library in ("torch", "numpy"):
            return sys.modules[library].empty_like, None
        if library == "cupy":
            return sys.modules["cupy"].empty_like, _cupy_stream
        if library in ("jax", "jaxlib"):
            return _cannot_write, _cannot_write
    return _cannot_allocate, (_stream_needed if hasattr(array_type, "__dlpack__") else None)


kinds = _Kinds()
