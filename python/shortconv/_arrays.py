"""Functions of the libraries that arrays come from: empty_like and the current stream, and what
numpy does not pass through DLPack: read-only arrays and ml_dtypes.bfloat16.

No library is imported here; the library of an array is loaded already.
"""

import ctypes
import functools
import json
import sys
from typing import Any, Callable, Dict, FrozenSet, Optional, Tuple

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


def new_like(name: str, array: Any) -> Any:
    """An array like `array` for the argument `name`.

    Raises:
      TypeError: its library is not known.
    """
    make, _ = kinds[type(array)]
    if make is _cannot_allocate:
        raise TypeError(f"{name}: cannot make an array like {type(array).__module__}."
                        f"{type(array).__qualname__}; pass {name}=")
    return make(array)


def empty_bytes(array: Any, count: int) -> Any:
    """`count` bytes on the device of `array`.

    Raises:
      TypeError: its library is not known.
    """
    for base in type(array).__mro__:
        library = base.__module__.partition(".")[0]
        if library == "torch":
            torch = sys.modules["torch"]
            return torch.empty(count, dtype=torch.uint8, device=array.device)
        if library in ("numpy", "cupy"):
            return sys.modules[library].empty(count, "uint8")
    raise TypeError(f"workspace: the call needs {count} bytes; pass workspace=")


def empty(array: Any, shape: Tuple[int, ...], dtype: Optional[str] = None) -> Any:
    """An array with the library and device of `array`, and its dtype unless one is named.

    Raises:
      TypeError: its library is not known.
    """
    for base in type(array).__mro__:
        library = base.__module__.partition(".")[0]
        if library == "torch":
            torch = sys.modules["torch"]
            return torch.empty(shape, dtype=getattr(torch, dtype) if dtype else array.dtype,
                               device=array.device)
        if library in ("numpy", "cupy"):
            return sys.modules[library].empty(shape, dtype or array.dtype)
    raise TypeError(f"out: cannot make an array like {type(array).__module__}."
                    f"{type(array).__qualname__}; pass all outputs")


_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))


class _BFloat16:
    """A numpy array of bits that DLPack shall present as bf16."""

    # Of the C struct DLTensor, https://dmlc.github.io/dlpack/latest/c_api.html: dtype.code is after
    # data, device (two int32) and ndim (int32).
    _CODE_OFFSET = 8 + 8 + 4
    _BFLOAT = 4  # kDLBfloat

    def __init__(self, bits: Any) -> None:
        self._bits = bits

    def __dlpack__(self) -> Any:
        capsule = self._bits.__dlpack__()
        tensor = _pointer_of(capsule, b"dltensor")
        ctypes.c_uint8.from_address(tensor + self._CODE_OFFSET).value = self._BFLOAT
        return capsule

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self._bits.__dlpack_device__()


class _WithoutReadOnlyFlag:
    """The memory of a numpy array, for numpy.asarray."""

    def __init__(self, array: Any) -> None:
        self._array = array  # keeps the memory alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def passable(name: str, array: Any, is_written: bool) -> Any:
    """An object with the memory of `array` that can be passed through DLPack."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, numpy.ndarray):
        is_bfloat16 = array.dtype.name == "bfloat16"  # of ml_dtypes
        if is_bfloat16:
            array = array.view(numpy.uint16)
        if not array.flags.writeable:
            if is_written:
                raise ValueError(f"{name}: is read-only, but it is written; pass a writable array")
            array = numpy.asarray(_WithoutReadOnlyFlag(array))
        if is_bfloat16:
            return _BFloat16(array)
        try:
            array.__dlpack__()
        except BufferError as error:
            raise ValueError(f"{name}: dtype {array.dtype} with strides {array.strides} (bytes) is "
                             f"not supported: {error}") from None
    return array


@functools.lru_cache(maxsize=None)
def _written_by_the_core(operation: str) -> FrozenSet[str]:
    from shortconv import _core

    rows = json.loads(_core.arguments(operation))
    return frozenset(one["name"] for one in rows if one["written"])


def _written(operator: str, arguments: Dict[str, Any], result: str) -> FrozenSet[str]:
    if operator == "backward":
        return _written_by_the_core(operator) | {"workspace"}
    if result != "out":
        return frozenset({result})
    keeps_state = arguments.get("seq_idx") is not None or (
        operator == "verify" and arguments["write_slots"] is None
        and not arguments["update_state"])
    written = _written_by_the_core("forward")
    return written - {"state"} if keeps_state else written


def call_again(operator: Callable[..., Any], arguments: Dict[str, Any], result: str) -> None:
    """Calls an operator with arrays that its library did not pass through DLPack.

    Args:
      operator: a function of _operators.
      arguments: its arguments by name, among other names.
      result: the argument that it returns; "gradients" of backward.

    Raises:
      ValueError: an array is read-only but written, or cannot be passed at all.
      BufferError: the one that is being handled, if no array is one of numpy's that can be helped.
    """
    code = operator.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    written = _written(operator.__name__, arguments, result)
    passed = {name: passable(name, arguments[name], name in written) for name in names}
    if all(passed[name] is arguments[name] for name in names):
        raise  # the BufferError
    operator(**passed)
